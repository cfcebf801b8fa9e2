"""What a command imports: nothing that it does not use, and nothing of the script that called it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests import builders

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "peft", "datasets", "accelerate", "deepspeed", "bitsandbytes", "pandas"):
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, Blocked())
from fastchat.cli import main
model, data = sys.argv[1:]
def ends_well(*words):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert not code, (words, code)
ends_well("train", "--help")
for command in ("preview", "plan", "chat", "serve", "merge", "eval", "export", "report", "prepare"):
    ends_well(command, "--help")
ends_well("plan", "--model_size", "7b", "--gpus", "1", "--gpu_memory", "24GiB")
ends_well("preview", "--model_name_or_path", model, "--conv_template", "vicuna_v1.1", "--data_path", data)
ends_well("data", "filter", "--in-file", data, "--out-file", data + ".out")
"""
NO_GUARD = """
import sys
print("the script runs", flush=True)
from fastchat.conversation import get_template
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.rows.sources import Source
from fastchat.data.tokens.prepare import TokenSettings, get_or_create_tokens
model, data = sys.argv[1:]
chat_encoder = open_tokenizer(model)[0].bind(get_template("vicuna_v1.1"))
how = TokenSettings(max_length=200, overlong="truncate", on_bad_row="stop", workers=2)
made = get_or_create_tokens("train", [Source(data, (data,))], chat_encoder, how)
print(len(made.entry.store()), "examples")
"""


def python(code: str, *words: Path, cwd: Path, **environment: str) -> str:
    """What a program prints that runs in a process of its own, as a file without a main guard."""
    script = cwd / "program.py"
    script.write_text(code, encoding="utf-8")
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)],
        env=os.environ | {"PYTHONPATH": root, "FSCHAT_CACHE": str(cwd / "cache"), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_plan_and_preview_need_neither_torch_nor_transformers(
    tokenizer_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    data = builders.write_rows(tmp_path / "rows.jsonl", builders.chat_rows(4))
    python(BLOCKED, tokenizer_dir("metaspace_bos"), data, cwd=tmp_path)


def test_workers_do_not_run_a_script_without_a_main_guard_again(
    tokenizer_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    data = builders.write_rows(tmp_path / "rows.jsonl", builders.chat_rows(600))
    printed = python(NO_GUARD, tokenizer_dir("metaspace_bos"), data, cwd=tmp_path)
    assert printed.splitlines() == ["the script runs", "600 examples"]
