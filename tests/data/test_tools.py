"""What all data tools promise (flags, files, bad rows), and the small ones: merge, convert, filter, split, stats."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat.data import convert_alpaca, filter_wrong_format, get_stats, merge, split_train_test
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.records import load_dialogues

Capture = pytest.CaptureFixture[str]


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    return {**more, "conversations": [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]}


def write(path: Path, rows: list[Any]) -> str:
    if path.name.endswith("l"):
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def run(tool: Any, *argv: str) -> int:
    try:
        return tool.main(list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)


ROWS = [
    chat(f"question {i}", f"answer \u2028 é 🙂 {i}", id=f"r{i}", model="m", extra={"deep": [1, None]})
    for i in range(25)
]


# --- what all tools promise


TOOLS = {merge: [], filter_wrong_format: []}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", ["out.json", "out.jsonl", "out.json.gz", "out.jsonl.gz"])
def test_rows_come_out_as_they_went_in(tool: Any, name: str, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / name
    assert run(tool, "--in", write(tmp_path / "a.json", ROWS), "--out", str(out)) == 0
    text = (gzip.decompress(out.read_bytes()) if name.endswith(".gz") else out.read_bytes()).decode()
    if "jsonl" in name:
        assert [json.loads(line) for line in text.splitlines()] == ROWS and "é 🙂" in text
    else:
        assert text == json.dumps(ROWS, indent=2, ensure_ascii=False)
    assert "#in: 25, #out: 25" in capsys.readouterr().out
    assert len(load_dialogues([str(out)]).records) == 25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", name]


@pytest.mark.parametrize("tool", TOOLS)
def test_flags_are_spelled_either_way(tool: Any, tmp_path: Path) -> None:
    data, out = write(tmp_path / "a.jsonl", ROWS[:3]), tmp_path / "out.json"
    for argv in (
        ["--in_file", data, "--out_file", str(out)],
        [f"--in-file={data}", f"--out-file={out}"],
        ["--in", data, f"--out={out}", "--on_bad_row", "skip"],
    ):
        assert run(tool, *argv) == 0
        assert json.loads(out.read_text()) == ROWS[:3]
        out.unlink()


@pytest.mark.parametrize("tool", TOOLS)
def test_bad_rows_stop_or_are_skipped(tool: Any, tmp_path: Path, capsys: Capture) -> None:
    data, out = write(tmp_path / "a.jsonl", [ROWS[0], "{", ROWS[1], '{"id": "a", "id": "b"}']), tmp_path / "out.jsonl"
    out.write_text("precious")
    assert run(tool, "--in", data, "--out", str(out)) == 3
    err = capsys.readouterr().err
    assert (
        "2 of 4 rows cannot be read" in err and f"{data}:2: truncated JSON" in err and f"{data}:4: duplicate key" in err
    )
    assert out.read_text() == "precious" and len(list(tmp_path.iterdir())) == 2
    assert run(tool, "--in", data, "--out", str(out), "--on-bad-row", "skip") == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == ROWS[:2]
    said = capsys.readouterr()
    assert "#in: 4, #out: 2\ndropped: 2 (2 unreadable)" in said.out and "skipped 2 of 4 rows" in said.err


@pytest.mark.parametrize("tool", TOOLS)
def test_wrong_settings(tool: Any, tmp_path: Path, capsys: Capture) -> None:
    data, out = write(tmp_path / "a.json", ROWS[:1]), str(tmp_path / "out.json")
    for argv, code, message in (
        ([], 2, "--in-file"),
        (["--in-flie", data], 2, "--in-flie: did you mean --in-file?"),
        (["--in", str(tmp_path / "b.json"), "--out", out], 3, "b.json: no such file. In the same folder: a.json"),
        (["--in", data, "--out", data], 2, "is also an input and would be overwritten"),
        (["--in", data, "--out", str(tmp_path)], 2, "is not a file"),
        (["--in", data, "--out", str(tmp_path / "no" / "x.json")], 2, "there is no folder"),
        (["--in", data, "--out", out, "--on-bad-row", "mend"], 2, "invalid choice: 'mend'"),
    ):
        assert run(tool, *argv) == code, argv
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from fastchat.data.rows import writing

    data, out = write(tmp_path / "a.json", ROWS), tmp_path / "out.json"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    assert run(merge, "--in", data, "--out", str(out)) == 6
    assert "--out-file" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["a.json"]


NAMES = "merge convert_alpaca convert_csv filter_wrong_format split_train_test get_stats split_long_conversation"


@pytest.mark.parametrize("name", [*NAMES.split(), "clean_sharegpt"])
def test_every_tool_is_a_command_that_loads_no_torch(name: str, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "transformers.py").write_text("raise SystemExit('transformers was imported')")
    done = subprocess.run(
        [sys.executable, "-m", f"fastchat.data.{name}", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": f"{tmp_path}:{repository}", "PATH": ""},
    )
    assert done.returncode == 0 and "usage: fastchat data " in done.stdout and "--in-file" in done.stdout, done.stderr


# --- merge


def test_merge_keeps_the_order_and_counts_equal_ids(tmp_path: Path, capsys: Capture) -> None:
    names = [write(tmp_path / "a.json", ROWS[:3]), write(tmp_path / "b.jsonl", [*ROWS[2:4], {"any": 1}])]
    assert run(merge, "--in-file", *names, "--out", str(tmp_path / "m.jsonl")) == 0
    merged = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert merged == [*ROWS[:3], *ROWS[2:4], {"any": 1}]
    out = capsys.readouterr().out
    assert out == "#in: 6, #out: 6\nrows with the id of an earlier row: 1\n"


# --- convert_alpaca


def test_alpaca_rows_become_the_dialogue_that_training_reads(tmp_path: Path, capsys: Capture) -> None:
    rows = [
        {"instruction": "Add", "input": "5", "output": "6"},
        {"instruction": "Say", "input": " ", "output": "yes"},
        {"instruction": "Go on", "output": "", "system": "Be brief.", "history": [["Hi", "Yo"]], "input": None},
    ]
    assert run(convert_alpaca, "--in", write(tmp_path / "a.json", rows), "--out", str(tmp_path / "o.json")) == 0
    made = json.loads((tmp_path / "o.json").read_text())
    assert made[0] == {
        "id": "alpaca_0",
        "conversations": [{"from": "human", "value": "Add\nInput:\n5"}, {"from": "gpt", "value": "6"}],
    }
    assert made[1]["conversations"][0]["value"] == "Say" and made[2]["system"] == "Be brief."
    assert [parse_row(row).dialogue for row in made] == [parse_row(row).dialogue for row in rows]
    assert "empty answers, which are not learned: 1" in capsys.readouterr().out
    assert run(convert_alpaca, "--in", write(tmp_path / "b.json", ROWS[:1]), "--out", str(tmp_path / "o.json")) == 3
    assert "not an Alpaca row" in capsys.readouterr().err


# --- filter_wrong_format


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Steps:\n1. one\n1. two\n", True),
        ("1. at the start\n\ntext\n\n1. again", True),
        ("\n1. 12 eggs\n1. 2 cups", True),
        ("\n1. one\n2. two\n\nMore:\n1. one\n2. two", False),
        ("1. one\n2. two\n1. one\n1. two", True),
        ("It costs 1. 1. 1. in a line", False),
        ("\n1. one", False),
        ("\n11. a\n21. b\n11. c", False),
        ("", False),
    ],
)
def test_wrongly_numbered_lists(text: str, wrong: bool, tmp_path: Path, capsys: Capture) -> None:
    assert filter_wrong_format.is_wrongly_numbered(text) == wrong
    rows = [chat("q", text), {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]}]
    data, out = write(tmp_path / "a.json", rows), tmp_path / "o.json"
    assert run(filter_wrong_format, "--in", data, "--out", str(out)) == 0
    assert json.loads(out.read_text()) == ([] if wrong else rows)
    assert ("dropped: 2 (2 with a wrongly numbered list)" in capsys.readouterr().out) == wrong


# --- split_train_test


@given(num=st.integers(2, 300), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_a_split_is_a_partition_and_always_the_same(num: int, ratio: float, seed: int) -> None:
    rows = list(range(num))
    train, test = split_train_test.divide(rows, ratio, seed)
    assert sorted(train + test) == rows and abs(len(train) - ratio * num) < 1
    assert split_train_test.divide(rows, ratio, seed) == (train, test)


def test_the_default_split_is_upstreams(tmp_path: Path, capsys: Capture) -> None:
    np.random.seed(0)
    order = np.random.permutation(len(ROWS))
    data = write(tmp_path / "my.json.json", ROWS)
    assert run(split_train_test, "--in-file", data) == 0
    train, test = (json.loads((tmp_path / f"my.json_{part}.json").read_text()) for part in ("train", "test"))
    assert [*train, *test] == [ROWS[i] for i in order] and len(train) == int(0.9 * len(ROWS))
    names = [tmp_path / f"my.json_{part}.json" for part in ("train", "test")]
    assert capsys.readouterr().out == f"#train: 22 in {names[0]}, #test: 3 in {names[1]}\n"


def test_ratio_slice_seed_and_names(tmp_path: Path, capsys: Capture) -> None:
    data = write(tmp_path / "a.jsonl", ROWS)
    parts = [tmp_path / "a_train.jsonl", tmp_path / "a_test.jsonl"]
    assert run(split_train_test, "--in", data, "--ratio", "0.5", "--begin", "4", "--end", "10", "--seed", "7") == 0
    made = [[json.loads(line)["id"] for line in part.read_text().splitlines()] for part in parts]
    assert [len(part) for part in made] == [3, 3] and sorted(made[0] + made[1]) == [f"r{i}" for i in range(4, 10)]
    before = [part.read_bytes() for part in parts]
    for argv, message in (
        (["--ratio", "1"], "--ratio 1.0: must be between 0 and 1"),
        (["--ratio", "0.01", "--end", "9"], "one part of 9 rows would be empty"),
        (["--begin", "5", "--end", "5"], "the slice is empty"),
        (["--begin", "-1"], "the slice is empty"),
        (["--begin", "99"], "is after the last row"),
        (["--seed", "-1"], "--seed -1: must be an integer"),
    ):
        assert run(split_train_test, "--in", data, *argv) == 2
        assert message in capsys.readouterr().err
    assert [part.read_bytes() for part in parts] == before
    for name, expected in (
        ("a.json.gz", "a_train.json.gz"),
        ("x.json/a", "x.json/a_train.json"),
        ("b.txt", "b.txt_train.json"),
    ):
        assert split_train_test.part_name(name, "train") == expected


# --- get_stats


def test_stats_count_every_message_that_training_reads(
    tokenizer_dir: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    rows = [
        chat("Hello there", "Hi", "And?", "Yes " * 700, system="Sys text"),
        {"conversations": [{"from": "system", "value": "S"}, *chat("a b", "c", "unanswered")["conversations"]]},
        {"messages": [{"role": role, "content": role} for role in ("user", "function_call", "tool", "assistant")]},
        {"instruction": "i", "output": "o " * 50_000},
        {"conversations": []},
    ]
    directory = tokenizer_dir("metaspace_bos")
    assert run(get_stats, "--in", write(tmp_path / "a.jsonl", rows), "--model-name-or-path", str(directory)) == 0
    out = capsys.readouterr().out
    encoder, _ = TextEncoder.from_directory(str(directory))
    assert encoder is not None

    def size(text: str) -> int:
        return len(encoder.whole.encode(text, add_special_tokens=False).ids)

    dialogues = [dialogue for row in rows if (dialogue := parse_row(row).dialogue)]
    lengths = [size(d.system or "") + sum(size(t.text) for t in d.turns) for d in dialogues]
    by_role: dict[str, list[int]] = {"user": [], "assistant": [], "tool": []}
    for dialogue in dialogues:
        for turn in dialogue.turns:
            by_role[turn.role].append(size(turn.text))
    assert out.startswith(f"#sequence: 4\n#tokens: {sum(lengths):,}\n#dropped: 1 (1 empty)\navg. turns: 1.25\n")
    for name, role in (("prompt", "user"), ("response", "assistant"), ("tool output", "tool")):
        assert f"avg. {name} length: {np.mean(by_role[role]):.2f}\n" in out
    bins = [line.rsplit(": ", 1) for line in out.splitlines() if line.startswith("L")]
    assert bins[0][0] == "L0 - 1024" and bins[-1][0] == "L32768 - "
    assert sum(int(n) for _, n in bins) == 4 and int(bins[-1][1]) == sum(n >= 32768 for n in lengths) == 1


@given(st.lists(st.integers(0, 70_000), max_size=40))
def test_every_length_has_its_bin(lengths: list[int]) -> None:
    stats = get_stats.Stats()
    for length in lengths:
        stats.add([("user", length)])
    edges = [*get_stats.EDGES, 10**9]
    expected = [sum(a <= n < b for n in lengths) for a, b in zip(edges, edges[1:], strict=False)]
    assert stats.histogram() == expected and Counter(stats.lengths) == Counter(lengths)
    assert str(stats).startswith(f"#sequence: {len(lengths):,}\n#tokens: {sum(lengths):,}")


def test_tools_on_real_data(shared: Path, tmp_path: Path, capsys: Capture) -> None:
    alpaca, made = str(shared / "data" / "alpaca_en_demo.json"), str(tmp_path / "a.jsonl")
    assert run(convert_alpaca, "--in", alpaca, "--out", made) == 0
    same = [[r.dialogue.turns for r in load_dialogues([path]).records if r.dialogue] for path in (alpaca, made)]
    assert same[0] == same[1] and len(same[0]) == 999
    assert (
        run(merge, "--in", made, str(shared / "data" / "gsm8k_multiturn.jsonl"), "--out", str(tmp_path / "m.json")) == 0
    )
    assert "#in: 6,999, #out: 6,999" in capsys.readouterr().out
