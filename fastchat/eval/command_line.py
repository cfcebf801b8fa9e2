"""Measure a model on data: loss, perplexity and token accuracy, and the answers that it generates.

    fastchat eval RUN_OR_MODEL --data_path DATA [--generate --match numeric] [--output OUT.jsonl] [--summary OUT.json]

Ids and labels are those of training. Template, base, RoPE, quantisation, precision and length limit come from the
training record of the run, where there is one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fastchat.conversation import use_template_file
from fastchat.data.tools.command import Parser, run
from fastchat.errors import SettingsError

# Commands of their own after `fastchat eval` (a model in a folder of this name is ./math).
OTHERS = {"math": "fastchat.eval.mathematics.command", "lm-eval": "fastchat.eval.harness"}


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        ["fastchat eval out --data-path test.json", "fastchat eval out --data-path test.json --generate"],
        prog="fastchat eval",
        description="Measure a model on data.",
        epilog="fastchat eval math --help: mathematics problems solved with code. "
        "fastchat eval lm-eval --help: the tasks of lm-evaluation-harness.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="an adapter, a result, a checkpoint or a hub name")
    parser.add_argument("--model-path", help="the same as MODEL")
    parser.add_argument("--base-model-path", help="base of the adapter (default: the one it was trained on)")
    parser.add_argument("--conv-template", help="template (default: the one it was trained with)")
    parser.add_argument("--conv-template-file", help="a .py or .yaml file that registers templates")
    data = parser.add_argument_group("Data")
    data.add_argument(
        "--data-path", nargs="+", help="files, folders, patterns or hub datasets, in any form of training"
    )
    data.add_argument("--data-split", default="train", help="split of hub datasets")
    data.add_argument("--data-revision", help="branch, tag or commit of hub datasets")
    data.add_argument("--data-columns", help="names of columns and keys in the data, as JSON")
    data.add_argument("--data-roles", help="names of roles in the data, as JSON")
    data.add_argument("--max-samples", type=_at_least_one, help="evaluate so many dialogues, spread over the data")
    data.add_argument(
        "--model-max-length", type=_at_least_one, help="default: as in training, else the model's context"
    )
    data.add_argument("--overlong", choices=("truncate", "drop", "error"), help="default: as in training")
    data.add_argument("--on-bad-row", choices=("stop", "skip"), default="stop", help="what to do with a malformed row")
    answers = parser.add_argument_group("Generated answers")
    answers.add_argument("--generate", action="store_true", help="generate every answer and compare it with the data's")
    answers.add_argument("--match", choices=("exact", "regex", "numeric"), help="how answers are compared")
    answers.add_argument("--pattern", help="of --match regex; a group extracts the answer from both texts")
    answers.add_argument("--max-new-tokens", type=_at_least_one, default=512, help="of an answer")
    answers.add_argument("--temperature", type=_not_negative, default=0.0, help="0 takes the most likely token")
    answers.add_argument("--top-p", type=float, default=1.0, help="draw from the most likely tokens only")
    answers.add_argument("--seed", type=int, default=0, help="of drawn answers")
    results = parser.add_argument_group("Results")
    results.add_argument("--output", help="write a JSON line per example; generated answers are kept from the start")
    results.add_argument("--summary", help="write all numbers as JSON")
    machine = parser.add_argument_group("Machine")
    machine.add_argument("--batch-size", type=_at_least_one, default=8, help="examples at once, at most")
    machine.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    machine.add_argument("--num-gpus", type=_at_least_one, help="use so many GPUs (default: all that are needed)")
    machine.add_argument("--max-gpu-memory", help="for weights on each GPU, such as 13GiB (default: 85 %% of it)")
    machine.add_argument("--load-8bit", action="store_true", help="quantise the weights to 8 bits")
    machine.add_argument("--load-4bit", action="store_true", help="quantise the weights to 4 bits (nf4)")
    machine.add_argument("--cache-dir", help="where hub downloads are cached")
    machine.add_argument("--trust-remote-code", action="store_true", help="run the model's own Python code")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, or the one that its first word names (`OTHERS`); returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in OTHERS:
        return import_module(OTHERS[words[0]]).main(words[1:])
    return run(_evaluate, build_parser(), words)


def _evaluate(args: argparse.Namespace) -> None:
    args.model_path = _model_path(args)
    if not args.data_path:
        raise SettingsError("--data_path is missing: which dialogues should the model be measured on?")
    given = [flag for flag, value in (("--match", args.match), ("--pattern", args.pattern)) if value is not None]
    if given and not args.generate:
        raise SettingsError(f"{given[0]} compares generated answers: add --generate")
    if args.load_8bit and args.load_4bit:
        raise SettingsError("--load_8bit and --load_4bit: choose one.")
    args.conv_template = use_template_file(args.conv_template_file, args.conv_template)
    args.data_columns, args.data_roles = (
        _mapping(args.data_columns, "--data_columns"),
        _mapping(args.data_roles, "--data_roles"),
    )
    from fastchat.eval.evaluate import evaluate

    evaluate(args)


def _mapping(text: str | None, flag: str) -> Any:
    from fastchat.settings.parsing import to_mapping

    return None if text is None else to_mapping(text, flag)


def _model_path(args: argparse.Namespace) -> str:
    given = [path for path in (args.model, args.model_path) if path is not None]
    if len(given) != 1:
        problem = f"the model is given twice: {' and '.join(given)}" if given else "no model is given"
        raise SettingsError(f"{problem}; usage: fastchat eval MODEL --data_path DATA")
    return given[0]


if __name__ == "__main__":
    sys.exit(main())
