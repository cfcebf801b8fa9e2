"""Questions, answers and prompts of MT-bench, read from JSON Lines files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastchat.files import parse_json
from fastchat.upstream_names import refuse

NEED_REF_CATS = ["math", "reasoning", "coding", "arena-hard-200"]  # categories that are judged with a reference answer
temperature_config = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("stem", "humanities"), 0.1),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning", "arena-hard-200"), 0.0),
}


def load_questions(question_file: str, begin: int | None, end: int | None) -> list[dict[str, Any]]:
    """The questions from number `begin` up to, not including, `end`; None for no limit."""
    return _lines(question_file)[begin:end]


def load_model_answers(answer_dir: str) -> dict[str, dict[Any, dict[str, Any]]]:
    """{model: {question id: answer}} of every .jsonl file in a folder."""
    files = sorted(Path(answer_dir).glob("*.jsonl"))
    return {file.stem: {line["question_id"]: line for line in _lines(file)} for file in files}


def load_judge_prompts(prompt_file: str) -> dict[str, dict[str, Any]]:
    """{name: prompt}"""
    return {line["name"]: line for line in _lines(prompt_file)}


def _lines(path: str | Path) -> list[dict[str, Any]]:
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [parse_json(line, constants=True) for line in lines if line.strip()]


__getattr__ = refuse(__name__)
