"""How fast packs are planned, and how full they are: on lengths of your own data, and on invented ones.

    python playground/benchmark/packing.py
    python playground/benchmark/packing.py --model_name_or_path DIR --conv_template gemma --data_path FILE

Every line is one length distribution. "time" is the planning alone, best of --repeat, in this one process, without
reading or tokenising. "limit" is the number of packs that no plan can go below: all tokens divided by the capacity.
Where it is not reached, no better plan need exist: dialogues of 60 % of the capacity fill 60 % of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fastchat.conversation import get_template
from fastchat.data.batches.packing import plan_packs
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.rows.records import load_dialogues
from fastchat.data.tokens.store import make_shard, usable


def main() -> None:
    args = parse_arguments()
    rng = np.random.default_rng(args.seed)
    cases = invented(args.number, args.capacity, rng)
    if args.data_path:
        lengths = measured(args)
        cases = {f"your data ({len(lengths):,})": lengths, "your data, resampled": rng.choice(lengths, args.number)}
        cases |= invented(args.number, args.capacity, rng)
    print(f"capacity {args.capacity:,} tokens, best of {args.repeat}")
    print(f"{'lengths':<28}{'dialogues':>11}{'tokens':>15}{'time':>10}{'packs':>9}{'limit':>9}{'fill':>9}")
    for name, lengths in cases.items():
        seconds, packs = timed(lengths, args)
        total = int(lengths.sum())
        limit = -(-total // args.capacity)
        print(
            f"{name:<28}{len(lengths):>11,}{total:>15,}{seconds:>8.3f} s{len(packs):>9,}{limit:>9,}{packs.fill:>9.2%}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of planning packs, and how full they are.")
    parser.add_argument("--model_name_or_path", help="folder with the tokenizer for --data_path")
    parser.add_argument("--conv_template", default="vicuna_v1.1")
    parser.add_argument("--data_path", nargs="+", help="conversations whose lengths are used too")
    parser.add_argument("--capacity", type=int, default=4096, help="tokens of a pack (%(default)s)")
    parser.add_argument("--number", type=int, default=100_000, help="invented dialogues (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data_path and not args.model_name_or_path:
        parser.error("--data_path needs --model_name_or_path")
    return args


def invented(number: int, capacity: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Shapes that chat data has, and two hard ones."""
    return {
        "log-normal, median 400": np.clip(rng.lognormal(6, 1, number), 1, capacity).astype(np.int64),
        "normal, 230 +- 80": np.clip(rng.normal(230, 80, number), 20, capacity).astype(np.int64),
        "uniform up to the capacity": rng.integers(1, capacity + 1, number),
        "all equal, 300": np.full(number, min(300, capacity)),
        "all above half": rng.integers(capacity // 2 + 1, capacity + 1, number),
    }


def measured(args: argparse.Namespace) -> np.ndarray:
    """Tokens of each dialogue of --data_path."""
    encoder, _ = open_tokenizer(args.model_name_or_path)
    chat_encoder = encoder.bind(get_template(args.conv_template))
    records = load_dialogues(args.data_path).records
    return make_shard(usable(records), chat_encoder, max_length=args.capacity, overlong="drop").arrays["lengths"]


def timed(lengths: np.ndarray, args: argparse.Namespace):
    best = float("inf")
    for _ in range(args.repeat):
        start = time.perf_counter()
        packs = plan_packs(lengths, args.capacity, args.seed)
        best = min(best, time.perf_counter() - start)
    return best, packs


if __name__ == "__main__":
    main()
