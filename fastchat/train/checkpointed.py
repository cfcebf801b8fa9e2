"""`--gradient_checkpointing`: the planner's choice for auto, and whether the model has as many layers as asked for."""

from __future__ import annotations

from typing import Any

from fastchat.errors import SettingsError
from fastchat.plan.api import Plan
from fastchat.processes import on_main_process
from fastchat.settings.checkpointing import AUTO
from fastchat.settings.values import Values
from fastchat.train.planning import announce


def plan_run(values: Values, training: Any, config: Any, *, lora: bool, attention: str) -> Plan | None:
    """Announces the memory that a run is expected to need, see `announce`, and decides which layers are checkpointed.
    Every process calls it."""
    plan = announce(values, training.device, lora=lora, attention=attention)
    choose_checkpointing(values, training, config.get_text_config().num_hidden_layers, plan)
    return plan


def choose_checkpointing(values: Values, training: Any, num_layers: int, plan: Plan | None) -> None:
    """Decides the setting, and tells transformers whether any layer is checkpointed.

    `plan`: of this run, None where nothing could be planned; auto is full then. SettingsError for more layers than
    there are.
    """
    name = "gradient_checkpointing"
    asked = values[name]
    if asked == AUTO:
        chosen = on_main_process(lambda: True if plan is None else plan.run.gradient_checkpointing)
        values.derive(name, chosen, f"--{name} auto: {_words(chosen, num_layers, plan)}")
    elif type(asked) is int and asked > num_layers:
        raise SettingsError(f"--{name} is {asked}: this model has {num_layers} decoder layers; full means all of them")
    for attribute in (name, "activation_checkpointing"):  # the newer name in transformers; the older one mirrors it
        if hasattr(training, attribute):
            setattr(training, attribute, bool(values[name]))


def layers_to_checkpoint(values: Values) -> int | None:
    """The number of layers where it is one; None for all layers, or none."""
    asked = values["gradient_checkpointing"]
    return asked if type(asked) is int else None


def _words(chosen: Any, num_layers: int, plan: Plan | None) -> str:
    if plan is None:
        return "all decoder layers, because nothing could be planned"
    if chosen is True:
        return "all decoder layers" + ("" if plan.fits is not None else ", because the memory is unknown")
    return f"the first {chosen} of {num_layers} decoder layers" if chosen else "off, because the run fits without"
