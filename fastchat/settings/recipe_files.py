"""Finds and reads recipes and DeepSpeed configurations: files, or names of those that are part of the package.

They are package data, so they are available wherever the package is installed. A checkout also has them in
`playground/`; such paths are found from any folder.
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
_NO_RECIPE = "`fastchat recipes` lists the built-in ones, and `fastchat recipes copy NAME my.yaml` copies one to change"
_DATA_ENDINGS = (".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz")
_DATA = "if these are your conversations, pass the file as --data_path"
_SHOWN_IN = PurePath("playground")  # the folder of a checkout whose paths documents and recipes name


def find_recipe(name: str) -> Path:
    """The file of a recipe. Raises SettingsError that suggests similar names if there is none.

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
    here = [p.name for ending in _ENDINGS for p in sorted(path.parent.glob(f"*{ending}"))]
    close = nearest(stem, known) or nearest(path.name, here, cutoff=0.7)
    hint = f"did you mean {' or '.join(close)}?" if close else _NO_RECIPE
    raise SettingsError(f"there is no recipe {name}; {hint}")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe as name -> value: YAML or JSON with a line per setting, or the `training.json` of a run, to repeat
    it with the same settings.

    Raises SettingsError: missing, not YAML, not a mapping, or a repeated key.
    """
    ending = Path(path).suffix
    if ending in _DATA_ENDINGS:
        raise SettingsError(f"{path} is not a recipe by its name; {_DATA}")
    content = _load_json(path) if ending == ".json" else load_yaml(path, "recipe")
    if content is None:
        return {}
    if isinstance(content, dict) and _is_record(content.get("settings")):
        content = content["settings"]
    if _is_record(content):
        return {name: entry["value"] for name, entry in content.items()}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        hint = f"; {_DATA}" if isinstance(content, list) else ""
        raise SettingsError(f"recipe {path} must consist of `name: value` lines, one per setting{hint}")
    return content


def _is_record(settings: Any) -> bool:
    """Whether these are settings in the form of training.json: {name: {"value": ..., "from": ...}}."""
    if not isinstance(settings, dict) or not settings:
        return False
    return all(isinstance(entry, dict) and entry.keys() == {"value", "from"} for entry in settings.values())


def _load_json(path: str | Path) -> Any:
    try:
        return read_json(Path(path).expanduser(), unique=True)
    except (OSError, JsonError) as error:
        raise SettingsError(f"recipe {path} cannot be read: {error}") from None


def find_deepspeed_config(name: str, *, tell: bool = True) -> Path:
    """The file of a DeepSpeed configuration: a path, or the name of one in the package, from any folder.

    `tell`: print the path if it is in the package. Raises SettingsError that suggests similar names if there is none.

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
    hint = f"did you mean {' or '.join(close)}?" if close else f"built-in configurations: {', '.join(known)}"
    raise SettingsError(f"--deepspeed {name} cannot be read: there is no such file; {hint}")


def read_deepspeed_config(name: str, *, tell: bool = True) -> dict[str, Any]:
    """Read a DeepSpeed configuration; `name` and `tell` as for `find_deepspeed_config`. Raises SettingsError."""
    try:
        return read_object(find_deepspeed_config(name, tell=tell))
    except OSError as error:
        raise SettingsError(f"--deepspeed {name} cannot be read: {error}") from None
    except JsonError as error:
        raise SettingsError(f"--deepspeed {name}: {error}") from None


def _refuse_special(path: Path) -> None:
    if kind := special_kind(path):
        raise SettingsError(f"{path} is {kind}; give a file")
