"""Recommended settings for the documented model sizes on this machine, and why others were rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastchat.plan.architecture import Architecture
from fastchat.plan.estimate import estimate
from fastchat.plan.known import SIZES, architecture_of_size
from fastchat.plan.report import describe, why_not
from fastchat.plan.run import Machine, Run
from fastchat.plan.search import Choice, choices, fitting, rejected
from fastchat.plan.units import human

LENGTH = 1024  # of the documented runs


@dataclass(frozen=True)
class Documented:
    """A documented configuration: rank, microbatch and accumulation per GPU, epochs and learning rate of its script."""

    lora_r: int
    microbatch: int
    accumulation: int
    epochs: int
    learning_rate: float = 3e-4


DOCUMENTED = {"7b": Documented(8, 16, 2, 10), "13b": Documented(16, 8, 1, 1), "70b": Documented(64, 2, 8, 5)}
# Full fine-tuning, of any size: 64 rows per step on 8 GPUs, as in the recipes for multi-round math.
FULL = Documented(0, 4, 2, 3, 1e-5)


@dataclass(frozen=True)
class Recommendation:
    """The choices for one model: all that fit, best first (empty: none fits), and the rejected neighbours."""

    label: str
    wanted: Run
    choices: tuple[Choice, ...]
    neighbours: tuple[tuple[str, str], ...]
    cache_dir: str | None = None  # the user's cache folder of hub models
    kept: Mapping[str, Any] = field(default_factory=dict)  # other given settings, for the recipe

    @property
    def best(self) -> Choice | None:
        return self.choices[0] if self.choices else None

    @property
    def row(self) -> Documented:
        """The documented configuration that it is based on."""
        return row_of(self.wanted.architecture, self.wanted.lora)

    @property
    def least(self) -> str:
        """The memory of the smallest configuration, if nothing fits."""
        plan = min((estimate(run) for run in choices(self.wanted)), key=lambda plan: (not plan.gpu_fits, plan.total))
        return f"{describe(plan.run)}: {why_not(plan)}"


def row_of(architecture: Architecture, lora: bool = True) -> Documented:
    """The documented configuration for a model: by its size, or the one of full fine-tuning."""
    billions = architecture.parameters / 1e9
    return DOCUMENTED["7b" if billions < 10 else "13b" if billions < 35 else "70b"] if lora else FULL


def recommend(
    machine: Machine,
    given: Run | None = None,
    fixed: Sequence[str] = (),
    length: int = LENGTH,
    cache_dir: str | None = None,
) -> list[Recommendation]:
    """Recommendations for 7b, 13b, 70b and the model of `given`: LoRA and QLoRA, or full fine-tuning if `given` is.

    Rank, global batch and length are the documented ones, except those in `fixed` (names of given flags), which are
    taken from `given`.
    """
    rows: list[tuple[str, Architecture]] = [(size, architecture_of_size(size)) for size in SIZES]
    if given is not None and given.architecture.name not in [architecture.name for _, architecture in rows]:
        rows.append((given.architecture.name, given.architecture))
    lora = given is None or given.lora
    found = []
    for label, architecture in rows:
        row = row_of(architecture, lora)
        wanted = Run(
            architecture,
            machine,
            lora=lora,
            lora_r=row.lora_r,
            model_max_length=length,
            per_device_train_batch_size=row.microbatch,
            gradient_accumulation_steps=row.accumulation,
        )
        wanted = _with_given(wanted, given, fixed)
        wanted = replace(wanted, dtype=_frozen_dtype(wanted))
        choices = tuple(fitting(wanted))
        near = tuple(rejected(choices[0])) if choices else ()
        found.append(Recommendation(label, wanted, choices, near, cache_dir))
    return found


_TAKEN = ("lora_r", "lora_dropout", "lora_bias", "model_max_length", "per_device_train_batch_size")
_TAKEN += ("gradient_accumulation_steps", "packing", "chunked_head", "optim", "dtype", "bf16", "fp16")


# Settings of an adapter that name parts of one model.
OF_ITS_LAYERS = ("lora_target_modules", "lora_target_parameters", "lora_layers_to_transform")
OF_ITS_LAYERS += ("lora_modules_to_save", "trainable_tokens")


def _with_given(wanted: Run, given: Run | None, fixed: Sequence[str]) -> Run:
    if given is None:
        return wanted
    changed: dict[str, Any] = {name: getattr(given, name) for name in _TAKEN if name in fixed}
    if "flash_attn" in fixed and given.attention == "flash_attention_2":
        changed["attention"] = given.attention
    elif not wanted.architecture.family.sdpa:
        changed["attention"] = "eager"
    if wanted.lora:
        changed |= {"use_dora": given.use_dora, "subtracts_start": given.subtracts_start}
    if wanted.lora and wanted.architecture.name == given.architecture.name:
        changed |= {name: getattr(given, name) for name in OF_ITS_LAYERS}
        if "lora_weight_path" in fixed:  # the rank is the adapter's
            changed["lora_r"] = given.lora_r
    return replace(wanted, **changed)


def _frozen_dtype(run: Run) -> str:
    """Without DeepSpeed, autocast would copy frozen weights that are not stored in its compute dtype."""
    if run.dtype != "auto" or not (run.lora and run.machine.gpus == 1 and run.half):
        return run.dtype
    return "float16" if run.fp16 else "bfloat16"


# ---- text ----

_HEAD = ("model", "method", "engine", "checkpointing", "microbatch x accumulation", "per GPU", "per host", "slowdown")


def table(recommendations: Sequence[Recommendation], each: int = 4) -> list[str]:
    """Lines of text: the choices that fit for each model, best first, then why the best one's neighbours were not."""
    rows: list[tuple[str, ...]] = []
    for r in recommendations:
        if r.best is None:
            rows.append((r.label, "nothing fits", "", "", "", "", "", ""))
        rows += [_row(r, choice) for choice in r.choices[:each]]
    widths = [max(len(row[i]) for row in [_HEAD, *rows]) for i in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [_HEAD, *rows]]
    for r in recommendations:
        if r.best is None:
            lines += ["", f"{r.label}: nothing fits. The smallest configuration: {r.least}"]
        else:
            lines += ["", f"{r.label}: {describe(r.best.run)} is the fastest that fits. Its neighbours:"]
            lines += [f"  {change}: {reason}" for change, reason in r.neighbours]
    return lines


def _row(recommendation: Recommendation, choice: Choice) -> tuple[str, ...]:
    run, plan = choice.run, choice.plan
    method, how = describe(run).split(", ")[:2]
    return (
        recommendation.label,
        method,
        how,
        "on" if run.checkpointed_layers else "off",
        f"{run.per_device_train_batch_size} x {run.gradient_accumulation_steps}",
        human(plan.total),
        human(plan.host_total),
        f"{choice.slowdown:.2f}",
    )
