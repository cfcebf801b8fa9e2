"""Untrusted files: model folders that must not make us open files elsewhere, and YAML without surprises.

A configuration names files in its own folder. `{"tokenizer_file": "/home/me/.ssh/id_rsa"}` or `"../../x"` would make a
library open other files. Links inside the folder were made by the user (the hub's cache consists of them) and are
followed. Needs only the standard library.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fastchat.errors import SettingsError
from fastchat.files import JsonError, read_json

# Keys with values that are opened as files, in addition to every key that ends in one of _ENDINGS.
_KEYS = ("weight_map", "transformers_weights", "fast_tokenizer_files")
_ENDINGS = ("_file", "_files")
# Left in published tokenizers by the machine that saved them; no library opens it.
_NEVER_OPENED = ("special_tokens_map_file",)

# For some model types (qwen2) AutoTokenizer uses its own class whatever tokenizer_config.json names, except for folders
# that claim to contain code. If the code is missing, it uses the class that is named; with trust_remote_code it fails.
NO_CODE = "no_code_here_leave_trust_remote_code_out.PreTrainedTokenizerFast"


def brings_code(config: dict[str, Any]) -> bool:
    """Whether a `tokenizer_config.json` names a tokenizer class in a Python file of the model folder."""
    places = config.get("auto_map") or {}
    named = places.get("AutoTokenizer") if isinstance(places, dict) else places
    return any(name and name != NO_CODE for name in ([named] if isinstance(named, str) else named or []))


_SPECIAL = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def special_kind(path: str | Path) -> str:
    """The kind of `path` if reading it could block or never end; "" for files, folders, and missing paths.

    >>> special_kind("/dev/zero"), special_kind("/dev"), special_kind("/nowhere")
    ('a character device', '', '')
    """
    try:
        mode = os.stat(Path(path).expanduser()).st_mode
    except (OSError, ValueError):
        return ""
    return next((name for is_kind, name in _SPECIAL if is_kind(mode)), "")


def check_references(folder: str | Path) -> None:
    """Check a model, tokenizer or adapter folder. Raises SettingsError if one of its JSON files names a file outside
    the folder, or if the folder contains a pipe, a socket or a device: opening one may never return.

    Keys that name another model (`base_model_name_or_path`, `_name_or_path`, `auto_map`) are not checked.
    """
    root = Path(folder).expanduser()
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if kind := special_kind(path):
            raise SettingsError(f"{path} is {kind}, not a file; no file of this folder was opened. Remove it.")
    for path in sorted(root.glob("*.json")):
        if path.name in ("tokenizer.json", "vocab.json", "training.json"):
            continue  # large, and contains only tokens
        try:
            content = read_json(path, constants=True)
        except (OSError, JsonError):
            continue  # the code that needs the file reports the problem
        for key, value in _named_files(content):
            if _leaves(value):
                raise SettingsError(
                    f"{path} points outside its folder: {key} is {value[:200]!r}. Nothing was opened; remove the key, "
                    "or move the file into the folder and give its name without a path."
                )


def _named_files(content: Any) -> Iterator[tuple[str, str]]:
    """(key, value) of every string that names a file, at any depth."""
    waiting = [(content, "")]
    while waiting:
        value, key = waiting.pop()
        if isinstance(value, dict):
            inherits = key in _KEYS
            waiting += [(inner, key if inherits else str(name)) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(inner, key) for inner in value]
        elif isinstance(value, str) and key not in _NEVER_OPENED and (key in _KEYS or key.endswith(_ENDINGS)):
            yield key, value


def _leaves(name: str) -> bool:
    """Whether a file name leads out of the folder that contains it, on any operating system.

    >>> _leaves("model-00001-of-00002.safetensors"), _leaves("../x"), _leaves("~/x"), _leaves("C:/x")
    (False, True, True, True)
    """
    if "://" in name or name.startswith("~") or "\0" in name:
        return True
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    return any(kind.is_absolute() or kind.anchor or ".." in kind.parts for kind in kinds)


def load_yaml(path: str | Path, what: str) -> Any:
    """Read a YAML file with plain values only. Raises SettingsError, beginning with `what`, if it is missing, not
    YAML, repeats a key in a mapping, or has an alias of a list or mapping (nine of them can make gigabytes).
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader silently keeps the last of two equal keys, and follows every alias; this loader refuses both."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            mark = self.peek_event().start_mark if self.check_event(yaml.AliasEvent) else None
            node = super().compose_node(parent, index)
            if mark is not None and not isinstance(node, yaml.ScalarNode):
                raise SettingsError(f"{path}:{mark.line + 1}: an alias of a list or mapping; write the value itself")
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: dict[str, int] = {}
            for key_node, _ in node.value:
                key, line = str(key_node.value), key_node.start_mark.line + 1
                if key in seen:
                    raise SettingsError(f"{path}:{line}: {key} is given twice (first on line {seen[key]}); keep one")
                seen[key] = line
            return super().construct_mapping(node, deep)

    # Read 1e-5 as a number, at any depth; YAML 1.1 requires a point and a sign. (Not long ones: they may be commits.)
    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE]([-+][0-9]+|[0-9]{1,2})$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    if kind := special_kind(path):
        raise SettingsError(f"{what} {path} cannot be read: it is {kind}, not a file")
    try:
        return yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{what} {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SettingsError(f"{what} {path} is nested too deeply") from None
