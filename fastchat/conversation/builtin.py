"""The built-in templates and facts about model families. The data is templates.json, read when it is first needed.

templates   list of tables, each with its origin, in the order in which they are suggested: with the keys of
            `Conversation` if upstream has the template, otherwise with those of `Template`
tokenizer   family -> why only the tokenizer's own template is right for it: for example, it writes the date, or
            renders history differently from how it was generated
remote      names that upstream registered after 0.2.36 for remote APIs
by_name     [words, template]: the template that a model's name suggests; the first entry whose words are all in the
            name counts
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastchat.conversation.styles import SeparatorStyle
from fastchat.conversation.template import Template
from fastchat.conversation.upstream import Conversation
from fastchat.files import read_json

FILE = Path(__file__).with_name("templates.json")


@dataclass(frozen=True)
class Builtin:
    """The content of templates.json."""

    templates: tuple[Conversation | Template, ...]
    origins: dict[str, str]
    tokenizer: dict[str, str]
    remote: tuple[str, ...]
    by_name: tuple[tuple[tuple[str, ...], str], ...]


@lru_cache(maxsize=1)
def builtin() -> Builtin:
    """All of it, read once per process."""
    data = read_json(FILE)
    rows = data["templates"]
    return Builtin(
        tuple(_template(row) for row in rows),
        {row["name"]: row["origin"] for row in rows},
        data["tokenizer"],
        tuple(data["remote"]),
        tuple((tuple(words), name) for words, name in data["by_name"]),
    )


def _template(row: dict[str, Any]) -> Conversation | Template:
    if "user" in row:
        return Template.from_dict(row, f"{FILE.name}: ")
    style = row["sep_style"]  # null: the name belongs to a remote API
    values = {key: value for key, value in row.items() if key not in ("origin", "sep_style")}
    return Conversation(**values, sep_style=None if style is None else SeparatorStyle[style])
