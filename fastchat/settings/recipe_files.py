"""Where a recipe is: a file, or the bare name of one in the checkout's `playground/recipes`. No heavy imports."""

from __future__ import annotations

from pathlib import Path

from fastchat.errors import SettingsError, nearest, say

CHECKOUT = Path(__file__).resolve().parents[2]
RECIPES = CHECKOUT / "playground" / "recipes"
_ENDINGS = (".yaml", ".yml")


def find_recipe(name: str) -> Path:
    """The file of a recipe. SettingsError names the recipes that look like one that is not there.

    >>> find_recipe("gemma-2b-it").name, find_recipe("gemma-2b-it.yml").name, find_recipe("my/own.yaml").name
    ('gemma-2b-it.yaml', 'gemma-2b-it.yaml', 'own.yaml')
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    stem = path.name.removesuffix(path.suffix) if path.suffix in _ENDINGS else path.name
    ours = RECIPES / f"{stem}.yaml"
    if path.name == name and ours.is_file():
        return ours
    known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    close = nearest(stem, known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"by name there are {', '.join(known)}"
    raise SettingsError(f"there is no recipe {name}; {hint}")


def in_checkout(path: str, *, tell: bool = True) -> Path:
    """A file that a recipe names, such as playground/deepspeed_config_s3.json, from any folder; `tell` says so."""
    here = Path(path).expanduser()
    if here.exists() or here.is_absolute() or not (CHECKOUT / here).is_file():
        return here
    if tell:
        say(f"{path} is not in this folder: taken from {CHECKOUT}")
    return CHECKOUT / here
