"""The parts of a DeepSpeed configuration that affect memory: the stage, offloading, and the sizes of the buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastchat.errors import SettingsError
from fastchat.settings.recipe_files import read_deepspeed_config

# DeepSpeed's defaults (deepspeed/runtime/zero/config.py), in elements.
_REDUCE_BUCKET = 500_000_000
_LIVE_PARAMETERS = 1_000_000_000
_PREFETCH = 50_000_000
_PERSISTENCE = 100_000
_SUB_GROUP = 1_000_000_000
_ACCUMULATION = {"fp32": 4, "bf16": 2, "bfp16": 2, "fp16": 2}


@dataclass(frozen=True)
class Zero:
    """The part of a DeepSpeed configuration that affects memory; all sizes in elements."""

    stage: int = 0
    offload_optimizer: bool = False
    offload_params: bool = False
    overlap: bool = True
    contiguous: bool = True
    reduce_bucket: int = _REDUCE_BUCKET
    live_parameters: int = _LIVE_PARAMETERS  # ZeRO-3: maximum of gathered parameters at a time
    prefetch: int = _PREFETCH  # ZeRO-3: number of prefetched parameters
    persistence: int = _PERSISTENCE  # ZeRO-3: smaller parameters are not partitioned
    sub_group: int = _SUB_GROUP  # ZeRO-3: the optimizer steps in groups of this size
    accumulates_in: int | None = None  # bytes per accumulated gradient; None: as for the weights
    half: bool | None = None  # bf16 or fp16 enabled (True) or disabled (False) in the file; None: as in the flags
    path: str = field(default="", compare=False)  # the file name as given


def read_zero(given: str | Mapping[str, Any], hidden: int) -> Zero:
    """The configuration in the file (or mapping) `given`, for a model of width `hidden`.

    "auto" is resolved as in transformers (integrations/deepspeed.py, trainer_config_finalize). Raises SettingsError if
    the file is missing or not a DeepSpeed configuration.
    """
    config = given if isinstance(given, Mapping) else read_deepspeed_config(given, tell=False)
    path = "" if isinstance(given, Mapping) else str(given)
    zero = config.get("zero_optimization") or {}
    if not isinstance(zero, Mapping) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise SettingsError(f"--deepspeed {path}: zero_optimization.stage must be 0, 1, 2 or 3")
    stage = int(zero.get("stage", 0))

    def size(key: str, default: int, auto: int) -> int:
        value = zero.get(key, default)
        if value == "auto":
            return auto
        try:
            return int(float(value))
        except (TypeError, ValueError):
            raise SettingsError(f"--deepspeed {path}: zero_optimization.{key} is {value!r}, not a number") from None

    return Zero(
        stage=stage,
        offload_optimizer=_offloads(zero, "offload_optimizer") or bool(zero.get("cpu_offload")),
        offload_params=stage == 3 and (_offloads(zero, "offload_param") or bool(zero.get("cpu_offload_param"))),
        overlap=bool(zero.get("overlap_comm", stage == 3)),
        contiguous=bool(zero.get("contiguous_gradients", True)),
        reduce_bucket=size("reduce_bucket_size", _REDUCE_BUCKET, hidden * hidden),
        live_parameters=size("stage3_max_live_parameters", _LIVE_PARAMETERS, _LIVE_PARAMETERS),
        prefetch=size("stage3_prefetch_bucket_size", _PREFETCH, int(0.9 * hidden * hidden)),
        persistence=size("stage3_param_persistence_threshold", _PERSISTENCE, 10 * hidden),
        sub_group=size("sub_group_size", _SUB_GROUP, _SUB_GROUP),
        accumulates_in=_accumulation(config, path),
        half=_half(config),
        path=path,
    )


def _offloads(zero: Mapping[str, Any], block: str) -> bool:
    entry = zero.get(block) or {}
    return isinstance(entry, Mapping) and entry.get("device", "none") != "none"


def _accumulation(config: Mapping[str, Any], path: str) -> int | None:
    """Bytes of `data_types.grad_accum_dtype`."""
    name = (config.get("data_types") or {}).get("grad_accum_dtype")
    if name is None:
        return None
    if name not in _ACCUMULATION:
        raise SettingsError(f"--deepspeed {path}: data_types.grad_accum_dtype is {name!r}; it can be fp32, bf16, fp16")
    return _ACCUMULATION[name]


def _half(config: Mapping[str, Any]) -> bool | None:
    """Whether the file itself enables or disables half precision."""
    fixed = [b.get("enabled", "auto") for b in (config.get("bf16"), config.get("fp16")) if isinstance(b, Mapping)]
    if any(value is True for value in fixed):
        return True
    return False if len(fixed) == 2 and all(value is False for value in fixed) else None
