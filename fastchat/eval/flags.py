"""Flags that the commands of evaluation share, and the checks of their values."""

from __future__ import annotations

import argparse
import math
from typing import Any

from fastchat.data.tools.command import Parser
from fastchat.errors import SettingsError

MODEL = "an adapter, a result, a checkpoint or a hub name"


def add_model_flags(parser: Parser, also: str) -> None:
    """MODEL, also as the flag `also`, and what its prompts are made with."""
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help=MODEL)
    add(also, dest="model_flag", help="the same as MODEL")
    add("--base-model-path", help="base of the adapter (default: the one it was trained on)")
    add("--conv-template", help="template (default: the one it was trained with)")
    add("--conv-template-file", help="a .py or .yaml file that registers templates")


def add_sampling_flags(group: Any, of: str) -> None:
    """How tokens are chosen. `of`: what --max-new-tokens is the limit of."""
    add = group.add_argument
    add("--max-new-tokens", type=at_least_one, default=512, help=f"of {of}")
    add("--temperature", type=not_negative, default=0.0, help="0 takes the most likely token")
    add("--top-p", type=share, default=1.0, help="draw from the most likely tokens only")
    add("--seed", type=int, default=0, help="of drawn answers")


def add_machine_flags(parser: Parser) -> Any:
    """Where and in which form the weights are; returns the group."""
    group = parser.add_argument_group("Machine")
    add = group.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    add("--num-gpus", type=at_least_one, help="use so many GPUs (default: all that are needed)")
    add("--max-gpu-memory", help="for weights on each GPU, such as 13GiB (default: 85 %% of it)")
    add("--load-8bit", action="store_true", help="quantise the weights to 8 bits")
    add("--load-4bit", action="store_true", help="quantise the weights to 4 bits (nf4)")
    add("--cache-dir", help="where hub downloads are cached")
    add("--trust-remote-code", action="store_true", help="run the model's own Python code")
    return group


def model_of(args: argparse.Namespace, usage: str) -> str:
    """The model that was given. Raises SettingsError if none was, or two."""
    given = [path for path in (args.model, args.model_flag) if path is not None]
    if len(given) != 1:
        problem = f"the model is given twice: {' and '.join(given)}" if given else "no model is given"
        raise SettingsError(f"{problem}; usage: {usage}")
    return given[0]


def bits_of(args: argparse.Namespace) -> int | None:
    """How many bits the weights are quantised to. Raises SettingsError for both at once."""
    if args.load_8bit and args.load_4bit:
        raise SettingsError("--load_8bit and --load_4bit: choose one.")
    return 8 if args.load_8bit else 4 if args.load_4bit else None


def at_least_one(text: str) -> int:
    """The type of a flag."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> float:
    """The type of a flag."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return number


def share(text: str) -> float:
    """The type of a flag."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and at most 1")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
