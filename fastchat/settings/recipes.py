"""`fastchat recipes`: list the built-in recipes, show one, or copy one to change it.

fastchat recipes
fastchat recipes show qwen2.5-7b-lora
fastchat recipes copy qwen2.5-7b-lora my.yaml
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fastchat.errors import EXIT_DONE, SettingsError, UserError, show
from fastchat.files import write_text
from fastchat.settings.recipe_files import RECIPES, find_recipe

_USAGE = "usage: fastchat recipes [show NAME | copy NAME FILE.yaml]"


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
    if not words:
        return _listed()
    if words[0] in ("-h", "--help"):
        return f"{_USAGE}\n\nList the built-in recipes, show one, or copy one to change it.\n\n{_listed()}"
    if words[0] == "show" and len(words) == 2:
        return find_recipe(words[1]).read_text(encoding="utf-8").rstrip("\n")
    if words[0] == "copy" and len(words) == 3:
        return _copy(words[1], Path(words[2]).expanduser())
    raise SettingsError(f"recipes {' '.join(words)} is not understood. {_USAGE}")


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
    text = find_recipe(name).read_text(encoding="utf-8")
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
