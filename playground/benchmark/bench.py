"""Speed and memory next to other trainers, in one command: results.json, table.md and bench.png in `--work`.

    make bench TOKENIZERS=DIR DATA=FILE.jsonl
    python playground/benchmark/bench.py --tokenizers DIR --data_path FILE.jsonl --only tokenise step
    python playground/benchmark/bench.py --draw                # table and picture again, no run

DIR has a folder for each tokenizer (those of `PAIRS`, or any others with --template); FILE has `messages` rows. TRL,
LLaMA-Factory and FastChat are installed into environments in `--work` at the first call; one that cannot be installed,
or whose work fails, is left out and said. Everything takes turns and is CPU seconds of processes with one thread, which
depend less than the clock on what else the machine does. What the trainers made (ids and labels, or the losses) is
compared first, and the table says where it differs. Every row is written as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from chart import draw
from peers import HERE, PEERS, ROOT, Missing, ask, interpreter, last_line, versions
from tokenise import repeat

# A tokenizer's folder -> the template here, and LLaMA-Factory's name for it.
PAIRS = {
    "qwen2.5": ("chatml", "chatml"),
    "llama-3": ("llama-3", "llama3"),
    "llama-2": ("vicuna_v1.1", "vicuna"),
    "gemma": ("gemma", "gemma"),
}
STEP_TOKENIZER = "llama-2"  # FastChat trains with the vicuna template only, made for it
LIMIT = 2048


class Bench:
    """The peers that are there, and what was measured so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.path = self.work / "results.json"
        self.found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.pythons: dict[str, Path] = {}

    def peers(self, names: list[str]) -> dict[str, Path]:
        """The interpreters of this project and of those peers that are wanted and can be had."""
        for name in ["here", *(n for n in names if n in self.args.peers)]:
            if name in self.pythons:
                continue
            try:
                self.pythons[name] = interpreter(name, self.work)
            except Missing as problem:
                self.left_out(name, str(problem))
                self.args.peers = [other for other in self.args.peers if other != name]
        return {name: python for name, python in self.pythons.items() if name in ["here", *names]}

    def left_out(self, what: str, why: str) -> None:
        print(f"left out: {what}: {why}", flush=True)
        self.found.setdefault("left out", {})[what] = why
        self.write()

    def keep(self, row: str, figures: dict[str, Any]) -> None:
        self.found[row] = figures
        for name, text in figures.get("lines", {}).items():
            print(f"{row}: {name}: {text}", flush=True)
        self.write()

    def write(self) -> None:
        self.found["machine"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        installed = {n: versions(p, [PEERS[n][0].partition("=")[0]]) for n, p in self.pythons.items() if n != "here"}
        self.found.setdefault("versions", {}).update({n: v for one in installed.values() for n, v in one.items()})
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    args = parse_arguments()
    bench = Bench(args)
    if not args.draw:
        for row in ROWS if args.only is None else args.only:
            bench.found.get("left out", {}).pop(row, None)
            try:
                ROWS[row](bench)
            except Missing as problem:
                bench.left_out(row, str(problem))
    draw(bench.found, bench.work)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "bench", help="environments and results")
    parser.add_argument("--tokenizers", type=Path, help="folder of tokenizers' folders")
    parser.add_argument("--data_path", type=Path, help=".jsonl file with `messages`")
    parser.add_argument("--rows", type=int, default=500, help="rows to tokenise (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions, which take turns (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="training steps (%(default)s)")
    parser.add_argument("--overhead_steps", type=int, default=105, help="steps next to a plain loop (%(default)s)")
    parser.add_argument("--start_rows", type=int, default=20_000, help="rows of starts and previews (%(default)s)")
    parser.add_argument("--other", type=Path, help="another checkout, whose starts are measured too")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--only", nargs="+", choices=list(ROWS), help="rows to measure (default: all)")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    return parser.parse_args()


def data(bench: Bench, rows: int) -> Path:
    if bench.args.tokenizers is None or bench.args.data_path is None:
        raise Missing("it needs --tokenizers and --data_path")
    path = bench.work / f"rows_{rows}.jsonl"
    repeat(bench.args.data_path, path, rows)
    return path


def tokenise(bench: Bench) -> None:
    """Ids and labels of the same rows, for every tokenizer that is there."""
    path = data(bench, bench.args.rows)
    there = [name for name in PAIRS if (bench.args.tokenizers / name).is_dir()]
    if not there:
        raise Missing(f"no folder {' or '.join(PAIRS)} in {bench.args.tokenizers}")
    for name in there:
        folder = str(bench.args.tokenizers / name)
        asked = {"tokenizer": folder, "template": PAIRS[name][0], "llamafactory": PAIRS[name][1]}
        asked |= {"data": str(path), "limit": LIMIT, "model": str(tiny_model(bench, name))}
        pythons = bench.peers(list(PEERS))
        answers = take_turns(bench, pythons, "tokenise", asked, name)
        own = answers["here"][0]["rows"]
        tokens = sum(row[0] for row in own)
        figures: dict[str, Any] = {"tokens": tokens, "rates": {}, "lines": {}, "equal": {}}
        for peer, found in answers.items():
            rows = found[0]["rows"]
            same = [sum(a[k] == b[k] for a, b in zip(rows, own, strict=True)) for k in (2, 3)]
            agree = f"ids of {same[0]}, labels of {same[1]} of {len(own)} rows equal"
            agree += f"; supervised tokens {sum(r[1] for r in rows):,} (here {sum(r[1] for r in own):,})"
            figures["equal"][peer] = same[0] == same[1] == len(own) or agree
            for way in found[0]["seconds"]:
                count = sum(row[0] for row in rows)
                rates = [count / 1000 / one["seconds"][way] for one in found]
                figures["rates"][f"{peer}, {way}"] = rates
                figures["lines"][f"{peer}, {way}"] = f"{spread(rates, 0)} ktok per CPU s; {agree}"
        bench.keep(f"tokenise {name}", figures)


def step(bench: Bench) -> None:
    """The same model on the same rows, each step the whole file; losses compared."""
    folder, pythons = data(bench, 4), bench.peers(["trl", "fschat"])
    source = bench.args.tokenizers / STEP_TOKENIZER
    if not source.is_dir():
        raise Missing(f"no folder {STEP_TOKENIZER} in {bench.args.tokenizers}")
    asked = {"tokenizer": str(source), "template": PAIRS[STEP_TOKENIZER][0], "data": str(folder), "limit": LIMIT}
    asked |= {"model": str(tiny_model(bench, STEP_TOKENIZER)), "batch": 4, "steps": bench.args.steps}
    answers = take_turns(bench, pythons, "step", asked, "step")
    own = answers["here"][0]["losses"]
    figures: dict[str, Any] = {"seconds": {}, "losses": {}, "lines": {}}
    for peer, found in answers.items():
        losses = found[0]["losses"]
        apart = max(abs(a - b) for a, b in zip(losses, own, strict=True))
        seconds = [median(one["seconds"][3:]) for one in found]
        figures["seconds"][peer], figures["losses"][peer] = seconds, losses
        figures["lines"][peer] = f"{spread(seconds, 3)} CPU s per step; losses off by at most {apart:.1e}"
    bench.keep("step", figures)


def take_turns(
    bench: Bench, pythons: dict[str, Path], task: str, asked: dict[str, Any], what: str
) -> dict[str, list[dict[str, Any]]]:
    """The answers of all trainers, --repeat times in turns; one that fails is left out."""
    answers: dict[str, list[dict[str, Any]]] = {}
    broken: set[str] = set()
    for name in pythons:
        bench.found.get("left out", {}).pop(f"{name}, {what}", None)
    for _ in range(bench.args.repeat):
        for name in sorted(pythons.keys() - broken, key=list(pythons).index):
            try:
                answers.setdefault(name, []).append(ask(pythons[name], name, task, bench.work, **asked))
            except Missing as problem:
                if name == "here":
                    raise
                broken.add(name)
                answers.pop(name, None)
                bench.left_out(f"{name}, {what}", str(problem))
    return answers


def tiny_model(bench: Bench, tokenizer: str) -> Path:
    """A Llama with random weights and a tokenizer's own files, which every version of transformers reads."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder, source = bench.work / f"model-{tokenizer}", bench.args.tokenizers / tokenizer
    if (folder / "config.json").is_file():
        return folder
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vocabulary = len(AutoTokenizer.from_pretrained(source))
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=vocabulary, max_position_embeddings=LIMIT, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in source.iterdir():
        if path.is_file() and path.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(path, folder / path.name)
    values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if isinstance(values.get("extra_special_tokens"), list):  # older versions of transformers have another name for it
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
        (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def script(bench: Bench, name: str, words: list[str], pattern: str, says: str) -> dict[str, Any]:
    """What one of the other scripts here prints: for each line that matches, its group `who` and `says` filled in.

    Missing if the script fails, or if it prints no such line.
    """
    path = HERE / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(path), *words], capture_output=True, text=True, check=False, env=single()
    )
    (bench.work / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise Missing(f"{path.name} failed: {last_line(done.stderr)}")
    lines = figures_in(done.stdout, pattern, says)
    if not lines:
        raise Missing(f"{path.name} prints no line that matches {pattern}")
    return {"command": " ".join([f"{name}.py", *words]), "lines": lines, "printed": done.stdout}


def figures_in(printed: str, pattern: str, says: str) -> dict[str, str]:
    """The figures in the lines that match, by who.

    >>> figures_in("here   1.5 s\\nsomething else\\n", r"^(?P<who>here) +(?P<s>[\\d.]+) s$", "{s} seconds")
    {'here': '1.5 seconds'}
    """
    found = re.finditer(pattern, printed, re.MULTILINE)
    return {one["who"]: says.format(**one.groupdict()) for one in found}


# What the other scripts print: (a pattern for the lines with figures, how the table says them).
_TIMES = r"[\d.]+ \([\d.]+ to [\d.]+\)"
START = (
    rf"^(?P<who>this checkout|the other), cpu seconds +(?P<help>{_TIMES}) +(?P<first>{_TIMES}) +(?P<second>{_TIMES})"
    rf" +(?P<preview>{_TIMES}) *$",
    "CPU seconds: --help {help}; first start {first}; second start {second}; preview {preview}",
)
MERGE = (r"^(?P<who>here|peft) +(?P<figures>\S.*)$", "{figures}")
STEP = (
    r"^(?P<who>plain loop|this project|transformers' Trainer) +(?P<ms>[\d.]+) +(?P<range>[\d.]+-[\d.]+)"
    r" +(?P<over>\S+%)$",
    "{ms} CPU ms per step ({range}), {over} over the loop",
)
PACK = (
    r"^(?P<who>log-normal, median 400) .* (?P<seconds>[\d.]+) s +(?P<packs>[\d,]+) +[\d,]+ +(?P<fill>[\d.]+%)$",
    "{seconds} s by the clock, {packs} packs, {fill} full",
)


def start(bench: Bench) -> None:
    """`train_lora --help`, previews, and runs of one step without and with the tokens in the cache."""
    number = bench.args.start_rows
    path, folder = data(bench, number), bench.args.tokenizers / "qwen2.5"
    words = ["--model_name_or_path", str(folder), "--data_path", str(path), "--number", str(number)]
    words += ["--repeat", str(bench.args.repeat), *(["--other", str(bench.args.other)] if bench.args.other else [])]
    bench.keep("start", script(bench, "start", words, *START) | {"rows": number})


def peer_start(bench: Bench) -> None:
    """A run of one step with empty caches, and again, of this project and of TRL, each with as many processes as it
    takes by default."""
    path, source = data(bench, bench.args.start_rows), bench.args.tokenizers / "qwen2.5"
    asked = {"tokenizer": str(source), "template": PAIRS["qwen2.5"][0], "data": str(path), "limit": LIMIT}
    asked |= {"model": str(tiny_model(bench, "qwen2.5")), "batch": 1, "steps": 1}
    figures: dict[str, Any] = {"seconds": {}, "clock": {}, "lines": {}}
    for _ in range(bench.args.repeat):
        for name, python in bench.peers(["trl"]).items():
            for cache in ("cache", "hf"):
                shutil.rmtree(bench.work / cache, ignore_errors=True)
            for kind in ("first", "second"):
                before, began = of_children(), time.monotonic()
                ask(python, name, "start", bench.work, **asked)
                figures["seconds"].setdefault(f"{name}, {kind}", []).append(of_children() - before)
                figures["clock"].setdefault(f"{name}, {kind}", []).append(time.monotonic() - began)
    for what, cpu in figures["seconds"].items():
        figures["lines"][what] = f"{spread(cpu, 1)} CPU s, {spread(figures['clock'][what], 1)} s by the clock"
    bench.keep("peer_start", figures)


def preview(bench: Bench) -> None:
    """`fastchat preview --num 3`, with an empty cache."""
    path, folder = data(bench, bench.args.start_rows), bench.args.tokenizers / "qwen2.5"
    words = [sys.executable, "-m", "fastchat.cli", "preview", "--num", "3", "--data_path", str(path)]
    words += ["--model_name_or_path", str(folder), "--conv_template", "chatml", "--model_max_length", "1024"]
    seconds = []
    for _ in range(bench.args.repeat):
        shutil.rmtree(bench.work / "cache", ignore_errors=True)
        before = of_children()
        own = single() | {"FSCHAT_CACHE": str(bench.work / "cache")}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=own)
        if done.returncode:
            raise Missing(f"preview failed: {last_line(done.stderr)}")
        seconds.append(of_children() - before)
    bench.keep("preview", {"seconds": seconds, "lines": {"here": f"{spread(seconds, 1)} CPU s"}})


def merge(bench: Bench) -> None:
    """A model of 1 GB."""
    words = ["--repeat", str(bench.args.repeat), "--scratch", str(bench.work)]
    bench.keep("merge", script(bench, "merge", words, *MERGE))


def overhead(bench: Bench) -> None:
    """Steps of the trainer next to a plain loop."""
    words = ["--repeat", str(bench.args.repeat), "--steps", str(bench.args.overhead_steps)]
    bench.keep("overhead", script(bench, "step", words, *STEP))


def pack(bench: Bench) -> None:
    """The plan of 100,000 and of 500,000 lengths."""
    for number in (100_000, 500_000):
        bench.keep(f"pack {number:,}", script(bench, "packing", ["--number", str(number)], *PACK))


def of_children() -> float:
    """The CPU seconds of all commands that have ended, and of their own children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def single() -> dict[str, str]:
    """The environment of a command that computes in one thread and downloads nothing."""
    own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    return os.environ | own | {"PYTHONPATH": str(ROOT)}


def spread(values: list[float], digits: int) -> str:
    """Median and range.

    >>> spread([2.0, 1.0, 4.0], 1)
    '2.0 (1.0 to 4.0)'
    """
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


ROWS: dict[str, Callable[[Bench], None]] = {
    **{"merge": merge, "pack": pack, "overhead": overhead, "tokenise": tokenise, "step": step},
    **{"start": start, "peer_start": peer_start, "preview": preview},
}

if __name__ == "__main__":
    main()
