"""Sorting a file of answers; generating them is left to the programs that import this."""

from __future__ import annotations

import sys
from pathlib import Path

from fastchat.files import parse_json, write_text
from fastchat.upstream_names import refuse, what_instead


def reorg_answer_file(answer_file: str) -> None:
    """Sort the answers by question id, in place; of several answers to a question the last one is kept."""
    path = Path(answer_file)
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    answers = {parse_json(line, constants=True)["question_id"]: line for line in lines}
    write_text(path, "".join(f"{answers[key]}\n" for key in sorted(answers)))


__getattr__ = refuse(__name__)

if __name__ == "__main__":
    print("error: " + what_instead("fastchat.llm_judge.gen_model_answer", "answers"), file=sys.stderr)
    sys.exit(2)
