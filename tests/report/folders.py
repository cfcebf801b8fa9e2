"""Run folders with anything in them, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS: list[dict[str, Any]] = [
    {"step": 0, "epoch": 0, "eval_loss": 1.3624, "eval_num_supervised_tokens": 670},
    *(
        {"step": 3 * i, "epoch": i / 7, "loss": 1.2 / i, "grad_norm": 1.9 / i, "learning_rate": 3e-3 * (1 - i / 8)}
        | {"num_tokens": 2900 + i, "num_supervised_tokens": 550, "tokens_per_second": 6000.5 + i}
        | {"memory_measured": (11 << 30) + i, "memory_predicted": 12 << 30}
        for i in range(1, 8)
    ),
    {"step": 21, "epoch": 1.0, "eval_loss": 0.0121, "eval_num_supervised_tokens": 670, "eval_token_accuracy": 0.93},
]
SETTINGS: dict[str, Any] = {
    "model_name_or_path": {"value": "/models/tiny", "from": "command line"},
    "learning_rate": {"value": 0.003, "from": "yaml"},
    "lora_r": {"value": 16, "from": "command line"},
    "q_lora": {"value": True, "from": "command line"},
    "data_seed": {"value": 42, "from": "derived"},
    "logging_steps": {"value": 1.0, "from": "default"},
    "of_a_newer_version": {"value": {"a": [1, None]}, "from": "yaml"},
}
COUNTS = {"rows": 9, "dialogues": 8, "dropped_overlong": 1, "tokens": 900, "supervised_tokens": 90, "trained_turns": 12}
STATUS = {"exit_code": 0, "status": "done", "message": "", "started": "2026-01-02T03:04:05+0000"}
STATUS |= {"time": "2026-01-02T03:06:15+0000"}


def record(**settings: Any) -> dict[str, Any]:
    """The contents of a training.json."""
    data = {"sources": [{"name": "chats.json", "files": ["chats.json"], "rows": 9}], "counts": COUNTS}
    changed = {name: {"value": value, "from": "command line"} for name, value in settings.items()}
    return {
        "format": 1,
        "base_model": "/models/tiny",
        "settings": SETTINGS | changed,
        "data": {"train": data, "eval": data},
        "packing": {"train": {"dialogues": 8, "packs": 3, "capacity": 512, "tokens": 900, "fill": 0.585938}},
        "trainable_parameters": 151552,
        "metrics": {"steps": 21, "train_loss": 0.44, "train_runtime": 130.4, "eval_loss": 0.0121},
        "versions": {"torch": "2.13.0"},
        "engine": "zero2",
        "world_size": 2,
    }


def answers(*texts: str) -> list[dict[str, Any]]:
    """Rows of answers.jsonl: before and after for each text, which is prompt, reference and answer."""
    return [
        {"step": step, "row": i, "prompt": f"Q {text}", "reference": f"R {text}", "answer": f"{step} {text}"}
        | {"num_tokens": 3, "end": "length" if step else "stop"}
        for step in (0, 21)
        for i, text in enumerate(texts)
    ]


def begun(text: str = "Hi") -> dict[str, Any]:
    """The contents of report.json."""
    example = {"row": 4, "tokens": 5, "learned": 2, "more": 0, "parts": [[0, f"USER: {text}"], [1, f"Answer {text}"]]}
    overview = {"model": "tiny: LoRA", "output": text}
    return {"format": 1, "steps": 21, "samples": {"prompts": 1}, "example": example, "overview": overview}


def write_run(folder: Path, **files: Any) -> Path:
    """A whole run folder. `files`: contents by name without its ending; None leaves a file out, text is written as it
    is."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"metrics": ROWS, "training": record(), "status": STATUS, "report": begun()}
    found |= {"answers": answers("x"), "log": "a line\nWARNING: look out\nWARNING: look out\n"}
    endings = {"metrics": "jsonl", "answers": "jsonl", "log": "txt"}
    for name, content in (found | files).items():
        if content is None:
            continue
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        text = content if isinstance(content, str) else json.dumps(content)
        path = folder / f"{name}.{endings.get(name, 'json')}"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return folder
