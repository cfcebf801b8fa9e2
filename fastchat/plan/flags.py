"""The command line of the planner: the training flags, with the training commands' own grammar, and a few more.

Flags that mean nothing for memory are accepted and skipped, so that a launch line can be pasted as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastchat.errors import SettingsError, nearest
from fastchat.plan.units import parse_bytes
from fastchat.recipe_files import find_recipe
from fastchat.security import load_yaml

_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")

# The training flags that decide memory, with the training commands' defaults; bf16 alone is on here.
TRAINING: dict[str, tuple[type, Any, str]] = {
    "model_name_or_path": (str, None, "folder of the model (or a hub name that is in the cache)"),
    "dtype": (str, "auto", "of the base weights: auto (the checkpoint's own), float32, bfloat16, float16"),
    "flash_attn": (bool, False, "count flash_attention_2 instead of torch's own kernels"),
    "q_lora": (bool, False, "4-bit base below the adapter"),
    "lora_r": (int, 8, "rank of the adapter"),
    "lora_dropout": (float, 0.05, "dropout in front of the adapter; above 0 every adapter keeps a copy of its input"),
    "lora_target_modules": (list, None, "layers with an adapter, separated by spaces or commas"),
    "lora_bias": (str, "none", "none, all or lora_only"),
    "lora_weight_path": (str, "", "an adapter to go on training: its rank and layers count"),
    "bf16": (bool, True, "compute in bfloat16"),
    "fp16": (bool, False, "compute in float16"),
    "deepspeed": (str, None, "DeepSpeed configuration (JSON)"),
    "model_max_length": (int, 512, "tokens of a dialogue"),
    "per_device_train_batch_size": (int, 8, "microbatch"),
    "gradient_accumulation_steps": (int, 1, "microbatches per step"),
    "gradient_checkpointing": (bool, False, "recompute activations in the backward pass"),
    "chunked_head": (bool, True, "False: the loss is computed from all logits at once"),
    "packing": (bool, False, "several dialogues in one row, without padding"),
    "optim": (str, "adamw_torch", "the optimizer"),
    "use_cpu": (bool, False, "train on the processor: processes share the host's memory"),
    "cache_dir": (str, None, "where hub models are kept"),
}
# What only the planner has.
PLANNING: dict[str, tuple[type, Any, str]] = {
    "model_size": (str, None, "7b, 13b or 70b: the Llama-2 of that size, when there is no model folder yet"),
    "full_finetuning": (bool, False, "train all weights (train.py) instead of an adapter"),
    "gpus": (int, None, "number of GPUs, of all hosts (default: those found)"),
    "hosts": (int, 1, "number of machines"),
    "gpu_memory": (str, None, "memory of one GPU, such as 24GiB (default: what nvidia-smi says)"),
    "cpu_memory": (str, None, "memory of one host, such as 256GiB (default: what this one has)"),
    "json": (bool, False, "print one flat JSON object, in bytes"),
    "recommend": (bool, False, "the settings that fit, for 7b, 13b, 70b and the given model"),
    "recipes": (str, "plan_recipes", "--recommend writes its YAML recipes into this folder"),
    "largest": (bool, False, "the largest dense model that trains here"),
    "help": (bool, False, "this text"),
}
ALIASES = {  # the names in people's scripts, as the training commands take them
    "gradient_checkpoint": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "torch_dtype": "dtype",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "no_cuda": "use_cpu",
    "num_gpus": "gpus",
}
# Training flags that do not change memory. A test compares this list with the training commands' own.
_SKIPPED = """
    plan
    val_set_size data_split eval_data_split data_revision data_proportions preprocessing_num_workers overwrite_cache
    rope_scaling_type rope_scaling_factor padding_side trust_remote_code data_path eval_data_path conv_template
    conv_template_file lazy_preprocess overlong on_bad_row train_on output_dir num_train_epochs max_steps learning_rate
    lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio weight_decay adam_beta1 adam_beta2 adam_epsilon
    max_grad_norm label_smoothing_factor tf32 gradient_checkpointing_kwargs activation_checkpointing_kwargs
    gradient_checkpoint_kwargs neftune_noise_alpha logging_strategy logging_steps logging_first_step
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name eval_strategy
    evaluation_strategy eval_steps eval_delay per_device_eval_batch_size per_gpu_eval_batch_size eval_on_start
    save_only_model save_strategy save_steps save_total_limit load_best_model_at_end metric_for_best_model
    greater_is_better full_determinism seed data_seed dataloader_drop_last dataloader_num_workers
    dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
    train_sampling_strategy group_by_length ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
    ddp_static_graph ddp_backend ddp_timeout do_train do_eval overwrite_output_dir lora_alpha
    resume_from_checkpoint resume_weights_only log_samples on_nonfinite local_rank
    verify_packing early_stopping_patience"""
SKIPPED = frozenset(_SKIPPED.split())
LORA_ONLY = frozenset(name for name in (*TRAINING, *SKIPPED) if name.startswith(("lora_", "q_lora")))
_OPTIONS = {**TRAINING, **PLANNING}


def read_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Typed values of a command line, every option by its name, defaults filled in; `given` holds the names given.

    A first word that is no flag is a recipe (YAML); the command line overrides it. SettingsError for an unknown flag
    (naming the nearest), a missing value or one of the wrong kind.
    """
    words = list(argv)
    recipe = words.pop(0) if words and not words[0].startswith("-") else None
    given = _from_recipe(recipe) if recipe else {}
    asked = _from_words(words)
    if "model_size" in asked:
        given.pop("model_name_or_path", None)  # the recipe's model need not be here yet
    given |= asked
    values = {name: default for name, (_, default, _) in _OPTIONS.items()} | given
    values["given"] = frozenset(given)
    if recipe and "full_finetuning" not in given:
        values["full_finetuning"] = not given.keys() & LORA_ONLY  # a recipe without any adapter is train.py's
    if "fp16" in given and given["fp16"] and "bf16" not in given:
        values["bf16"] = False
    return values


def _from_words(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "-h":
            word = "--help"
        if not word.startswith("--") or len(word) < 3:
            raise SettingsError(f"{word!r} stands where a --flag was expected (a value with spaces needs quotes)")
        name, glued, value = word[2:].partition("=")
        name, negated = _canonical(name)
        many = name in SKIPPED or _OPTIONS.get(name, (list,))[0] is list
        following = []
        while not glued and at < len(words) and not _is_flag(words[at]) and (many or not following):
            following.append(words[at])
            at += 1
        if name in SKIPPED:
            found[name] = value or following  # only that it was given counts
            continue
        if negated and (glued or following):
            raise SettingsError(f"{word} takes no value")
        found[name] = False if negated else _value(name, [value] if glued else following, f"--{name}")
    return found


def _from_recipe(path: str) -> dict[str, Any]:
    path = str(find_recipe(path))
    content = load_yaml(path, "recipe")
    if not isinstance(content, dict):
        raise SettingsError(f"recipe {path} must hold `name: value` lines, one per setting")
    found: dict[str, Any] = {}
    for key, value in content.items():
        name, negated = _canonical(str(key))
        if name in SKIPPED:
            found[name] = value
            continue
        if negated:
            raise SettingsError(f"recipe {path}: {key} is no setting")
        if value is not None and not isinstance(value, dict):
            words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
            found[name] = _value(name, words, f"{path}: {key}")
    return found


def _canonical(flag: str) -> tuple[str, bool]:
    """(name, whether it was written --no_name). SettingsError for a name that does not exist."""
    name = flag.replace("-", "_")
    positive = ALIASES.get(name.removeprefix("no_"), name.removeprefix("no_"))
    name = ALIASES.get(name, name)
    if name in _OPTIONS or name in SKIPPED:
        return name, False
    if flag.startswith("no") and positive in _OPTIONS and _OPTIONS[positive][0] is bool:
        return positive, True
    close = nearest(name, [*_OPTIONS, *ALIASES, *SKIPPED])
    hint = f"did you mean {' or '.join('--' + name for name in close)}?" if close else "--help lists them"
    raise SettingsError(f"--{flag} is no setting of the planner or of training; {hint}")


def _value(name: str, words: list[str], label: str) -> Any:
    kind = _OPTIONS[name][0]
    if kind is bool:
        return _bool(words[0], label) if words else True
    if not words:
        raise SettingsError(f"{label} needs a value")
    if kind is list:
        return _names(words)
    if words[0] == "None":
        return None
    if name in ("gpu_memory", "cpu_memory"):
        return parse_bytes(words[0], label)
    return _CONVERT[kind](words[0], label)


def _names(words: list[str]) -> tuple[str, ...]:
    text = " ".join(words)
    for mark in ",\"'[];":
        text = text.replace(mark, " ")
    return tuple(dict.fromkeys(text.split()))


def _bool(word: str, label: str) -> bool:
    if word.lower() in _TRUE or word.lower() in _FALSE:
        return word.lower() in _TRUE
    raise SettingsError(f"{label} is {word!r}, but True or False is expected")


def _int(word: str, label: str) -> int:
    if word.isdigit() and int(word) > 0:
        return int(word)
    raise SettingsError(f"{label} is {word!r}, but a whole number of at least 1 is expected")


def _float(word: str, label: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if 0 <= number < 1:
        return number
    raise SettingsError(f"{label} is {word!r}, but a number from 0 up to, not including, 1 is expected")


def _str(word: str, label: str) -> str:
    return word


_CONVERT: dict[type, Callable[[str, str], Any]] = {int: _int, float: _float, str: _str}


def _is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def help_text() -> str:
    """What `--help` prints."""
    lines = [
        "usage: python -m fastchat.plan [RECIPE.yaml] (--model_name_or_path DIR | --model_size 7b) [--flag value]",
        "",
        "What memory does a training run need, does it fit, and what would? Needs no GPU and loads no model.",
    ]
    for title, options in (("The planner's own flags", PLANNING), ("Training flags that decide memory", TRAINING)):
        lines += ["", f"{title}:"]
        for name, (_, default, text) in options.items():
            lines.append(f"  --{name:<28} {text}" + ("" if default in (None, "") else f" (default {default})"))
    return "\n".join([*lines, "", "Every other training flag is accepted and does not change memory."])
