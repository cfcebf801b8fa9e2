"""The loss of all logits against the chunked head: time and peak memory of one forward and backward pass.

    python playground/benchmark/head.py
    python playground/benchmark/head.py --tokens 4096 --hidden 3072 --dtype bfloat16        # a GPU where there is one

A Gemma-architecture model of two layers with a large vocabulary, every position supervised. First both ways have to
give the same loss and the same gradients; where they do not, the numbers are not shown. Each way is measured in a
process of its own: peak memory of the GPU as torch counts it, of a CPU as the operating system does, in either case
without what the process held before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fastchat.train.head import ChunkedCrossEntropy
from fastchat.train.loss import loss_sum

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}
WAYS = {"plain": False, "chunked": True}


def main() -> None:
    args = parse_arguments()
    print(describe(args))
    loss, gradient = difference(args)
    print(f"equal: loss off by {loss:.1e}, gradient by {gradient:.1e} (allowed: {TOLERANCE[args.dtype]:.0e})")
    if not max(loss, gradient) <= TOLERANCE[args.dtype]:
        raise SystemExit("error: the two ways differ, so there is nothing to compare")
    found = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for way in WAYS:
            found[way] = pool.apply(measure, (args, way))
            print(f"{way:<9}{found[way]['seconds']:>9.3f} s{found[way]['bytes'] / 2**30:>9.2f} GiB")
    ratio = {key: found["plain"][key] / found["chunked"][key] for key in ("seconds", "bytes")}
    print(f"plain / chunked: time {ratio['seconds']:.2f}, peak memory {ratio['bytes']:.1f}")
    if args.json:
        Path(args.json).write_text(json.dumps({"settings": vars(args), **found, "ratio": ratio}, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory of the loss, plain and chunked.")
    parser.add_argument("--vocab", type=int, default=256_000, help="(%(default)s)")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size (%(default)s)")
    parser.add_argument("--tokens", type=int, default=1024, help="(%(default)s)")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="(%(default)s)")
    parser.add_argument("--frozen", action="store_true", help="the head does not train, as below an adapter")
    parser.add_argument("--repeat", type=int, default=3, help="passes, of which the fastest counts (%(default)s)")
    parser.add_argument("--json", help="write the numbers into this file too")
    return parser.parse_args()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(args: argparse.Namespace) -> str:
    name = torch.cuda.get_device_name() if device().type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    head = "frozen" if args.frozen else "trained"
    return (
        f"{args.tokens:,} tokens, vocabulary {args.vocab:,}, hidden {args.hidden:,}, {args.dtype}, head {head}; {name}"
    )


def build(args: argparse.Namespace, tokens: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """(model, batch of one row in which every token is supervised)"""
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": args.hidden, "intermediate_size": 4 * args.hidden, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": max(16, args.hidden // 4)}
    with device():  # drawing so many weights on a CPU takes longer than all else
        model = GemmaForCausalLM(GemmaConfig(vocab_size=args.vocab, **sizes, **heads))
    model.to(dtype=getattr(torch, args.dtype)).train()
    if args.frozen:
        model.get_input_embeddings().requires_grad_(False)  # tied to the head
    ids = torch.randint(0, args.vocab, (1, tokens), device=device())
    return model, {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def difference(args: argparse.Namespace) -> tuple[float, float]:
    """Of loss and gradient, as shares of the plain ones; on few tokens, with chunks that cut them in several."""
    model, batch = build(args, min(args.tokens, 128))
    ChunkedCrossEntropy(model, rows=50)
    found = []
    for chunked in WAYS.values():
        loss = loss_sum(model, batch, chunked=chunked)
        loss.backward()
        found.append((loss.item(), [p.grad.float() for p in model.parameters() if p.grad is not None]))
        model.zero_grad(set_to_none=True)
    (plain, wanted), (chunked, got) = found
    apart = sum(float((a - b).norm()) ** 2 for a, b in zip(wanted, got, strict=True)) ** 0.5
    return abs(plain - chunked) / plain, apart / sum(float(a.norm()) ** 2 for a in wanted) ** 0.5


def measure(args: argparse.Namespace, way: str) -> dict[str, float]:
    """Seconds of the fastest pass, and the peak in bytes above what model and gradients take."""
    model, batch = build(args, args.tokens)
    if WAYS[way]:
        ChunkedCrossEntropy(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    before, seconds = used(), []
    for _ in range(args.repeat):
        start = time.perf_counter()
        loss_sum(model, batch, chunked=WAYS[way]).backward()
        if device().type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "bytes": used() - before}


def used() -> int:
    """Bytes at most, so far, in this process."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
