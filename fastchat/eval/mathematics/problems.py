"""Rows -> mathematics problems: the question as it was trained on, and the reference answer.

    {"question": ..., "answer": "48/2 = <<48/2=24>>24 clips ...\\n#### 72"}     GSM8K
    {"problem": ..., "answer": "\\\\frac{1}{2}"}                                 the answer itself; a number as well
    {"problem": ..., "solution": "... \\\\boxed{72}"}
    {"messages": [...]}                                                        any form of training data whose last
                                                                               answer has a box, or with an "answer"

A row may also say what it belongs to (GROUP_KEYS); results are shown for each of those values.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastchat.conversation import Dialogue, Turn
from fastchat.data.rows.bad_rows import BadRow, BadRowReport, UnreadKeys, shown
from fastchat.data.rows.columns import AS_THEY_ARE
from fastchat.data.rows.drop_reasons import in_words
from fastchat.data.rows.formats import format_of, parse_row
from fastchat.data.rows.keys import FORM_KEYS, IDS, SYSTEM_KEY, TRAIN_KEYS, TURN_LISTS, USER
from fastchat.data.rows.reading import Row, RowReader
from fastchat.data.rows.strict_json import json_kind
from fastchat.data.rows.train_keys import refuse_unsupported
from fastchat.data.rows.turns import Reading, read_turns
from fastchat.data.tools.final_answer import after_hashes, final_answer
from fastchat.data.tools.math_rows import ANSWER_KEYS, QUESTION_KEYS
from fastchat.errors import say

REFERENCE_KEYS = (*ANSWER_KEYS[:1], "final_answer", "expected_answer", "ground_truth", *ANSWER_KEYS[1:])
GROUP_KEYS = ("category", "subject", "type", "level", "difficulty", "source", "dataset")
_NAME_KEYS = (*IDS, "unique_id")
_OUTPUT = re.compile(r"\s*```output\b")
_LONGEST = 300  # characters; a longer "answer" without a mark is a worked solution, not a value


@dataclass(frozen=True)
class MathProblem:
    """One problem.

    Attributes:
        place: `file:line`.
        name: the row's own id; "" if it has none.
        dialogue: ends with the question.
        reference: the right answer, in LaTeX or as plain text.
        output_role: the role of the turns with the output of code: that of the row's own, else "user".
        groups: what the row belongs to, such as {"subject": "Algebra"}.
    """

    place: str
    name: str
    dialogue: Dialogue
    reference: str
    output_role: str = USER
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def question(self) -> str:
        return self.dialogue.turns[-1].text


def read_problems(
    files: Sequence[str], *, num: int | None = None, system: str | None = None, on_bad_row: str = "stop"
) -> list[MathProblem]:
    """The first `num` problems of some files, in order; bad rows, and keys that are not read, are reported.

    `system`: the system message of rows that have none.

    Raises:
        DataError: a file cannot be read, or no row is a problem; or, unless `on_bad_row` is "skip", one is not.
    """
    report, unread, num_rows = BadRowReport(), UnreadKeys(), 0
    problems: list[MathProblem] = []
    for row in itertools.chain.from_iterable(RowReader(path, whole=True) for path in files):
        if num is not None and len(problems) + report.total * (on_bad_row == "stop") >= num:
            break
        num_rows += 1
        try:
            problems.append(_problem(row, system, len(files) > 1))
        except BadRow as bad:
            report.add(row.source, row.line, bad)
        else:
            unread.add({("row", key): 1 for key in _unread(row.value or {})})
    if report.total and (on_bad_row == "stop" or not problems):
        raise report.error(num_rows)
    for line in ([report.summary(num_rows)] if report.total else []) + unread.lines:
        say(line)
    return problems


def _problem(row: Row, system: str | None, several_files: bool) -> MathProblem:
    if row.problem is not None:
        raise row.problem
    value = row.value or {}
    refuse_unsupported(value, "the row")
    turns, own_system = _turns(value)
    first = next((k for k, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
    if not first or turns[first - 1].role != USER or not turns[first - 1].text.strip():
        raise BadRow("no question", "the turn before the first answer is not a user's text")
    output_role = _output_role(turns[first:])
    reference = _reference(value) or final_answer(turns[-1].text if len(turns) > first else "")
    if reference is None:
        raise BadRow(
            "no reference answer",
            "no \\boxed{...} or #### line in the solution, and no short value under "
            + ", ".join(f'"{key}"' for key in REFERENCE_KEYS[:3]),
        )
    said = system if own_system is None else own_system
    dialogue = Dialogue(tuple(turns[:first]), said, row.source, row.line)
    name = next((str(value[key]) for key in _NAME_KEYS if type(value.get(key)) in (str, int)), "")
    groups = {key: str(value[key]) for key in GROUP_KEYS if type(value.get(key)) in (str, int)}
    if several_files:
        groups["file"] = Path(row.source).name
    return MathProblem(f"{row.source}:{row.line}", name, dialogue, reference, output_role, groups)


def _turns(value: Mapping[str, Any]) -> tuple[Sequence[Turn], str | None]:
    """The turns of a row, and its system message: of a question, or of any form of training data."""
    row = dict(value)
    has_turns = any(isinstance(row.get(key), list) for key in TURN_LISTS)
    for key in () if has_turns else QUESTION_KEYS:
        if row.get(key) is None:
            continue
        if not isinstance(row[key], str):
            raise BadRow("wrong type", f'"{key}" is a JSON {json_kind(row[key])}, not a string')
        said = row.get(SYSTEM_KEY)
        if said is not None and not isinstance(said, str):
            raise BadRow("wrong type", f'"{SYSTEM_KEY}" is a JSON {json_kind(said)}, not a string')
        return [Turn(USER, row[key])], said
    if not has_turns and not any(row.get(key) is not None for key in FORM_KEYS):
        wanted = ", ".join(f'"{key}"' for key in (*QUESTION_KEYS, *TURN_LISTS[:2]))
        raise BadRow("no question", f"none of the keys {wanted}")
    form = format_of(row)
    if form in TURN_LISTS:  # may end with the question, which training data may not
        made = read_turns(row[form], Reading(AS_THEY_ARE, thinks=False))
        return made.turns, row.get(SYSTEM_KEY) if made.system is None else made.system
    parsed = parse_row(row)
    if parsed.dialogue is None:
        raise BadRow("no question", in_words(parsed.dropped or ""))
    return parsed.dialogue.turns, parsed.dialogue.system


def _output_role(turns: Sequence[Turn]) -> str:
    """The role of the outputs of code after the first answer. Raises BadRow if there are other questions."""
    others = [turn for turn in turns if turn.role != "assistant"]
    for turn in others:
        if turn.role == USER and not _OUTPUT.match(turn.text):
            raise BadRow("several questions", f"after the first answer the user says {shown(turn.text)}")
    return others[0].role if others else USER


def _reference(value: Mapping[str, Any]) -> str | None:
    """The answer that a row names, marked in a text or as a value; None if it names none."""
    for key in REFERENCE_KEYS:
        said = value.get(key)
        if said is None:
            continue
        if isinstance(said, bool) or not isinstance(said, (str, int, float)):
            raise BadRow("wrong type", f'"{key}" is a JSON {json_kind(said)}, not a string or a number')
        text = str(said).strip()
        marked = after_hashes(text) or final_answer(text)
        is_value = key != "solution" and text and "\n" not in text and len(text) <= _LONGEST
        if marked or is_value:
            return marked or text
    return None


def _unread(value: Mapping[str, Any]) -> Iterator[str]:
    known = {*QUESTION_KEYS, *REFERENCE_KEYS, *GROUP_KEYS, *_NAME_KEYS, *TRAIN_KEYS, SYSTEM_KEY}
    known |= {key for keys in FORM_KEYS.values() for key in keys}
    return (key for key in sorted(value) if key not in known and value[key] is not None)
