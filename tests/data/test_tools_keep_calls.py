"""Every data tool reads the same forms as training, and loses no tool, call, result or reasoning, nor a file's own
names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat.data import (
    clean_sharegpt,
    convert_alpaca,
    filter_wrong_format,
    get_stats,
    merge,
    split_long_conversation,
    split_train_test,
)
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.records import load_dialogues

TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
CALL = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Paris"}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "How many people live in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "I have to look."},
    {"role": "tool", "tool_call_id": "c", "content": "2,100,000"},
    {"role": "assistant", "content": "About two million people."},
    {"role": "user", "content": "And in Lyon, which is smaller? " * 40},
    {"from": "function_call", "value": '{"name": "look_up", "arguments": {"city": "Lyon"}}'},
    {"from": "observation", "value": ""},
    {"role": "Assistant", "content": [{"type": "text", "text": "About half "}, {"type": "text", "text": "a million."}]},
]
ROW: dict[str, Any] = {"id": "a", "chat": TURNS, "tools": json.dumps(TOOLS), "chat_template_kwargs": {"x": 1}}
OTHER = {"chat": "dialog", "role": "who", "content": "said", "tool_calls": "acts", "reasoning_content": "why"}
NAMES = {"messages": "dialog", "role": "who", "content": "said", "tool_calls": "acts", "reasoning_content": "why"}
ROLES = {"customer": "user"}
# A template that shows tools, calls and reasoning.
SHOWS = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def renamed(row: dict[str, Any]) -> dict[str, Any]:
    """The row in a file with other names."""
    turns = [{OTHER.get(key, key): value for key, value in turn.items()} for turn in row["chat"]]
    turns = [turn | ({"who": "Customer"} if turn.get("who") == "user" else {}) for turn in turns]
    return {**{key: value for key, value in row.items() if key != "chat"}, "dialog": turns}


def run(tool: Any, tmp_path: Path, rows: list[dict[str, Any]], *words: str) -> list[dict[str, Any]]:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert tool.main(["--in-file", str(source), "--out-file", str(out), *words]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


MAPPING = ("--data-columns", json.dumps(NAMES), "--data-roles", json.dumps(ROLES))


def test_the_row_is_read() -> None:
    dialogue = parse_row(ROW).dialogue
    assert dialogue is not None and len(dialogue.turns) == len(TURNS) and dialogue.tools == tuple(TOOLS)
    assert [len(turn.calls) for turn in dialogue.turns] == [0, 1, 0, 0, 0, 1, 0, 0]
    assert parse_row(renamed(ROW), columns=Columns(NAMES, ROLES)).dialogue == dialogue


@pytest.mark.parametrize("tool", [clean_sharegpt, filter_wrong_format])
def test_rows_keep_calls_under_their_own_names(tool: Any, tmp_path: Path) -> None:
    trimmed = {**ROW, "chat": [*TURNS[:4], {**TURNS[4], "content": TURNS[4]["content"].strip()}, *TURNS[5:]]}
    assert run(tool, tmp_path, [ROW]) in ([ROW], [trimmed])
    assert run(tool, tmp_path, [renamed(ROW)], *MAPPING) in ([renamed(ROW)], [renamed(trimmed)])


def test_tools_that_do_not_look_into_rows_keep_them(tmp_path: Path) -> None:
    assert run(merge, tmp_path, [ROW, renamed(ROW)]) == [ROW, renamed(ROW)]
    assert split_train_test.main(["--in-file", str(tmp_path / "out.jsonl"), "--ratio", "0.5"]) == 0
    parts = [json.loads((tmp_path / f"out_{part}.jsonl").read_text(encoding="utf-8")) for part in ("train", "test")]
    assert parts in ([ROW, renamed(ROW)], [renamed(ROW), ROW])


@pytest.fixture(scope="module")
def shows_calls(tokenizer_dir: Callable[..., Path]) -> str:
    folder = tokenizer_dir("byte_nobos")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": SHOWS}), encoding="utf-8")
    return str(folder)


def test_calls_stay_with_their_results_in_the_pieces(
    tmp_path: Path, shows_calls: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model-name-or-path", shows_calls, "--conv-template", "tokenizer", "--max-length", "400")
    first, second = run(split_long_conversation, tmp_path, [ROW], *model)
    assert first == {**ROW, "id": "a_0", "chat": TURNS[:4]} and second == {**ROW, "id": "a_4", "chat": TURNS[4:]}
    pieces = run(split_long_conversation, tmp_path, [renamed(ROW)], *model, *MAPPING)
    assert pieces == [renamed(first), renamed(second)]
    words = ["--in-file", str(tmp_path / "in.jsonl"), "--out-file", str(tmp_path / "o.jsonl"), *MAPPING]
    assert split_long_conversation.main([*words, *model[:2], "--conv-template", "vicuna_v1.1"]) == 3
    assert "that the template does not show" in capsys.readouterr().err


def test_calls_and_tools_are_counted(tmp_path: Path, shows_calls: str, capsys: pytest.CaptureFixture[str]) -> None:
    sums = []
    for row, words in ((ROW, ()), (renamed(ROW), MAPPING), ({**ROW, "tools": None}, ())):
        path = tmp_path / "in.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")
        assert get_stats.main(["--in-file", str(path), "--model-name-or-path", shows_calls, *words]) == 0
        sums.append(int(capsys.readouterr().out.partition("#tokens: ")[2].split()[0].replace(",", "")))
    assert sums[0] == sums[1] > sums[2] > len(json.dumps(CALL["function"])) / 9


def test_a_prompt_with_calls_is_converted(tmp_path: Path) -> None:
    row = {"prompt": TURNS[:5], "completion": TURNS[5:], "tools": json.dumps(TOOLS), "enable_thinking": False}
    run(convert_alpaca, tmp_path, [row])
    paths = [str(tmp_path / name) for name in ("in.jsonl", "out.jsonl")]
    before, after = (load_dialogues([path], reasoning=True, calls=True).records[0].dialogue for path in paths)
    assert before is not None and after is not None and before.to_dict() == after.to_dict()
    mapped = {"q": TURNS[:5], "a": TURNS[5:]}
    (made,) = run(convert_alpaca, tmp_path, [mapped], "--data-columns", '{"prompt": "q", "completion": "a"}')
    assert len(made["conversations"]) == len(TURNS)


def test_wrong_mappings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(ROW), encoding="utf-8")
    words = ["--in-file", str(path), "--out-file", str(tmp_path / "out.jsonl"), "--data-columns"]
    for given, message in (
        ("role=who", "--data-columns"),
        ('["x"]', "a JSON object is expected"),
        ('{"rolle": "who"}', "did you mean role"),
    ):
        assert filter_wrong_format.main([*words, given]) == 2
        assert message in capsys.readouterr().err
    assert filter_wrong_format.main([*words, '{"system": "persona"}']) == 3
    assert "--data-columns: no row or turn has 'persona'" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
