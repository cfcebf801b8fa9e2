"""The conversation template of a recommended recipe: one that training itself would choose or suggest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastchat.conversation import suggest_templates
from fastchat.conversation.registry import DEFAULT_TEMPLATE
from fastchat.errors import SettingsError
from fastchat.files import JsonError, read_json
from fastchat.plan.known import SIZES, architecture_of_size
from fastchat.plan.model_files import find_folder

_BASES = frozenset(architecture_of_size(size).name for size in SIZES)
_UNKNOWN = (
    "# conv_template is left out, because the tokenizer's files are missing or have an unknown format. Training "
    "chooses one, or suggests those that fit."
)


def template_line(model: str, cache_dir: str | None = None) -> str:
    """The line of a recipe for `model` (a folder, or a hub name that may be in `cache_dir`): the setting, or a
    comment that says why it is missing.

    The Llama-2 bases use the documented template; a tokenizer with a chat template keeps it.

    >>> template_line("meta-llama/Llama-2-7b-hf"), template_line("google/gemma-1.1-2b-it")
    ('conv_template: vicuna_v1.1', 'conv_template: gemma')
    """
    if model in _BASES:
        return f"conv_template: {DEFAULT_TEMPLATE}"
    folder, name = find_folder(model, cache_dir), Path(model).name
    tokenizer = _tokenizer(folder) if folder else None
    vocabulary, own = tokenizer or (set(), None)
    fits = suggest_templates(vocabulary, own, name)
    if own:
        fits = ["tokenizer", *(name for name in fits if name != "tokenizer")]
    if not fits:
        return f"conv_template: {DEFAULT_TEMPLATE}" if tokenizer else _UNKNOWN
    others = f" # others that fit: {', '.join(fits[1:4])}" if fits[1:] else ""
    return f"conv_template: {fits[0]}{others}"


def _tokenizer(folder: Path) -> tuple[set[str], str | None] | None:
    """(all tokens, the Jinja chat template or None); None if the folder has no tokenizer.json, or files of an unknown
    format."""
    spec = _read(folder / "tokenizer.json")
    if spec is None:
        return None
    try:
        listed, added = spec["model"]["vocab"], spec.get("added_tokens") or []
        tokens = {str(entry[0]) if isinstance(entry, list) else str(entry) for entry in listed}
        tokens |= {str(token["content"]) for token in added}
        own = _chat_template(folder)
    except (LookupError, TypeError, UnicodeDecodeError):
        return None
    return tokens, own


def _chat_template(folder: Path) -> str | None:
    """The tokenizer's chat template; of several, the one named "default". Raises TypeError if it is not a string."""
    jinja = folder / "chat_template.jinja"
    own = jinja.read_text(encoding="utf-8") if jinja.is_file() else None
    own = own or (_read(folder / "tokenizer_config.json") or {}).get("chat_template")
    if isinstance(own, list):
        own = next((entry["template"] for entry in own if entry["name"] == "default"), None)
    if own is not None and not isinstance(own, str):
        raise TypeError(f"a chat template of type {type(own).__name__}")
    return own


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = read_json(path, constants=True)
    except (OSError, JsonError) as problem:
        raise SettingsError(f"{path} cannot be read: {problem}") from None
    return content if isinstance(content, dict) else None
