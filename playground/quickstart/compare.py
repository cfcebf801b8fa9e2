"""Did it work? Losses before and after, and base and tuned model answering the same held-out questions.

    python playground/quickstart/compare.py BASE ADAPTER EVAL.json

Exits with 1 where the tuned model is not clearly better.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fastchat.serve.chat import Chat, load_chat

NUM_SHOWN = 4
MAX_NEW_TOKENS = 24  # the answers have at most 12; a model that does not stop shows it
CLEARLY_BETTER = 0.3  # share of the questions by which the tuned model must be ahead


def losses(adapter: Path) -> dict[str, tuple[float, float]]:
    """(before, after) of the evaluation loss, from training.json; (first, last logged) of the training loss."""
    rows = [json.loads(line) for line in (adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [row["loss"] for row in rows if "loss" in row]
    metrics = json.loads((adapter / "training.json").read_text(encoding="utf-8"))["metrics"]
    return {
        "training": (training[0], training[-1]),
        "evaluation": (metrics["eval_loss_before"], metrics["eval_loss"]),
    }


def is_right(reply: str, expected: str) -> bool:
    """The expected sentence, in capitals or not, and nothing else: a model which does not stop is not right."""
    return reply.strip().lower() == expected.lower()


def ask(chat: Chat, records: list[dict[str, Any]]) -> list[str]:
    """The model's most likely answer to the first question of every record."""
    questions = [record["conversations"][0]["value"] for record in records]
    messages = [[{"role": "user", "content": question}] for question in questions]
    return [chat.reply(one, greedy=True, max_new_tokens=MAX_NEW_TOKENS) for one in messages]


def table(records: list[dict[str, Any]], base: list[str], tuned: list[str]) -> str:
    """Side by side, one row per question: what was asked, and what the two said (+ right, - wrong)."""
    rows = [("question", "  base", "  tuned")]
    for record, *replies in zip(records, base, tuned, strict=True):
        question, answer = (turn["value"] for turn in record["conversations"])
        marked = [("+ " if is_right(reply, answer) else "- ") + " ".join(reply.split()) for reply in replies]
        rows.append((question, *(text if len(text) <= 40 else text[:37] + "..." for text in marked)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 4), *lines[1:]])


def main(base: Path, adapter: Path, evaluation: Path) -> int:
    """Print the report; 0 where the tuned model is clearly better, else 1."""
    measured = losses(adapter)
    for name, (before, after) in measured.items():
        print(f"{name + ' loss':<16} {before:6.3f} at the start   {after:6.3f} at the end")
    records = json.loads(evaluation.read_text(encoding="utf-8"))
    expected = [record["conversations"][1]["value"] for record in records]
    # The base gets the very prompt that the adapter was trained with, so that only the adapter differs.
    replies = [ask(load_chat(str(base), conv_template="vicuna_v1.1"), records), ask(load_chat(str(adapter)), records)]
    print()
    print(table(records[:NUM_SHOWN], *(answers[:NUM_SHOWN] for answers in replies)))
    right = [sum(map(is_right, answers, expected)) for answers in replies]
    total = len(records)
    print(
        f"\nright, of {total} questions that were not in the training conversations: base {right[0]}, tuned {right[1]}"
    )
    better = right[1] - right[0] >= CLEARLY_BETTER * total and all(
        after < before for before, after in measured.values()
    )
    print(
        "The tuned model is clearly better." if better else "The tuned model is NOT clearly better: something is wrong."
    )
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
