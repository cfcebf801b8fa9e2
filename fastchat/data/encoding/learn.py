"""What a chat template does, learned by rendering small dialogues with it: in which form it wants its messages, where
it shows reasoning, how its answers end.

A template is a program, so what it does is found by trying and not by reading its source. What is learned here is
verified again on every row (answers.py).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from fastchat.conversation import Dialogue, Turn
from fastchat.conversation.dialogue import ToolCall
from fastchat.data.encoding.messages import ABSENT, AS_PART, AS_PARTS, EMPTY_PART, IN_TEXT, PLAIN, MessageForm
from fastchat.data.encoding.stops import Ending, Tail, closings, ending_of, text_ending

# Renders a dialogue in a form; None if the template rejects it.
Try = Callable[[Dialogue, MessageForm, bool], "str | None"]
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought", "tool_plan")
_OWN_KEYS = (*REASONING_KEYS, AS_PART, AS_PARTS)
_TOOL_ROLES = ("tool", "ipython", "function", "observation", "tool_response")
# Texts that no template contains.
ASKED, SAID, THOUGHT, ASKED_NEXT, RESULT = "Qwazu asked", "Awixo said", "Tvomi thought", "Nqepa next", "Rlodu result"
_SYSTEM = "Syvqo system"
_CITY, _TOWN = "Cyvparis", "Cyvlondon"
_NAME, _CALL_ID = "zget_weather", "call_0123456789abcde"
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]|[◁][^◁▷]+▷")
_CLOSING = re.compile(r"</[\w:]*(?:think|thought|reason)[\w:]*>|\[/THINK\]|<\|END_THINKING\|>|◁/think▷", re.I)
WEATHER = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"zcity": {"type": "string", "description": "The city."}},
            "required": ["zcity"],
        },
    },
}


def _call(city: str, number: int) -> ToolCall:
    return ToolCall(_NAME, {"zcity": city}, f"{_CALL_ID}{number}")


def plain(thought: str | None = None, *more: Turn, **row: Any) -> Dialogue:
    """A question and its answer, and what follows."""
    return Dialogue((Turn("user", ASKED), Turn("assistant", SAID, reasoning=thought), *more), **row)


def calling(thought: str | None = None, *more: Turn, parallel: bool = False, **row: Any) -> Dialogue:
    """A question, a call (or two), and what follows."""
    calls = (_call(_CITY, 0), *([_call(_TOWN, 1)] if parallel else []))
    turns = (Turn("user", ASKED), Turn("assistant", "", reasoning=thought, calls=calls), *more)
    return Dialogue(turns, tools=(WEATHER,), **row)


ANSWERED = Turn("tool", RESULT, call_id=f"{_CALL_ID}0")
NEXT = Turn("user", ASKED_NEXT)
_QUESTION = Dialogue((Turn("user", ASKED),))


def conversations(reasons: dict[str, bool], calls: bool, **row: Any) -> Iterator[Dialogue]:
    """Dialogues with several answers, with reasoning of the kinds that can be learned."""
    thought = THOUGHT if reasons["plain"] else None
    last = Turn("assistant", "Awixo last", reasoning=thought)
    yield plain(None, NEXT, Turn("assistant", "Awixo last"), **row)
    if thought:
        yield plain(thought, NEXT, last, **row)
    if calls:
        for considered in (None, THOUGHT) if reasons["call"] else (None,):
            yield calling(considered, ANSWERED, last, NEXT, last, **row)


def learn_form(attempt: Try) -> tuple[MessageForm, bool]:
    """The form in which a template wants its messages, and whether it shows tool calls."""
    form = PLAIN
    for parts in (False, True):
        made = attempt(plain(), replace(form, parts=parts), False)
        if made is not None and SAID in made and ASKED in made:
            form = replace(form, parts=parts)
            break
    shown = [role for role in ("system", "developer") if _shows_system(attempt, form, role)]
    form = replace(form, system_roles=tuple(shown))
    with_calls = _call_form(attempt, form)
    if with_calls is None:
        return form, False
    said = attempt(calling(), with_calls, False) or ""
    said = said[said.rfind(ASKED) :]
    return replace(with_calls, named_ids=_NAME not in said or f"functions.{_NAME}:" in said), True


def _shows_system(attempt: Try, form: MessageForm, role: str) -> bool:
    asked = plain(system=_SYSTEM, system_role=role)
    made = attempt(asked.before(1), replace(form, system_roles=(role,)), True)
    return made is not None and _SYSTEM in made


def _call_form(attempt: Try, form: MessageForm) -> MessageForm | None:
    """The form of calls and of their results; None if the template does not show calls."""
    for own_ids, text, empty in itertools.product((False, True), (False, True), ("", ABSENT, EMPTY_PART)):
        tried = replace(form, own_ids=own_ids, text_arguments=text, no_text=empty)
        made = attempt(calling(), tried, False)
        if made is None or not _shows_call(made):
            continue
        for role, result_parts, names in itertools.product(_TOOL_ROLES, (False, True), (False, True)):
            whole = replace(tried, tool_role=role, names=names, result_parts=result_parts)
            with_result = attempt(calling(None, ANSWERED), whole, True)
            if with_result is not None and RESULT in with_result and "'type'" not in with_result:
                return whole
    for own_ids, text, empty in itertools.product((False, True), (False, True), ("", ABSENT, EMPTY_PART)):
        tried = replace(form, own_ids=own_ids, text_arguments=text, no_text=empty)
        made = attempt(calling(), tried, False)
        if made is not None and _shows_call(made):
            return tried
    return None


def _shows_call(made: str) -> bool:
    """Whether a call is shown as it should be: no Python, no JSON in JSON, no HTML."""
    said = made[made.rfind(ASKED) :]
    shown = _CITY in said and (_NAME in said or _CALL_ID in said)
    return shown and not any(wrong in said for wrong in ("'zcity':", '\\"zcity', "None", "&#34;", "&quot;"))


@dataclass(frozen=True)
class Thinking:
    """How a template writes reasoning: `opening` + reasoning + `closing` + the answer; "" where nothing is known."""

    opening: str = ""
    closing: str = ""

    @property
    def tags(self) -> tuple[str, str]:
        return self.opening.strip(), self.closing.strip()

    def opened_at(self, prompt: str) -> int | None:
        """Where a prompt opens the reasoning, if it does and does not close it."""
        tag = self.tags[0]
        bare = prompt.rstrip()
        return len(bare) - len(tag) if tag and bare.endswith(tag) else None

    def closed_at(self, prompt: str) -> int | None:
        """Where a prompt opens the reasoning and closes it at once (or only closes it), if it does."""
        opening, closing = self.tags
        bare = prompt.rstrip()
        if not closing or not bare.endswith(closing):
            return None
        before = bare[: -len(closing)].rstrip()
        return len(before) - len(opening) if opening and before.endswith(opening) else len(bare) - len(closing)

    def after_empty(self, text: str) -> str:
        """A text without the empty reasoning that it begins with."""
        opening, closing = map(re.escape, self.tags)
        found = re.match(rf"\s*(?:{opening})?\s*{closing}\s*", text) if closing else None
        return text[found.end() :] if found else text


def learn_reasoning(attempt: Try, form: MessageForm, calls: bool, known: str) -> MessageForm:
    """The form, with the keys under which the template reads reasoning; "" where it shows it under none.

    `known`: the template and the tokens. If they have the tags, a template that reads no key may show reasoning that is
    in the text of an answer.
    """
    asked = {"reasoning": plain(THOUGHT), **({"call_reasoning": calling(THOUGHT)} if calls else {})}

    def shows(field: str, key: str) -> bool:
        made = attempt(asked[field], replace(form, **{field: key}), False)
        said = made[made.rfind(ASKED) :] if made is not None else ""
        return THOUGHT in said and not any(wrong in said for wrong in ("None", "'type'", '"type"'))

    found = {field: next((key for key in _OWN_KEYS if shows(field, key)), "") for field in asked}
    if any(found.values()):
        key = found["reasoning"] or found["call_reasoning"]
        return replace(form, reasoning=key, call_reasoning=found.get("call_reasoning") or key)
    in_text = {
        field: IN_TEXT
        for field, dialogue in asked.items()
        if form.tags[-1] in known and shows(field, IN_TEXT) and not _closes_before(attempt, form, field, dialogue)
    }
    return replace(form, **in_text)


def _closes_before(attempt: Try, form: MessageForm, field: str, dialogue: Dialogue) -> bool:
    """Whether the template closes a reasoning of its own before the one that is in the text (`</think><think>...`)."""
    made = attempt(dialogue, replace(form, **{field: IN_TEXT}), False) or ""
    return form.tags[-1] in made[made.rfind(ASKED) : made.rfind(THOUGHT)]


def learn_thinking(attempts: Sequence[Try], form: MessageForm, source: str) -> Thinking:
    """How the template writes reasoning, from what it shows of it or from what its prompt opens.

    `attempts`: with the default arguments, and with each switch that may turn reasoning on.
    """
    prompts = [attempt(_QUESTION, form, True) or "" for attempt in attempts]
    for attempt, prompt in zip(attempts, prompts, strict=True):
        made = attempt(plain(THOUGHT), form, False) or ""
        before, found, after = made.rpartition(THOUGHT)
        if found and SAID in after:
            own = before[len(prompt) :] if prompt and before.startswith(prompt) else ""
            if form.reasoning == IN_TEXT and own.endswith(form.opening):
                own = form.opening  # what is before it is the template's, with and without reasoning
            return Thinking(own if own.strip() else _last_tag(before), after[: after.find(SAID)])
    for attempt in attempts if form.call_reasoning != IN_TEXT else ():
        before, found, after = (attempt(calling(THOUGHT), form, False) or "").rpartition(THOUGHT)
        opening = _last_tag(before)
        for closing in closings(opening.split(maxsplit=1)[0][: opening.find(">") + 1] if opening.strip() else ""):
            if found and closing in after:
                end = after.index(closing) + len(closing)
                return Thinking(opening, after[:end] + _space_before(after[end:]))
    return next((found for prompt in prompts if (found := _opened(prompt, source))), None) or _in_source(source)


def _opened(prompt: str, source: str) -> Thinking | None:
    """What the end of a prompt opens, if it looks like reasoning: its closing tag is in the template."""
    tail = prompt[-200:]
    for tag in reversed(list(_TAG.finditer(tail))[-2:]):
        rest = tail[tag.end() :]
        if not re.search("think|thought|reason", tail[tag.start() :], re.I):
            continue
        for closing in closings(tag.group()):
            if closing in rest:
                between = rest[: rest.index(closing)]
                half = len(between) - len(_space_after(between)) // 2
                end = len(between) + len(closing)
                return Thinking(tag.group() + between[:half], between[half:] + closing + rest[end:])
            if closing in source and not _TAG.search(rest):
                return Thinking(tag.group() + rest, rest + closing + 2 * rest)
    return None


def _in_source(source: str) -> Thinking:
    found = _CLOSING.search(source)
    if not found:
        return Thinking()
    opening = found.group().replace("/", "").replace("END_", "START_")
    line = "\n" if opening.startswith("<") and "|" not in opening else ""
    return Thinking(opening + line, line + found.group() + 2 * line)


def _last_tag(text: str) -> str:
    """The last tag of a text and what follows it."""
    tags = list(_TAG.finditer(text))
    return text[tags[-1].start() :] if tags else ""


def _space_before(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def _space_after(text: str) -> str:
    return text[len(text.rstrip()) :]


def learn_header(attempt: Try, form: MessageForm) -> str:
    """What the generation prompt adds to a question; "" if the template has none."""
    begun, prompt = attempt(_QUESTION, form, False) or "", attempt(_QUESTION, form, True) or ""
    return prompt.removeprefix(begun) if prompt.startswith(begun) else ""


def learn_endings(
    attempt: Try, form: MessageForm, calls: bool, controls: re.Pattern[str] | None, bos: str, special: frozenset[str]
) -> dict[str, Ending]:
    """The endings of plain answers ("plain") and of those with calls ("call"), as far as there are any."""
    begun, header = attempt(_QUESTION, form, False) or "", learn_header(attempt, form)
    parallel = (attempt(calling(parallel=True), form, False) or "") if calls else ""
    between = parallel[parallel.rfind(_CITY) : parallel.rfind(_TOWN)]
    endings: dict[str, Ending] = {}
    for kind, mark, asked, follow in _ended(calls):
        before = attempt(asked.before(1), form, True) or ""
        last, followed = attempt(asked, form, False), attempt(follow, form, False)
        if last is None or mark not in last:
            continue
        after = None
        if followed is not None and mark in followed:
            rest = followed[followed.rindex(mark) + len(mark) :]
            places = [rest.find(next_) for next_ in (ASKED_NEXT, RESULT) if next_ in rest]
            after = rest[: min(places)] if places else None
        at = last.rindex(mark)
        found = None
        for tokens in filter(None, (controls, _TAG)):
            tail = Tail(last[at + len(mark) :], after, last[_whole_tokens(last, before, tokens) : at])
            opens_turn = frozenset({bos, *_leading(begun, tokens)})
            opens_answer = frozenset(_opening(header, opens_turn - {bos}, tokens)) - {bos}
            # What is not special and follows the first of two calls does not end the answer.
            within = frozenset(tokens.findall(between) if kind == "call" else ()) - special
            found = found or ending_of(
                replace(tail, opens_answer=opens_answer, opens_turn=opens_turn, within=within), tokens
            )
        if (found := found or text_ending(Tail(last[at + len(mark) :], after, ""))) is not None:
            endings[kind] = found
    return endings


def _whole_tokens(text: str, prompt: str, tokens: re.Pattern[str]) -> int:
    """How much of a text its prompt has too, without a token that is partly the same (`<think>`, `<tool_call>`)."""
    size = len(commonprefix([text, prompt]))
    return next((m.start() for m in tokens.finditer(text) if m.start() < size < m.end()), size)


def _opening(header: str, opens_turn: frozenset[str], tokens: re.Pattern[str]) -> list[str]:
    """The tokens of a generation prompt that open the answer: some templates end the question only there."""
    found = tokens.findall(header)
    first = next((k for k, token in enumerate(found) if token in opens_turn), 0)
    return found[first:]


def _leading(text: str, controls: re.Pattern[str]) -> list[str]:
    """The control tokens that a text begins with, without one that ends an empty turn: what opens the next follows."""
    leading: list[str] = []
    text = text.lstrip()
    while found := controls.match(text):
        leading.append(found.group())
        text = text[found.end() :].lstrip()
    ends = {one for k, (one, next_) in enumerate(itertools.pairwise(leading)) if next_ in leading[:k]}
    return [token for token in leading if token not in ends]


def _ended(calls: bool) -> Iterator[tuple[str, str, Dialogue, Dialogue]]:
    yield "plain", SAID, plain(), plain(None, NEXT)
    if calls:
        yield "call", _CITY, calling(), calling(None, ANSWERED)
