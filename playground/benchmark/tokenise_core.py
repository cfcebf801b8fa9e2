"""Tokenising and labelling alone, of the current code and of another checkout: thousands of tokens per CPU second.

    python playground/benchmark/tokenise_core.py --model_name_or_path DIR --data_path FILE.jsonl --conv_template chatml
        [--rows 500] [--repeat 5] [--other CHECKOUT]
    python playground/benchmark/tokenise_core.py … --workers 1 2 [--rows 20000]

DIR holds the tokenizer; the first ROWS rows are used, or FILE's rows are repeated with other numbers if it has fewer.
Each measurement is a process of its own with one thread; the checkouts take turns, and medians are shown. The ids and
labels of all of them must be equal, and those ids must be the ones of the whole rendered texts.

    encode_batch   the tokenizer alone, on the rendered texts: what it costs without labels
    core           dialogues -> examples
    store          dialogues -> examples -> the files of a token store
    prepare        CPU seconds, once for each process that tokenises much: making and proving the fast path

With `--workers`, files -> store is measured instead, by the clock: reading the rows, starting the workers (they read
the tokenizer and prepare the fast path), tokenising and writing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from tokenise import ROOT, repeat

_ROUNDS = 3  # in a process; the fastest counts


def main() -> None:
    args = parse_arguments()
    if args.measure:
        print(json.dumps(by_workers(args) if args.workers else alone(args)))
        return
    checkouts = [ROOT, *([Path(args.other).resolve()] if args.other else [])]
    found: dict[Path, list[dict[str, Any]]] = {checkout: [] for checkout in checkouts}
    with tempfile.TemporaryDirectory(prefix="fschat-benchmark-") as scratch:
        data = Path(scratch) / "data.jsonl"
        repeat(Path(args.data_path), data, args.rows)
        for _ in range(args.repeat):
            for checkout in checkouts:
                found[checkout].append(measured(checkout, data, args))
    if len({result["digest"] for results in found.values() for result in results}) != 1:
        raise SystemExit("the ids or labels differ: there is nothing to compare")
    for checkout, label in zip(checkouts, ("this checkout", "the other"), strict=False):
        results = found[checkout]
        print(f"{label}: {results[0]['tokens']:,} tokens, equal ids and labels")
        for name in results[0]["seconds"]:
            seconds = sorted(result["seconds"][name] for result in results)
            rate = results[0]["tokens"] / 1000 / median(seconds)
            shown = f"{rate:>10,.0f} thousand tokens/s" if name != "prepare" else " " * 28
            print(f"    {name:<14}{median(seconds):>8.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}){shown}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokenising and labelling alone, next to another checkout.")
    parser.add_argument("--model_name_or_path", required=True, help="folder with the tokenizer")
    parser.add_argument("--data_path", required=True, help=".jsonl file with `messages`")
    parser.add_argument("--conv_template", default="vicuna_v1.1")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=5, help="processes for each checkout (%(default)s)")
    parser.add_argument("--other", help="another checkout to compare with")
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="measure files -> store with these numbers")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(checkout: Path, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What a process with the code of a checkout measures."""
    words = ["--model_name_or_path", args.model_name_or_path, "--data_path", str(data), "--rows", str(args.rows)]
    words += ["--conv_template", args.conv_template, "--measure", "--workers", *map(str, args.workers)]
    environment = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *words],
        env=os.environ | environment,
        cwd=checkout,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def alone(args: argparse.Namespace) -> dict[str, Any]:
    from fastchat.data.encoding.examples import tokenize_dialogues
    from fastchat.data.encoding.open_tokenizer import open_tokenizer
    from fastchat.data.rows.records import Records
    from fastchat.data.tokens.store import StoreWriter, make_shard, usable

    encoder, _ = open_tokenizer(args.model_name_or_path)
    with redirect_stderr(StringIO()):
        chat_encoder = encoder.bind(encoder.choose(args.conv_template))
    dialogues = usable(islice(Records([args.data_path], on_bad_row="stop"), args.rows))
    rendered = [chat_encoder.template.render(dialogue) for _, dialogue in dialogues]
    whole = [chat_encoder.whole_ids(one) for one in rendered]
    how: dict[str, Any]
    how, texts = {"max_length": max(map(len, whole))}, [one.text for one in rendered]

    def store() -> None:
        with tempfile.TemporaryDirectory(prefix="fschat-benchmark-") as folder:
            writer = StoreWriter(Path(folder))
            writer.add(make_shard(dialogues, chat_encoder, overlong="truncate", **how))
            writer.close()

    timed: dict[str, Callable[[], object]] = {
        "encode_batch": lambda: encoder.whole.encode_batch(texts),
        "core": lambda: list(tokenize_dialogues(dialogues, chat_encoder, **how)),
        "store": store,
    }
    seconds: dict[str, float] = {}
    if hasattr(encoder, "fast"):  # a checkout from before it was made has none
        seconds["prepare"] = cpu_seconds(lambda: encoder.fast.prepare(texts[:8]))
    for name, run in timed.items():
        seconds[name] = min(cpu_seconds(run) for _ in range(_ROUNDS))
    made = list(tokenize_dialogues(dialogues, chat_encoder, **how))
    if [example.input_ids for example in made] != whole:
        raise SystemExit("the ids differ from those of the whole texts")
    found = hashlib.sha256(repr([(example.input_ids, example.labels) for example in made]).encode()).hexdigest()
    return {"tokens": sum(map(len, whole)), "digest": found, "seconds": seconds}


def by_workers(args: argparse.Namespace) -> dict[str, Any]:
    from fastchat.data.encoding.open_tokenizer import open_tokenizer
    from fastchat.data.rows.fingerprint import state_of
    from fastchat.data.rows.sources import Source
    from fastchat.data.tokens.prepare import TokenizeJob, TokenSettings

    encoder, _ = open_tokenizer(args.model_name_or_path)
    with redirect_stderr(StringIO()):
        chat_encoder = encoder.bind(encoder.choose(args.conv_template))
    seconds, digests, tokens = {}, set(), 0
    for workers in args.workers:
        settings = TokenSettings(1024, "truncate", "stop", workers=workers)
        job = TokenizeJob(
            "train",
            [Source(args.data_path, (args.data_path,))],
            chat_encoder,
            settings,
            {args.data_path: state_of(args.data_path)},
        )
        with tempfile.TemporaryDirectory(prefix="fschat-benchmark-") as folder, redirect_stderr(StringIO()):
            begun = time.monotonic()
            about = job(Path(folder))
            seconds[f"{workers} workers"] = time.monotonic() - begun
        tokens = about["counts"]["tokens"]
        digests.add(json.dumps(about["files"]))
    if len(digests) != 1:
        raise SystemExit("the tokens depend on the number of workers")
    return {"tokens": tokens, "digest": digests.pop(), "seconds": seconds}


def cpu_seconds(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
