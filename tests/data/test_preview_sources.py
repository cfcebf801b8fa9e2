"""The preview of everything that --data_path may name, and of what a run would choose of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fastchat.data import preview

Run = Callable[..., tuple[int, str, str]]


def row(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(tokenizer_dir: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; returns exit code, stdout, stderr."""

    def call(*argv: str) -> tuple[int, str, str]:
        model = ["--model_name_or_path", str(tokenizer_dir("metaspace_bos")), "--conv_template", "vicuna_v1.1"]
        code = preview.main([*model, *argv])
        return code, *capsys.readouterr()

    return call


def test_patterns_folders_and_parquet(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "b.jsonl", [row("q", "answer b")])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row("q", "answer a")]), folder / "a.parquet")
    for name in (folder, f"{folder}/*"):
        code, out, err = run("--data_path", str(name))
        assert code == 0 and "2: 2 used" in out, err
        assert f"--- {folder}/a.parquet:1" in out and f"--- {folder}/b.jsonl:1" in out
    code, out, err = run("--data_path", f"{folder}/*.csv")
    assert code == 3 and out == "" and "the pattern matches no file" in err
    code, _, err = run("--data_path", "me/nothing", "--data_revision", "v1")
    assert code == 3 and "HF_HUB_OFFLINE is set" in err and "--revision v1" in err
    code, _, err = run("--data_path", str(folder), "--output", str(folder / "b.jsonl"))
    assert code == 2 and "is also an input" in err


def test_what_a_run_would_choose_is_counted(run: Run, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.jsonl", [row(f"q{i}", f"a{i}") for i in range(n)]) for n in (10, 4)]
    code, out, _ = run("--data_path", *paths, "--data_proportions", "0.5", "0.5", "--val_set_size", "0.25")
    assert code == 0 and f"8 dialogues make up an epoch: 4 of 10 from {paths[0]}, 4 of 4 from {paths[1]}" in out
    assert "--val_set_size: 2 of 8 dialogues are held out, 6 are trained on" in out
    code, _, err = run("--data_path", *paths, "--data_proportions", "1")
    assert code == 2 and "1 numbers for 2 values" in err


def test_rows_are_shown_before_the_file_has_been_read(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [*[row(f"q{i}", f"a{i}") for i in range(300)], "{", row("q", "last"), "{"])
    code, out, err = run("--data_path", data, "--num", "1")
    assert code == 3 and out.count("--- ") == 1 and " used, " not in out
    assert f"2 of 303 rows cannot be read:\n  {data}:301: " in err and f"{data}:303: " in err
