"""The preview: its ids are the training run's, it shows the mask truly, and hostile data cannot reach the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat import files
from fastchat.conversation import get_template
from fastchat.data import preview
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.records import load_dialogues
from tests.builders import TOKENIZER_KINDS, make_tokenizer
from tests.data.in_memory import build_store

TokenizerDir = Callable[[str], Path]
Run = Callable[..., tuple[int, str, str]]


def row(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **more}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(tokenizer_dir: TokenizerDir, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; returns exit code, stdout, stderr."""

    def call(*argv: str, kind: str = "metaspace_bos", template: str | None = "vicuna_v1.1") -> tuple[int, str, str]:
        picked = ["--conv_template", template] if template else []
        try:
            code = preview.main(["--model_name_or_path", str(tokenizer_dir(kind)), *picked, *argv])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


ROWS = [
    row("Hi", "Hello there.", "More?", "Yes, more.", id="first"),
    row(),
    row("Why?", "Because " * 40, "And?", "So " * 300),
    '{"messages": [',
    row("only a question"),
    row("q " * 2000, "a"),
    row("q", ""),
    row("Bye", "Goodbye"),
]


# --- the output file


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_output_equals_the_training_run(run: Run, tokenizer_dir: TokenizerDir, tmp_path: Path, kind: str) -> None:
    data, out = write(tmp_path / "a.jsonl", ROWS), tmp_path / "out.jsonl"
    code, _, _ = run(
        "--data_path", data, "--output", str(out), "--on_bad_row", "skip", "--model_max_length", "300", kind=kind
    )
    assert code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(len(ROWS)))
    assert all(list(line) == ["index", "input_ids", "labels", "dropped", "truncated_tokens"] for line in lines)
    assert [line["dropped"] for line in lines] == [
        None,
        "empty_dialogue",
        None,
        "bad_row: truncated JSON",
        "no_assistant_turn",
        "no_answer_within_length",
        "no_trained_turn",
        None,
    ]
    encoder, _ = open_tokenizer(str(tokenizer_dir(kind)))
    chat_encoder = encoder.bind(get_template("vicuna_v1.1"))
    records = load_dialogues([data], on_bad_row="skip").records
    store, counts = build_store(records, chat_encoder, max_length=300, overlong="truncate")
    kept = [line for line in lines if line["dropped"] is None]
    assert [line["index"] for line in kept] == store.index.tolist()
    for i, line in enumerate(kept):
        assert line["input_ids"] == store[i]["input_ids"].tolist() and line["labels"] == store[i]["labels"].tolist()
    for line in lines:
        assert len(line["input_ids"]) == len(line["labels"]) <= 300
        assert line["dropped"] is None or line["input_ids"] == []
    assert sum(line["truncated_tokens"] for line in kept) == counts["truncated_tokens"] > 0


def test_the_tokenizers_own_class_gives_the_same_ids(run: Run, tokenizer_dir: TokenizerDir, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    data, out = write(tmp_path / "a.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    for kind in TOKENIZER_KINDS:
        assert run("--data_path", data, "--output", str(out), kind=kind)[0] == 0
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir(kind))
        chat_encoder = TextEncoder.from_tokenizer(tokenizer).bind(get_template("vicuna_v1.1"))
        (example,) = build_store(load_dialogues([data]).records, chat_encoder, max_length=512, overlong="drop")[0]
        assert json.loads(out.read_text())["input_ids"] == example["input_ids"].tolist()


def test_output_replaces_a_file_whole_or_not_at_all(run: Run, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.jsonl", ROWS[:1]), write(tmp_path / "bad.jsonl", ROWS)
    out, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    out.write_text("precious")
    link.symlink_to(out)
    before = sorted(os.listdir(tmp_path))
    for argv in (
        ["--data_path", bad],
        ["--data_path", str(tmp_path / "none.jsonl")],
        ["--data_path", good, "--conv_template", "vicunna"],
        ["--data_path", good, "--model_max_length", "4", "--overlong", "error"],
    ):
        assert run(*argv, "--output", str(out))[0] in (2, 3)
        assert out.read_text() == "precious" and sorted(os.listdir(tmp_path)) == before
    assert run("--data_path", good, "--output", str(link))[0] == 0
    assert json.loads(out.read_text())["index"] == 0 and link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == before


def test_output_that_cannot_be_written_is_refused_first(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ROWS[:1])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    link = tmp_path / "link.jsonl"
    link.symlink_to(data)
    for out, message in (
        (tmp_path, "exists and is not a file"),
        (fifo, "exists and is not a file"),
        (tmp_path / "none" / "out.jsonl", "there is no folder"),
        (data, "is also an input and would be overwritten"),
        (link, "is also an input and would be overwritten"),
    ):
        code, shown, err = run("--data_path", data, "--output", str(out))
        assert code == 2 and message in err and str(out) in err and shown == ""
    assert json.loads(Path(data).read_text()) == ROWS[0]


def test_a_full_disk_is_told_and_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def close(self) -> None:
            raise OSError(28, "No space left on device")

    data = write(tmp_path / "a.jsonl", ROWS[:1])

    def full(path: Any, *_: Any, **__: Any) -> Any:
        Path(path).touch()
        return Full()

    monkeypatch.setattr(files, "open", full, raising=False)
    code, _, err = run("--data_path", data, "--output", str(tmp_path / "out.jsonl"))
    assert code == 6 and "cannot be written (No space left on device)" in err
    assert os.listdir(tmp_path) == ["a.jsonl"]


# --- what is shown


def test_supervised_runs_stand_in_brackets(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ROWS[:1])
    code, out, err = run("--data_path", data)
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert re.fullmatch(rf"--- {data}:1 \(id 'first'\): \d+ tokens, \d+ learned in 2 answers", lines[0])
    assert lines[1].endswith("USER: Hi ASSISTANT:[[ Hello there.</s>]]USER: More? ASSISTANT:[[ Yes, more.</s>]]")
    assert lines[3] == "[[ ]] encloses the learned tokens"
    assert re.fullmatch(r"\d+\.\d % of the tokens are learned; no answer is cut off", lines[5])
    assert lines[6] == "rows         1: 1 used, none dropped"


def test_num_counts_dialogues_that_are_trained(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [row(), *[row(f"question {i}", f"answer {i}") for i in range(5)]])
    for num, shown in (("0", 0), ("2", 2), ("50", 5)):
        code, out, _ = run("--data_path", data, "--num", num)
        assert code == 0 and out.count("--- ") == shown
        assert [f"answer {i}</s>]]" in out for i in range(5)] == [i < shown for i in range(5)]
        assert "rows         6: 5 used, 1 dropped (1 empty)" in out


def test_cut_and_untrained_turns_are_named(run: Run, tmp_path: Path) -> None:
    record = row("Hi", "Not this.", "Go on", "word " * 200)
    record["messages"][1]["train"] = False
    data = write(tmp_path / "a.jsonl", [record])
    _, out, _ = run("--data_path", data, "--model_max_length", "150")
    assert re.search(
        r"learned in 1 answer, 1 answer not learned, (\d+) tokens cut off at --model_max_length 150, \1 of them would"
        r" be learned\n",
        out,
    )
    shown = out.splitlines()[1]
    assert "Not this.</s>" in shown and "[[ Not" not in shown
    assert shown.count("[[") == 1 and shown.endswith("]]") and not shown.endswith("</s>]]")


def test_straddling_tokens_are_named(run: Run, tmp_path: Path) -> None:
    # Without <|im_end|> in the vocabulary its ">" merges with the line end after it, which is not supervised.
    data = write(tmp_path / "a.jsonl", ROWS[:1])
    _, out, err = run("--data_path", data, template="chatml")
    found = re.findall(r"'>\\n' at (\d+) \(learned\)", out)
    assert "tokens with characters of an answer and of other text: '>\\n' at" in out and len(found) == 2
    assert "boundary     2 tokens with characters of an answer" in out
    assert "<|im_end|>" in err and "Suitable templates" in err


def test_malformed_rows_stop_or_are_skipped(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ROWS)
    code, out, err = run("--data_path", data)
    assert code == 3 and out == "" and f"{data}:4: truncated JSON" in err and "Traceback" not in err
    code, out, err = run("--data_path", data, "--on_bad_row", "skip")
    assert code == 0 and "1 unreadable: truncated JSON" in out and f"first: {data}:4: truncated JSON" in err


def test_nothing_supervised_is_said(run: Run, tmp_path: Path) -> None:
    data, out = write(tmp_path / "a.jsonl", [row("q"), row()]), tmp_path / "out.jsonl"
    code, shown, err = run("--data_path", data, "--output", str(out))
    assert code == 3 and "0 used, 2 dropped" in shown and len(out.read_text().splitlines()) == 2
    assert "error: no learned tokens in the data: training would stop. Likely cause: no user turn" in err


def test_several_files_are_one_input(run: Run, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.jsonl", [row("q", f"answer {i}")]) for i in range(2)]
    _, out, _ = run("--data_path", *paths)
    assert [f"--- {path}:1" in out for path in paths] == [True, True] and "2: 2 used" in out


def test_default_template(run: Run, tokenizer_dir: TokenizerDir, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ROWS[:1])
    code, out, err = run("--data_path", data, template=None)
    assert code == 0 and err.splitlines() == ["template: vicuna_v1.1 (the default; --conv_template picks another)"]
    own = make_tokenizer("byte_bos", tmp_path / "own", chat_template="{{ messages }}")
    code, out, err = run("--data_path", data, "--model_name_or_path", str(own), template=None)
    assert code == 2 and out == "" and "has its own chat template" in err


def test_own_template_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\n"
        "user: {before: '### Ask: ', after: '\\n', open: '### Ask:'}\n"
        "assistant: {before: '### Answer: ', after: '</s>', open: '### Answer:'}\n"
    )
    data = write(tmp_path / "a.jsonl", [row("Hi", "Yo")])
    code, out, err = run("--data_path", data, "--conv_template_file", str(file), template="mine")
    assert code == 0 and "### Answer:[[ Yo</s>]]" in out, err


def test_the_only_template_of_a_file_needs_no_name(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "k.yaml"
    file.write_text("{name: preview-only, roles: [Q, A], sep_style: ADD_COLON_TWO, sep: x, sep2: </s>}")
    flags = ["--data_path", write(tmp_path / "a.jsonl", [row("Hi", "Yo")]), "--conv_template_file", str(file)]
    code, out, err = run(*flags, template=None)
    assert code == 0 and "A:[[ Yo</s>]]" in out and f"template: preview-only, the only one in {file}" in err
    file.write_text("{name: preview-other, roles: [Q, A]}")
    code, out, err = run(*flags, template="alpaca")
    assert code == 0 and f"{file} has preview-other; --conv_template alpaca is not in it" in err


HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\b\u202egnp\u2066\u200b\x7f\tend\u2028"


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_hostile_text_cannot_steer_the_terminal(run: Run, tmp_path: Path, kind: str) -> None:
    turns = [{"role": role, "content": HOSTILE} for role in ("system", "user", "assistant")]
    data = write(tmp_path / "a.jsonl", [{"messages": turns, "id": HOSTILE}, row(HOSTILE)])
    code, out, err = run("--data_path", data, kind=kind)
    assert code == 0 and "\\x1b[31mred\\x1b]0;title\\x07" in out and "\\u202e" in out
    assert all(line.isprintable() for line in (out + err).split("\n"))
    bad = write(tmp_path / "b.jsonl", [row("q", "a", **{HOSTILE: float("nan")}), {HOSTILE: 1}, {"messages": HOSTILE}])
    code, out, err = run("--data_path", bad, kind=kind)
    assert code == 3 and all(line.isprintable() for line in (out + err).split("\n"))


# --- the command line


def command(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastchat.data.preview", *argv],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--data_path is missing"),
        (["--data_pth", "x"], "unknown setting --data_pth; did you mean --data_path"),
        (["--data_path", "x", "--max_length=4"], "unknown setting --max_length; here it is --model_max_length 4"),
        (["--data_path", "x", "--overlong", "cut"], "--overlong is 'cut'; it can be truncate"),
        (["--data_path", "x", "--on_bad_row", "ignore"], "--on_bad_row is 'ignore'; it can be stop, skip"),
        (["--data_path", "x", "--num", "three"], "--num is 'three', but a whole number is expected"),
        (["--data_path", "x", "--num", "-1"], "--num is -1; it must be 0 or more"),
        (["--data_path", "x", "--model_max_length", "0"], "--model_max_length is 0; it must be at least 1"),
        (["--data_path", "x", "--conv_template", "vicuna"], "'vicuna' is not a known template"),
        (["--data_path", "x", "--conv_template_file", "none.py"], "none.py"),
    ],
)
def test_wrong_settings(run: Run, argv: list[str], message: str) -> None:
    code, out, err = run(*argv)
    assert code == 2 and out == "" and message in err and "Traceback" not in err


def test_a_model_directory_that_is_none(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "empty").mkdir()
    for name, message in (
        (str(tmp_path / "none"), "there is no such directory"),
        ("./none", "there is no such directory"),
        (data, "is a file; give the model's directory"),
        (str(tmp_path), "there is no tokenizer in it (no tokenizer.json); found: a.jsonl, empty"),
        (str(tmp_path / "empty"), "there is no tokenizer in it (no tokenizer.json); found: nothing"),
    ):
        code, out, err = run("--data_path", data, "--model_name_or_path", name)
        assert code == 2 and out == "" and f"--model_name_or_path {name}: {message}" in err


def test_as_a_command_without_torch(tokenizer_dir: TokenizerDir, repository: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [row("Hi", "Yo 你好")])
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "transformers.py").write_text("raise SystemExit('transformers was imported')")
    path = os.pathsep.join([str(tmp_path), str(repository)])
    argv = ["--model_name_or_path", str(tokenizer_dir("metaspace_bos")), "--data_path", data]
    done = command(*argv, PYTHONPATH=path)
    assert done.returncode == 0 and "[[ Yo 你好" in done.stdout and "\x1b" not in done.stdout, done.stderr
    ascii_only = command(*argv, PYTHONPATH=path, PYTHONIOENCODING="ascii")
    assert ascii_only.returncode == 0 and "[[ Yo \\u4f60\\u597d" in ascii_only.stdout, ascii_only.stderr
    missing = command(*argv[:2], "--data_path", str(tmp_path / "none"), PYTHONPATH=path)
    assert missing.returncode == 3 and missing.stderr.count("\n") == 2 and "Traceback" not in missing.stderr


def test_a_reader_that_leaves_does_not_lose_the_output(
    tokenizer_dir: TokenizerDir, repository: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "a.jsonl", [row("Hi", "word " * 400)] * 300)
    out = tmp_path / "out.jsonl"
    script = '"$0" -m fastchat.data.preview "$@" | head -c 100; exit "${PIPESTATUS[0]}"'
    argv = ["--model_name_or_path", str(tokenizer_dir("metaspace_bos")), "--data_path", data, "--output", str(out)]
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, *argv, "--num", "200", "--model_max_length", "4096"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=repository,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Broken" not in done.stderr
    assert len(out.read_text().splitlines()) == 300


# --- the real data and tokenizers


@pytest.mark.parametrize("name", ["llama-2", "gemma", "llama-3", "qwen2.5"])
def test_shared_data(shared: Path, run: Run, tmp_path: Path, name: str) -> None:
    template = {"llama-2": "llama-2", "gemma": "gemma", "llama-3": "llama-3", "qwen2.5": "chatml"}[name]
    paths = [str(shared / "data" / file) for file in ("dummy_conversation.json", "alpaca_en_demo.json")]
    out = tmp_path / "out.jsonl"
    code, shown, _ = run(
        *["--data_path", *paths, "--output", str(out), "--model_max_length", "1024"],
        *["--model_name_or_path", str(shared / "tokenizers" / name)],
        template=template,
    )
    assert code == 0 and shown.count("--- ") == 3
    assert len(out.read_text().splitlines()) == 1499
    code, _, err = run(
        "--data_path", paths[0], "--model_name_or_path", str(shared / "tokenizers" / name), template=None
    )
    brings_one = name in ("llama-3", "qwen2.5") or "its own chat template" in err or "known chat family" in err
    assert code == (2 if brings_one else 0)
