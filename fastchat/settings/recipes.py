"""`fastchat recipes`: list the built-in recipes, show one, or copy one to change it.

fastchat recipes
fastchat recipes show qwen2.5-7b-lora
fastchat recipes copy qwen2.5-7b-lora my.yaml
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from fastchat.errors import EXIT_DONE, SettingsError, UserError, nearest, show
from fastchat.files import write_text
from fastchat.settings.help import asked_for_help, help_head
from fastchat.settings.recipe_files import RECIPES, find_recipe

_USAGE = "fastchat recipes [show NAME | copy NAME FILE.yaml]"
_EXAMPLES = (
    "fastchat recipes                                 # the list",
    "fastchat recipes show qwen2.5-7b-lora",
    "fastchat recipes copy qwen2.5-7b-lora my.yaml    # change it, then: fastchat train my.yaml",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        show(_answer(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def _answer(words: list[str]) -> str:
    if asked_for_help(words) is not None:
        head = help_head(_USAGE, "List the built-in recipes, show one, or copy one to change it.", _EXAMPLES)
        return "\n".join([*head, "", "Recipes:", textwrap.indent(_listed(), "  ")])
    if words in ([], ["list"]):
        return _listed()
    command, *given = words
    if command == "show" and len(given) == 1:
        return find_recipe(given[0]).read_text(encoding="utf-8").rstrip("\n")
    if command == "copy" and len(given) == 2:
        return _copy(given[0], Path(given[1]).expanduser())
    raise SettingsError(_problem(command, given))


def _problem(command: str, given: list[str]) -> str:
    """What is wrong with the words of a command that cannot be run."""
    if command not in ("show", "copy"):
        hint = f"to see it: fastchat recipes show {command}; " if (RECIPES / f"{command}.yaml").is_file() else ""
        close = "".join(f"did you mean {name}? " for name in nearest(command, ("list", "show", "copy"), n=1))
        return f"recipes has no command {command!r}; {hint or close}usage: {_USAGE}"
    if not given:
        return f"recipes {command}: the name of a recipe is missing; fastchat recipes lists them"
    name = find_recipe(given[0]).stem
    if len(given) == 1:
        return f"recipes copy: the name of the new file is missing: fastchat recipes copy {name} my.yaml"
    return f"recipes {command}: {' '.join(given[1 if command == 'show' else 2 :])!r} is too much; usage: {_USAGE}"


def _listed() -> str:
    found = {path.stem: what(path) for path in sorted(RECIPES.glob("*.yaml"))}
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in found.items())


def what(path: Path) -> str:
    """The first sentence of a recipe's header: `# What: ...`, over the lines that it takes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    found = re.search(r"What:\s+(.*?)(?:\.\s|\s+Needs:|$)", head)
    return found.group(1).rstrip(".") if found else ""


def _copy(name: str, target: Path) -> str:
    found = find_recipe(name)
    # Its own launch command becomes that of the copy.
    text = found.read_text(encoding="utf-8").replace(f"fastchat train {found.stem}", f"fastchat train {target}")
    if target.is_dir():
        raise SettingsError(f"{target} is a folder; give the name of the new file, such as {target / 'my.yaml'}")
    if target.exists():
        raise SettingsError(f"{target} exists already; choose another name, or remove it first")
    if not target.resolve().parent.is_dir():
        raise SettingsError(f"{target}: there is no folder {target.resolve().parent}; create it first")
    try:
        write_text(target, text)
    except OSError as error:
        raise SettingsError(f"{target} cannot be written ({error.strerror or error})") from None
    return f"copied to {target}; change it, then run: fastchat train {target}"


if __name__ == "__main__":
    sys.exit(main())
