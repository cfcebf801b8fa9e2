"""What the model has to generate for each answer of a dialogue, and which answers can share one example.

The prompt of an answer is what inference sends: the turns before it, with the generation prompt. Usually the dialogue
up to the answer begins with it, and the rest is what is generated. Where the prompt opens the reasoning (`<think>`) and
the template does not show it even in the last answer, what is generated is put together from the reasoning, the
template's closing tag and the rest of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastchat.conversation import Dialogue, RefusedByTemplate, Turn
from fastchat.data.encoding import learn
from fastchat.data.encoding.learn import THOUGHT, Thinking
from fastchat.data.encoding.marks import Found, Marked, Text
from fastchat.data.encoding.messages import IN_TEXT
from fastchat.data.encoding.refused import no_span
from fastchat.data.encoding.stops import Ending

if TYPE_CHECKING:
    from fastchat.data.encoding.tokenizer_template import TokenizerTemplate

NOT_A_PREFIX = "the inference prompt is not a prefix of the rendered dialogue"


NO_SYSTEM = "the template does not show the system message to this answer"
NO_TEXT = "the template does not show the text before a tool call"


@dataclass(frozen=True)
class Answer:
    """The span of a rendered text that the model generates for an answer."""

    turn: int
    begin: int
    end: int


@dataclass
class Example:
    """A dialogue (perhaps only its first turns) as rendered, and the answers that are learned from it."""

    dialogue: Dialogue
    marked: Marked
    answers: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
        for kind in sorted(self.endings, key=lambda kind: kind != first):
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
    shown, said = replace(dialogue, turns=dialogue.turns[: turn + 1]), dialogue.turns[turn]
    marked, prompt = template.marked(shown, False), template.text(shown.before(turn), True)
    found = traits.ending(said, marked.text)
    if found is None:
        _check_shown(shown, marked, bool(template.form.system_roles))
        raise no_span(dialogue, turn, "no control token ends the answer")
    ending, end = found
    thinking, thought = traits.thinking, (said.reasoning or "").strip()
    thoughts = [f.start for f in marked.found if f.text.turn == turn and f.text.kind == "reasoning"]
    opened, closed = thinking.opened_at(prompt), thinking.closed_at(prompt)
    notes = [f"the answer has no reasoning, so it closes {thinking.tags[0]} at once"] * bool(
        not thought and opened is not None
    )
    is_shown = bool(thoughts) and thoughts[0] >= len(prompt) and closed is None
    if marked.text[:end].startswith(prompt) and (not thought or is_shown):
        return _checked(
            template, Generated(shown, _with(marked, end, ending), len(prompt), end + len(ending.added), notes)
        )
    if opened is not None:
        at, between = opened, ("", "" if thoughts else thought, "" if thoughts else thinking.closing)
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
    begin = _begin(before, at, marked, turn, traits.header)
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
    return replace(
        made, notes=[*made.notes, *_check_shown(made.dialogue, made.marked, bool(template.form.system_roles))]
    )


def _begin(prompt: Marked, at: int, marked: Marked, turn: int, answer_header: str) -> int | None:
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
    # The prompt ends the turn in which a tool was called, and the answer continues it, or opens its own.
    return last if first is not None and marked.text[last:first].strip() in ("", answer_header.strip()) else None


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


def _check_shown(dialogue: Dialogue, marked: Marked, shows_system: bool) -> list[str]:
    """Raise RefusedByTemplate if a message, or a call, is not shown; return what is not shown that is only counted."""
    texts = {f.text.turn for f in marked.found if f.text.kind == "text"}
    notes = []
    for found in marked.found:
        is_said = found.text.role == "assistant" and found.text.kind in ("text", "reasoning") and found.text.core
        if is_said and not found.text.is_in(marked.text[found.start : found.end]):
            raise no_span(dialogue, found.text.turn, "the template changes a message, so it cannot be located")
    if (dialogue.system or "").strip() and -1 not in texts:
        if not shows_system:
            raise no_span(dialogue, 0, "the system message is not shown at all")
        notes.append(NO_SYSTEM)
    for number, turn in enumerate(dialogue.turns):
        if turn.text.strip() and number not in texts:
            if not turn.calls:
                raise no_span(dialogue, number, f"the {turn.role} message is not shown at all")
            if number == len(dialogue.turns) - 1:
                notes.append(NO_TEXT)
        if turn.calls:
            _check_calls(dialogue, number, turn, marked)
    return notes


def _check_calls(dialogue: Dialogue, number: int, turn: Turn, marked: Marked) -> None:
    names = {f.text.part for f in marked.found if f.text.turn == number and f.text.kind == "name"}
    arguments = {f.text.part for f in marked.found if f.text.turn == number and f.text.kind == "call"}
    lost = [
        k for k, call in enumerate(turn.calls) if k not in names | arguments and (names or _has_text(call.arguments))
    ]
    if lost and (names or arguments):
        call = turn.calls[lost[0]]
        raise no_span(dialogue, number, f"the call of {call.name!r}, number {lost[0] + 1} of this turn, is not shown")


def _has_text(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_text, value.values()))
    return any(map(_has_text, value)) if isinstance(value, list) else isinstance(value, str) and bool(value.strip())


def _generated_or_none(template: TokenizerTemplate, dialogue: Dialogue, turn: int, traits: Traits) -> Generated | None:
    try:
        return generate(template, dialogue, turn, traits)
    except RefusedByTemplate:
        return None


class Answers:
    """The answers of one dialogue, as examples."""

    def __init__(self, template: TokenizerTemplate, dialogue: Dialogue):
        self.template = template
        self.traits = template.traits(dialogue.template_arguments)
        verbatim = template.form.reasoning == IN_TEXT
        self.dialogue = dialogue if verbatim else _parsed(dialogue, self.traits.thinking)
        self._made: dict[int, Generated] = {}

    def examples(self) -> list[Example]:
        """The examples, in the order of their last answers. Raises RefusedByTemplate."""
        turns = self.dialogue.turns
        trained = [k for k, turn in enumerate(turns) if turn.role == "assistant" and turn.train]
        if not trained or trained[-1] < len(turns) - 1:
            whole = Example(self.dialogue, self.template.marked(self.dialogue, False))
            whole.notes += _check_shown(self.dialogue, whole.marked, bool(self.template.form.system_roles))
        else:
            whole = self._own(trained.pop())
        examples = [whole]
        for turn in reversed(trained):
            answer = self._within(examples[-1], turn)
            if answer is None:
                examples.append(self._own(turn))
            else:
                examples[-1].answers.append(answer)
        if len(examples) > 1 and not examples[0].answers:
            examples.pop(0)
        for example in examples:
            example.answers += self._excluded(example)
            example.answers.sort(key=lambda answer: answer.begin)
            if self.dialogue.tools and not self.template.shows_tools:
                example.notes.append("the template does not show the tools")
        return examples[::-1]

    def _own(self, turn: int) -> Example:
        made = self._generate(turn)
        return Example(made.dialogue, made.marked, [Answer(turn, made.begin, made.end)], [*made.notes])

    def _within(self, example: Example, turn: int) -> Answer | None:
        """An answer in the example of a later one, if it is there as it is generated."""
        same = example.dialogue.template_arguments == self.dialogue.template_arguments
        if same and self.traits.append_only[self._has_tools] and self._is_usual(turn):
            answer = self._in_history(example, turn)
            if answer is not None:
                said = self.dialogue.turns[turn]
                kinds = {f.text.kind for f in example.marked.found if f.text.turn == turn}
                example.notes += [NO_TEXT] * bool(said.text.strip() and "text" not in kinds)
                return answer
        made = self._generate(turn)
        if made.dialogue.template_arguments != example.dialogue.template_arguments:
            return None
        if not example.marked.text.startswith(made.text[: made.end]):
            return None
        example.notes += made.notes
        return Answer(turn, made.begin, made.end)

    @property
    def _has_tools(self) -> bool:
        return bool(self.dialogue.tools) or any(turn.calls for turn in self.dialogue.turns)

    def _is_usual(self, turn: int) -> bool:
        """Whether nothing has to be chosen or composed for an answer."""
        said = self.dialogue.turns[turn]
        return said.reasoning is None or self.traits.learns_reasoning["call" if said.calls else "plain"]

    def _in_history(self, example: Example, turn: int) -> Answer | None:
        """Where an answer is in an example, with a template that shows it in history as it was generated."""
        said = self.dialogue.turns[turn]
        ending = self.traits.endings.get("call" if said.calls else "plain")
        prompt = self.template.text(example.dialogue.before(turn), True)
        own = [k for k, f in enumerate(example.marked.found) if f.text.turn == turn]
        if ending is None or ending.added or not own or not example.marked.text.startswith(prompt):
            return None
        found = example.marked.found
        begin = found[own[-1]].end
        limit = found[own[-1] + 1].start if own[-1] + 1 < len(found) else len(example.marked.text)
        at = example.marked.text.find(ending.stop, begin, limit)
        if found[own[0]].start < len(prompt) or at < 0:
            return None
        return Answer(turn, len(prompt), at + len(ending.stop))

    def _excluded(self, example: Example) -> Iterator[Answer]:
        """The answers of an example that are not trained on, as far as they can be located."""
        for turn, said in enumerate(example.dialogue.turns):
            if said.role == "assistant" and not said.train and not said.is_empty:
                answer = self._in_history(example, turn)
                if answer is not None:
                    yield answer

    # -- one answer, with the template arguments that show its reasoning

    def _generate(self, turn: int) -> Generated:
        if turn not in self._made:
            self._made[turn] = self._first_possible(turn)
        return self._made[turn]

    def _first_possible(self, turn: int) -> Generated:
        said = self.dialogue.turns[turn]
        if not (said.reasoning or "").strip():
            return generate(self.template, self.dialogue, turn, self.traits)
        refusal: RefusedByTemplate | None = None
        for switch, prepend in self._ways("call" if said.calls else "plain"):
            arguments = {**self.dialogue.template_arguments, **switch}
            dialogue = replace(self.dialogue, template_arguments=arguments)
            try:
                made = generate(self.template, dialogue, turn, self.template.traits(arguments), prepend)
            except RefusedByTemplate as error:
                refusal = refusal or error
                continue
            chosen = [f"reasoning is shown with {key}={value}" for key, value in switch.items()]
            chosen += ["reasoning is written before the answer, which the template does not do"] * prepend
            return replace(made, notes=[*made.notes, *chosen])
        assert refusal is not None
        raise refusal

    def _ways(self, kind: str) -> Iterator[tuple[dict[str, Any], bool]]:
        """Switches to try, and whether to write the reasoning where the template does not; the row's own come first."""
        yield {}, False
        given = self.dialogue.template_arguments
        named = {name for switch in self.template.switches for name in switch}
        switches = () if named & given.keys() else self.template.switches
        for switch in switches:
            if self.template.traits({**given, **switch}).learns_reasoning[kind]:
                yield switch, False
        yield {}, True
        for switch in switches:
            yield switch, True


def _parsed(dialogue: Dialogue, thinking: Thinking) -> Dialogue:
    """The dialogue with reasoning that is in the text of an answer, between the template's tags, as reasoning."""
    opening, closing = thinking.tags
    if not closing or not any(closing in turn.text for turn in dialogue.turns if turn.role == "assistant"):
        return dialogue
    turns = []
    for turn in dialogue.turns:
        thought, found, rest = turn.text.partition(closing)
        first = thought.lstrip().removeprefix(opening)
        if turn.role == "assistant" and found and turn.reasoning is None and opening not in first:
            turn = replace(turn, text=rest.lstrip(), reasoning=first.strip() or None)
        turns.append(turn)
    return replace(dialogue, turns=tuple(turns))
