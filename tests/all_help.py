"""Run by tests/test_cli.py in a process of its own: `--help` of every command, where no heavy library can be imported.

Prints a JSON list of [what was run, exit code or traceback, stdout, stderr], then the modules of _LIGHT_ONLY that the
first commands have imported.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, NoReturn

BLOCKED = {"torch", "transformers", "peft", "datasets", "deepspeed", "gradio", "matplotlib"}
MORE = ("export gguf", "export vllm", "eval math", "eval lm-eval", "recipes copy", "")  # commands of commands
PROGRAMS_OF_OTHERS = {  # started by the project
    "fastchat.data.tokens.early_process",
    "fastchat.data.tools.sandbox_child",
    "fastchat.eval.harness_model",
}
_LIGHT_ONLY = ("numpy", "tokenizers", "pydantic", "fastapi", "huggingface_hub")


class Blocker(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] in BLOCKED:
            raise ImportError(f"{fullname} is imported for --help")


def modules() -> list[str]:
    """Every module that can be run with `python -m`."""
    root = Path(__file__).parents[1]
    files = sorted(path for path in (root / "fastchat").rglob("*.py") if "\nif __name__ ==" in path.read_text("utf-8"))
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__main__") for name in names if name not in PROGRAMS_OF_OTHERS]


def outcome(name: str, run: Callable[[], Any]) -> list[Any]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run()
        except SystemExit as ended:
            code = ended.code
        except BaseException:  # noqa: BLE001 - it is what is reported
            code = traceback.format_exc()
    return [name, code, out.getvalue(), err.getvalue()]


def exit_now(code: int) -> NoReturn:
    raise SystemExit(code)


def run_module(name: str) -> Callable[[], Any]:
    def run() -> None:
        sys.argv = [name, "--help"]
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    return run


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocker())
    os._exit = exit_now  # training ends its process with it
    from fastchat import cli, completion

    found = [
        outcome(f"fastchat {words}", lambda words=words: cli.main(words.split())) for words in ("--help", "recipes")
    ]
    imported = [name for name in _LIGHT_ONLY if name in sys.modules]
    commands = [*cli.COMMANDS, *(f"data {name}" for name in cli.DATA_COMMANDS), *MORE]
    for words in [*commands, "train --help all"]:
        flags = [] if "--help" in words else ["--help"]
        found.append(outcome(f"fastchat {words}", lambda words=words, flags=flags: cli.main([*words.split(), *flags])))
        found.append(outcome(f"completion {words}", lambda words=words: completion.candidates([*words.split(), "-"])))
    found += [outcome(f"python -m {name}", run_module(name)) for name in modules()]
    print(json.dumps([found, imported]))
