"""Which engine the settings ask for: `--engine`, `--deepspeed`, `--fsdp` and `--fsdp_config` together.

The one place that decides it, for training, the launcher and the planner. Needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError, not_among
from fastchat.files import JsonError, read_object
from fastchat.settings.parsing import FALSE, TRUE, to_bool

AUTO, DDP, FSDP = "auto", "ddp", "fsdp"
_CONFIGS = {"zero2": "deepspeed_config_{}s2", "zero3": "deepspeed_config_{}s3{}"}
_NO_OFFLOAD = "fsdp has no offloading: use --deepspeed deepspeed_config_s3_offload, for LoRA deepspeed_config_lora_s3"
_NO_HYBRID = "weights are divided among all processes here: use full_shard"
# Words of --fsdp: the value of reshard_after_forward, None where it says nothing about that, or why it cannot be.
_WORDS: dict[str, bool | None | str] = {
    "full_shard": True,
    "shard_grad_op": False,
    "auto_wrap": None,
    "offload": _NO_OFFLOAD,
    "hybrid_shard": _NO_HYBRID,
    "hybrid_shard_zero2": _NO_HYBRID,
    "no_shard": "nothing is divided: use --engine ddp",
}
_RESHARD, _UNITS = "reshard_after_forward", "transformer_layer_cls_to_wrap"
# Keys of --fsdp_config with the values that say what is done anyway, and what to write instead of another.
_ANYWAY: dict[str, tuple[tuple[Any, ...], str]] = {
    "version": ((2,), "only FSDP2 is available; leave it out"),
    "auto_wrap_policy": (("TRANSFORMER_BASED_WRAP",), f"only TRANSFORMER_BASED_WRAP is available; name {_UNITS}"),
    "min_num_params": ((0,), f"units are layers; name them in {_UNITS}"),
    "cpu_offload": ((False,), _NO_OFFLOAD),
    "offload_params": ((False,), _NO_OFFLOAD),
    "activation_checkpointing": ((False,), "use --gradient_checkpointing True"),
    "state_dict_type": (("FULL_STATE_DICT",), "results are always saved whole, and checkpoints by process"),
    "sharding_strategy": (("FULL_SHARD",), f"use {_RESHARD}"),
    "use_orig_params": ((True,), "FSDP2 always keeps the original parameters"),
    "sync_module_states": ((True, False), ""),
    "cpu_ram_efficient_loading": ((False,), "every process reads the base model"),
    "forward_prefetch": ((False,), "FSDP2 fetches ahead by itself"),
    "backward_prefetch": (("BACKWARD_PRE", "NO_PREFETCH"), "FSDP2 fetches ahead by itself"),
    "limit_all_gathers": ((True,), "FSDP2 always does"),
    "xla": ((False,), "TPUs are not supported"),
    "xla_fsdp_v2": ((False,), "TPUs are not supported"),
    "xla_fsdp_grad_ckpt": ((False,), "TPUs are not supported"),
}

_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")  # of torch, number by number


@dataclass(frozen=True)
class FsdpOptions:
    """What can be chosen of FSDP.

    reshard_after_forward: False keeps the weights of a unit whole from its forward to its backward pass: they are
    gathered once less, and take more memory. units: class names of the modules whose weights are gathered together;
    empty for the model's own layers.
    """

    reshard_after_forward: bool = True
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineChoice:
    """deepspeed: its configuration, a name or a mapping; fsdp: its options. At most one of the two is there; with
    neither the processes have whole copies."""

    deepspeed: str | dict[str, Any] | None = None
    fsdp: FsdpOptions | None = None

    @property
    def needs_group(self) -> bool:
        """Whether a single process has to form a process group as well."""
        return self.deepspeed is not None or self.fsdp is not None


def choose(values: Mapping[str, Any] | Any, *, lora: bool) -> EngineChoice:
    """The engine that the settings `engine`, `deepspeed`, `fsdp` and `fsdp_config` ask for.

    SettingsError where they contradict each other, or ask for what is not available. That the stage in a DeepSpeed
    configuration is the one of `--engine` is for whoever reads it to check, see `check_stage`.

    >>> choose({"engine": "zero2", "deepspeed": None, "fsdp": None, "fsdp_config": None}, lora=True).deepspeed
    'deepspeed_config_lora_s2'
    """
    engine, deepspeed = values["engine"], values["deepspeed"] or None
    words = _words(values["fsdp"])
    wants_fsdp = bool(words) or engine == FSDP
    if deepspeed is not None and wants_fsdp:
        raise SettingsError(f"--deepspeed and {_flag(engine, FSDP, '--fsdp')} are two engines; keep one")
    if deepspeed is not None and engine == DDP:
        raise SettingsError("--deepspeed and --engine ddp are two engines; keep one")
    if words and engine not in (AUTO, FSDP):
        raise SettingsError(f"--fsdp and --engine {engine} are two engines; keep one")
    if values["fsdp_config"] and not wants_fsdp:
        raise SettingsError("--fsdp_config has options of FSDP, which is not used: add --engine fsdp, or leave it out")
    if wants_fsdp:
        return EngineChoice(fsdp=_options(words, _read(values["fsdp_config"])))
    if deepspeed is None and engine in _CONFIGS:
        deepspeed = _CONFIGS[engine].format(*(("lora_", "_no_offload") if lora else ("", "")))
    return EngineChoice(deepspeed)


def needs_deepspeed(engine: Any, deepspeed: Any) -> bool:
    """Whether these two settings, read or not yet, ask for DeepSpeed."""
    return bool(deepspeed) or str(engine) in _CONFIGS


def check_stage(engine: str, stage: int) -> None:
    """SettingsError where the DeepSpeed configuration has another stage than `--engine` says."""
    if engine in _CONFIGS and engine != f"zero{stage}":
        raise SettingsError(f"--engine {engine}, but the configuration of --deepspeed is for ZeRO-{stage}; keep one")


def check_fsdp(values: Any) -> None:
    """SettingsError for settings that cannot be used with weights that FSDP divides."""
    if values["fp16"]:
        raise SettingsError("--fp16 has no loss scale under fsdp: use --bf16 True, or --engine zero3")
    optim = getattr(values["optim"], "value", values["optim"])
    if optim not in _OPTIMIZERS:
        raise SettingsError(
            f"--optim {optim} does not know weights that are divided by rows: under fsdp it can be "
            f"{', '.join(_OPTIMIZERS)}"
        )


def _flag(engine: str, wanted: str, otherwise: str) -> str:
    return f"--engine {engine}" if engine == wanted else otherwise


def _words(given: Any) -> list[str]:
    """The words of `--fsdp`; empty where it is not asked for."""
    words = " ".join(map(str, given or [])).replace(",", " ").lower().split()
    if len(words) == 1 and words[0] in FALSE:
        return []
    return ["full_shard" if word in TRUE else word for word in words]


def _read(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if not given:
        return {}
    if not isinstance(given, str):
        return dict(given)
    try:
        return read_object(Path(given).expanduser())
    except OSError as error:
        raise SettingsError(f"--fsdp_config {given} cannot be read: {error.strerror}") from None
    except JsonError as error:
        raise SettingsError(f"--fsdp_config {given}: {error}") from None


def _options(words: list[str], config: dict[str, Any]) -> FsdpOptions:
    found: dict[str, bool] = {}
    for word in words:
        if word not in _WORDS:
            raise not_among("--fsdp", word, tuple(_WORDS))
        meaning = _WORDS[word]
        if isinstance(meaning, str):
            raise SettingsError(f"--fsdp {word}: {meaning}")
        if meaning is not None and found.setdefault(word, meaning) != meaning or len(found) > 1:
            raise SettingsError(f"--fsdp {' '.join(words)}: {' and '.join(found)} contradict each other; keep one")
    plain = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    for key, value in plain.items():
        if key in (_RESHARD, _UNITS):
            continue
        if key not in _ANYWAY:
            raise not_among("a key of --fsdp_config", key, (_RESHARD, _UNITS, *_ANYWAY))
        allowed, instead = _ANYWAY[key]
        if value is not None and not any(_same(value, one) for one in allowed):
            raise SettingsError(f"--fsdp_config: {key} is {value!r}: {instead}")
    asked = next(iter(found.values()), None)
    reshard = plain.get(_RESHARD)
    if reshard is not None:
        reshard = to_bool(reshard, f"--fsdp_config: {_RESHARD}")
    if None not in (asked, reshard) and asked != reshard and words != ["full_shard"]:
        raise SettingsError(f"--fsdp {' '.join(words)}, but {_RESHARD} is {reshard} in --fsdp_config; keep one")
    final = reshard if reshard is not None else asked
    units = plain.get(_UNITS) or ()
    units = units.replace(",", " ").split() if isinstance(units, str) else [str(name) for name in units]
    return FsdpOptions(True if final is None else final, tuple(units))


def _same(value: Any, allowed: Any) -> bool:
    """JSON written by hand has true, "true" and "True", 2 and "2"."""
    return str(value).lower() == str(allowed).lower()
