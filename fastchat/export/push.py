"""`fastchat push RUN USER/NAME`: upload a result, with its model card, to the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastchat.checkpoint.hub import push
from fastchat.data.tools.command import Parser, run
from fastchat.errors import CheckpointError, show
from fastchat.paths import folders_instead


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        ["fastchat push out me/my-adapter --private"],
        prog="fastchat push",
        description="Upload a result (an adapter, a full model or a merged model) with its model card to the Hugging "
        "Face hub. Checkpoints and logs stay here.",
        epilog="The token is that of `hf auth login`, or the variable HF_TOKEN.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the result")
    parser.add_argument("repository", metavar="USER/NAME", help="repository on the hub; created if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="create the repository as a private one")
    parser.add_argument("--license", help="identifier of its licence on the hub, such as apache-2.0, for the card")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_push, build_parser(), argv)


def _push(args: argparse.Namespace) -> None:
    folder = Path(args.run).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{args.run}: there is no such folder.{folders_instead(folder)}")
    show(push(folder, args.repository, private=args.private, license=args.license))


if __name__ == "__main__":
    sys.exit(main())
