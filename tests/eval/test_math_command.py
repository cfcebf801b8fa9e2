"""`fastchat eval math` as a command: an interrupted evaluation continues, and what cannot work leaves no folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat.eval import command_line
from fastchat.eval.mathematics import command, transcripts
from fastchat.eval.statistics import proportion
from tests import builders
from tests.eval.scripted import scripted

CODE = "```python\nprint(6*7)\n```"
SCRIPT = {
    **{f"{kind} {number}": turns for kind, turns in {"right": [CODE, "\\boxed{42}"], "wrong": ["\\boxed{1}"]}.items()
       for number in range(4)},
    "cut": ["word " * 99], "none": ["Who knows."],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("llama", "metaspace_bos")


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    rows = [{"question": f"How many? ({word})", "answer": "42", "level": word.split()[0]} for word in SCRIPT]
    return builders.write_rows(tmp_path / "problems.jsonl", rows)


def evaluate(model: Path, data: Path, folder: Path, *flags: str) -> int:
    words = ["math", str(model), "--data_path", str(data), "--output_dir", str(folder), "--device", "cpu"]
    return command_line.main([*words, "--conv_template", "vicuna_v1.1", *flags])


def test_an_interrupted_evaluation_continues_to_the_same_results(
    model: Path, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--batch_size", "1", "--max_new_tokens", "60")
    monkeypatch.setattr(command, "_load", lambda *args: scripted(model, SCRIPT))
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    assert evaluate(model, problems, whole, *flags) == 0
    out = capsys.readouterr().out
    results = json.loads((whole / "results.json").read_text())
    assert (results["accuracy"], results["problems"], results["code_runs"]) == (0.4, 10, {"ran": 4})
    assert results["interval"] == list(proportion(4, 10))
    assert results["interval"] == pytest.approx([0.1682, 0.6873], abs=1e-4)
    assert results["reasons"] == {"right": 4, "wrong answer": 4, "answer cut": 1, "no boxed answer": 1}
    assert results["groups"]["level"]["right"]["accuracy"] == 1
    assert "accuracy: 40.0 % of 10 problems" in out and "answer cut × 1" in out

    plain = transcripts.Folder.add

    def dies(self: transcripts.Folder, records: Any) -> None:
        if not self.records:
            return plain(self, records)
        with open(self.path / transcripts.TRANSCRIPTS, "a") as file:  # killed while it writes the second group
            file.write(json.dumps(records[0]) + '\n{"attempt": 5, "pla')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transcripts.Folder, "add", dies)
        assert evaluate(model, problems, folder, *flags) == 130
    assert evaluate(model, problems, folder, *flags, "--rounds", "2") == 2
    assert "other settings (rounds was 4, is 2)" in capsys.readouterr().err
    assert evaluate(model, problems, folder, *flags) == 0
    err = capsys.readouterr().err
    assert "the last 2 lines are of a group that was interrupted" in err and "4 attempts" in err
    for name in ("settings.json", "transcripts.jsonl", "results.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name

    transcript = folder / transcripts.TRANSCRIPTS
    lines = transcript.read_bytes().splitlines(keepends=True)
    transcript.write_bytes(b"".join([*lines[:6], b'{"attempt": 6}\n', *lines[7:]]))  # by hand
    assert evaluate(model, problems, folder, *flags) == 0
    assert transcript.read_bytes() == (whole / transcripts.TRANSCRIPTS).read_bytes()

    def not_needed(*args: Any) -> Any:
        raise AssertionError("a complete evaluation needs no model")

    monkeypatch.setattr(command, "_load", not_needed)
    assert evaluate(model, problems, folder, *flags) == 0


@pytest.mark.parametrize(
    ("rows", "flags", "code", "message"),
    [
        ("", [], 3, ""),
        ("\n\n", [], 3, ""),
        ('{"question": "a"}\n', [], 3, "answer"),
        ('{"question": "a", "answer": "1"}\n{"quest', [], 3, ":2"),
        ('{"question": " ", "answer": "1"}\n', [], 3, "no question"),
        ('{"question": "%s", "answer": "1"}\n' % ("long " * 600), [], 2, "the model's context is 512"),
        (None, ["--top_p", "0"], 2, "--top-p: 0 is not a number above 0 and at most 1"),
        (None, ["--temperature", "nan"], 2, "--temperature: nan is not a number of 0 or more"),
        (None, ["--timeout", "0"], 2, "--timeout: 0 is not above 0"),
        (None, ["--samples", "2"], 2, "add --temperature"),
        (None, ["--load_8bit", "--load_4bit"], 2, "choose one"),
        (None, ["--conv_template", "vicunna"], 2, "vicuna"),
        (None, ["--model", "other"], 2, "the model is given twice"),
        (None, ["--output_dir", "problems.jsonl"], 2, "problems.jsonl is not a folder"),
        (None, ["--output_dir", "problems.jsonl/x"], 2, "problems.jsonl is not a folder"),
    ],
)
def test_what_cannot_work_leaves_no_folder(
    model: Path,
    problems: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: str | None,
    flags: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if rows is not None:
        problems.write_text(rows)
    try:
        found = evaluate(model, problems, tmp_path / "folder", *flags)
    except SystemExit as ended:  # argparse
        found = int(ended.code or 0)
    err = capsys.readouterr().err
    assert found == code and message in err and "error: " in err and "Traceback" not in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["problems.jsonl"]


@pytest.mark.parametrize("missing", ["all", "model.safetensors", "tokenizer.json", "config.json"])
def test_a_wrong_model_leaves_no_folder(
    model: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    broken = tmp_path / "broken"
    if missing != "all":
        shutil.copytree(model, broken)
        (broken / missing).unlink()
    assert evaluate(broken, problems, tmp_path / "folder") != 0
    err = capsys.readouterr().err
    assert "error: " in err and "broken" in err and "Traceback" not in err
    assert not (tmp_path / "folder").exists()


def test_without_model_or_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["math"]) == 2 and "no model is given" in capsys.readouterr().err
    assert command_line.main(["math", "x"]) == 2 and "--data_path is missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["math", "lm-eval"])
def test_help_has_the_form_of_the_other_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert not ended.value.code and lines[0].startswith(f"usage: fastchat eval {name} ")
    assert lines[lines.index("Examples:") + 1].startswith(f"  fastchat eval {name} ")
    assert max(map(len, lines)) <= 190
