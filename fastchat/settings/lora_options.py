"""The options of an adapter beyond rank and targets: their values, and which of them contradict each other.

Needs neither torch nor peft, so that settings and planner can use it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastchat.errors import SettingsError, not_among

DEFAULT, GAUSSIAN, OLORA, EVA, LOFTQ = "default", "gaussian", "olora", "eva", "loftq"
INITS = (DEFAULT, GAUSSIAN, "pissa", "pissa_niter_N", OLORA, EVA, LOFTQ)
UNTRAINED = "untrained"  # the value of --trainable_tokens that stands for all tokens the base never learned
_PISSA = re.compile(r"pissa(_niter_\d+)?")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class LoraOptions:
    """What an adapter is besides rank, alpha, dropout, targets and bias.

    layers: numbers of the decoder layers to adapt, counted from 0; empty: all. modules_to_save: names, or ends of
    names, of the modules to train whole. trainable_tokens: ids of the tokens whose rows are trained.
    """

    use_rslora: bool = False
    use_dora: bool = False
    layers: tuple[int, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    trainable_tokens: tuple[int, ...] = ()


def check_init(init: str) -> str:
    """`init`. Raises SettingsError if there is no such initialization."""
    if _PISSA.fullmatch(init) is None and init not in (DEFAULT, GAUSSIAN, OLORA, EVA, LOFTQ):
        raise not_among("--lora_init", init, INITS)
    return init


def subtracts_start(init: str) -> bool:
    """Whether an adapter starts from parts of the base's own weights, which are then subtracted again.

    >>> subtracts_start("pissa_niter_4"), subtracts_start("gaussian")
    (True, False)
    """
    return init == OLORA or _PISSA.fullmatch(init) is not None


def changes_base(init: str) -> bool:
    """Whether peft itself, with this `init_lora_weights`, changes the base's weights to start an adapter."""
    return subtracts_start(init.lower()) or init.lower() in (LOFTQ, "corda", "lora_ga")


def parse_layers(values: Sequence[str]) -> list[int]:
    """Numbers of layers from numbers and ranges, in order. Raises SettingsError for anything else.

    >>> parse_layers(["0-2,", "7"])
    [0, 1, 2, 7]
    """
    found: set[int] = set()
    for word in " ".join(values).replace(",", " ").replace("[", " ").replace("]", " ").split():
        match = _RANGE.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise SettingsError(
                f"--lora_layers_to_transform: {word!r} is neither the number of a layer nor a range such as 0-7"
            )
        found.update(range(first, last + 1))
    return sorted(found)


def check_combination(
    init: str,
    *,
    use_dora: bool,
    modules_to_save: Sequence[str],
    trainable_tokens: Sequence[str],
    targets: Sequence[str],
    q_lora: bool,
    continues: bool,
) -> None:
    """Raises SettingsError where settings of these names contradict each other.

    `targets`: names of the layers to adapt. `continues`: the run trains an existing adapter further.
    """
    if continues and init != DEFAULT:
        raise SettingsError(
            f"--lora_init {init} is how a new adapter starts, and --lora_weight_path trains an existing one further: "
            "keep one"
        )
    if init == LOFTQ and not q_lora:
        raise SettingsError(
            "--lora_init loftq corrects the error of a base in 4 bits: add --q_lora True, or choose another --lora_init"
        )
    if use_dora and (subtracts_start(init) or init == LOFTQ):
        raise SettingsError(
            f"--use_dora and --lora_init {init}: peft can turn such an adapter into one for the original base only "
            "without DoRA. Keep one, or use --lora_init default, gaussian or eva"
        )
    if init == EVA and trainable_tokens:
        raise SettingsError(
            "--lora_init eva and --trainable_tokens: peft would look for directions in the token ids as well. Keep "
            "one, or use --lora_modules_to_save embed_tokens lm_head"
        )
    leaves = {name.rpartition(".")[2] for name in targets}
    if twice := sorted(leaves & {name.rpartition(".")[2] for name in modules_to_save}):
        raise SettingsError(
            f"--lora_modules_to_save and --lora_target_modules both name {', '.join(twice)}: a module is either "
            "trained whole or has an adapter; leave it out of one of them"
        )


def check_engine(*, trainable_tokens: Sequence[str], use_dora: bool, q_lora: bool, zero_stage: int) -> None:
    """Raises SettingsError for what the libraries cannot train with weights that ZeRO divides."""
    if use_dora and q_lora and zero_stage == 3:
        raise SettingsError(
            "--use_dora with --q_lora: peft copies the weights in 4 bits, which ZeRO-3 divides among the processes: "
            "use a ZeRO-2 configuration, or one of the two"
        )
    if trainable_tokens and zero_stage == 3:
        raise SettingsError(
            "--trainable_tokens: peft reads the embedding outside of its forward pass, where ZeRO-3 has not gathered "
            "it. Use a ZeRO-2 configuration, or --lora_modules_to_save embed_tokens lm_head"
        )
