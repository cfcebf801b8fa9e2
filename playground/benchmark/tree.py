"""What prefix trees save: tokens and CPU seconds of packed training, with and without them.

    python playground/benchmark/tree.py

The data is invented: random ids, with the lengths that dialogues with reasoning and with a long system prompt have.
Before anything is timed, both ways must give the same loss and the same gradient on some of it. "time" is forward and
backward over all packs on one thread, CPU seconds, median of --repeat, the two ways by turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fastchat.data.batches.packing import PackedDataset, Packs, pack_collate, plan_packs
from fastchat.data.batches.packing_check import compare_packing
from fastchat.data.batches.shared_packs import packs_of, plan_shared_packs
from fastchat.data.tokens.dataset import ChatDataset, WithoutTails
from fastchat.data.tokens.store import TokenStore
from fastchat.train.loss import loss_sum

VOCABULARY = 2048


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    model = small_llama(args)
    rng = np.random.default_rng(0)
    cases = {
        "8 answers with reasoning": [one for i in range(args.number) for one in answers_apart(rng, 8, i)],
        "the same, 2 answers": [one for i in range(4 * args.number) for one in answers_apart(rng, 2, i)],
        "system prompt of 400": with_system_prompt(rng, 400, 16 * args.number),
    }
    print(f"packs of {args.capacity:,} tokens, one thread, median of {args.repeat}")
    print(f"{'data':<28}{'examples':>9}{'tokens':>10}{'with trees':>12}{'time':>10}{'with trees':>12}{'ratio':>8}")
    for name, examples in cases.items():
        report(name, dataset_of(examples), model, args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokens and time of packed training with and without prefix trees.")
    parser.add_argument("--capacity", type=int, default=2048, help="tokens of a pack (%(default)s)")
    parser.add_argument("--number", type=int, default=4, help="dialogues of 8 answers (%(default)s)")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size of the model (%(default)s)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    return parser.parse_args()


def small_llama(args: argparse.Namespace) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": args.hidden, "intermediate_size": 3 * args.hidden, "num_hidden_layers": args.layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=args.capacity))


def answers_apart(rng: np.random.Generator, turns: int, index: int) -> list[dict[str, Any]]:
    """One example per answer, without thoughts in the history: a system prompt of 40 tokens; questions of 30, thoughts
    of 40 and answers of 40, about."""
    history, examples = rng.integers(0, VOCABULARY, 40), []
    for _ in range(turns):
        question, thoughts, answer = (rng.integers(0, VOCABULARY, rng.poisson(mean) + 1) for mean in (30, 40, 40))
        prompt = np.concatenate([history, question])
        examples.append(example(prompt, np.concatenate([thoughts, answer]), index))
        history = np.concatenate([prompt, answer])
    return examples


def with_system_prompt(rng: np.random.Generator, length: int, number: int) -> list[dict[str, Any]]:
    """Dialogues of one question and one answer after the same system prompt."""
    system = rng.integers(0, VOCABULARY, length)
    parts = [[rng.integers(0, VOCABULARY, rng.poisson(mean) + 1) for mean in (40, 100)] for _ in range(number)]
    return [example(np.concatenate([system, question]), answer, i) for i, (question, answer) in enumerate(parts)]


def example(prompt: np.ndarray, answer: np.ndarray, index: int) -> dict[str, Any]:
    labels = np.concatenate([np.full(len(prompt), -100), answer])
    return {"input_ids": np.concatenate([prompt, answer]), "labels": labels, "index": index}


def dataset_of(examples: list[dict[str, Any]]) -> WithoutTails:
    number = len(examples)
    arrays = {name: np.concatenate([e[key] for e in examples]) for name, key in (("ids", "input_ids"), ("labels",) * 2)}
    arrays["offsets"] = np.cumsum([0, *(len(e["input_ids"]) for e in examples)])
    arrays["index"] = np.array([e["index"] for e in examples])
    arrays["supervised"] = np.array([(e["labels"] >= 0).sum() for e in examples])
    arrays |= {"part": np.zeros(number, int), "digests": np.zeros(number, np.uint64)}
    return WithoutTails(ChatDataset(TokenStore(arrays)))


def report(name: str, data: WithoutTails, model: Any, args: argparse.Namespace) -> None:
    trees, rows = plan_shared_packs(data, args.capacity), plan_packs(data.lengths, args.capacity)
    assert trees is not None and trees.separate == rows.num_tokens.sum()
    examples = [data[i] for i in range(8)]
    some = packs_of(data.ids, [np.arange(len(examples))], args.capacity)
    same = compare_packing(model, examples, loss_sum, pad_token_id=0, capacity=args.capacity, packs=some)
    assert same.exact, same.line
    seconds: dict[str, list[float]] = {"rows": [], "trees": []}
    for _ in range(args.repeat):
        seconds["rows"].append(timed(model, data, rows))
        seconds["trees"].append(timed(model, data, trees))
    plain, shared = (statistics.median(seconds[way]) for way in ("rows", "trees"))
    print(
        f"{name:<28}{len(data):>9}{trees.separate:>10,}{trees.num_tokens.sum():>12,}"
        f"{plain:>8.2f} s{shared:>10.2f} s{plain / shared:>8.2f}"
    )


def timed(model: Any, data: WithoutTails, packs: Packs) -> float:
    """CPU seconds of forward and backward over all packs, one at a time, with the collation."""
    packed = PackedDataset(data, packs)
    start = time.process_time()
    for pack in range(len(packed)):
        batch = pack_collate([packed[pack]], pad_token_id=0)
        del batch["seq_lengths"]
        loss_sum(model, batch).backward()
    model.zero_grad()
    return time.process_time() - start


if __name__ == "__main__":
    main()
