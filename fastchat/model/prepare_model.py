"""Give a model a pad token of its own, or other special tokens.

    python -m fastchat.model.prepare_model --model-path M --pad-token '[PAD]' --output-path OUT

Training does not need it: a run chooses a safe pad token by itself and logs which. Use it for models that will be
trained or served by programs that mask padding by its id. `checkpoint/prepare.py` does the work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastchat.data.tools.command import Parser, run


def build_parser() -> Parser:
    """The command line."""
    about = "Write a copy of a model with a pad token or other special tokens added. Training does not need it."
    example = "fastchat prepare --model-path M --pad-token '[PAD]' --output-path M-with-pad"
    parser = Parser([example], prog="fastchat prepare", description=about)
    add = parser.add_argument
    add("--model-path", required=True, metavar="MODEL", help="folder (or hub name) of the model")
    add("--output-path", required=True, metavar="FOLDER", help="new folder for the result")
    add("--pad-token", metavar="TOKEN", help="the pad token, such as '[PAD]'; added if it does not exist")
    add("--special-tokens", nargs="+", default=[], metavar="TOKEN", help="other tokens to add, never cut into pieces")
    add("--cache-dir", metavar="FOLDER", help="where hub downloads are cached")
    add("--trust-remote-code", action="store_true", help="run the model's own Python code")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_prepare, build_parser(), argv)


def _prepare(args: argparse.Namespace) -> None:
    from fastchat.checkpoint.prepare import prepare_model

    prepare_model(
        args.model_path,
        args.output_path,
        pad_token=args.pad_token,
        special_tokens=args.special_tokens,
        cache_dir=args.cache_dir,
        trust_remote_code=args.trust_remote_code,
    )


if __name__ == "__main__":
    sys.exit(main())
