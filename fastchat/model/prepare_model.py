"""Give a model a pad token of its own, or other special tokens.

    python -m fastchat.model.prepare_model --model-path M --pad-token '[PAD]' --output-path OUT

Training does not need it: a run chooses a safe pad token by itself and logs which. Use it for models that will be
trained or served by programs that mask padding by its id. `checkpoint/prepare.py` does the work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastchat.errors import EXIT_DONE, UserError
from fastchat.streams import kept_output


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fastchat.model.prepare_model",
        description="Write a copy of a model with a pad token or other special tokens added.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model-path", required=True, metavar="M", help="folder (or hub name) of the model")
    add("--output-path", required=True, metavar="OUT", help="new folder for the result")
    add("--pad-token", metavar="TOKEN", help="the pad token, such as '[PAD]'; added if it does not exist")
    add("--special-tokens", nargs="+", default=[], metavar="TOKEN", help="other tokens to add, never cut into pieces")
    add("--cache_dir", "--cache-dir", help="where hub downloads are cached")
    add("--trust-remote-code", action="store_true", help="run the model's own Python code")
    return parser


@kept_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    from fastchat.checkpoint.prepare import prepare_model

    try:
        prepare_model(
            args.model_path,
            args.output_path,
            pad_token=args.pad_token,
            special_tokens=args.special_tokens,
            cache_dir=args.cache_dir,
            trust_remote_code=args.trust_remote_code,
        )
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
