"""What the data commands share: a parser that suggests the nearest flag, and errors as one message."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastchat.data.view.terminal import safe
from fastchat.errors import EXIT_DONE, EXIT_SETTINGS, UserError, nearest
from fastchat.streams import kept_output

EXIT_INTERRUPTED = 130  # the exit code of a shell for a command that Ctrl-C ended


class Parser(argparse.ArgumentParser):
    """Accepts flags with - or _, and suggests the nearest flag for an unknown one.

    Flags cannot be abbreviated: `--data` could silently change its meaning when another flag with that prefix is added.
    """

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = [self._spelled(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(self._given, namespace)

    def error(self, message: str) -> NoReturn:
        known = self._known()
        given = [word.split("=")[0] for word in self._given if word.startswith("--")]
        near = {flag: nearest(flag, known, n=1) for flag in given if flag not in known}
        hints = [f"{flag}: did you mean {hit[0]}?" for flag, hit in near.items() if hit]
        self.exit(EXIT_SETTINGS, safe("; ".join([f"error: {message}", *hints, "--help shows all flags"])) + "\n")

    def _known(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def _spelled(self, word: str) -> str:
        """`--in_file=x` as the known flag `--in-file=x`; anything else unchanged."""
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag in self._known():
            return word
        same = [known for known in self._known() if known.replace("_", "-") == flag.replace("_", "-")]
        return same[0] + equals + value if same else word


@kept_output()
def run(command: Callable[[argparse.Namespace], None], parser: Parser, argv: Sequence[str] | None) -> int:
    """Parse `argv` and run `command`; returns the exit code. A UserError becomes one message on stderr."""
    args = parser.parse_args(argv)
    return guarded(lambda: command(args))


def guarded(command: Callable[[], None]) -> int:
    """Run `command`; returns the exit code. A UserError becomes one message on stderr."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_DONE
