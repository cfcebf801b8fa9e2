"""The argument reader of each command. All share the same settings: what one command accepts, every command accepts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fastchat.settings.arguments import LoraArguments, all_arguments
from fastchat.settings.fields import Translate
from fastchat.settings.foreign import NO_SETTING
from fastchat.settings.newer import newer_option
from fastchat.settings.options import Option, Reader, options_of
from fastchat.settings.tool_arguments import PlanArguments, PreviewArguments

LORA_ONLY = frozenset(option.name for option in options_of((LoraArguments,)))
_NOT_FULL = "it belongs to train_lora.py, not to full fine-tuning"


def training_options(lora: bool) -> tuple[Option, ...]:
    """The settings of a training command."""
    return tuple(replace(o, refused=_fitting(o.refused, lora)) for o in options_of(all_arguments(lora)))


def _fitting(text: str, lora: bool) -> str:
    """Fill in the name of the DeepSpeed configuration that fits the command."""
    return text.replace("{lora_}", "lora_" if lora else "")


def training_reader(lora: bool) -> Reader:
    """The reader of train_lora.py, or of train.py, which has no LoRA settings."""
    no_setting = NO_SETTING if lora else _without(LORA_ONLY)
    no_setting = {name: _fitting(way, lora) if isinstance(way, str) else way for name, way in no_setting.items()}
    return Reader(training_options(lora), no_setting, newer=newer_option)


def _without(names: Collection[str]) -> dict[str, str | Translate]:
    """NO_SETTING, and the LoRA settings `names`."""
    lora = [option for option in options_of((LoraArguments,)) if option.name in names]
    return {**NO_SETTING, **{n: _NOT_FULL for o in lora for n in (o.name, *o.also, *o.elsewhere)}}


def plan_options() -> tuple[Option, ...]:
    """The planner's own settings, and all training settings."""
    return (*options_of((PlanArguments,)), *training_options(True))


def plan_reader(hidden: Collection[str] = ()) -> Reader:
    """The reader of the planner. `hidden`: settings that are accepted but never suggested."""
    return Reader(plan_options(), _without(hidden), hidden, newer_option)


def preview_options() -> tuple[Option, ...]:
    """The preview's own settings, and all training settings."""
    return (*options_of((PreviewArguments,)), *training_options(True))


def preview_reader() -> Reader:
    """The reader of the preview."""
    return Reader(preview_options(), NO_SETTING, newer=newer_option)
