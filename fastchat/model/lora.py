"""Adding a LoRA adapter to a frozen base: a new one, or an existing one to continue training.

Adapter weights are float32 whatever the base's dtype: at a learning rate of 3e-4 most Adam steps are smaller than the
spacing of bf16 numbers and would be lost. Autocast still multiplies in half precision, and DeepSpeed's bf16 mode makes
half-precision working copies of its own, with float32 master weights in the optimizer.

The frozen base is left as it was loaded. peft's `prepare_model_for_kbit_training` would copy every tensor that is not
nf4 into float32: for Llama-3-8B 2.1 GiB more per GPU for embeddings and head without any benefit, since these are
never updated and the norms compute in float32 anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastchat.errors import CheckpointError, SettingsError, brief, say
from fastchat.model.adapter_parts import adapter_parts
from fastchat.model.first_weights import FirstWeights, Whole, set_first_weights
from fastchat.model.full_modules import (
    check_tied,
    is_of_copies,
    layers_of,
    token_rows,
    whole_modules,
    widen,
)
from fastchat.model.loading import count_parameters
from fastchat.model.lora_experts import say_frozen_experts
from fastchat.model.lora_targets import choose_targets
from fastchat.model.multimodal import freeze_idle, modules_of_text, say_idle
from fastchat.model.source import read_json
from fastchat.paths import folders_instead
from fastchat.security import check_references
from fastchat.settings.lora_options import GAUSSIAN, LoraOptions, changes_base
from fastchat.settings.targets import matches
from fastchat.streams import detail

BIAS_KINDS = ("none", "all", "lora_only")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PLAIN, _ZERO = LoraOptions(), FirstWeights()


def add_lora(
    model: Any,
    *,
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.05,
    target_modules: Sequence[str] | str | None = None,
    target_parameters: Sequence[str] | str | None = None,
    bias: str = "none",
    gradient_checkpointing: bool = False,
    weight_path: str | None = None,
    options: LoraOptions = _PLAIN,
    first: FirstWeights = _ZERO,
    numel: Callable[[Tensor], int] = Tensor.numel,
    whole: Whole = lambda _: nullcontext(),
) -> Any:
    """Freeze `model`, add a trainable LoRA adapter to it, and return the PeftModel.

    `target_modules`, `target_parameters`: see `lora_targets.choose_targets`; None for the default, and for none.
    `weight_path`: an adapter directory to continue; rank, alpha, targets, bias and `options` are then the adapter's.
    `first`: how a new one starts. `numel`, `whole`: the size of a whole parameter, and a context in which it has all
    its values: an engine may have partitioned it.
    `model` may be quantised. In a multimodal one, whose weights must be gathered under ZeRO-3, only the modules that
    text passes through are adapted and trained. Raises SettingsError for a value out of range, a target that
    matches nothing (the message lists what exists), or if nothing would be trained.
    """
    _check_values(r, alpha, dropout, bias)
    model.requires_grad_(False)
    if weight_path is None:
        targets = choose_targets(model, target_modules, target_parameters, modules_of_text(model), options.layers)
        values = {"r": r, "lora_alpha": alpha, "lora_dropout": dropout, "bias": bias, **targets.options()}
        peft_model = _new_adapter(model, values, options, first)
        set_first_weights(peft_model, first, whole)
    else:
        values = {"r": r, "lora_alpha": alpha, "bias": bias, **_own_options(options)}
        peft_model = _continued_adapter(model, weight_path, dropout, values)
    say_idle(freeze_idle(peft_model, numel))
    trained = [name for name, parameter in peft_model.named_parameters() if parameter.requires_grad]
    if bias != "none" and not any(name.endswith(".bias") for name in trained):
        say(f"--lora_bias {bias}: the adapted layers have no bias, so it has no effect.")
    if gradient_checkpointing:
        enable_gradient_checkpointing(peft_model)
    trainable, total = count_parameters(peft_model, numel)
    if trainable == 0:
        raise SettingsError("No parameter would be trained: check --lora_target_modules and --lora_r.")
    say_frozen_experts(peft_model, numel, total)
    detail(f"LoRA: {trainable:,} of {total:,} parameters are trained ({100 * trainable / total:.3f} %).")
    return peft_model


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass, with the non-reentrant implementation.

    The reentrant one needs an input that requires a gradient, which a frozen embedding does not give, and skips the
    forward hooks that ZeRO-3 gathers weights with. The hook on the embedding is kept for code that forces it anyway.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as problem:  # no layer of this architecture has it
        raise SettingsError(f"--gradient_checkpointing: {brief(problem)}") from None
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


def adapter_targets(config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(modules, parameters) that an adapter_config has as targets; a regular expression is one module."""
    modules = config.get("target_modules") or []
    return [modules] if isinstance(modules, str) else sorted(modules), sorted(config.get("target_parameters") or [])


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
    widen(peft_model)
    _read_again(peft_model, path)
    return peft_model


def _new_adapter(model: Any, values: dict[str, Any], options: LoraOptions, first: FirstWeights) -> Any:
    """A PeftModel; `values` are of peft's config. Says what is trained besides matrices."""
    from peft import LoraConfig, get_peft_model

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    saved = whole_modules(model, options.modules_to_save)
    rows = token_rows(model, options.trainable_tokens) if options.trainable_tokens else None
    values |= {"use_rslora": options.use_rslora, "use_dora": options.use_dora, "task_type": "CAUSAL_LM"}
    ties = tied and any(model.get_submodule(name) in (embedding, head) for name in saved)
    if ties:  # peft knows the output matrix by its name, but not every name of an embedding
        both = [name for name, module in model.named_modules() if module in (embedding, head)]
        saved = list(dict.fromkeys((*saved, *both)))
    _check_rows(list(rows or ()), {"lora_modules_to_save": saved, "lora_target_modules": values["target_modules"]})
    values |= {"modules_to_save": list(saved) or None, "ensure_weight_tying": ties, "trainable_token_indices": rows}
    values["layers_to_transform"] = layers_of(model, options.layers) if options.layers else None
    values["init_lora_weights"] = GAUSSIAN if first.init == GAUSSIAN else True
    try:
        peft_model = get_peft_model(model, LoraConfig(**values))
    except (ValueError, TypeError, NotImplementedError) as problem:
        targets = ", ".join([*values["target_modules"], *(values["target_parameters"] or ())])
        raise SettingsError(
            f"peft cannot adapt this model with these settings ({targets}): {brief(problem, 300)}"
        ) from problem
    check_tied(peft_model, tied)
    widen(peft_model)
    if saved:
        say(f"LoRA: trained whole: {', '.join(saved)}{' (tied: one matrix)' if ties else ''}.")
    if rows:
        say(f"LoRA: trained rows: {len(options.trainable_tokens)} of {' and of '.join(rows)}.")
    return peft_model


def _check_rows(matrices: list[str], others: dict[str, Sequence[str]]) -> None:
    """Raise SettingsError if a matrix of which rows are trained is trained by one of the `others` too, by setting."""
    for setting, names in others.items():
        both = [matrix for matrix in matrices if any(matches(name, matrix) for name in names)]
        if both:
            raise SettingsError(
                f"--trainable_tokens trains rows of {', '.join(both)}, and --{setting} names it as well: peft does one "
                f"of them. Leave one out; --lora_modules_to_save {' '.join(matrices)} trains every row."
            )


def _continued_adapter(model: Any, path: str, dropout: float, asked: dict[str, Any]) -> Any:
    """The adapter in `path`, trainable; says which of the `asked` values are replaced by its own."""
    own = check_adapter_directory(path)
    if changes_base(str(own.get("init_lora_weights"))):
        raise SettingsError(
            f"--lora_weight_path {path} was saved by peft with init_lora_weights {own['init_lora_weights']}: it is not "
            "for the base itself, but for one whose weights peft has changed. Save it with peft's "
            "path_initial_model_for_weight_conversion, which makes an ordinary adapter of it"
        )
    _check_rope(model, path)
    modules, parameters = adapter_targets(own)
    if parameters and dropout:
        say(f"LoRA: no dropout, because the adapter {path} is on parameters, where peft has none.")
        dropout = 0.0
    peft_model = load_adapter(model, path, trainable=True, dropout=dropout)
    differ = [f"{name} {asked[name]} -> {own.get(name)}" for name in asked if (own.get(name) or None) != asked[name]]
    say(
        f"Continuing the adapter {path}: r {own['r']}, alpha {own['lora_alpha']}, targets "
        f"{', '.join(modules + parameters)}{_more_of(own)}"
        + (f" (its own values are used: {', '.join(differ)})." if differ else ".")
    )
    return peft_model


def _more_of(own: dict[str, Any]) -> str:
    """What the config of an adapter says that it trains besides matrices."""
    saved, rows = own.get("modules_to_save"), own.get("trainable_token_indices")
    listed = [f", {name}" for name in ("use_rslora", "use_dora") if own.get(name)]
    listed += [f", trained whole {', '.join(sorted(saved))}"] if saved else []
    listed += [f", trained rows of {', '.join(sorted(rows))}"] if rows else []
    return "".join(listed)


def _own_options(options: LoraOptions) -> dict[str, Any]:
    """The options that were asked for, as an adapter's config has them."""
    asked = {
        "use_rslora": options.use_rslora,
        "use_dora": options.use_dora,
        "layers_to_transform": list(options.layers),
        "modules_to_save": list(options.modules_to_save),
    }
    return {name: value for name, value in asked.items() if value}


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


@torch.no_grad()
def _read_again(peft_model: Any, path: str) -> None:
    """Takes up the stored values of what was rounded to the base's dtype when peft loaded it."""
    from safetensors import safe_open

    named = dict(peft_model.named_parameters())
    with safe_open(str(Path(path).expanduser() / ADAPTER_WEIGHTS), framework="pt") as file:
        for in_file, (name, *_) in adapter_parts(peft_model).items():
            if is_of_copies(name):
                named[name].copy_(file.get_tensor(in_file))


def _check_values(r: int, alpha: float, dropout: float, bias: str) -> None:
    if r < 1:
        raise SettingsError(f"--lora_r {r} must be at least 1.")
    if alpha <= 0:
        raise SettingsError(f"--lora_alpha {alpha} must be above 0: the adapter is scaled by alpha / r.")
    if not 0 <= dropout < 1:
        raise SettingsError(f"--lora_dropout {dropout} must be from 0 up to, but not including, 1.")
    if bias not in BIAS_KINDS:
        raise SettingsError(f"--lora_bias {bias!r} must be one of {', '.join(BIAS_KINDS)}.")
