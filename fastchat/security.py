"""Files that somebody hands us: a folder that must not make us open files elsewhere, YAML that must not surprise us.

A configuration names its files beside itself. `{"tokenizer_file": "/home/me/.ssh/id_rsa"}` or `"../../x"` would make a
library open them. Links inside the folder are the user's own doing (the hub's cache is made of them) and are followed.
Needs only the standard library.
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

# Keys whose values are opened as files, beside every key that ends in one of _ENDINGS.
_KEYS = ("weight_map", "transformers_weights", "fast_tokenizer_files")
_ENDINGS = ("_file", "_files")
# Left in published tokenizers by the machine that made them; no library opens it.
_NEVER_OPENED = ("special_tokens_map_file",)

# For some model types (qwen2) AutoTokenizer takes its own class whatever tokenizer_config.json names, but for folders
# that claim to bring code. A claim without code makes it use the class that is named; asked to trust it, it fails.
NO_CODE = "no_code_here_leave_trust_remote_code_out.PreTrainedTokenizerFast"


def brings_code(config: dict[str, Any]) -> bool:
    """Whether a `tokenizer_config.json` names a tokenizer class in a Python file of its own."""
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
    """What `path` is where reading it could wait, or go on, for ever; "" for files, folders, and what is not there.

    >>> special_kind("/dev/zero"), special_kind("/dev"), special_kind("/nowhere")
    ('a character device', '', '')
    """
    try:
        mode = os.stat(Path(path).expanduser()).st_mode
    except (OSError, ValueError):
        return ""
    return next((name for is_kind, name in _SPECIAL if is_kind(mode)), "")


def check_references(folder: str | Path) -> None:
    """SettingsError where a JSON file of a model, tokenizer or adapter folder names a file outside of it, or where a
    pipe, a socket or a device stands in it: opening one may never return.

    What names another model (`base_model_name_or_path`, `_name_or_path`, `auto_map`) is no file to open.
    """
    root = Path(folder).expanduser()
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if kind := special_kind(path):
            raise SettingsError(f"{path} is {kind}, no file; nothing of this folder was opened. Remove it.")
    for path in sorted(root.glob("*.json")):
        if path.name in ("tokenizer.json", "vocab.json", "training.json"):
            continue  # large, and made of words
        try:
            content = read_json(path, constants=True)
        except (OSError, JsonError):
            continue  # whoever needs the file says what is wrong with it
        for key, value in _named_files(content):
            if _leaves(value):
                raise SettingsError(
                    f"{path} points outside its folder: {key} is {value[:200]!r}. Nothing was opened; remove the key, "
                    "or put the file into the folder and name it without a path."
                )


def _named_files(content: Any) -> Iterator[tuple[str, str]]:
    """(key, value) of every text that names a file, at any depth."""
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
    """Whether a file's name leads out of the folder it stands in, as any system reads it.

    >>> _leaves("model-00001-of-00002.safetensors"), _leaves("../x"), _leaves("~/x"), _leaves("C:/x")
    (False, True, True, True)
    """
    if "://" in name or name.startswith("~") or "\0" in name:
        return True
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    return any(kind.is_absolute() or kind.anchor or ".." in kind.parts for kind in kinds)


def load_yaml(path: str | Path, what: str) -> Any:
    """What a YAML file holds: plain values only. SettingsError, beginning with `what`: missing, not YAML, a key given
    twice in one mapping, or an alias of a list or mapping (nine of them make gigabytes).
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader keeps the last of two equal keys without a word, and follows every alias; this one refuses."""

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

    # As everyone means it, at any depth; YAML 1.1 wants a point and a sign. (No long numbers: commits look like that.)
    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE]([-+][0-9]+|[0-9]{1,2})$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    if kind := special_kind(path):
        raise SettingsError(f"{what} {path} cannot be read: it is {kind}, no file")
    try:
        return yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{what} {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SettingsError(f"{what} {path} is nested too deeply") from None
