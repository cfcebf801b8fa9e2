"""--data_columns and --data_roles: files with other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastchat.conversation import Dialogue, Turn
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.records import load_dialogues
from fastchat.errors import DataError, SettingsError
from fastchat.settings.readers import training_reader
from tests.data.row_forms import ASK, QA, SAY, Row, read, write

# --- mapped columns

NAMES = {"messages": "chat log", "role": "speaker", "content": "utterance", "system": "persona", "train": "good"}
NAMED_ROLES = {"customer": "user", "AGENT": "assistant"}
MAPPED: Row = {
    "chat log": [{"speaker": "Customer", "utterance": "q"}, {"speaker": "agent", "utterance": "a", "good": False}],
    "persona": "s",
}


def test_mapped_columns_and_roles() -> None:
    columns = Columns(NAMES, NAMED_ROLES)
    assert read(MAPPED, columns=columns) == Dialogue((QA[0], Turn("assistant", "a", False)), "s")
    assert columns.check_found() == []
    assert read({"messages": [ASK, SAY]}, columns=columns) == Dialogue(QA)  # files in both forms can be mixed


def test_a_mapped_column_takes_precedence() -> None:
    columns = Columns({"prompt": "question", "completion": "answer"})
    parsed = parse_row({"question": "q", "answer": "a", "prompt": "x", "messages": [ASK, ASK]}, columns=columns)
    assert parsed.dialogue == Dialogue(QA)
    assert set(parsed.unread) == {("row", "prompt"), ("row", "messages")}
    swapped = Columns({"instruction": "output", "output": "instruction"})
    assert read({"instruction": "a", "output": "q"}, columns=swapped) == Dialogue(QA)
    own = Columns({}, {"user": "assistant", "assistant": "user"})
    assert read({"messages": [{**SAY, "content": "q"}, {**ASK, "content": "a"}]}, columns=own) == Dialogue(QA)


@pytest.mark.parametrize(
    ("names", "roles", "message"),
    [
        ({"mesages": "x"}, {}, "a key of --data_columns is 'mesages'; .*; did you mean messages"),
        ({"speaker": "role"}, {}, r"'speaker' is not one of our keys; write it as \{\"role\": \"speaker\"\}"),
        ({"prompt": "x", "text": "x"}, {}, "'x' is given for both 'prompt' and 'text'"),
        ({"role": 3}, {}, "'role' is mapped to 3; the name of a column is expected"),
        ({}, {"agent": "asistant"}, "--data_roles 'agent' is 'asistant'; it can be .*; did you mean assistant"),
        ({}, {"user": "customer"}, r"write the file's name first: \{\"customer\": \"user\"\}"),
        ({}, {"assistant": ["gpt"]}, "write the file's name first"),
        ({"mask": "x"}, {}, "a key of --data_columns is 'mask'"),
    ],
)
def test_wrong_mappings(names: dict[str, Any], roles: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Columns(names, roles)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_a_mapping_that_no_row_has_is_an_error(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "x", "chat log": [ASK, SAY], "thought": "t"}
    path = write(tmp_path / name, [row, row])
    with pytest.raises(DataError, match=r"no row or turn has 'chat_log' \(for 'messages'\); did you mean 'chat log'"):
        load_dialogues([path], columns=Columns({"messages": "chat_log"}))
    names = {"messages": "chat log", "system": "persona"}
    with pytest.raises(DataError, match=r"'persona' .* The keys there: 'id', 'chat log', 'thought'"):
        load_dialogues([path], columns=Columns(names))
    with pytest.raises(DataError, match=r"no row or turn has 'thoughts' \(for 'reasoning_content'\); did you mean"):
        load_dialogues([path], columns=Columns({"messages": "chat log", "reasoning_content": "thoughts"}))
    loaded = load_dialogues([path], columns=Columns({"messages": "chat log", "role": "who"}, {"bot": "user"}))
    assert [record.dialogue for record in loaded.records] == [Dialogue(QA, None, path, n) for n in (1, 2)]
    said = capsys.readouterr().err
    assert "--data_columns: no row has 'who'; 'role' is read instead" in said
    assert "--data_roles: no turn is from 'bot'" in said


# --- settings


@pytest.mark.parametrize(
    ("line", "here"),
    [
        ("field_messages: dialog", "data_columns: {messages: dialog}"),
        ("message_field_role: speaker", "data_columns: {role: speaker}"),
        ("message_property_mappings: {role: from, content: value}", "data_columns: {role: from, content: value}"),
        ("dataset_text_field: body", "data_columns: {text: body}"),
        (
            "roles: {user: [human, customer], assistant: bot}",
            "data_roles: {human: user, customer: user, bot: assistant}",
        ),
    ],
)
def test_names_of_columns_and_roles(tmp_path: Path, line: str, here: str) -> None:
    (tmp_path / "a.yaml").write_text(line, encoding="utf-8")
    with pytest.raises(SettingsError) as found:
        training_reader(True).from_yaml(tmp_path / "a.yaml")
    assert here in str(found.value)


def test_a_mapping_is_read_from_both(tmp_path: Path) -> None:
    """data_columns as a mapping in YAML, and as JSON in YAML and on the command line."""
    reader, wanted = training_reader(True), {"data_columns": {"messages": "dialog", "role": "who"}}
    for text in (
        "data_columns: {messages: dialog, role: who}",
        """data_columns: '{"messages": "dialog", "role": "who"}'""",
    ):
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
        assert reader.from_yaml(tmp_path / "a.yaml") == wanted
    assert reader.from_words(["--data_columns", '{"messages": "dialog", "role": "who"}']) == wanted
    with pytest.raises(SettingsError, match="--data_columns is 'messages=dialog', but a mapping is expected"):
        reader.from_words(["--data_columns", "messages=dialog"])
