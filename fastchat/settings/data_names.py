"""Settings of other programs that name columns and roles of the data, as `data_columns` and `data_roles`."""

from __future__ import annotations

from typing import Any

from fastchat.settings.fields import Translate
from fastchat.settings.foreign import yaml_text

# Settings that name one column, and the key of `data_columns` for it.
_COLUMNS = {
    "field_messages": "messages", "message_field_role": "role", "message_field_content": "content",
    "field_tools": "tools", "field_system": "system", "field_thinking": "reasoning_content",
    "message_field_training": "train", "dataset_text_field": "text", "text_column": "text", "field": "text",
    "field_instruction": "instruction", "field_input": "input", "field_output": "output",
    "field_human": "prompt", "field_model": "completion",
}  # fmt: skip


def _column(ours: str) -> Translate:
    """A name of one column."""
    return lambda raw: f"data_columns: {{{ours}: {yaml_text(raw)}}}"


def _columns(raw: Any) -> str:
    """axolotl's mapping of the keys of a turn; the key is ours there too."""
    pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in raw.items()) if isinstance(raw, dict) else "OURS: THEIRS"
    return f"data_columns: {{{pairs}}}"


COLUMNS: dict[str, Translate] = {
    **{name: _column(ours) for name, ours in _COLUMNS.items()},
    "message_property_mappings": _columns,
}


def roles(raw: Any) -> str:
    """axolotl's roles: ours -> a list of the data's names."""
    known = raw.items() if isinstance(raw, dict) else [("user", "NAME")]
    pairs = [(name, ours) for ours, names in known for name in (names if isinstance(names, list) else [names])]
    return f"data_roles: {{{', '.join(f'{name}: {ours}' for name, ours in pairs)}}}"
