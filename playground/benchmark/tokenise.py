"""How long a run takes until its first step, and how much memory, when the data is tokenised and when it is cached.

    python playground/benchmark/tokenise.py --model_name_or_path DIR --data_path FILE.jsonl
        [--number 10000 100000] [--workers 1 2]

DIR holds the tokenizer; the model is a tiny one with random weights, so that what is measured is the data's part (and
the start of Python and torch, which the second start shows alone). FILE's rows are repeated, each time with other
words, until there are so many dialogues. Everything is made in a temporary folder and removed again.

    first, second    seconds from the start of the command to the end of its first optimizer step
    rate             tokens per second while tokenising, from the first start minus the second
    peak             of resident memory: of the training process, and of it and all its workers together
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_NUMBER = re.compile(r"\d+")
_POLL_S = 0.05


@dataclass
class Start:
    """One start: seconds to the first step, peaks in MiB, tokens of the data."""

    seconds: float
    peak: float
    peak_together: float
    tokens: int


def main() -> None:
    args = parse_arguments()
    print(
        f"{'dialogues':>10}{'workers':>9}{'tokens':>13}{'first':>9}{'second':>9}{'rate':>12}{'peak':>10}{'together':>10}"
    )
    with tempfile.TemporaryDirectory(prefix="fschat-benchmark-", dir=args.scratch) as scratch:
        model = tiny_model(args.model_name_or_path, Path(scratch))
        for number in args.number:
            data = Path(scratch) / f"{number}.jsonl"
            repeat(Path(args.data_path), data, number)
            for workers in args.workers:
                first, second = measure(model, data, workers, Path(scratch), args)
                rate = first.tokens / max(first.seconds - second.seconds, 0.01)
                print(
                    f"{number:>10,}{workers:>9}{first.tokens:>13,}{first.seconds:>7.1f} s{second.seconds:>7.1f} s"
                    f"{rate:>10,.0f}/s{max(first.peak, second.peak):>6,.0f} MiB{first.peak_together:>6,.0f} MiB",
                    flush=True,
                )
            data.unlink()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory of tokenising, and of starting without.")
    parser.add_argument("--model_name_or_path", required=True, help="folder with the tokenizer")
    parser.add_argument("--data_path", required=True, help=".jsonl file whose rows are repeated")
    parser.add_argument("--conv_template", default="vicuna_v1.1")
    parser.add_argument("--model_max_length", type=int, default=1024)
    parser.add_argument("--number", type=int, nargs="+", default=[10_000, 100_000], help="dialogues (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes that tokenise (%(default)s)")
    parser.add_argument("--scratch", help="folder for what is made on the way; default the system's own")
    return parser.parse_args()


def repeat(source: Path, target: Path, number: int) -> None:
    """Write `number` rows: those of `source`, in every round with other numbers, so that no text comes twice."""
    rows = source.read_text(encoding="utf-8").rstrip("\n").split("\n")
    with target.open("w", encoding="utf-8") as file:
        for i in range(number):
            file.write(varied(rows[i % len(rows)], i // len(rows)) + "\n")


def varied(line: str, round_: int) -> str:
    """A row of the `messages` form with every number in its texts made larger by the number of the round."""
    row = json.loads(line)
    for turn in row["messages"]:
        turn["content"] = _NUMBER.sub(lambda found: str(int(found.group()) + round_), turn["content"])
    return json.dumps(row, ensure_ascii=False)


def tiny_model(tokenizer: str, scratch: Path) -> Path:
    """A Llama model of 32 dimensions with random weights and the tokenizer of a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = scratch / "model"
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=len(loaded), max_position_embeddings=4096, **shape)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def measure(model: Path, data: Path, workers: int, scratch: Path, args: argparse.Namespace) -> list[Start]:
    """Two starts of the same run, the first with an empty cache."""
    cache, output = scratch / "cache", scratch / "out"
    shutil.rmtree(cache, ignore_errors=True)
    flags = {
        "--model_name_or_path": model,
        "--data_path": data,
        "--conv_template": args.conv_template,
        "--model_max_length": args.model_max_length,
        "--output_dir": output,
        "--preprocessing_num_workers": workers,
        "--per_device_train_batch_size": 1,
        "--max_steps": 1,
        "--disable_tqdm": True,
        "--overwrite_output_dir": True,
    }
    command = [sys.executable, "-m", "fastchat.train.train_lora", *(str(w) for pair in flags.items() for w in pair)]
    environment = {"FSCHAT_CACHE": str(cache), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    return [start(command, os.environ | environment, output) for _ in range(2)]


def start(command: list[str], environment: dict[str, str], output: Path) -> Start:
    shutil.rmtree(output, ignore_errors=True)
    metrics, begun, seconds, peak, together = output / "metrics.jsonl", time.monotonic(), 0.0, 0.0, 0.0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(_POLL_S)
            own, total = resident(process.pid)
            peak, together = max(peak, own), max(together, total)
            if not seconds and metrics.is_file() and metrics.stat().st_size:
                seconds = time.monotonic() - begun
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode(errors="replace"))
    record: dict[str, Any] = json.loads((output / "training.json").read_text(encoding="utf-8"))
    return Start(seconds or time.monotonic() - begun, peak, together, record["data"]["train"]["counts"]["tokens"])


def resident(pid: int) -> tuple[float, float]:
    """(of a process, of it and all that descend from it), in MiB."""
    parents, sizes = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            sizes[int(entry.name)] = int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
        except OSError:  # it has just ended
            continue
        parents[int(entry.name)] = int(fields[1])
    family = {pid}
    for child in sorted(parents):
        if parents[child] in family:
            family.add(child)
    return sizes.get(pid, 0.0), sum(sizes.get(member, 0.0) for member in family)


if __name__ == "__main__":
    main()
