"""Where a recipe or a DeepSpeed configuration is (a file, or the name of one that the package brings), and what a
recipe holds.

Both are package data, so that they are there wherever the package was installed. A checkout shows them in `playground/`
too; paths that begin there are found from any folder.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import fastchat
from fastchat.errors import SettingsError, nearest, say
from fastchat.files import JsonError, read_json, read_object
from fastchat.security import load_yaml, special_kind
from fastchat.settings.parsing import check_home

_PACKAGE = Path(fastchat.__file__).resolve().parent
RECIPES = _PACKAGE / "recipes"
DEEPSPEED_CONFIGS = _PACKAGE / "deepspeed_configs"
_ENDINGS = (".yaml", ".yml")
_SHOWN_IN = PurePath("playground")  # the folder of a checkout whose paths documents and recipes name


def find_recipe(name: str) -> Path:
    """The file of a recipe. SettingsError names the recipes that look like one that is not there.

    >>> find_recipe("gemma-2b-it").name, find_recipe("gemma-2b-it.yml").name, find_recipe("my/own.yaml").name
    ('gemma-2b-it.yaml', 'gemma-2b-it.yaml', 'own.yaml')
    """
    path = Path(check_home(name, "recipe")).expanduser()
    if path.is_file():
        return path
    _refuse_special(path)
    stem = path.name.removesuffix(path.suffix) if path.suffix in _ENDINGS else path.name
    ours = RECIPES / f"{stem}.yaml"
    if path.parent in (Path(), _SHOWN_IN / "recipes") and ours.is_file():
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


def find_deepspeed_config(name: str, *, tell: bool = True) -> Path:
    """The file of a DeepSpeed configuration: a path, or the name of one that the package brings, from any folder.

    `tell` says in one line when it is the package's. SettingsError names those that look like one that is not there.

    >>> find_deepspeed_config("deepspeed_config_s3").name
    'deepspeed_config_s3.json'
    """
    path = Path(name).expanduser()
    _refuse_special(path)
    if path.exists():
        return path
    stem = path.name.removesuffix(".json")
    ours = DEEPSPEED_CONFIGS / f"{stem}.json"
    if path.parent in (Path(), _SHOWN_IN) and ours.is_file():
        if tell:
            say(f"--deepspeed {name}: {ours}")
        return ours
    known = sorted(p.stem for p in DEEPSPEED_CONFIGS.glob("*.json"))
    close = nearest(stem, known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"by name there are {', '.join(known)}"
    raise SettingsError(f"--deepspeed {name} cannot be read: there is no such file; {hint}")


def read_deepspeed_config(name: str, *, tell: bool = True) -> dict[str, Any]:
    """What a DeepSpeed configuration holds; `name` and `tell` as for `find_deepspeed_config`. Raises SettingsError."""
    try:
        return read_object(find_deepspeed_config(name, tell=tell))
    except OSError as error:
        raise SettingsError(f"--deepspeed {name} cannot be read: {error}") from None
    except JsonError as error:
        raise SettingsError(f"--deepspeed {name}: {error}") from None


def _refuse_special(path: Path) -> None:
    if kind := special_kind(path):
        raise SettingsError(f"{path} is {kind}; give a file")
