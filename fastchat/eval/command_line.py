"""Measure a model on data: loss, perplexity and token accuracy, and the answers that it generates.

    fastchat eval RUN_OR_MODEL --data_path DATA [--generate --match numeric] [--output OUT.jsonl] [--summary OUT.json]

Ids and labels are those of training. Template, base, RoPE, quantisation, precision and length limit come from the
training record of the run, where there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fastchat.conversation import use_template_file
from fastchat.data.tools.command import Parser, run
from fastchat.errors import SettingsError
from fastchat.eval.flags import add_machine_flags, add_model_flags, add_sampling_flags, at_least_one, bits_of, model_of

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
    add_model_flags(parser, "--model-path")
    data = parser.add_argument_group("Data")
    data.add_argument(
        "--data-path", nargs="+", help="files, folders, patterns or hub datasets, in any form of training"
    )
    data.add_argument("--data-split", default="train", help="split of hub datasets")
    data.add_argument("--data-revision", help="branch, tag or commit of hub datasets")
    data.add_argument("--data-columns", help="names of columns and keys in the data, as JSON")
    data.add_argument("--data-roles", help="names of roles in the data, as JSON")
    data.add_argument("--max-samples", type=at_least_one, help="evaluate so many dialogues, spread over the data")
    data.add_argument("--model-max-length", type=at_least_one, help="default: as in training, else the model's context")
    data.add_argument("--overlong", choices=("truncate", "drop", "error"), help="default: as in training")
    data.add_argument("--on-bad-row", choices=("stop", "skip"), default="stop", help="what to do with a malformed row")
    answers = parser.add_argument_group("Generated answers")
    answers.add_argument("--generate", action="store_true", help="generate every answer and compare it with the data's")
    answers.add_argument("--match", choices=("exact", "regex", "numeric"), help="how answers are compared")
    answers.add_argument("--pattern", help="of --match regex; a group extracts the answer from both texts")
    add_sampling_flags(answers, "an answer")
    results = parser.add_argument_group("Results")
    results.add_argument("--output", help="write a JSON line per example; generated answers are kept from the start")
    results.add_argument("--summary", help="write all numbers as JSON")
    machine = add_machine_flags(parser)
    machine.add_argument("--batch-size", type=at_least_one, default=8, help="examples at once, at most")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, or the one that its first word names (`OTHERS`); returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in OTHERS:
        return import_module(OTHERS[words[0]]).main(words[1:])
    return run(_evaluate, build_parser(), words)


def _evaluate(args: argparse.Namespace) -> None:
    args.model_path = model_of(args, "fastchat eval MODEL --data_path DATA")
    if not args.data_path:
        raise SettingsError("--data_path is missing: which dialogues should the model be measured on?")
    given = [flag for flag, value in (("--match", args.match), ("--pattern", args.pattern)) if value is not None]
    if given and not args.generate:
        raise SettingsError(f"{given[0]} compares generated answers: add --generate")
    bits_of(args)
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


if __name__ == "__main__":
    sys.exit(main())
