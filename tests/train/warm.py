"""Runs with several processes in seconds: they are forked from one process that has imported everything already.

    python -m tests.train.warm     reads jobs from stdin, one JSON object per line, and answers each with one

A job: {"processes", "script", "words", "output", "environment"}; the answer: [exit code, peak memory] by rank. Signals
and deaths are played by `tests/train/trouble.py`, which runs inside the processes, as `tests/train/witness.py` does.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.machine import free_port
from tests.train.conftest import Outcome, quiet

REPOSITORY = Path(__file__).resolve().parents[2]
END = "end"
PATIENCE_S = 900  # for one run; the first of a machine compiles DeepSpeed's extensions


class Warm:
    """The warm process. `run` starts one run in it and waits for its end."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.warm"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.codes: list[int] = []
        self.peaks: list[int] = []  # bytes that were resident at most, what was forked included

    def run(
        self, words: list[str], folder: Path, processes: int = 2, script: str = "train_lora", **env: str
    ) -> Outcome:
        """The outcome of a run; its code is that of rank 0, `codes` and `peaks` have all. `script` may be another
        module with a `main(words)`, by its full name."""
        assert self.process.stdin and self.process.stdout
        output = folder.with_suffix(".log")
        job = {"processes": processes, "script": script, "output": str(output), "environment": env}
        found = [*map(str, words), "--output_dir", str(folder)]
        job["words"] = found if "." in script else quiet(found)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
            os.killpg(self.process.pid, signal.SIGKILL)  # it and the processes that it forked
            raise AssertionError(f"the run did not end in {PATIENCE_S} s: {output.read_text()[-3000:]}")
        answer = json.loads(self.process.stdout.readline())
        self.codes, self.peaks = [code for code, _ in answer], [peak for _, peak in answer]
        return Outcome(self.codes[0], folder, output.read_text())

    def close(self) -> None:
        """Ends it. It is told so: whatever this process has forked may hold its end of the pipe open."""
        assert self.process.stdin
        self.process.stdin.write(END + "\n")
        self.process.stdin.close()
        self.process.wait(timeout=PATIENCE_S)


def _serve() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries greet on stdout
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.llama import modeling_llama, tokenization_llama  # noqa: F401

    import fastchat.train.arguments  # noqa: F401
    import fastchat.train.recipe  # noqa: F401
    from fastchat.data.tokens.cache import code_version

    get_checkpoint_conversion_mapping("llama")
    code_version()  # kept by the processes that are forked
    gc.collect()
    gc.freeze()  # those do not search a million objects of the imports for garbage
    for line in iter(sys.stdin.readline, END + "\n"):
        if not line:
            break
        job = json.loads(line)
        port = free_port()
        children = [_fork(job, rank, port) for rank in range(job["processes"])]
        ends = [os.wait4(child, 0) for child in children]
        answer = [(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024) for _, status, usage in ends]
        os.write(answers, (json.dumps(answer) + "\n").encode())


def _fork(job: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        file = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if job["processes"] > 1:
            size = str(job["processes"])
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(job["environment"])
        import importlib

        from tests.train import trouble, witness

        trouble.install()
        witness.install()
        script = job["script"] if "." in job["script"] else f"fastchat.train.{job['script']}"
        importlib.import_module(script).main(job["words"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
