"""Adding a LoRA adapter to a frozen base: a new one, or an existing one to continue training.

Adapter weights are float32 whatever the base's dtype: at a learning rate of 3e-4 most Adam steps are smaller than the
spacing of bf16 numbers and would be lost. Autocast still multiplies in half precision, and DeepSpeed's bf16 mode makes
half-precision working copies of its own, with float32 master weights in the optimizer.

The frozen base is left as it was loaded. peft's `prepare_model_for_kbit_training` would copy every tensor that is not
nf4 into float32: for Llama-3-8B 2.1 GiB more per GPU for embeddings and head without any benefit, since these are
never updated and the norms compute in float32 anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastchat.errors import CheckpointError, SettingsError, brief, nearest, say
from fastchat.model.loading import count_parameters
from fastchat.model.multimodal import exclusion, freeze_idle, idle_parts, modules_of_text, say_idle
from fastchat.model.source import read_json
from fastchat.paths import folders_instead
from fastchat.security import check_references
from fastchat.settings.arguments import LORA_TARGETS as DEFAULT_TARGETS
from fastchat.settings.parsing import to_names
from fastchat.streams import detail

BIAS_KINDS = ("none", "all", "lora_only")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_lora(
    model: Any,
    *,
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.05,
    target_modules: Sequence[str] | str | None = None,
    bias: str = "none",
    gradient_checkpointing: bool = False,
    weight_path: str | None = None,
    numel: Callable[[Tensor], int] = Tensor.numel,
) -> Any:
    """Freeze `model`, add a trainable LoRA adapter to it, and return the PeftModel.

    `target_modules`: names as accepted by `parse_target_modules`; None means those of the usual seven that exist.
    `weight_path`: an adapter directory to continue; rank, alpha, targets and bias are then the adapter's.
    `numel`: the size of a whole parameter, which an engine may have partitioned.
    `model` may be quantised. In a multimodal one, whose weights must be gathered under ZeRO-3, only the modules that
    text passes through are adapted and trained. Raises SettingsError for a value out of range, a target that
    matches nothing (the message lists what exists), or if nothing would be trained.
    """
    _check_values(r, alpha, dropout, bias)
    model.requires_grad_(False)
    if weight_path is None:
        text = modules_of_text(model)
        targets = choose_targets(model, target_modules, text)
        idle = _idle_parts(model, targets, text)
        peft_model = _new_adapter(model, r, alpha, dropout, targets, bias, exclusion(idle))
    else:
        peft_model = _continued_adapter(model, weight_path, dropout, {"r": r, "lora_alpha": alpha, "bias": bias})
    say_idle(freeze_idle(peft_model, numel))
    trained = [name for name, parameter in peft_model.named_parameters() if parameter.requires_grad]
    if bias != "none" and not any(name.endswith(".bias") for name in trained):
        say(f"--lora_bias {bias}: the adapted layers have no bias, so it has no effect.")
    if gradient_checkpointing:
        enable_gradient_checkpointing(peft_model)
    trainable, total = count_parameters(peft_model, numel)
    if trainable == 0:
        raise SettingsError("No parameter would be trained: check --lora_target_modules and --lora_r.")
    detail(f"LoRA: {trainable:,} of {total:,} parameters are trained ({trainable / total:.3%}).")
    return peft_model


def parse_target_modules(values: Sequence[str] | str | None) -> list[str] | None:
    """Module names from a list that may contain spaces, commas and stray quotes; None stays None.

    >>> parse_target_modules(["q_proj,", "'k_proj','v_proj'"])
    ['q_proj', 'k_proj', 'v_proj']
    """
    return None if values is None else to_names(values, "--lora_target_modules")


def choose_targets(
    model: nn.Module, target_modules: Sequence[str] | str | None, text: Collection[str] | None = None
) -> list[str]:
    """The module names to adapt, each of which exists in `model`. Raises SettingsError listing what exists.

    `text`: names of the modules that text passes through; the others do not count. None: all do.
    """
    everything = adaptable_modules(model)
    existing = [name for name in everything if text is None or name in text]
    asked = parse_target_modules(target_modules)
    names = list(DEFAULT_TARGETS) if asked is None else asked
    found = [name for name in names if _matches(name, existing)]
    found = _without_experts(model, found, refuse=asked is not None)
    missing = [name for name in names if name not in found]
    leaves = sorted({name.rpartition(".")[2] for name in existing})
    if asked is None and found:
        if missing := [name for name in missing if not _matches(name, existing)]:
            others = [leaf for leaf in leaves if leaf not in names and leaf not in ("lm_head", "embed_tokens")]
            say(
                f"LoRA targets: {', '.join(found)}; this architecture has no {', '.join(missing)}. Also there: "
                f"{', '.join(others) or 'nothing else'} (name them with --lora_target_modules)."
            )
        return found
    if missing:
        which = (
            "none of the default targets exist" if asked is None else f"{', '.join(map(repr, missing))} match nothing"
        )
        if any(_matches(name, everything) for name in missing):
            which += " that text passes through"
        close = [near for name in missing for near in nearest(name, leaves, n=1)] if asked else []
        raise SettingsError(
            f"--lora_target_modules: {which} in {type(model).__name__}. Linear and embedding layers there: "
            f"{', '.join(leaves)}." + (f" Did you mean {', '.join(dict.fromkeys(close))}?" if close else "")
        )
    return found


def _without_experts(model: nn.Module, names: list[str], *, refuse: bool) -> list[str]:
    """`names` without those that peft takes for the old names of expert weights in this architecture instead of for
    layers. Says so, or with `refuse` raises SettingsError.

    The weights of all experts are one fused parameter today, and peft would adapt that instead of the named layers.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    def is_layer(name: str) -> bool:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of several that are fused
            return False
        return name in (config.target_modules or ())

    taken = [name for name in names if not is_layer(name)]
    if taken:
        line = f"in {type(model).__name__}, peft applies {', '.join(taken)} to the fused weights of the experts"
        if refuse:
            raise SettingsError(f"--lora_target_modules: {line}, not to layers: leave them out.")
        say(f"LoRA: {line}, so the layers with these names get no adapter.")
    return [name for name in names if name not in taken]


def adaptable_modules(model: nn.Module) -> list[str]:
    """Full names of all layers that LoRA can adapt: linear (also nf4), GPT-2's Conv1D, embeddings."""
    from transformers.pytorch_utils import Conv1D

    return [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding, Conv1D))]


def _idle_parts(model: nn.Module, targets: list[str], text: Collection[str]) -> list[str]:
    """The parts of `model` with layers named like the targets that text does not pass through; says so."""
    everything = adaptable_modules(model)
    meant = [name for name in everything if any(_matches(target, [name]) for target in targets)]
    idle = [name for name in meant if name not in text]
    parts = idle_parts(idle, [name for name in everything if name in text])
    if idle:
        say(
            f"LoRA adapts {len(meant) - len(idle)} layers of the language model. {len(idle)} layers with the same "
            f"names, in {', '.join(parts)}, are not adapted: text does not pass through them."
        )
    return parts


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass, with the non-reentrant implementation.

    The reentrant one needs an input that requires a gradient, which a frozen embedding does not give, and skips the
    forward hooks that ZeRO-3 gathers weights with. The hook on the embedding is kept for code that forces it anyway.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def check_adapter_directory(path: str) -> dict[str, Any]:
    """The adapter_config of the folder `path`. Raises SettingsError unless it is a LoRA adapter in safetensors."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise SettingsError(f"No such adapter directory: {path!r}.{folders_instead(path)}")
    check_references(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        kind = "a full model" if (folder / "config.json").is_file() else "not an adapter"
        raise SettingsError(f"{path} is {kind}: it has no {ADAPTER_CONFIG}. Give the folder that a LoRA run has saved.")
    config = read_json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise SettingsError(f"{path} is an adapter of type {config.get('peft_type')!r}; only LORA is supported.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise SettingsError(f"{path} has no {ADAPTER_WEIGHTS} (pickled adapters are not opened: they can run code).")
    return config


def load_adapter(model: Any, path: str, *, trainable: bool = False, dropout: float | None = None) -> Any:
    """The adapter in `path` on `model`, with every one of its tensors loaded.

    Raises SettingsError for a folder that is not an adapter or does not fit the base, CheckpointError if tensors are
    missing or unexpected.
    """
    from peft import LoraConfig, PeftModel

    check_adapter_directory(path)
    config: Any = LoraConfig.from_pretrained(path)
    if dropout is not None:
        config.lora_dropout = dropout
    try:
        peft_model = PeftModel.from_pretrained(model, path, config=config, is_trainable=trainable)
    except (RuntimeError, ValueError) as problem:
        raise SettingsError(
            f"The adapter {path} does not fit this base model ({config.base_model_name_or_path!r} is the one it was "
            f"trained on): {brief(problem, 300)}"
        ) from problem
    _check_loaded(peft_model, path)
    return peft_model


def _new_adapter(
    model: Any, r: int, alpha: float, dropout: float, targets: list[str], bias: str, exclude: str | None
) -> Any:
    from peft import LoraConfig, get_peft_model

    options: dict[str, Any] = {"r": r, "lora_alpha": alpha, "lora_dropout": dropout, "bias": bias}
    options |= {"target_modules": targets, "exclude_modules": exclude}
    try:
        return get_peft_model(model, LoraConfig(**options, task_type="CAUSAL_LM"))
    except (ValueError, TypeError, NotImplementedError) as problem:
        raise SettingsError(
            f"peft cannot adapt this model with these settings ({', '.join(targets)}): {brief(problem, 300)}"
        ) from problem


def _continued_adapter(model: Any, path: str, dropout: float, asked: dict[str, Any]) -> Any:
    """The adapter in `path`, trainable; says which of the `asked` values are replaced by its own."""
    own = check_adapter_directory(path)
    _check_rope(model, path)
    peft_model = load_adapter(model, path, trainable=True, dropout=dropout)
    differ = [f"{name} {asked[name]} -> {own[name]}" for name in asked if own.get(name) != asked[name]]
    say(
        f"Continuing the adapter {path}: r {own['r']}, alpha {own['lora_alpha']}, targets "
        f"{', '.join(sorted(own['target_modules']))}"
        + (f" (its own values are used: {', '.join(differ)})." if differ else ".")
    )
    return peft_model


def _check_rope(model: Any, path: str) -> None:
    """Raise SettingsError if the adapter was trained with another RoPE scaling than `model` has."""
    record = Path(path).expanduser() / "training.json"
    recorded = read_json(record).get("rope_parameters") if record.is_file() else None
    here = getattr(model.config.get_text_config(), "rope_parameters", None)
    if recorded is not None and recorded != here:
        raise SettingsError(
            f"--lora_weight_path {path} was trained with RoPE {recorded}, and this run has {here}: use the "
            "--rope_scaling_type, --rope_scaling_factor or --model_max_length of that run."
        )


def _check_loaded(peft_model: Any, path: str) -> None:
    """Raise CheckpointError unless the tensors in the file are exactly those of the adapter."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(Path(path).expanduser() / ADAPTER_WEIGHTS), framework="pt") as file:
        stored = set(file.keys())
    wanted = set(get_peft_model_state_dict(peft_model, save_embedding_layers=False))
    if missing := sorted(wanted - stored):
        raise CheckpointError(
            f"{path}/{ADAPTER_WEIGHTS} lacks {len(missing)} tensors of this adapter, such as {missing[0]}: it is "
            "incomplete, or belongs to another base model."
        )
    if foreign := sorted(name for name in stored - wanted if "lora_" in name):
        raise CheckpointError(
            f"{path}/{ADAPTER_WEIGHTS} has {len(foreign)} tensors that do not fit this base model, such as "
            f"{foreign[0]}: it was trained on another one."
        )


def _check_values(r: int, alpha: float, dropout: float, bias: str) -> None:
    if r < 1:
        raise SettingsError(f"--lora_r {r} must be at least 1.")
    if alpha <= 0:
        raise SettingsError(f"--lora_alpha {alpha} must be above 0: the adapter is scaled by alpha / r.")
    if not 0 <= dropout < 1:
        raise SettingsError(f"--lora_dropout {dropout} must be from 0 up to, but not including, 1.")
    if bias not in BIAS_KINDS:
        raise SettingsError(f"--lora_bias {bias!r} must be one of {', '.join(BIAS_KINDS)}.")


def _matches(name: str, existing: list[str]) -> bool:
    return any(full == name or full.endswith("." + name) for full in existing)
