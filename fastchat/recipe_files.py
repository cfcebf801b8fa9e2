"""Where recipes and DeepSpeed configurations are: files of one's own, or by name those that the package brings.

`playground/` of a checkout shows copies of the same files. No heavy imports.
"""

from __future__ import annotations

from pathlib import Path, PurePath

import fastchat
from fastchat.errors import SettingsError, nearest, say
from fastchat.security import special_kind

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
    path = Path(name).expanduser()
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


def _refuse_special(path: Path) -> None:
    if kind := special_kind(path):
        raise SettingsError(f"{path} is {kind}; give a file")
