"""Tokens that a process of its own makes while a run imports its libraries: the same, used once, never in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastchat.data import preview
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.rows.sources import Source
from fastchat.data.tokens import cache as token_cache
from fastchat.data.tokens import early_request
from fastchat.data.tokens.early import EARLY
from fastchat.data.tokens.prepare import TokenizedData, TokenSettings, get_or_create_tokens
from fastchat.errors import DataError
from tests import builders

HOW = TokenSettings(max_length=200, overlong="truncate", on_bad_row="stop", workers=2)


@pytest.fixture
def values(tokenizer_dir: Callable[[str], Path], tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The settings of a run whose data is worth a process of its own, by name."""
    data = builders.write_rows(tmp_path / "rows.jsonl", builders.chat_rows(600))
    before, token_cache._USING = token_cache._USING, {}
    yield {
        "model_name_or_path": str(tokenizer_dir("metaspace_bos")),
        **dict.fromkeys(("use_tokenizer_class", "trust_remote_code", "overwrite_cache", "val_set_size"), False),
        **dict.fromkeys(("conv_template_file", "data_columns", "data_roles", "eval_data_path"), None),
        "conv_template": "vicuna_v1.1",
        "train_on": "assistant",
        "data_path": [str(data)],
        "data_split": "train",
        "eval_data_split": "train",
        "model_max_length": HOW.max_length,
        "overlong": HOW.overlong,
        "on_bad_row": HOW.on_bad_row,
        "preprocessing_num_workers": HOW.workers,
        "output_dir": str(tmp_path / "out"),
    }
    EARLY.stop()
    token_cache._USING = before


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(early_request, "BYTES_PER_WORKER", 1)
    monkeypatch.setattr(early_request, "available_cpus", lambda: 2)


def obtain(values: dict[str, Any], name: str = "train", **how: Any) -> TokenizedData:
    """What the run does when it has its libraries."""
    encoder, _ = open_tokenizer(values["model_name_or_path"])
    chat_encoder = encoder.bind(encoder.choose(values["conv_template"]))
    files = tuple(values["data_path" if name == "train" else "eval_data_path"])
    return get_or_create_tokens(name, [Source(files[0], files)], chat_encoder, replace(HOW, **how))


def start(values: dict[str, Any], **changed: Any) -> subprocess.Popen[str] | None:
    early_request.start_tokenising(values | changed, evaluates=True)
    return EARLY._process


def content(made: TokenizedData) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(made.entry.folder.glob("*"))}


def test_the_tokens_are_those_that_the_run_makes_itself(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = builders.write_rows(tmp_path / "held_out.jsonl", builders.chat_rows(9, 2))
    values["eval_data_path"] = [str(held_out)]
    with monkeypatch.context() as patch:  # whatever the run makes itself is an error
        patch.setattr("fastchat.data.tokens.prepare.tokenised", lambda *_, **__: pytest.fail("made a second time"))
        process = start(values)
        assert process is not None
        early = obtain(values)
        assert obtain(values, "eval").counts["rows"] == 9
        assert not early.found and process.wait(30) == 0  # made by this start, not found
        assert start(values) is None and obtain(values).found  # and by the next one, without a process
        EARLY.stop()
        assert start(values, overwrite_cache=True) is not None
        inode = (early.entry.folder / "ids.bin").stat().st_ino
        assert not obtain(values, overwrite=True).found  # made again, once
        assert (early.entry.folder / "ids.bin").stat().st_ino != inode
    made_early = content(early)
    EARLY.stop()
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "other"))
    assert content(obtain(values, workers=1)) == made_early
    assert "error" not in capsys.readouterr().err


# Says which processes are begun while a command runs.
_WATCHED = """
import sys
begun = []
sys.addaudithook(lambda event, args: begun.append(event) if event in ("os.fork", "subprocess.Popen") else None)
from fastchat.cli import main
code = main(sys.argv[1:])
print(begun, file=sys.stderr)
sys.exit(code)
"""


def test_preview_copies_itself_where_it_has_no_threads_yet(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["--model_name_or_path", values["model_name_or_path"], "--data_path", *values["data_path"], "--num", "1"]
    words += ["--conv_template", "vicuna_v1.1", "--model_max_length", "200", "--preprocessing_num_workers", "2"]
    threads = os.environ | {"OMP_NUM_THREADS": "4", "TOKENIZERS_PARALLELISM": "true"}
    watched = [sys.executable, "-c", _WATCHED, "preview", *words]
    done = subprocess.run(watched, env=threads, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == str(["os.fork"] * 3)  # two workers, and the trial of a template
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "other"))
    assert preview.main(words) == 0 and capsys.readouterr().out == done.stdout


def test_errors_are_those_of_the_run(values: dict[str, Any]) -> None:
    file = Path(values["data_path"][0])
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([*lines[:9], "{", *lines[9:]]), encoding="utf-8")
    process = start(values)
    assert process is not None
    with pytest.raises(DataError, match=r"rows\.jsonl:10: truncated JSON"):
        obtain(values)
    assert process.wait(30) == 1
    assert not [path for path in token_cache.cache_folder().iterdir() if path.name.startswith(".")]


def test_another_key_than_expected_is_made_by_the_run(values: dict[str, Any]) -> None:
    process = start(values)
    assert process is not None
    assert len(obtain(values, max_length=100).entry.store()) == 600
    assert process.poll() is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"use_tokenizer_class": True},
        {"trust_remote_code": True},
        {"conv_template_file": "mine.py"},
        {"data_path": ["someone/on-the-hub"]},
        {"data_path": ["missing.jsonl"]},
        {"model_name_or_path": "someone/on-the-hub"},
    ],
)
def test_where_the_run_has_to_do_it_itself(values: dict[str, Any], changed: dict[str, Any]) -> None:
    assert start(values, **changed) is None
    assert not EARLY.has_made("train", "key")


def test_once_per_machine_with_a_second_cpu_and_enough_data(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("LOCAL_RANK", "1")
        assert start(values) is None
    with monkeypatch.context() as patch:
        patch.setattr(early_request, "available_cpus", lambda: 1)
        assert start(values) is None
    monkeypatch.setattr(early_request, "BYTES_PER_WORKER", 1 << 30)
    assert start(values) is None


STARTS = """
import sys, time
from fastchat.data.tokens.early import EARLY, EarlyRequest
EARLY.start(EarlyRequest(**eval(sys.argv[1])))
print(EARLY._process.pid, flush=True)
time.sleep(60)
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait, but not for ever."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("a minute was not enough")


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


def test_it_ends_with_a_run_that_is_killed(values: dict[str, Any], tmp_path: Path) -> None:
    big = tmp_path / "big.jsonl"
    big.write_bytes(Path(values["data_path"][0]).read_bytes() * 400)
    request = early_request._request(values | {"data_path": [str(big)]}, False)
    run = subprocess.Popen([sys.executable, "-c", STARTS, repr(vars(request))], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    cache = token_cache.cache_folder()
    until(lambda: bool(list(cache.glob(".*.*/ids.bin"))))
    run.send_signal(signal.SIGKILL)
    run.wait()
    until(lambda: not is_running(pid))
    assert not list(cache.glob(".*.*"))
    assert not [path for path in cache.iterdir() if (path / "entry.json").exists()]
