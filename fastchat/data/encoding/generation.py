"""What the model has to generate for one answer of a dialogue.

The prompt of an answer is what inference sends: the turns before it, with the generation prompt. Usually the dialogue
up to the answer begins with it, and the rest is what is generated. Where the prompt opens the reasoning (`<think>`) and
the template does not show it even in the last answer, what is generated is put together from the reasoning, the
template's closing tag and the rest of the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from fastchat.conversation import Dialogue, RefusedByTemplate, Turn
from fastchat.data.encoding import learn
from fastchat.data.encoding.learn import THOUGHT, Thinking
from fastchat.data.encoding.marks import Found, Marked, Text
from fastchat.data.encoding.messages import MessageForm
from fastchat.data.encoding.refused import SEPARATE, no_span
from fastchat.data.encoding.stops import Ending

if TYPE_CHECKING:
    from fastchat.data.encoding.tokenizer_template import TokenizerTemplate

NOT_A_PREFIX = "the inference prompt is not a prefix of the rendered dialogue"


NO_SYSTEM = "the template does not show the system message to this answer"
ALONE = "the answer is written as after its question alone: the template shows it differently after earlier turns"


def closes_at_once(thinking: Thinking) -> str:
    """The note of an answer without reasoning after a prompt that opens it."""
    return f"the answer has no reasoning, so it closes {thinking.tags[0]} at once"


NAMED_IDS = "calls have the ids functions.NAME:NUMBER, as the template writes or expects them"
RESULT_NAMES = "results have the name of their tool, which the template asks for and the data leaves out"
FORGETS = "the template does not show the calls before the last question, or their results"
NO_TEXT = "the template does not show the text before a tool call"


@dataclass(frozen=True)
class Traits:
    """What a template does, under certain arguments.

    Attributes:
        endings: how plain answers ("plain") and answers with calls ("call") end.
        thinking: how it writes reasoning.
        header: what the generation prompt adds to a question.
        learns_reasoning: for both kinds, whether the reasoning before an answer is generated after its prompt.
        append_only: whether an answer in the middle of a dialogue is as it was generated: without, and with, tools.
    """

    endings: dict[str, Ending]
    thinking: Thinking
    header: str
    learns_reasoning: dict[str, bool]
    append_only: dict[bool, bool]

    @classmethod
    def learn(cls, template: TokenizerTemplate, attempt: learn.Try, arguments: dict[str, Any]) -> Traits:
        """The traits of a template under these arguments, by rendering small dialogues with it."""
        form, calls = template.form, template.shows_calls
        endings = learn.learn_endings(attempt, form, calls, template.controls, template.bos, template.special)
        made = cls(endings, template.thinking, learn.learn_header(attempt, form), {}, {})
        row: Any = {"template_arguments": arguments}

        def learns(dialogue: Dialogue) -> bool:
            return _generated_or_none(template, dialogue, 1, made) is not None

        reasons = {
            "plain": learns(learn.plain(THOUGHT, **row)),
            "call": calls and learns(learn.calling(THOUGHT, **row)),
        }
        keeps = {False: True, True: True}
        for dialogue in learn.conversations(reasons, calls, **row):
            whole = _generated_or_none(template, dialogue, len(dialogue.turns) - 1, made)
            answers = [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant"]
            parts = [_generated_or_none(template, dialogue, k, made) for k in answers]
            same = whole is not None and all(p is not None and whole.text.startswith(p.text[: p.end]) for p in parts)
            keeps[bool(dialogue.tools)] &= same
        return replace(made, learns_reasoning=reasons, append_only=keeps)

    def ending(self, turn: Turn, text: str) -> tuple[Ending, int] | None:
        """The ending of a rendering whose last turn is `turn`, and where the generated part of it ends."""
        first = "call" if turn.calls else "plain"
        # A stop that is written comes before one that is not: a template may end one call otherwise than two.
        for kind in sorted(self.endings, key=lambda kind: (self.endings[kind].added != "", kind != first)):
            end = self.endings[kind].end_of(text)
            if end is not None:
                return self.endings[kind], end
        return None


@dataclass(frozen=True)
class Generated:
    """A dialogue up to an answer, as it is after the answer was generated: the answer is text[begin:end]."""

    dialogue: Dialogue
    marked: Marked
    begin: int
    end: int
    notes: list[str]

    @property
    def text(self) -> str:
        return self.marked.text


def generate(
    template: TokenizerTemplate, dialogue: Dialogue, turn: int, traits: Traits, prepend: bool = False
) -> Generated:
    """The answer `turn` as it is generated after its prompt.

    `prepend`: reasoning that the template shows nowhere, and does not open in the prompt, is written before the answer.
    Raises RefusedByTemplate.
    """
    try:
        return _after_its_turns(template, dialogue, turn, traits, prepend)
    except RefusedByTemplate:
        made = _after_its_question(template, dialogue, turn, traits, prepend)
        if made is None:
            raise
        return made


def _after_its_question(
    template: TokenizerTemplate, dialogue: Dialogue, turn: int, traits: Traits, prepend: bool
) -> Generated | None:
    """The answer as the template shows it without the turns before its question, after the prompt with them.

    A template may lose track after earlier calls (DeepSeek-V3 opens the list of calls only once in a dialogue). None if
    that does not help, or if the prompts do not end alike.
    """
    asked = max((k for k in range(turn) if dialogue.turns[k].role == "user"), default=0)
    turns = dialogue.turns[: turn + 1]
    tried = [turns[asked:]] if asked else []
    # In a chain of calls, also without the calls between the question and this one, and their results.
    tried += [(turns[asked], turns[turn])] if turns[turn].calls and turn > asked + 1 else []
    for alone in tried:
        made = _elsewhere(template, dialogue, turn, replace(dialogue, turns=alone), traits, prepend)
        if made is not None:
            return made
    return None


def _elsewhere(
    template: TokenizerTemplate, dialogue: Dialogue, turn: int, alone: Dialogue, traits: Traits, prepend: bool
) -> Generated | None:
    """The answer as the template shows it at the end of another dialogue, `alone`."""
    last = len(alone.turns) - 1
    try:
        made = _after_its_turns(template, alone, last, traits, prepend)
        short, prompt = (template.marked(one, True) for one in (alone.before(last), dialogue.before(turn)))
    except RefusedByTemplate:
        return None
    ends = [(one.found[-1].text.core, one.text[one.found[-1].end :]) for one in (short, prompt) if one.found]
    thinking, start = traits.thinking, made.begin
    if len(ends) < 2 or ends[0] != ends[1]:
        if last > 1 or (dialogue.turns[turn].reasoning or "").strip() or thinking.opened_at(prompt.text) is not None:
            return None
        # A prompt after a result does not open the reasoning again.
        start = made.end - len(thinking.after_empty(made.text[made.begin : made.end]))
    begin = len(prompt.text)
    own = made.marked.moved(start, made.end, begin)
    found = (*prompt.found, *(replace(f, text=replace(f.text, turn=turn)) for f in own))
    text = prompt.text + made.text[start : made.end]
    shown = replace(dialogue, turns=dialogue.turns[: turn + 1])
    notes = [note for note in made.notes if start == made.begin or note != closes_at_once(thinking)]
    return _checked(template, Generated(shown, Marked(text, found), begin, len(text), [*notes, ALONE]))


def _after_its_turns(
    template: TokenizerTemplate, dialogue: Dialogue, turn: int, traits: Traits, prepend: bool
) -> Generated:
    """The answer as the template shows it after the turns before it."""
    shown, said = replace(dialogue, turns=dialogue.turns[: turn + 1]), dialogue.turns[turn]
    marked, prompt = template.marked(shown, False), template.text(shown.before(turn), True)
    found = traits.ending(said, marked.text)
    if found is None:
        check_shown(shown, marked, template.form)
        raise no_span(dialogue, turn, "no control token ends the answer")
    ending, end = found
    thinking, thought = traits.thinking, (said.reasoning or "").strip()
    thoughts = [f.start for f in marked.found if f.text.turn == turn and f.text.kind == "reasoning"]
    opened, closed = thinking.opened_at(prompt), thinking.closed_at(prompt)
    notes = [closes_at_once(thinking)] * bool(not thought and opened is not None)
    is_shown = bool(thoughts) and thoughts[0] >= len(prompt) and closed is None
    if marked.text[:end].startswith(prompt) and (not thought or is_shown):
        return _checked(
            template, Generated(shown, _with(marked, end, ending), len(prompt), end + len(ending.added), notes)
        )
    if opened is not None:
        # Without reasoning, no white space twice: a token with both would begin in the prompt.
        closing = thinking.closing if thought or not prompt[-1:].isspace() else thinking.closing.lstrip()
        at, between = opened, ("", "" if thoughts else thought, "" if thoughts else closing)
    elif closed is not None and not thought:
        at, between = closed, ("", "", "")
    elif prepend and thought and not thoughts and closed is None and thinking.closing:
        at, between = len(prompt), (thinking.opening, thought, thinking.closing)
    elif thought and (not thoughts or closed is not None):
        hint = 'set "train": false for it, or remove the reasoning'
        raise no_span(dialogue, turn, f"its reasoning is not shown ({hint})")
    else:
        at, between = len(prompt), ("", "", "")
    before = template.marked(shown.before(turn), True)
    begin = _begin(before, at, marked, turn, traits)
    if begin is None:
        raise no_span(dialogue, turn, NOT_A_PREFIX)
    if opened is not None and thoughts:
        begin = thoughts[0]
    elif between[2] or at == closed:
        begin = end - len(thinking.after_empty(marked.text[begin:end]))
    return _checked(template, _composed(shown, before, marked, (begin, end), between, ending, notes))


def _with(marked: Marked, end: int, ending: Ending) -> Marked:
    """A rendering with what is generated and not written in it."""
    return Marked(marked.text[:end] + ending.added, marked.found) if ending.added else marked


def _checked(template: TokenizerTemplate, made: Generated) -> Generated:
    return replace(made, notes=[*made.notes, *check_shown(made.dialogue, made.marked, template.form)])


def _begin(prompt: Marked, at: int, marked: Marked, turn: int, traits: Traits) -> int | None:
    """Where the generated part of an answer begins in a rendering that ends with it.

    Its prompt, up to `at`, may show earlier turns otherwise than that rendering does (gpt-oss drops earlier reasoning
    as soon as there is a final answer). So only what follows the last text of the earlier turns is compared.
    """
    if marked.text.startswith(prompt.text[:at]):
        return at
    earlier = [f for f in marked.found if f.text.turn < turn]
    if not earlier or not prompt.found or prompt.found[-1].text != earlier[-1].text:
        return None
    header = prompt.text[prompt.found[-1].end : at]
    last = earlier[-1].end
    if marked.text.startswith(header, last):
        return last + len(header)
    first = next((f.start for f in marked.found if f.text.turn == turn), None)
    if first is None:
        return None
    own = marked.text[last:first]
    # The prompt ends the turn in which a tool was called, and the answer continues it, or opens its own.
    if own.strip() in ("", traits.header.strip()):
        return last
    # The prompt has other white space than the history, or more text, which does not ask for reasoning.
    same = re.match(r"\s*" + r"\s*".join(map(re.escape, "".join(header.split()))) + r"\s*", own)
    if same:
        return last + same.end()
    shared = len(commonprefix([own, header]).rstrip("<[|"))  # without the beginning of a tag
    rest = own[shared:].strip()
    more = rest in ("", traits.thinking.tags[0]) and not re.search("think|thought|reason", header[shared:], re.I)
    return last + own.rindex(rest, shared) if more and rest else first if more else None


def _composed(
    shown: Dialogue,
    prompt: Marked,
    marked: Marked,
    body: tuple[int, int],
    between: tuple[str, str, str],
    ending: Ending,
    notes: list[str],
) -> Generated:
    """The prompt, an opening, reasoning and its closing, and the body of the answer, put together."""
    turn = len(shown.turns) - 1
    opening, thought, closing = between
    begin = len(prompt.text)
    before = prompt.text + opening
    found = list(prompt.found)
    if thought:
        found.append(Found(len(before), len(before) + len(thought), Text(turn, "assistant", "reasoning")))
    before += thought + closing
    found += marked.moved(*body, len(before))
    text = before + marked.text[slice(*body)] + ending.added
    return Generated(shown, Marked(text, tuple(found)), begin, len(text), notes)


def check_shown(dialogue: Dialogue, marked: Marked, form: MessageForm) -> list[str]:
    """Raise RefusedByTemplate if a message, or a call, is not shown; return what is not shown that is only counted."""
    texts = {f.text.turn for f in marked.found if f.text.kind == "text"}
    notes = []
    for found in marked.found:
        is_said = found.text.role == "assistant" and found.text.kind in ("text", "reasoning") and found.text.core
        if is_said and not found.text.is_in(marked.text[found.start : found.end]):
            raise no_span(dialogue, found.text.turn, "the template changes a message, so it cannot be located")
    if (dialogue.system or "").strip() and -1 not in texts:
        if not form.system_roles:
            raise no_span(dialogue, 0, "the system message is not shown at all")
        notes.append(NO_SYSTEM)
    last = max((k for k, turn in enumerate(dialogue.turns[:-1]) if turn.role == "user"), default=0)
    for number, turn in enumerate(dialogue.turns):
        try:
            if turn.text.strip() and number not in texts:
                if not turn.calls:
                    raise no_span(dialogue, number, f"the {turn.role} message is not shown at all")
                if number == len(dialogue.turns) - 1:
                    notes.append(NO_TEXT)
            if turn.calls:
                _check_calls(dialogue, number, turn, marked)
        except RefusedByTemplate:
            if number > last or not (turn.calls or turn.role == "tool"):
                raise
            notes.append(FORGETS)
    if form.named_ids and any(call.name not in (call.id or "") for turn in dialogue.turns for call in turn.calls):
        notes.append(NAMED_IDS)
    if form.names and any(turn.role == "tool" and turn.name is None for turn in dialogue.turns):
        notes.append(RESULT_NAMES)
    return notes


def _check_calls(dialogue: Dialogue, number: int, turn: Turn, marked: Marked) -> None:
    """Raise RefusedByTemplate if the name of a call is not shown. Where names have no marks, as in an id, they are
    counted in the template's own text of the turn."""
    own = [f for f in marked.found if f.text.turn == number]
    names = {f.text.part for f in own if f.text.kind == "name"}
    start = max((f.end for f in marked.found if -1 < f.text.turn < number), default=0)
    end = max((f.end for f in own if f.text.kind == "call"), default=0) or min(
        (f.start for f in marked.found if f.text.turn > number), default=len(marked.text)
    )
    said = marked.text[start:end]
    for spoken in (f for f in own if f.text.kind in ("text", "reasoning")):
        said = said.replace(marked.text[spoken.start : spoken.end], "", 1)
    for k, call in enumerate(turn.calls):
        needed = sum(call.name in other.name for other in turn.calls[: k + 1])
        if k not in names and (names or said.count(call.name) < needed):
            why = f"the call of {call.name!r}, number {k + 1} of this turn, is not shown"
            raise no_span(dialogue, number, why, SEPARATE if len(turn.calls) > 1 else "")


def _generated_or_none(template: TokenizerTemplate, dialogue: Dialogue, turn: int, traits: Traits) -> Generated | None:
    try:
        return generate(template, dialogue, turn, traits)
    except RefusedByTemplate:
        return None
