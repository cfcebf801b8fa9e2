"""The settings of the planner and of the preview, besides those of training; see arguments.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from fastchat.settings.fields import AT_LEAST_ONE, NOT_NEGATIVE, setting

_plan = partial(setting, group="Planner")
_preview = partial(setting, group="Preview")


@dataclass
class PlanArguments:
    """Settings of the planner. `plan` and the machine are also read by the training commands with `--plan`."""

    model_size: str | None = _plan(None, "7b, 13b or 70b: plan for Llama-2 of that size, without a model folder")
    full_finetuning: bool = _plan(False, "train all weights (train.py) instead of an adapter")
    gpus: int | None = _plan(
        None, "number of GPUs on all hosts; by default those of this machine", also="num_gpus", range=AT_LEAST_ONE
    )
    hosts: int = _plan(1, "number of hosts", range=AT_LEAST_ONE)
    gpu_memory: str | None = _plan(None, "memory per GPU, such as 24GiB; by default as reported by nvidia-smi")
    cpu_memory: str | None = _plan(None, "memory per host, such as 256GiB; by default that of this machine")
    json: bool = _plan(False, "print one flat JSON object, with sizes in bytes")
    recommend: bool = _plan(False, "find settings that fit, for 7b, 13b, 70b and the given model")
    recipes: str = _plan("plan_recipes", "folder for the YAML recipes that --recommend writes", path=True)
    largest: bool = _plan(False, "find the largest dense model that can be trained on this machine")
    plan: bool = _plan(False, "with a training command: only print the plan; no effect here")


@dataclass
class PreviewArguments:
    """Settings of the preview."""

    num: int = _preview(3, "number of dialogues to show", range=NOT_NEGATIVE)
    output: str | None = _preview(None, "write the ids and labels of every row to this JSONL file", path=True)
    html: str | None = _preview(None, "write an HTML page with every token and why it is (not) learned", path=True)
