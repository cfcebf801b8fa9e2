"""`fastchat completion bash|zsh|fish`: the completion script of a shell.

It asks `fastchat completion --words ...` what may follow, so it stays right when commands and settings change.

    eval "$(fastchat completion bash)"     # in ~/.bashrc
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from typing import NoReturn

from fastchat.cli import COMMANDS, DATA_COMMANDS, Command
from fastchat.errors import EXIT_DONE, EXIT_SETTINGS, show
from fastchat.settings.help import asked_for_help, help_head
from fastchat.settings.options import Option
from fastchat.settings.readers import plan_options, preview_options, training_options
from fastchat.settings.recipe_files import RECIPES

# Files are completed by the shell where nothing of ours fits.
SCRIPTS = {
    "bash": """_fastchat() {
  local words
  words="$(fastchat completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)"
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}")
}
complete -o default -F _fastchat fastchat""",
    "zsh": """_fastchat() {
  local -a found
  found=(${(f)"$(fastchat completion --words "${(@)words[2,CURRENT]}" 2>/dev/null)"})
  compadd -a found || _files
}
compdef _fastchat fastchat""",
    "fish": """function __fastchat
  set -l words (commandline -opc) (commandline -ct)
  fastchat completion --words $words[2..-1] 2>/dev/null
end
complete -c fastchat -a '(__fastchat)'""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--words"]:
        show("\n".join(candidates(words[1:])))
        return EXIT_DONE
    if len(words) == 1 and words[0] in SCRIPTS:
        show(SCRIPTS[words[0]])
        return EXIT_DONE
    usage = f"fastchat completion {'|'.join(SCRIPTS)}"
    if asked_for_help(words) is not None:
        about = "Print the completion script of a shell: commands, recipes, settings and their values."
        show("\n".join(help_head(usage, about, ['eval "$(fastchat completion bash)"     # in ~/.bashrc'])))
        return EXIT_DONE
    problem = f"no script for {' '.join(words)!r}" if words else "the name of the shell is missing"
    print(f"error: {problem}; usage: {usage}", file=sys.stderr)
    return EXIT_SETTINGS


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in place of the last of `words`, the words after `fastchat` (the last one may be empty).

    >>> candidates(["ver"])
    ['verify']
    """
    *before, last = words or [""]
    return [word for word in _all(before, last) if word.startswith(last)]


def _all(before: Sequence[str], last: str) -> list[str]:
    if not before:
        return list(COMMANDS)
    command = before[0]
    if command == "data":
        known = DATA_COMMANDS.get(before[1]) if len(before) > 1 else None
        return list(DATA_COMMANDS) if len(before) == 1 else _of_parser(known, before, last)
    if command == "completion":
        return list(SCRIPTS)
    recipes = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if command == "recipes":
        return ["show", "copy"] if len(before) == 1 else recipes if len(before) == 2 else []
    options = {"train": lambda: training_options(True), "plan": plan_options, "preview": preview_options}.get(command)
    if options is None:
        return _of_parser(COMMANDS.get(command), before, last)
    own = import_module(COMMANDS["train"].module) if command == "train" else None
    if last.startswith("-"):
        return [*(f"--{name}" for name in (own.OWN if own else ())), *_named(options())]
    if own and before[-1] == "--launcher":
        return list(own.LAUNCHERS)
    if len(before) == 1:
        return recipes
    choice = next((option for option in options() if f"--{option.name}" == before[-1]), None)
    if choice is None:
        return []
    return ["True", "False"] if choice.is_bool else list(choice.allowed)


def _named(options: Iterable[Option]) -> list[str]:
    return [f"--{option.name}" for option in options if not option.refused]


def _of_parser(command: Command | None, before: Sequence[str], last: str) -> list[str]:
    """The flags of a command that uses argparse, or the choices of its flag that comes before."""
    parser = _parser_of(command) if command is not None else None
    if parser is None:
        return []
    if last.startswith("-"):
        return [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    choosing = next((action for action in parser._actions if before[-1] in action.option_strings), None)
    return [str(choice) for choice in choosing.choices or ()] if choosing else []


class _Found(BaseException):
    """Carries a parser out of the command that is about to use it; no error of the command's own handling."""


def _parser_of(command: Command) -> argparse.ArgumentParser | None:
    """The parser with which a command would read `--help`. Commands make it in their `main`, so that is called."""

    def found(parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        raise _Found(parser)

    real = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = found  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            import_module(command.module).main(["--help"])
    except _Found as carrier:
        return carrier.args[0]
    except SystemExit:  # it has no parser and printed its help
        pass
    finally:
        argparse.ArgumentParser.parse_known_args = real
    return None


if __name__ == "__main__":
    sys.exit(main())
