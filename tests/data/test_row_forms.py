"""Every form of a row is the same dialogue, from every kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data.rows.formats import Parsed, parse_row
from fastchat.data.rows.keys import ROLES, TURN_LISTS
from fastchat.data.rows.records import Records, load_dialogues
from fastchat.data.tools.row_tool import turn_list
from tests.data.row_forms import ASK, CALLS, QA, SAY, TOOL, Row, bad, call_turn, read, treated, write

# --- lists of turns


@pytest.mark.parametrize("key", TURN_LISTS)
def test_turns_of_both_kinds_under_every_key(key: str) -> None:
    mixed = [{"from": "human", "value": "q"}, {"role": "assistant", "value": "a"}]
    for turns in ([ASK, SAY], mixed, [{"from": "user", "content": "q"}, {**SAY, "from": "assistant", "value": None}]):
        parsed = parse_row({key: turns})
        assert parsed == Parsed(Dialogue(QA), None, parsed.treatments) and not parsed.treatments and not parsed.unread


@pytest.mark.parametrize("name", [name.upper() for name in ROLES] + [name.title() for name in ROLES])
def test_roles_in_any_case(name: str) -> None:
    kind = ROLES[name.lower()]
    if kind in ("system", "developer"):
        dialogue = read({"messages": [{"role": name, "content": "s"}, ASK, SAY]})
        assert (dialogue.system, dialogue.system_role, dialogue.turns) == ("s", kind, QA)
        return
    turns = read({"messages": [ASK, {"role": name, "content": "t"}, SAY]}).turns
    assert turns[1].role == ("assistant" if kind == "function_call" else kind) and turns[1].text == "t"


def test_a_list_takes_precedence_over_other_columns() -> None:
    row = {"messages": [ASK, SAY], "prompt": "other", "completion": "x", "text": "y", "conversations": [], "chat": None}
    parsed = parse_row(row)
    assert parsed.dialogue == Dialogue(QA) and parsed.treatments == {"turn_list_used": 1}
    assert set(parsed.unread) == {("row", key) for key in ("prompt", "completion", "text", "conversations")}
    assert read({"messages": [], "instruction": "q", "output": "a"}) == Dialogue(QA)
    assert read({"items": 3, "instruction": "q", "output": "a"}) == Dialogue(QA)
    assert read({"messages": [ASK, SAY], "conversations": [ASK, SAY]}) == Dialogue(QA)


def test_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "input_text", "text": "b"}, "c", None, {"text": "d"}]
    assert read({"messages": [{**ASK, "content": parts}, SAY]}).turns[0].text == "a bcd"
    assert read({"messages": [{**ASK, "content": []}, SAY]}).turns[0].text == ""


@pytest.mark.parametrize("key", TURN_LISTS)
def test_a_list_of_turns_as_json_text(key: str) -> None:
    row = {"id": 7, key: json.dumps([ASK, SAY], indent=1)}
    parsed = parse_row(row)
    assert parsed.dialogue == Dialogue(QA) and parsed.entries == (0, 1, 2) and not parsed.treatments
    turns = turn_list(row)
    assert (turns.key, turns.entries, turns.texts) == (key, [ASK, SAY], ["q", "a"])
    assert parse_row({key: "[]"}).dropped == "empty_dialogue"


THOUGHTS: list[list[Any]] = [
    [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "a"}],
    [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "closed": True},
        {"type": "text", "text": "a"},
    ],
    [{"type": "reasoning", "text": "Hm."}, "a"],
    [{"type": "reasoning", "reasoning": "H"}, {"type": "reasoning", "reasoning": "m."}, {"type": "text", "text": "a"}],
]


@pytest.mark.parametrize("parts", THOUGHTS)
def test_parts_of_an_answer_that_are_reasoning(parts: list[Any]) -> None:
    said = {"role": "assistant", "content": parts}
    assert read({"messages": [ASK, said]}).turns[1] == Turn("assistant", "a", reasoning="Hm.")
    assert read({"messages": [ASK, {**said, "reasoning": "Hm. "}]}).turns[1].reasoning == "Hm. "
    assert bad({"messages": [ASK, {**said, "thinking": "x"}]}).startswith("contradictory keys: turn 2 has reasoning")
    assert bad({"messages": [{**ASK, "content": parts}, SAY]}).startswith("part that is not text")


# --- other forms


def test_prompt_and_completion() -> None:
    asked, answered = Turn("user", "q"), Turn("assistant", "a")
    for prompt in ("q", [ASK]):
        for completion in ("a", [SAY]):
            row = {"prompt": prompt, "completion": completion, "system": "s"}
            assert read(row) == Dialogue((asked, answered), "s")
    history = [{"role": "system", "content": "s"}, ASK, SAY, ASK]
    more = read({"prompt": history, "completion": [SAY, ASK, SAY], "thinking": None})
    assert more.system == "s" and [turn.train for turn in more.turns] == [True, False, True, True, True, True]
    said = [ASK, {**SAY, "train": True}, ASK]
    assert [turn.train for turn in read({"prompt": said, "completion": "a"}).turns] == [True] * 4
    assert read({"prompt": "q", "completion": "a", "reasoning": "r"}).turns[1].reasoning == "r"
    assert bad({"prompt": [ASK], "completion": [SAY], "reasoning": "r"}).startswith("reasoning outside an answer")
    assert bad({"prompt": 3, "completion": "a"}).startswith("wrong type: 'prompt' of the row is a number")
    assert parse_row({"prompt": [ASK], "completion": []}).dropped == "no_assistant_turn"


def test_plain_text() -> None:
    parsed = parse_row({"text": "Once upon", "id": 3, "label": 1}, "f", 2)
    assert parsed.dialogue == Dialogue((Turn("assistant", "Once upon"),), None, "f", 2, plain=True)
    assert parsed.id == "3" and set(parsed.unread) == {("row", "label")}
    assert not read({"text": "x", "weight": 0}).turns[0].train
    assert parse_row({"text": " \n"}).dropped == "empty_dialogue"
    assert not read({"instruction": "q", "output": "a", "text": "x"}).plain
    assert bad({"text": ["x"]}).startswith("wrong type: 'text' of the row is an array")


# --- reasoning


def test_a_thought_in_the_text_is_reasoning_where_the_template_shows_it() -> None:
    said = "<think>\nHm.\n</think>\n\na"
    forms = [
        {"messages": [ASK, {**SAY, "content": said}]}, {"prompt": "q", "completion": said},
        {"instruction": "q", "output": said},
    ]  # fmt: skip
    for row in forms:
        assert read(row).turns[1] == Turn("assistant", said)
        assert read(row, thinks=True).turns[1] == Turn("assistant", "a", reasoning="Hm.")
    both = {**SAY, "content": said, "thinking": "Hm."}
    assert read({"messages": [ASK, both]}, thinks=True).turns[1] == Turn("assistant", "a", reasoning="Hm.")
    assert bad({"messages": [ASK, {**both, "thinking": "x"}]}, thinks=True).startswith("contradictory keys: turn 2 has")
    for other in ("a <think>Hm.</think>", "<think>Hm.", "Hm.</think>a"):
        assert read({"messages": [ASK, {**SAY, "content": other}]}, thinks=True).turns[1].text == other
    empty = {"messages": [ASK, {**SAY, "content": "<think>\n\n</think>\n\na"}]}
    assert read(empty, thinks=True).turns == QA and treated(empty, thinks=True) == {"empty_reasoning": 1}
    assert read({"messages": [{**ASK, "content": said}, SAY]}, thinks=True).turns[0].text == said


# --- files

ROWS: list[Row] = [
    {"messages": [ASK, CALLS["object"], {"role": "tool", "content": "r", "tool_call_id": "c"}, SAY], "tools": [TOOL]},
    {
        "messages": [
            ASK,
            call_turn({"function": {"name": "g", "arguments": {"other": [1, 2], "deep": {"z": "w"}}}}),
            SAY,
        ]
    },
    {"messages": [ASK, {**SAY, "reasoning_content": "Hm."}], "chat_template_kwargs": {"enable_thinking": True}},
    {"messages": [{"role": "developer", "content": "s"}, ASK, SAY]},
]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_every_reader_gives_the_same_dialogues(tmp_path: Path, name: str) -> None:
    """A table has all keys in all rows, as nulls: none of them may get into calls or tools."""
    wanted = [read(row) for row in ROWS]
    loaded = load_dialogues([write(tmp_path / name, ROWS)], reasoning=True, calls=True)
    found = [record.dialogue.to_dict() for record in loaded.records if record.dialogue]
    assert found == [dialogue.to_dict() for dialogue in wanted]
    assert [Dialogue.from_dict(made) for made in found] == wanted


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_other_forms_in_one_file(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}, {"messages": [ASK, SAY]}]
    loaded = load_dialogues([write(tmp_path / name, [*rows, {"text": "t"}])])
    assert [record.dialogue.turns for record in loaded.records if record.dialogue] == [QA] * 3 + [
        (Turn("assistant", "t"),)
    ]


def test_nulls_of_an_exported_table_are_counted(tmp_path: Path) -> None:
    """`to_json` of datasets writes the nulls of a table."""
    table = pyarrow.Table.from_pylist(ROWS[:2])
    rows = table.to_pylist()
    loaded = load_dialogues([write(tmp_path / "a.jsonl", rows)], calls=True)
    assert [r.dialogue.turns for r in loaded.records if r.dialogue] == [read(row).turns for row in ROWS[:2]]
    assert loaded.counts["null_arguments"] > 0


def test_template_arguments_without_effect_are_counted(tmp_path: Path) -> None:
    rows = [{"messages": [ASK, SAY], "enable_thinking": False}, {"messages": [ASK, SAY]}]
    path = write(tmp_path / "a.jsonl", rows)
    for reads, counted in (
        (lambda name: name == "enable_thinking", {}),
        (lambda name: False, {"ignored_arguments": 1}),
    ):
        records = Records([path], reads_argument=reads)
        assert len(list(records)) == 2 and records.counts == {"rows": 2, "bad_rows": 0} | counted
    assert not get_template("chatml").reads_argument("enable_thinking")
