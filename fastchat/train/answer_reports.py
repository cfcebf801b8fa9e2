"""The answers of `--sample_prompts` for the reports of `--report_to`: a table where the library has tables, else text.

Each function takes the callback of transformers that has set the library up, the rows of answers.jsonl, and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

NAME = "answers"
_COLUMNS = ("step", "prompt", "reference", "answer", "end")
Rows = Sequence[dict[str, Any]]


def _to_wandb(callback: Any, rows: Rows, step: int) -> None:
    library = callback._wandb
    table = library.Table(columns=list(_COLUMNS), data=[[row[name] for name in _COLUMNS] for row in rows])
    library.log({NAME: table, "train/global_step": step})


def _to_tensorboard(callback: Any, rows: Rows, step: int) -> None:
    for number, row in enumerate(rows):
        text = "\n\n".join(f"**{name}**\n\n{_indented(row[name])}" for name in _COLUMNS[1:])
        callback.tb_writer.add_text(f"{NAME}/{number}", text, step)
    callback.tb_writer.flush()


def _indented(text: str) -> str:
    """As code in Markdown: nothing in it is markup."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _to_mlflow(callback: Any, rows: Rows, step: int) -> None:
    callback._ml_flow.log_dict({"step": step, NAME: list(rows)}, f"{NAME}/step-{step}.json")


def _to_trackio(callback: Any, rows: Rows, step: int) -> None:
    import pandas

    library = callback._trackio
    frame = pandas.DataFrame([[row[name] for name in _COLUMNS] for row in rows], columns=list(_COLUMNS))
    library.log({NAME: library.Table(dataframe=frame), "train/global_step": step})


SENDERS: dict[str, Callable[[Any, Rows, int], None]] = {
    "WandbCallback": _to_wandb,
    "TensorBoardCallback": _to_tensorboard,
    "MLflowCallback": _to_mlflow,
    "TrackioCallback": _to_trackio,
}
