"""Problems -> solutions: the model writes code, the sandbox runs it, its output is the next turn, until it answers.

    user        the question
    assistant   ... ```python ... ```          a turn ends with its first block of code, as in training
    user        ```output ... ```              (or the role that the row's own dialogue has here)
    assistant   ... \\boxed{72}                 a turn without code is the answer

All problems that are not finished are generated for together, round by round.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from fastchat.conversation import Dialogue, Turn
from fastchat.data.encoding.chat_encoder import ChatEncoder, encode_prompt
from fastchat.data.rows.columns import AS_THEY_ARE
from fastchat.data.rows.keys import ASSISTANT
from fastchat.data.rows.turns import CLOSING, OPENING, Reading, split_thought
from fastchat.data.tools.final_answer import final_answer
from fastchat.data.tools.math_rows import output_block
from fastchat.data.tools.sandbox import Limits, Outcome, run_python
from fastchat.data.view.terminal import safe
from fastchat.errors import SettingsError, UserError
from fastchat.eval.answers import read_answer
from fastchat.eval.generation import CONTEXT, LENGTH, Generated, Sampling, generate
from fastchat.eval.loading import Loaded
from fastchat.eval.mathematics.problems import MathProblem

MAX_OUTPUT = 2000  # characters of an output that the model is told
# Why a problem has no answer.
NO_ANSWER, CUT, NO_ROOM, TOO_MANY = "no boxed answer", "answer cut", "context full", "too many rounds"
NOT_SHOWN = "turn that the template cannot show"
_CODE = re.compile(r"^[ \t]*```(?:python|py)[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_OPEN_CODE = re.compile(r"^[ \t]*```(?:python|py)[ \t]*\n(.*)\Z", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_LOOKED_AT = 8  # tokens at the end of a prompt


@dataclass(frozen=True)
class Method:
    """How problems are solved.

    Attributes:
        rounds: how often code may be run for one problem.
        limits: of each run.
        workers: runs at the same time.
    """

    sampling: Sampling
    rounds: int = 4
    batch_size: int = 16
    limits: Limits = field(default_factory=Limits)
    workers: int = 1


@dataclass
class Attempt:
    """One attempt at a problem; `solve` fills it in.

    Attributes:
        key: stands for the attempt in the random numbers.
        dialogue: the turns so far.
        runs: what became of the code of each turn.
        answer: the final answer; None if there is none, `reason` then says why.
    """

    problem: MathProblem
    key: str
    dialogue: Dialogue
    runs: list[Outcome] = field(default_factory=list)
    answer: str | None = None
    reason: str = ""
    done: bool = False

    def end(self, answer: str | None, reason: str) -> None:
        """The attempt is over."""
        self.answer, self.reason, self.done = answer, "" if answer else reason, True


def solve(
    attempts: Sequence[Attempt], loaded: Loaded, method: Method, on_done: Callable[[int], None] = lambda number: None
) -> None:
    """Complete all attempts. `on_done` is called with the number of new finished ones after every batch of them.

    Raises ResourceError if a prompt does not fit into the memory, or the sandbox cannot run.
    """
    with ThreadPoolExecutor(method.workers) as pool:
        while active := [attempt for attempt in attempts if not attempt.done]:
            waiting = _write_turns(active, loaded, method)
            on_done(sum(attempt.done for attempt in active))
            outcomes = pool.map(lambda pair: run_python(pair[1], method.limits), waiting)
            for (attempt, _), outcome in zip(waiting, outcomes, strict=True):
                attempt.runs.append(outcome)
                told = Turn(attempt.problem.output_role, output_block(told_output(outcome, method.limits)))
                attempt.dialogue = replace(attempt.dialogue, turns=(*attempt.dialogue.turns, told))


def _write_turns(active: Sequence[Attempt], loaded: Loaded, method: Method) -> list[tuple[Attempt, str]]:
    """Generate the next turn of each attempt; returns those that wait for code to be run, with the code."""
    asked, prompts = [], []
    for attempt in active:
        try:
            prompts.append(encode_prompt(attempt.dialogue, loaded.chat_encoder))
            asked.append(attempt)
        except UserError:  # a text of the model or of its code that this tokenizer or template does not take
            attempt.end(None, NOT_SHOWN)
    waiting = []
    for attempt, prompt, made in zip(asked, prompts, _generate(asked, prompts, loaded, method), strict=True):
        ids = made.ids if made.stop_id is None else [*made.ids, made.stop_id]
        text, _ = read_answer(loaded.chat_encoder, prompt, ids)
        code = _take_turn(attempt, text, made, _Reader(loaded.chat_encoder, prompt))
        if attempt.done:
            continue
        if code is None:
            full = loaded.context is not None and len(prompt) + len(made.ids) >= loaded.context
            why = (NO_ROOM if full else CUT) if made.finish_reason == LENGTH else NO_ANSWER
            attempt.end(final_answer(attempt.dialogue.turns[-1].text), why)
        elif len(attempt.runs) == method.rounds:
            attempt.end(None, TOO_MANY)
        else:
            waiting.append((attempt, code))
    return waiting


def _take_turn(attempt: Attempt, text: str, made: Generated, reader: _Reader) -> str | None:
    """Add a generated turn to the dialogue; returns its code, None if it has none."""
    if made.finish_reason == CONTEXT:
        attempt.end(None, NO_ROOM)
        return None
    start = reader.start_of_answer(text)
    code, end = (None, len(text)) if start is None else first_code(text, start, made.finish_reason != LENGTH)
    turn = reader.turn(text[:end])
    attempt.dialogue = replace(attempt.dialogue, turns=(*attempt.dialogue.turns, turn))
    return code


def first_code(text: str, start: int = 0, ended: bool = True) -> tuple[str | None, int]:
    """(the first code that a turn asks to run, where the turn ends); (None, its length) for a turn without code.

    `ended`: the model has ended the turn, so that the code in a block without an end is complete.

    >>> first_code("So:\\n```python\\nprint(1)\\n```\\n```output\\n2\\n```")
    ('print(1)', 27)
    """
    found = _CODE.search(text, start)
    if found is None and ended:
        found = _OPEN_CODE.search(text, start)
    if found is None or not found[1].strip():
        return None, len(text)
    return found[1].rstrip("\n"), found.end()


def told_output(outcome: Outcome, limits: Limits) -> str:
    """What the model is told that its code printed; after an error its last line, as of a traceback.

    >>> told_output(Outcome("error", "1\\n", "ZeroDivisionError: division by zero"), Limits())
    '1\\nZeroDivisionError: division by zero'
    """
    problem = {
        "error": outcome.error,
        "timeout": f"TimeoutError: stopped after {limits.timeout:g} seconds",
        "output": "OSError: too much output",
    }.get(outcome.status, "")
    output = outcome.output.strip("\n").replace("```", "'''")  # they would end the block
    if len(output) > MAX_OUTPUT:
        output = f"{output[: MAX_OUTPUT // 2]}\n...\n{output[-MAX_OUTPUT // 2 :]}"
    return "\n".join(part for part in (output, safe(problem)) if part)


def check_template(problems: Sequence[MathProblem], chat_encoder: ChatEncoder, context: int | None) -> None:
    """Check that the template shows every question, and a turn with an output, and that a question leaves room.

    Raises SettingsError.
    """
    tried: set[str] = set()
    for problem in problems:
        dialogue = problem.dialogue
        try:
            num_tokens = len(encode_prompt(dialogue, chat_encoder))
            if problem.output_role not in tried:
                code = Turn(ASSISTANT, "```python\n1\n```")
                told = Turn(problem.output_role, output_block("1"))
                encode_prompt(replace(dialogue, turns=(*dialogue.turns, code, told)), chat_encoder)
                tried.add(problem.output_role)
        except UserError as error:
            raise SettingsError(f"{problem.place}: {error}") from None
        if context is not None and num_tokens >= context:
            raise SettingsError(
                f"{problem.place}: the question has {num_tokens:,} tokens, and the model's context is {context:,}."
            )


def _generate(
    asked: Sequence[Attempt], prompts: Sequence[list[int]], loaded: Loaded, method: Method
) -> list[Generated]:
    """The continuation of each prompt, up to the end of the turn or of its first block of code."""
    encoder = loaded.chat_encoder
    readers = [_Reader(encoder, prompt) for prompt in prompts]

    def ended(number: int, ids: list[int]) -> bool:
        # A block can only end with a token that has a backtick, and decoding all tokens after every one is slow.
        if not encoder.stop_strings and "`" not in encoder.encoder.decode(ids[-1:]):
            return False
        text, stopped = read_answer(encoder, prompts[number], ids)
        start = readers[number].start_of_answer(text)
        return stopped or start is not None and first_code(text, start, ended=False)[0] is not None

    with loaded.computing():
        return generate(
            loaded.model,
            prompts,
            stop_ids=encoder.stop_ids,
            pad_id=loaded.pad_id,
            sampling=method.sampling,
            batch_size=method.batch_size,
            keys=[f"{attempt.key} {len(attempt.runs)}" for attempt in asked],
            ended=ended,
        )


class _Reader:
    """Tells the reasoning of a generated turn from its answer."""

    def __init__(self, chat_encoder: ChatEncoder, prompt: Sequence[int]):
        self._shows = chat_encoder.template.shows_reasoning
        lead = chat_encoder.encoder.decode(list(prompt[-_LOOKED_AT:])) if self._shows else ""
        self._opened = lead.rstrip().endswith(OPENING)

    def start_of_answer(self, text: str) -> int | None:
        """Where the answer begins after the reasoning; None while the model still reasons."""
        if CLOSING in text:
            return text.rindex(CLOSING) + len(CLOSING)
        return None if self._opened or text.lstrip().startswith(OPENING) else 0

    def turn(self, text: str) -> Turn:
        """The turn, with the reasoning apart if the template shows it apart."""
        if self._opened and OPENING not in text:
            text = OPENING + text
        said, reasoning = split_thought(text, None, "", Reading(AS_THEY_ARE, thinks=self._shows))
        return Turn(ASSISTANT, said, reasoning=reasoning)
