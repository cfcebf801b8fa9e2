"""What the commands share: a parser with the help and the errors of the settings, and errors as one message."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastchat.data.view.terminal import safe
from fastchat.errors import EXIT_DONE, EXIT_SETTINGS, UserError, nearest
from fastchat.settings.help import entry, help_head
from fastchat.streams import kept_output, quiet_libraries

_FORMS = {"int": "INTEGER", "float": "NUMBER"}
EXIT_INTERRUPTED = 130  # the exit code of a shell for a command that Ctrl-C ended


class Parser(argparse.ArgumentParser):
    """Accepts flags with - or _, suggests the nearest flag for an unknown one, and writes help as the settings do.

    Flags cannot be abbreviated: `--data` could silently change its meaning when another flag with that prefix is added.
    """

    def __init__(self, examples: Sequence[str] = (), **settings: Any):
        """`examples`: complete command lines, which the help shows first."""
        super().__init__(allow_abbrev=False, **settings)
        self.examples = examples
        self._given: list[str] = []

    def format_help(self) -> str:
        lines = help_head(self._usage(), self.description or "", self.examples)
        for title, members in self._sections():
            lines += ["", title] if members and title else [""] if members else []
            for action in members:
                lines += entry(self._left_side(action) + self._default(action), self._explained(action))
        return "\n".join([*lines, *(["", self.epilog] if self.epilog else [])]) + "\n"

    def _sections(self) -> list[tuple[str, list[argparse.Action]]]:
        """Title -> its arguments: positional ones, flags, and those of each `add_argument_group`."""
        positional, flags, *groups = self._action_groups
        own = [(f"{group.title}:", group) for group in groups]
        sections = [("", positional), ("Flags:", flags), *own]
        return [(title, [a for a in group._group_actions if a.dest != "help"]) for title, group in sections]

    def format_usage(self) -> str:
        return f"usage: {self._usage()}\n"

    def _usage(self) -> str:
        words = [self.prog]
        for action in self._actions:
            if not action.option_strings:
                name = str(action.metavar or action.dest) + (" ..." if action.nargs == "+" else "")
                words.append(f"[{name}]" if action.nargs == "?" else name)
            elif action.required:
                words.append(self._left_side(action))
        return " ".join(words) + (" [--flag value ...]" if any(not a.required for a in self._flags()) else "")

    def _flags(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.option_strings and action.dest != "help"]

    def _left_side(self, action: argparse.Action) -> str:
        """A flag with the form of its value: `--ratio NUMBER`."""
        if not action.option_strings:
            return str(action.metavar or action.dest)
        form = action.metavar or ("|".join(map(str, action.choices)) if action.choices else _form(action.type))
        value = "" if action.nargs == 0 else f" {form or 'TEXT'}{' ...' if action.nargs == '+' else ''}"
        return action.option_strings[0] + value

    def _default(self, action: argparse.Action) -> str:
        unset = action.default is None or action.default is False or action.default == []
        return "" if unset else f" (default {action.default})"

    def _explained(self, action: argparse.Action) -> str:
        names = {flag.replace("_", "-"): flag for flag in action.option_strings}  # flags take - and _ alike
        also = f" (also {', '.join(list(names.values())[1:])})" if len(names) > 1 else ""
        return (action.help or "").replace("%%", "%") + also

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = [self._spelled(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(self._given, namespace)

    def error(self, message: str) -> NoReturn:
        """End the command with one line: what is wrong, which flags were meant, and where all of them are shown."""
        missing = "the following arguments are required: "
        if message.startswith(missing):
            names = [name.partition("/")[0] for name in message.removeprefix(missing).split(", ")]
            message = f"{' and '.join(names)} missing; usage: {self._usage()}"
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


def _form(kind: Any) -> str | None:
    """What a flag of this type takes: the type itself, or a function with a return annotation that checks a value."""
    returned = getattr(kind, "__annotations__", {}).get("return", kind)
    return _FORMS.get(getattr(returned, "__name__", returned))


@kept_output()
def run(command: Callable[[argparse.Namespace], None], parser: Parser, argv: Sequence[str] | None) -> int:
    """Parse `argv` and run `command`; returns the exit code. A UserError becomes one message on stderr."""
    args = parser.parse_args(argv)
    quiet_libraries()
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
