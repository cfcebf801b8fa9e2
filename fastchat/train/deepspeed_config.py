"""Reads a DeepSpeed configuration and completes it so that it cannot contradict the command line."""

from __future__ import annotations

from typing import Any

from fastchat.errors import SettingsError, say
from fastchat.settings.recipe_files import read_deepspeed_config

# Blocks that follow the command line wherever the file does not fix them. Without the precision blocks DeepSpeed trains
# in float32 whatever --bf16 says; without gradient_clipping it ignores --max_grad_norm.
_FOLLOW_COMMAND_LINE: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_optimization": {"stage": 0},
}
# DeepSpeed would silently use these in place of the schedule and optimizer that were asked for.
_OVERRULED = {"scheduler": "--lr_scheduler_type", "optimizer": "--optim"}


def load_deepspeed(given: str | dict[str, Any]) -> dict[str, Any]:
    """The configuration to hand to DeepSpeed. `given` is a path or the mapping itself.

    SettingsError where it is missing, no JSON object, or asks for something this project does not do. A `scheduler` or
    `optimizer` block is left out with one line each: the command line decides those.
    """
    config = dict(given) if isinstance(given, dict) else read_deepspeed_config(given)
    name = "the DeepSpeed configuration" if isinstance(given, dict) else f"DeepSpeed configuration {given}"
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise SettingsError(f"{name}: zero_optimization.stage must be 0, 1, 2 or 3, not {_stage(zero)!r}")
    for block, flag in _OVERRULED.items():
        if block in config:
            kind = config[block].get("type", "") if isinstance(config[block], dict) else ""
            del config[block]
            say(f"{name} has a {block} block ({kind}): ignored, {flag} decides")
    for key, value in _FOLLOW_COMMAND_LINE.items():
        config.setdefault(key, value)
    for block in ("bf16", "fp16"):
        if not isinstance(config[block], dict):
            raise SettingsError(f"{name}: {block} must be a block such as {{'enabled': 'auto'}}")
        config[block] = {"enabled": "auto", **config[block]}
    return config


def stage_of(config: dict[str, Any]) -> int:
    """The ZeRO stage a configuration asks for; 0 means none."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def offloads(config: dict[str, Any]) -> bool:
    """Whether optimizer or parameters are kept on the CPU, which needs DeepSpeed's compiled Adam."""
    zero = config.get("zero_optimization", {})
    blocks = (zero.get("offload_optimizer") or {}, zero.get("offload_param") or {})
    return any(block.get("device", "none") != "none" for block in blocks) or bool(zero.get("cpu_offload"))


def _stage(zero: Any) -> Any:
    return zero.get("stage") if isinstance(zero, dict) else zero
