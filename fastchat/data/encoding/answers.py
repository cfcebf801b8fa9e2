"""The answers of a dialogue as examples: each after the prompt of inference, and together where they can share one.

An answer shares the example of a later one if its prompt and what is generated are the beginning of that example. With
most templates that holds for all answers, and one example is the whole dialogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastchat.conversation import Dialogue, RefusedByTemplate
from fastchat.data.encoding.generation import FORGETS, NO_TEXT, Generated, check_shown, generate
from fastchat.data.encoding.learn import Thinking
from fastchat.data.encoding.marks import Marked
from fastchat.data.encoding.messages import IN_TEXT

if TYPE_CHECKING:
    from fastchat.data.encoding.tokenizer_template import TokenizerTemplate


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
        examples = [self._whole()] if not trained or trained[-1] < len(turns) - 1 else [self._own(trained.pop())]
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
            example.notes += self._stops_inside(example)
            example.notes[:] = dict.fromkeys(example.notes)
            if self.dialogue.tools and not self.template.shows_tools:
                example.notes.append("the template does not show the tools")
        return examples[::-1]

    def _whole(self) -> Example:
        """The whole dialogue, whose last turn is not trained on; an empty example if the template rejects it."""
        try:
            marked = self.template.marked(self.dialogue, False)
            return Example(self.dialogue, marked, notes=check_shown(self.dialogue, marked, self.template.form))
        except RefusedByTemplate:
            if not any(turn.role == "assistant" and turn.train for turn in self.dialogue.turns):
                raise
            return Example(self.dialogue, Marked("", ()))

    def _own(self, turn: int) -> Example:
        made = self._generate(turn)
        return Example(made.dialogue, made.marked, [Answer(turn, made.begin, made.end)], [*made.notes])

    def _within(self, example: Example, turn: int) -> Answer | None:
        """An answer in the example of a later one, if it is there as it is generated."""
        same = example.dialogue.template_arguments == self.dialogue.template_arguments
        keeps = self.traits.append_only[self._has_tools] and FORGETS not in example.notes
        if same and keeps and self._is_usual(turn):
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

    def _stops_inside(self, example: Example) -> Iterator[str]:
        """A note for each stop that the template writes within an answer that goes on after it."""
        stops = [ending.stop for ending in self.traits.endings.values()]
        for answer in example.answers:
            inside = [f for f in example.marked.found if answer.begin <= f.start and f.end <= answer.end]
            edges = [answer.begin, *(edge for f in inside for edge in (f.start, f.end)), answer.end]
            own = "\n".join(example.marked.text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
            yield from (
                f"the template writes {stop!r}, which ends answers, within one: generation would end there"
                for stop in stops
                if stop in own.removesuffix(next((s for s in stops if own.endswith(s)), ""))
            )

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
