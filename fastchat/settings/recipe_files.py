"""Where a recipe is (a file, or the bare name of one in the checkout's `playground/recipes`), and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError, nearest, say
from fastchat.files import JsonError, read_json
from fastchat.security import load_yaml
from fastchat.settings.typed import check_home

CHECKOUT = Path(__file__).resolve().parents[2]
RECIPES = CHECKOUT / "playground" / "recipes"
_ENDINGS = (".yaml", ".yml")


def find_recipe(name: str) -> Path:
    """The file of a recipe. SettingsError names the recipes that look like one that is not there.

    >>> find_recipe("gemma-2b-it").name, find_recipe("gemma-2b-it.yml").name, find_recipe("my/own.yaml").name
    ('gemma-2b-it.yaml', 'gemma-2b-it.yaml', 'own.yaml')
    """
    path = Path(check_home(name, "recipe")).expanduser()
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


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Name -> value of a recipe: YAML or JSON with a line per setting, or the `training.json` of a run, whose settings
    are then taken as they were.

    SettingsError: missing, not YAML, not a mapping, or a key given twice.
    """
    content = _load_json(path) if Path(path).suffix == ".json" else load_yaml(path, "recipe")
    if content is None:
        return {}
    if isinstance(content, dict) and _is_record(content.get("settings")):
        content = content["settings"]
    if _is_record(content):
        return {name: entry["value"] for name, entry in content.items()}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"recipe {path} must hold `name: value` lines, one per setting")
    return content


def _is_record(settings: Any) -> bool:
    """Whether these are settings as training.json records them: {name: {"value": ..., "from": ...}}."""
    if not isinstance(settings, dict) or not settings:
        return False
    return all(isinstance(entry, dict) and entry.keys() == {"value", "from"} for entry in settings.values())


def _load_json(path: str | Path) -> Any:
    try:
        return read_json(Path(path).expanduser(), unique=True)
    except (OSError, JsonError) as error:
        raise SettingsError(f"recipe {path} cannot be read: {error}") from None


def in_checkout(path: str, *, tell: bool = True) -> Path:
    """A file that a recipe names, such as playground/deepspeed_config_s3.json, from any folder; `tell` says so."""
    here = Path(path).expanduser()
    if here.exists() or here.is_absolute() or not (CHECKOUT / here).is_file():
        return here
    if tell:
        say(f"{path} is not in this folder: taken from {CHECKOUT}")
    return CHECKOUT / here
