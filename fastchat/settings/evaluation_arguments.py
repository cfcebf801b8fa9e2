"""Settings of evaluation during training: generated answers, early stopping, and the samples of the report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from fastchat.settings.fields import AT_LEAST_ONE, FREE, NOT_NEGATIVE, setting

_answers = partial(setting, group="Evaluation", resume=FREE)


@dataclass
class EvaluationArguments:
    """What this project adds to the evaluation settings of transformers."""

    sample_prompts: int = setting(
        4,
        "number of prompts of the evaluation data that are answered before and after training, for the report",
        group="Evaluation",
        range=NOT_NEGATIVE,
        resume=FREE,
    )
    early_stopping_patience: int | None = setting(
        None,
        "stop after this many evaluations in a row that are not the best so far, by --metric_for_best_model",
        group="Evaluation",
        range=AT_LEAST_ONE,
    )
    eval_generate: int = _answers(
        0, "at every evaluation score the answers that are generated to so many of its prompts", range=NOT_NEGATIVE
    )
    eval_match: Literal["exact", "regex", "numeric"] = _answers(
        "exact", "how --eval_generate compares answers: as a whole, by --eval_pattern, or by their last number"
    )
    eval_pattern: str | None = _answers(None, "regular expression of --eval_match regex; a group extracts the answer")
    eval_max_new_tokens: int = _answers(128, "most tokens of an answer of --eval_generate", range=AT_LEAST_ONE)
