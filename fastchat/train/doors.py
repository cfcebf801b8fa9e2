"""Upstream's other training commands: the same recipe, with the defaults that their names promise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from fastchat.model.model_adapter import get_conversation_template
from fastchat.settings.options import is_flag, split_recipe


def with_default(words: Sequence[str], name: str, value: str) -> list[str]:
    """A command line with `--name value` where neither it nor a recipe can have decided that."""
    recipe, flags = split_recipe(words)
    return list(words) if recipe is not None or given(flags, name) is not None else [f"--{name}", value, *flags]


def with_template_of_model(words: Sequence[str]) -> list[str]:
    """A command line with the template that upstream takes for its model path, where it names none."""
    model = given(words, "model_name_or_path")
    if not model or given(words, "conv_template_file") is not None:
        return list(words)
    return with_default(words, "conv_template", get_conversation_template(model).name)


def given(words: Sequence[str], name: str) -> str | None:
    """What the command line gives for `--name`, "" for a flag without a value; None where it is not there."""
    found: str | None = None
    for at, word in enumerate(words):
        flag, _, glued = word.partition("=")
        if flag.replace("-", "_") == f"__{name}":
            follows = words[at + 1] if at + 1 < len(words) and not is_flag(words[at + 1]) else ""
            found = glued or follows
    return found


def refuse_replaced(module: str, names: Mapping[str, str | None]) -> None:
    """NotImplementedError where a program has put functions of its own in the place of upstream's: `train` of that
    `module` would go on without them."""
    replaced = ", ".join(name for name in names if name in vars(sys.modules[module]))
    if replaced:
        raise NotImplementedError(
            f"{module}.{replaced} was replaced, but train() here does not use it; give what "
            "make_supervised_data_module returns to transformers' Trainer instead"
        )


def upstream_attribute(name: str, names: Mapping[str, str | None], otherwise: Callable[[str], Any]) -> Any:
    """The attribute `name` of a training command's module: what `names` lends from upstream.py, else `otherwise`."""
    if name not in names:
        return otherwise(name)
    return getattr(import_module("fastchat.train.upstream"), names[name] or name)
