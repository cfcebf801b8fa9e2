"""CPU seconds of a run of one step, nearly all of which is its start, of the current code and of another checkout.

    python playground/benchmark/start.py --model_name_or_path DIR --data_path FILE.jsonl [--other CHECKOUT]
        [--number 20000] [--repeat 3]

DIR holds the tokenizer; the model is a tiny one with random weights. FILE's rows are repeated with other numbers. The
losses of all starts must be equal, or the program stops. The checkouts take turns; medians of CPU seconds, user
and system, of the process and its workers, which depend less on what else the machine does than the clock.

    help      `train_lora --help`
    second    a run of one step whose tokens are cached, without a report: nearly all of it is its start
    first     the same with an empty cache
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
from pathlib import Path

from tokenise import ROOT, repeat, tiny_model

COLUMNS = ("help", "second", "first")


def main() -> None:
    args = parse_arguments()
    checkouts = [ROOT, *([Path(args.other).resolve()] if args.other else [])]
    seconds: dict[tuple[Path, str], list[float]] = {(checkout, name): [] for checkout in checkouts for name in COLUMNS}
    losses: set[float] = set()
    with tempfile.TemporaryDirectory(prefix="fschat-start-") as made:
        scratch = Path(made)
        model, data = tiny_model(args.model_name_or_path, scratch), scratch / "data.jsonl"
        repeat(Path(args.data_path), data, args.number)
        for _ in range(args.repeat):
            for checkout in checkouts:
                seconds[checkout, "help"].append(cpu_seconds(checkout, ["--help"], scratch))
                shutil.rmtree(scratch / "cache", ignore_errors=True)
                for name in ("first", "second"):
                    words = training_words(model, data, scratch / "out")
                    shutil.rmtree(scratch / "out", ignore_errors=True)
                    seconds[checkout, name].append(cpu_seconds(checkout, words, scratch))
                    rows = (scratch / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                    losses.add(json.loads(rows[0])["loss"])
        if len(losses) != 1:
            raise SystemExit(f"the losses differ: {sorted(losses)}")
    print(f"loss of the first step, every start: {losses.pop()}")
    print(f"{'CPU seconds, median (min to max)':<36}" + "".join(f"{name:>24}" for name in COLUMNS))
    for checkout, label in zip(checkouts, ("this checkout", "the other"), strict=False):
        shown = [spread(seconds[checkout, name]) for name in COLUMNS]
        print(f"{label:<36}" + "".join(f"{text:>24}" for text in shown))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU seconds of a run of one step.")
    parser.add_argument("--model_name_or_path", required=True, help="folder with the tokenizer")
    parser.add_argument("--data_path", required=True, help=".jsonl file whose rows are repeated")
    parser.add_argument("--other", help="folder of another checkout to compare with")
    parser.add_argument("--number", type=int, default=20_000, help="dialogues (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="starts of each kind (%(default)s)")
    return parser.parse_args()


def training_words(model: Path, data: Path, output: Path) -> list[str]:
    """The command line of a run of one step."""
    settings = {
        "model_name_or_path": model,
        "data_path": data,
        "conv_template": "vicuna_v1.1",
        "model_max_length": 1024,
        "output_dir": output,
        "per_device_train_batch_size": 1,
        "max_steps": 1,
        "run_report": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


def cpu_seconds(checkout: Path, words: list[str], scratch: Path) -> float:
    """Of `train_lora` with these words, its workers included."""
    own = {"FSCHAT_CACHE": str(scratch / "cache"), "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "fastchat.train.train_lora", *words],
        env=os.environ | own | {"OMP_NUM_THREADS": "1"},
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def spread(values: list[float]) -> str:
    """The median and the range.

    >>> spread([2.0, 1.0, 4.0])
    '2.0 (1.0 to 4.0)'
    """
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
