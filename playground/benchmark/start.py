"""Seconds of a run of one step, nearly all of which is its start, of the current code and of another checkout.

    python playground/benchmark/start.py --model_name_or_path DIR --data_path FILE.jsonl [--other CHECKOUT]
        [--number 20000] [--repeat 3]

DIR holds the tokenizer; the model is a tiny one with random weights. FILE's rows are repeated with other numbers. The
losses of all starts must be equal, or the program stops. The checkouts take turns. Medians of seconds: of the CPUs, of
the process and its workers, which depend less on what else the machine does; and of the clock.

    help      `train_lora --help`
    first     a run of one step with an empty cache, without a report: nearly all of it is its start
    second    the same when its tokens are cached
    preview   `preview --num 3` with an empty cache
    shown     the same until its first row is on the screen; only by the clock
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tokenise import ROOT, repeat, tiny_model

COLUMNS = ("help", "first", "second", "preview", "shown")
TRAIN, CLI = "fastchat.train.train_lora", "fastchat.cli"


class Seconds(NamedTuple):
    """What a command took: on the CPUs, by the clock, and by the clock until its first line of output."""

    cpu: float
    clock: float
    first_line: float


def main() -> None:
    args = parse_arguments()
    checkouts = [ROOT, *([Path(args.other).resolve()] if args.other else [])]
    taken: dict[tuple[Path, str], list[Seconds]] = {(checkout, name): [] for checkout in checkouts for name in COLUMNS}
    losses: set[float] = set()
    with tempfile.TemporaryDirectory(prefix="fschat-start-") as made:
        scratch = Path(made)
        model, data = tiny_model(args.model_name_or_path, scratch), scratch / "data.jsonl"
        repeat(Path(args.data_path), data, args.number)
        for _ in range(args.repeat):
            for checkout in checkouts:
                taken[checkout, "help"].append(measured(checkout, TRAIN, ["--help"], scratch))
                data_words = words_of(model, data)
                shutil.rmtree(scratch / "cache", ignore_errors=True)
                taken[checkout, "preview"].append(
                    measured(checkout, CLI, ["preview", *data_words, "--num", "3"], scratch)
                )
                shutil.rmtree(scratch / "cache", ignore_errors=True)
                for name in ("first", "second"):
                    words = [*data_words, *training_words(scratch / "out")]
                    shutil.rmtree(scratch / "out", ignore_errors=True)
                    taken[checkout, name].append(measured(checkout, TRAIN, words, scratch))
                    rows = (scratch / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                    losses.add(json.loads(rows[0])["loss"])
        if len(losses) != 1:
            raise SystemExit(f"the losses differ: {sorted(losses)}")
    print(f"loss of the first step, every start: {losses.pop()}")
    report(taken, checkouts)


def report(taken: dict[tuple[Path, str], list[Seconds]], checkouts: list[Path]) -> None:
    """Prints the table. bench.py reads its lines."""
    print(f"{'median (min to max)':<30}" + "".join(f"{name:>22}" for name in COLUMNS))
    for checkout, label in zip(checkouts, ("this checkout", "the other"), strict=False):
        for kind in ("cpu", "clock"):
            print(
                f"{f'{label}, {kind} seconds':<30}"
                + "".join(f"{cell(taken[checkout, 'preview' if n == 'shown' else n], n, kind):>22}" for n in COLUMNS)
            )


def cell(taken: list[Seconds], name: str, kind: str) -> str:
    """One entry of the table; the time until the first row is shown comes from the previews."""
    if name == "shown":
        return "" if kind == "cpu" else spread([seconds.first_line for seconds in taken])
    return spread([getattr(seconds, kind) for seconds in taken])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds of a run of one step.")
    parser.add_argument("--model_name_or_path", required=True, help="folder with the tokenizer")
    parser.add_argument("--data_path", required=True, help=".jsonl file whose rows are repeated")
    parser.add_argument("--other", help="folder of another checkout to compare with")
    parser.add_argument("--number", type=int, default=20_000, help="dialogues (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="starts of each kind (%(default)s)")
    return parser.parse_args()


def words_of(model: Path, data: Path) -> list[str]:
    """The settings of a run and of a preview."""
    settings = {
        "model_name_or_path": model,
        "data_path": data,
        "conv_template": "vicuna_v1.1",
        "model_max_length": 1024,
    }
    return as_words(settings)


def training_words(output: Path) -> list[str]:
    """The further settings of a run of one step."""
    settings = {
        "output_dir": output,
        "per_device_train_batch_size": 1,
        "max_steps": 1,
        "run_report": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return as_words(settings)


def as_words(settings: dict[str, object]) -> list[str]:
    """A command line."""
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


def measured(checkout: Path, module: str, words: list[str], scratch: Path) -> Seconds:
    """Run a module of a checkout with these words; its workers are included."""
    own = {"FSCHAT_CACHE": str(scratch / "cache"), "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with open(scratch / "err.txt", "w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env=os.environ | own | {"OMP_NUM_THREADS": "1"},
            cwd=scratch,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        first_line = time.monotonic() - began
        process.stdout.read()
        if process.wait():
            errors.seek(0)
            raise SystemExit(errors.read())
    clock = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, clock, first_line)


def spread(values: list[float]) -> str:
    """The median and the range.

    >>> spread([2.0, 1.0, 4.0])
    '2.0 (1.0 to 4.0)'
    """
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
