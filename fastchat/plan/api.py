"""The interface for other packages: a plan from plain settings, its short lines, and advice when memory runs out.

plan = plan_for(settings.values, machine_of(gpus=world_size), lora=True)
say(short_line(plan))
plan.fits, plan.total, plan.allocated                         # True, bytes, bytes
largest_microbatch(plan.run)                                  # 12
say(Measured(plan.allocated, torch.cuda.max_memory_allocated()).line())
raise ResourceError(advice_after_oom(plan))
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from fastchat.errors import SettingsError, percent
from fastchat.plan.adapter import adapter_settings
from fastchat.plan.advice import advice_after_oom, plan_lines, warning_line
from fastchat.plan.architecture import Architecture
from fastchat.plan.checkpointing import fewest_checkpoints
from fastchat.plan.command_line import plan_defaults
from fastchat.plan.estimate import Plan, estimate
from fastchat.plan.known import architecture_of_size
from fastchat.plan.limits import largest_context, largest_microbatch
from fastchat.plan.machine import detect_cpu_memory, detect_gpus
from fastchat.plan.model_files import read_architecture
from fastchat.plan.report import as_json, as_lines, short_line
from fastchat.plan.run import Machine, Run
from fastchat.plan.search import keep_global_batch
from fastchat.plan.units import MIB, human
from fastchat.plan.zero import Zero, read_zero
from fastchat.settings.checkpointing import AUTO, read_checkpointing
from fastchat.settings.engines import EngineChoice, check_stage, choose

__all__ = [
    "Machine",
    "Measured",
    "Plan",
    "Run",
    "advice_after_oom",
    "as_json",
    "as_lines",
    "detect_cpu_memory",
    "estimate",
    "keep_global_batch",
    "largest_context",
    "largest_microbatch",
    "machine_asked",
    "machine_of",
    "plan_for",
    "plan_lines",
    "run_of",
    "short_line",
    "warning_line",
]

OFF_BY = 0.10  # a prediction that differs by more than this share is reported as wrong
_KERNELS_OWN = 64 * MIB


class Settings(Protocol):
    """Anything with values by name: a mapping, or `Values` of fastchat.settings."""

    def __getitem__(self, name: str, /) -> Any: ...
    def __contains__(self, name: Any, /) -> bool: ...


def plan_for(settings: Settings, machine: Machine, *, lora: bool = True, attention: str | None = None) -> Plan:
    """The plan for training settings by name.

    `settings` may have any names; those that do not affect memory are ignored. `lora`: False for full fine-tuning.
    `attention`: the implementation that will be used, if known. Raises SettingsError for a model, a target or a
    DeepSpeed file that cannot be used.

    >>> plan_for({"model_name_or_path": "DIR", "q_lora": True}, Machine(1, 1, 24 * 2**30)).fits  # doctest: +SKIP
    True
    """
    return estimate(run_of(settings, machine, lora=lora, attention=attention))


def run_of(
    settings: Settings,
    machine: Machine,
    architecture: Architecture | None = None,
    *,
    lora: bool = True,
    attention: str | None = None,
) -> Run:
    """The run that settings describe; `architecture` avoids reading the model's files again. `lora`, `attention`: as
    for `plan_for`. `gradient_checkpointing: auto` becomes what fits on `machine`."""
    s = plan_defaults()
    s |= {name: settings[name] for name in s if name in settings}
    shape = architecture or _architecture(s)
    lora = lora and not s.get("full_finetuning", False)
    checkpointing = read_checkpointing(s["gradient_checkpointing"])
    if s["q_lora"] and not lora:
        raise SettingsError("--q_lora needs an adapter: remove --full_finetuning")
    adapter = adapter_settings(s) if lora else {}
    choice = choose(s, lora=lora)
    run = Run(
        architecture=shape,
        machine=machine,
        lora=lora,
        **adapter,
        lora_dropout=float(s["lora_dropout"]),
        q_lora=bool(s["q_lora"]),
        dtype=_one_of("dtype", str(s["dtype"]), ("auto", "float32", "bfloat16", "float16")),
        bf16=bool(s["bf16"]),
        fp16=bool(s["fp16"]),
        zero=_zero(choice, str(s["engine"]), shape.hidden),
        fsdp=choice.fsdp,
        model_max_length=int(s["model_max_length"]),
        per_device_train_batch_size=int(s["per_device_train_batch_size"]),
        gradient_accumulation_steps=int(s["gradient_accumulation_steps"]),
        gradient_checkpointing=False if isinstance(checkpointing, str) else checkpointing,
        packing=bool(s["packing"]),
        attention=attention or _kernel(s, shape, machine),
        optim=str(getattr(s["optim"], "value", s["optim"])),
        chunked_head=bool(s["chunked_head"]),
    )
    return fewest_checkpoints(run) if checkpointing == AUTO else run


def _zero(choice: EngineChoice, engine: str, hidden: int) -> Zero | None:
    if choice.deepspeed is None:
        return None
    zero = read_zero(choice.deepspeed, hidden)
    check_stage(engine, zero.stage)
    return zero


def _kernel(settings: Mapping[str, Any], shape: Architecture, machine: Machine) -> str:
    """FlashAttention falls back to torch's kernels on a CPU, and on this machine if the package is missing.

    Packs use FlashAttention or flex attention, which keeps the same tensors.
    """
    if named := settings["attn_implementation"]:
        return str(named)
    flash, packing = bool(settings["flash_attn"]), bool(settings["packing"])
    elsewhere = not machine.gpu_name
    if not machine.on_cpu and (packing or (flash and (elsewhere or flash_attention_installed()))):
        return "flash_attention_2"
    return "sdpa" if shape.family.sdpa else "eager"


def machine_of(
    gpus: int | None = None,
    hosts: int = 1,
    gpu_memory: int | None = None,
    cpu_memory: int | None = None,
    on_cpu: bool = False,
) -> Machine:
    """The machine as given; missing values are detected on this machine.

    The memory of this host is used only if the GPUs are those of this host: GPUs described on a machine without any
    belong to another machine. `on_cpu`: `gpus` is the number of processes that train on the CPU.
    """
    if gpus is not None and gpus % hosts:
        less = gpus - gpus % hosts
        raise SettingsError(
            f"--gpus {gpus} is the number on all hosts together and is not divisible by --hosts {hosts}; give "
            + (f"--gpus {less} or {less + hosts}" if less else f"--gpus {hosts} or more")
        )
    if on_cpu:
        return Machine(gpus or hosts, hosts, None, cpu_memory or detect_cpu_memory(), on_cpu=True)
    found = detect_gpus()[:gpus]
    named = found[0].name if found and gpu_memory is None else ""
    memory = min((gpu.memory for gpu in found), default=None) if gpu_memory is None else gpu_memory
    number = gpus if gpus is not None else max(1, len(found)) * hosts
    elsewhere = not found and (gpus is not None or gpu_memory is not None)
    if cpu_memory is None and not elsewhere:
        cpu_memory = detect_cpu_memory()
    return Machine(number, hosts, memory, cpu_memory, named)


def machine_asked(flags: Mapping[str, Any]) -> Machine:
    """The machine that the planner's flags describe; missing values are detected on this machine."""
    given = {name: flags[name] for name in ("gpus", "hosts", "gpu_memory", "cpu_memory")}
    return machine_of(**given, on_cpu=flags["use_cpu"])


def flash_attention_installed() -> bool:
    """Whether the flash-attn package is installed; without it `--flash_attn` falls back to torch's kernels."""
    return importlib.util.find_spec("flash_attn") is not None


@dataclass(frozen=True)
class Measured:
    """A predicted and a measured size in bytes, for metrics.jsonl and training.json.

    On a GPU, `measured` is the peak of the tensors (`torch.cuda.max_memory_allocated`), which is also what the plan
    predicts, so a difference of more than a tenth is an error of the plan and gives a warning, unless it is at most
    64 MiB: about the size that kernels allocate through torch on an H100 for any model. On a CPU, it is the growth of
    the process, which includes kernel workspaces, freed memory that the C library keeps and other Python objects: for
    small models these are larger than the tensors, so there is no warning.
    """

    predicted: int
    measured: int
    on_cpu: bool = False

    @property
    def off_by(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1 if self.measured else 0.0

    @property
    def surprising(self) -> bool:
        apart = abs(self.predicted - self.measured)
        return abs(self.off_by) > OFF_BY and apart > _KERNELS_OWN and not self.on_cpu

    def record(self) -> dict[str, Any]:
        """{"memory_predicted": bytes, "memory_measured": bytes, "memory_off_by": share}"""
        names = ("memory_predicted", "memory_measured", "memory_off_by")
        return dict(zip(names, (self.predicted, self.measured, round(self.off_by, 4)), strict=True))

    def line(self) -> str:
        """The log line; starts with "warning:" if the prediction was off by more than a tenth."""
        if self.on_cpu:
            return f"peak memory: a process grew by {human(self.measured)}; predicted tensors: {human(self.predicted)}"
        off_by = percent(self.off_by, 0, "+")
        text = f"peak memory {human(self.measured)} per GPU, {human(self.predicted)} predicted ({off_by})"
        return f"warning: {text}; the plan is wrong for this run" if self.surprising else text


def _architecture(settings: dict[str, Any]) -> Architecture:
    size, model = settings.get("model_size"), settings["model_name_or_path"]
    if model and size:
        raise SettingsError("--model_name_or_path and --model_size are both given; keep one")
    if size:
        return architecture_of_size(str(size))
    if not model:
        raise SettingsError("no model: give --model_name_or_path DIR or --model_size 7b|13b|70b")
    return _read_once(str(model), settings["cache_dir"])


@lru_cache(maxsize=8)
def _read_once(model: str, cache_dir: str | None) -> Architecture:
    return read_architecture(model, cache_dir)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise SettingsError(f"--{name} is {value!r}; it can be {', '.join(choices)}")
    return value
