"""Upstream's command for a single message: `fastchat.serve.cli` with `--message`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastchat.serve import cli

_MESSAGE = "Hello! Who are you?"


def main(argv: Sequence[str] | None = None) -> int:
    """Answer `--message` (default: upstream's); returns the exit code."""
    return cli.main(["--message", _MESSAGE, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
