"""No data tool loses what a row or a turn says about learning, reasoning, or anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fastchat.data import clean_sharegpt, convert_alpaca, filter_wrong_format, get_stats, merge, split_long_conversation
from fastchat.data.rows.records import load_dialogues

KEYS = {"weight": 0, "masked": True, "note": "n"}
TURNS = [
    {"from": "human", "value": "What is the capital of France?", "name": "me"},
    {"from": "gpt", "value": "Paris is the capital of France.", **KEYS},
    {"from": "human", "value": "And of Spain? " * 20, "weight": 0},
    {"from": "gpt", "value": "Madrid is the capital of Spain.", "weight": 1},
]
BARE: dict[str, Any] = {"id": "a", "conversations": TURNS, "weight": 1, "source": "web"}
ROW: dict[str, Any] = {**BARE, "tools": [{"name": "f"}]}


def result(tool: Any, tmp_path: Path, rows: list[dict[str, Any]], *words: str) -> list[dict[str, Any]]:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert tool.main(["--in-file", str(source), "--out-file", str(out), *words]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("tool", [merge, clean_sharegpt, filter_wrong_format])
def test_rows_keep_all_their_keys(tool: Any, tmp_path: Path) -> None:
    (made,) = result(tool, tmp_path, [ROW])
    stripped = [{**turn, "value": turn["value"].strip()} for turn in TURNS]
    assert made in (ROW, {**ROW, "conversations": stripped})


def test_pieces_keep_all_their_keys(tmp_path: Path, tokenizer_dir: Callable[[str], Path]) -> None:
    model = ("--model-name-or-path", str(tokenizer_dir("metaspace_bos")), "--conv-template", "vicuna_v1.1")
    first, second = result(split_long_conversation, tmp_path, [BARE], *model, "--max-length", "120")
    assert first == {**BARE, "id": "a_0", "conversations": TURNS[:2]}
    assert second == {**BARE, "id": "a_2", "conversations": TURNS[2:]}


def test_a_piece_never_loses_reasoning(
    tmp_path: Path, tokenizer_dir: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"conversations": [TURNS[0], {**TURNS[1], "thinking": "Hm."}]}), encoding="utf-8")
    words = ["--in-file", str(path), "--out-file", str(tmp_path / "out.jsonl"), "--conv-template", "vicuna_v1.1"]
    model = ["--model-name-or-path", str(tokenizer_dir("metaspace_bos"))]
    assert split_long_conversation.main([*words, *model]) == 3
    assert "reasoning that the template does not show: 'Hm.'" in capsys.readouterr().err
    assert get_stats.main([*words[:2], *model]) == 0


def test_alpaca_keeps_what_it_says_about_learning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alpaca = {
        "instruction": "q",
        "output": "a",
        "weight": 0,
        "reasoning": "Hm.",
        "functions": [{"name": "f"}],
        "note": "n",
    }
    (made,) = result(convert_alpaca, tmp_path, [{**alpaca, "messages": None}])
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "reasoning_content": "Hm."}]
    assert made == {"id": "alpaca_0", "weight": 0, "functions": [{"name": "f"}], "conversations": turns}
    assert "rows whose key 'note' is dropped: 1" in capsys.readouterr().out
    (record,) = load_dialogues([str(tmp_path / "out.jsonl")], reasoning=True, calls=True).records
    assert record.dialogue is not None and not record.dialogue.turns[1].train


def test_columns_of_a_table_are_kept_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"instruction": "q", "output": "a", "embedding": [1.0, 2.0], "pixels": None}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([good, {**good, "pixels": b"x"}]), tmp_path / "a.parquet")
    words = ["--in-file", str(tmp_path / "a.parquet"), "--out-file", str(tmp_path / "out.jsonl")]
    assert merge.main(words) == 3
    assert "a.parquet:2: wrong type: b'x' is a bytes, which JSON cannot represent" in capsys.readouterr().err
    assert merge.main([*words, "--on-bad-row", "skip"]) == 0
    written = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert written == {"instruction": "q", "output": "a", "embedding": [1.0, 2.0]}
