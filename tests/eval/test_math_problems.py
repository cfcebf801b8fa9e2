"""Rows in every form -> problems; a row that is none is named with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import DataError
from fastchat.eval.mathematics.problems import MathProblem, read_problems
from tests import builders

USER, BOX = {"role": "user", "content": "How many?"}, {"role": "assistant", "content": "So \\boxed{72}."}
CODE = {"role": "assistant", "content": "```python\nprint(72)\n```"}


def read(tmp_path: Path, *rows: Any, **options: Any) -> list[MathProblem]:
    return read_problems([str(builders.write_rows(tmp_path / "data.jsonl", list(rows)))], **options)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "How many?", "answer": "48 <<1+1=2>>\n#### 72"},
        {"problem": "How many?", "answer": "72"},
        {"problem": "How many?", "answer": 72},
        {"problem": "How many?", "solution": "Long.\nSo \\boxed{72}"},
        {"problem": "How many?", "solution": "So \\boxed{1}", "answer": "72"},
        {"messages": [USER, BOX]},
        {"messages": [USER], "answer": "72"},
        {"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "\\boxed{72}"}]},
        {"instruction": "How many?", "output": "So \\boxed{72}"},
        {"messages": [USER, CODE, {"role": "user", "content": "```output\n72\n```"}, BOX]},
    ],
)
def test_forms_of_rows(tmp_path: Path, row: dict[str, Any]) -> None:
    (problem,) = read(tmp_path, row)
    assert (problem.question, problem.reference, problem.output_role) == ("How many?", "72", "user")
    assert problem.place.endswith("data.jsonl:1") and len(problem.dialogue.turns) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "How many?"}, "answer"),
        ({"question": "How many?", "answer": ""}, "answer"),
        ({"question": "How many?", "answer": "Long.\nWithout a mark."}, "answer"),
        ({"question": "How many?", "answer": True}, '"answer" is a JSON'),
        ({"question": 5, "answer": "1"}, '"question" is a JSON number'),
        ({"question": " ", "answer": "1"}, "no question"),
        ({"text": "How many?", "id": 1}, "question"),
        ({"messages": [BOX]}, "question"),
        ({"messages": [USER, BOX, USER, BOX]}, "several questions"),
        ([1], "object"),
    ],
)
def test_rows_that_are_no_problem(tmp_path: Path, row: Any, message: str) -> None:
    good = {"question": "How many?", "answer": "72"}
    with pytest.raises(DataError) as error:
        read(tmp_path, good, row)
    assert "data.jsonl:2" in str(error.value) and message in str(error.value)
    assert len(read(tmp_path, good, row, on_bad_row="skip")) == 1
    assert len(read(tmp_path, good, row, num=1)) == 1, "only the first ones are read"
    with pytest.raises(DataError):
        read(tmp_path, row, on_bad_row="skip")


def test_the_rest_of_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": 7, "system": "Use code.", "question": "How many?", "answer": "1", "level": 3, "subject": "Algebra"}
    other = {"question": "How many?", "answer": "1", "colour": "red"}
    first, second = read(tmp_path, row, other, system="Think.")
    assert (first.name, first.dialogue.system, second.dialogue.system) == ("7", "Use code.", "Think.")
    assert first.groups == {"level": "3", "subject": "Algebra"} and not second.groups
    assert "colour" in capsys.readouterr().err, "a key that is not read is named"
    own_role = {"messages": [USER, CODE, {"role": "tool", "content": "72"}, BOX]}
    assert read(tmp_path, own_role)[0].output_role not in ("user", "assistant")


def test_several_files_are_told_apart(tmp_path: Path) -> None:
    row = json.dumps({"question": "How many?", "answer": "1"})
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text(row + "\n", encoding="utf-8")
    assert [one.groups["file"] for one in read_problems([str(file) for file in files])] == ["a.jsonl", "b.jsonl"]
