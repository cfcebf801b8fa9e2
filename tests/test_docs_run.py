"""The commands of README.md and docs/ are run, in the order in which they are written, in one folder and one process.

What cannot run here (no hub, no GPU, no second machine) is left out by the table LEFT_OUT, with its reason;
`test_docs.py` checks at least that their flags exist.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.test_docs import COMMANDS, _module

# The words with which a command begins, or one of its words -> why it is not run.
LEFT_OUT = {
    "deepspeed": "starts processes: tests/train/test_launch.py",
    "torchrun": "starts processes: tests/train/test_launch.py",
    "models/Llama-2-7b-hf": "a model of the hub",
    "output/train_lora_7b_base": "the result of a model of the hub",
    "gemma-7b-it": "a model of the hub",
    "my_axolotl.yaml": "refused, as the text says: tests/settings/test_foreign.py",
    "serve": "runs until it is stopped: tests/serve",
    "push": "uploads to the hub: tests/train/test_pushing.py",
    "gguf": "needs a clone of llama.cpp: tests/export",
    "out2": "compares several runs: tests/report",
    "node-a,node-b": "needs two hosts: tests/test_host_checks.py",
    "my_settings.yaml": "the same as the training of README.md",
}
# On a machine without a GPU, the planner must be told of one.
MORE = {"--recommend": ["--gpus", "1", "--gpu_memory", "24GiB"], "--largest": ["--gpus", "1", "--gpu_memory", "24GiB"]}
HTML = "<div><p>Paris is the <strong>capital</strong> of France.</p></div>"
MATH = {"question": "How many are there?", "answer": "There are 48/2 = <<48/2=24>>24 of them.\n#### 24"}
MINE = """
lora_r: 4
num_train_epochs: 1
per_device_train_batch_size: 4
conv_template: vicuna_v1.1
model_max_length: 256
disable_tqdm: true
"""


def _left_out(words: list[str]) -> bool:
    return any(word in LEFT_OUT for word in words)


RUN = [words for _, words in COMMANDS if words[0] in ("fastchat", "python") and not _left_out(words)]


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the documents name."""
    shutil.copytree(tiny_model_dir("llama", "metaspace_bos"), tmp_path / "M")
    for name in ("chats.json", "D.json"):
        builders.write_rows(tmp_path / name, builders.chat_rows(8))
    builders.write_rows(tmp_path / "test.jsonl", builders.chat_rows(2, rounds=1))
    pages = [[f"What is the capital of France, question {i}?", HTML] for i in range(200)]
    rows = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in pages]
    builders.write_rows(tmp_path / "sharegpt_html.json", [{"id": str(i), **row} for i, row in enumerate(rows)])
    for name in ("rows.jsonl", "problems.jsonl"):
        (tmp_path / name).write_text(json.dumps(MATH) + "\n")
    with (tmp_path / "faq.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], ["Hi", "Hello, you."]])
    shutil.copytree(Path(__file__).parent.parent / "playground", tmp_path / "playground")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "execvpe", _in_this_process)
    return tmp_path


class _Ended(Exception):
    """The program that replaced the command ended with this exit code."""


def _in_this_process(program: str, words: list[str], environment: dict[str, str]) -> None:
    assert (program, words[1]) == (sys.executable, "-m")
    raise _Ended(_train(words[2], words[3:]))


def _train(module: str, words: list[str]) -> int:
    from fastchat.train.settings import find_output_dir
    from fastchat.train.status import attempt

    return attempt(lambda status: import_module(module).run(words, status), find_output_dir(words))


def _code(module: str, words: list[str]) -> Any:
    try:
        return import_module(module).main(words)
    except (SystemExit, _Ended) as ended:
        return ended.args[0]


def _complete(words: list[str]) -> Iterator[str]:
    """The words with what the documents leave to the reader."""
    yield from words
    if words[:1] in (["--html"], ["--output"]):  # after the dots of an earlier command line
        yield from ("--model_name_or_path", "M", "--conv_template", "vicuna_v1.1", "--data_path", "D.json")
    for word in words:
        yield from MORE.get(word, [])


def test_every_command_does_what_it_says(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words in RUN:
        module, rest = _module(words)
        if module is None:
            continue
        code = _code(module, list(_complete(rest)))
        assert code == 0, f"{' '.join(words)}\n{capfd.readouterr().err}"
        if rest[:1] == ["copy"]:  # what a reader does next
            recipe = "\n".join(["model_name_or_path: M", MINE])
            (folder / "my.yaml").write_text(recipe)
    made = "report.html out/adapter_model.safetensors merged/model.safetensors math.jsonl faq.jsonl split_train.json"
    missing = [name for name in [*made.split(), "M-with-pad/config.json"] if not (folder / name).is_file()]
    assert not missing


def test_nothing_is_left_out_without_need() -> None:
    assert len(RUN) >= 20
    for word in LEFT_OUT:
        assert any(word in words for _, words in COMMANDS), f"{word} is in no document any more"
