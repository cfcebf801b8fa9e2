"""The command line of the planner: the training flags, with the training commands' own grammar, and a few more.

Flags that mean nothing for memory are read too (`other_flags.py`), so that a launch line can be pasted as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError, nearest
from fastchat.plan.other_flags import (
    ANYTHING,
    CHOICES,
    KINDS,
    LIST,
    SKIPPED,
    SWITCH,
    check_ranges,
    value_of,
)
from fastchat.plan.units import parse_bytes
from fastchat.security import load_yaml
from fastchat.settings.recipe_files import find_recipe
from fastchat.settings.typed import to_bool, to_choice, to_mapping, to_text

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
    "deepspeed": (dict, None, "DeepSpeed configuration: a file (JSON), or in a recipe the mapping itself"),
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
    "evaluation_strategy": "eval_strategy",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "gradient_checkpoint_kwargs": "gradient_checkpointing_kwargs",
}
LORA_ONLY = frozenset(name for name in (*TRAINING, *SKIPPED) if name.startswith(("lora_", "q_lora")))
_OPTIONS = {**TRAINING, **PLANNING}
# Those that may be None or empty: nothing is asked for. As in training, a number, a switch or a name is not among them.
NULLABLE = frozenset(("model_name_or_path", "deepspeed", "cache_dir", "model_size", "gpus", "gpu_memory", "cpu_memory"))


def read_flags(argv: Sequence[str], hidden: Collection[str] = ()) -> dict[str, Any]:
    """Typed values of a command line, every option by its name, defaults filled in; `given` holds the names given.

    A first word that is no flag is a recipe (YAML); the command line overrides it. SettingsError for an unknown flag
    (naming the nearest that is not `hidden`), a missing value or one of the wrong kind.
    """
    words = list(argv)
    recipe = words.pop(0) if words and not words[0].startswith("-") else None
    given = _from_recipe(recipe, hidden) if recipe else {}
    asked = _from_words(words, hidden)
    if "model_size" in asked:
        given.pop("model_name_or_path", None)  # the recipe's model need not be here yet
    given |= asked
    check_ranges(given)
    values = {name: default for name, (_, default, _) in _OPTIONS.items()} | given
    values["given"] = frozenset(given)
    if recipe and "full_finetuning" not in given:
        values["full_finetuning"] = not given.keys() & LORA_ONLY  # a recipe without any adapter is train.py's
    if "fp16" in given and given["fp16"] and "bf16" not in given:
        values["bf16"] = False
    if values["bf16"] and values["fp16"]:
        raise SettingsError("--bf16 and --fp16 are both on; keep one")
    return values


def _from_words(words: list[str], hidden: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "-h":
            word = "--help"
        if not word.startswith("--") or len(word) < 3:
            raise SettingsError(f"{word!r} stands where a --flag was expected (a value with spaces needs quotes)")
        flag, glued, value = word[2:].partition("=")
        name, negated = _canonical(flag, hidden)
        many = KINDS.get(name) == LIST or _OPTIONS.get(name, (str,))[0] is list
        following = []
        while not glued and at < len(words) and not _is_flag(words[at]) and (many or not following):
            following.append(words[at])
            at += 1
        if negated and (glued or following):
            raise SettingsError(f"{word} takes no value")
        found[name] = False if negated else _value(name, [value] if glued else following, f"--{flag}")
    return found


def _from_recipe(path: str, hidden: Collection[str]) -> dict[str, Any]:
    _check_home(path, "recipe")
    path = str(find_recipe(path))
    content = load_yaml(path, "recipe")
    if not isinstance(content, dict):
        raise SettingsError(f"recipe {path} must hold `name: value` lines, one per setting")
    found: dict[str, Any] = {}
    for key, value in content.items():
        label = f"{path}: {key}"
        name, negated = _canonical(str(key), hidden, label)
        if negated:
            raise SettingsError(f"recipe {label} is no setting")
        if name in found:
            raise SettingsError(f"{label} and another name of {name} are both given; keep one")
        if name in SKIPPED:
            found[name] = value_of(name, value, label)
        elif value is not None:
            found[name] = _from_yaml(name, value, label)
        elif name not in NULLABLE:
            raise SettingsError(f"{label} is empty; give a value or leave the line out")
    return found


def _from_yaml(name: str, value: Any, label: str) -> Any:
    kind = _OPTIONS[name][0]
    if isinstance(value, dict):
        if kind is dict:
            return value
        raise SettingsError(f"{label} holds a mapping, but one value is expected")
    if isinstance(value, list) and kind is not list:
        raise SettingsError(f"{label} holds a list, but one value is expected")
    if kind in (str, dict) and name not in CHOICES:
        to_text(value, label)  # a bare `yes` is no text
    return _value(name, [str(item) for item in (value if isinstance(value, list) else [value])], label)


def _canonical(flag: str, hidden: Collection[str], label: str = "") -> tuple[str, bool]:
    """(name, whether it was written --no_name). SettingsError for a name that does not exist."""
    name = flag.replace("-", "_")
    positive = ALIASES.get(name.removeprefix("no_"), name.removeprefix("no_"))
    name = ALIASES.get(name, name)
    if name in _OPTIONS or name in SKIPPED:
        return name, False
    if flag.startswith("no") and _is_switch(positive):
        return positive, True
    dashes = "" if label else "--"
    close = nearest(name, [known for known in (*_OPTIONS, *ALIASES, *SKIPPED) if known not in hidden])
    hint = f"did you mean {' or '.join(dashes + near for near in close)}?" if close else "--help lists them"
    raise SettingsError(f"{label or '--' + flag} is no setting of the planner or of training; {hint}")


def _is_switch(name: str) -> bool:
    """Whether the flag alone means True. (transformers has one that takes a switch or a word.)"""
    return KINDS.get(name) in (SWITCH, ANYTHING) or _OPTIONS.get(name, (str,))[0] is bool


def _value(name: str, words: list[str], label: str) -> Any:
    if not words:
        if _is_switch(name):
            return True
        raise SettingsError(f"{label} needs a value")
    if name in SKIPPED:
        return value_of(name, words if KINDS[name] == LIST else words[0], label)
    kind = _OPTIONS[name][0]
    if kind is list:
        return _names(words)
    if words[0] == "None" and name in NULLABLE:
        return None
    if name in CHOICES:
        return to_choice(words[0], label, CHOICES[name])
    if name == "recipes" and words[0] == "None":
        raise SettingsError(f"{label} is 'None'; give a folder, or leave it out for {PLANNING[name][1]}")
    _check_home(words[0], label)
    if name in ("gpu_memory", "cpu_memory"):
        return parse_bytes(words[0], label)
    return _CONVERT[kind](words[0], label)


def _check_home(path: str, label: str) -> None:
    """SettingsError for a `~user` who does not exist."""
    if path.startswith("~"):
        try:
            Path(path).expanduser()
        except RuntimeError:
            raise SettingsError(f"{label} is {path!r}, but there is no user of that name here") from None


def _names(words: list[str]) -> tuple[str, ...]:
    text = " ".join(words)
    for mark in ",\"'[];":
        text = text.replace(mark, " ")
    return tuple(dict.fromkeys(text.split()))


def _int(word: str, label: str) -> int:
    try:
        number = int(word)
    except ValueError:
        number = 0
    if number > 0:
        return number
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


_CONVERT: dict[type, Callable[[str, str], Any]] = {
    bool: to_bool,
    int: _int,
    float: _float,
    str: _str,
    dict: to_mapping,
}


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
