"""Small chat templates, one for each kind of behaviour that published ones have, and tokenizers that carry them.

The templates are in chat_templates/. A line end after a block is not in what they write.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tests.builders import make_tokenizer

KINDS = {
    path.stem.upper(): path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))
}
_CONTROL = re.compile(
    r"<\|[^<>\s{}]+\|?>|<[^<>\s|{}%]+\|>|\[/?[A-Z]+\]|\[gMASK\]|<sop>|</?(?:think|tool_call|tool_response|arg_key|arg_value)>"
)
_NOT_SPECIAL = re.compile("</?(think|tool_call|tool_response|arg_key|arg_value)>")


@cache
def with_tokens(source: str, directory: Path) -> Path:
    """A tokenizer with a template, and with its control strings as tokens; <think> and the like are not special."""
    path = make_tokenizer("byte_nobos", directory, chat_template=source)
    made: dict[str, Any] = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    known = {token["content"] for token in made["added_tokens"]}
    written = dict.fromkeys(
        [*_CONTROL.findall(source), *re.findall(r"<\|(?:user|assistant|system|sys|usr)\|>", _roles(source))]
    )
    first = max([token["id"] for token in made["added_tokens"]] + list(made["model"]["vocab"].values())) + 1
    for number, content in enumerate(c for c in written if c not in known):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        special = not _NOT_SPECIAL.fullmatch(content)
        made["added_tokens"].append({"id": first + number, "content": content, "special": special, **flags})
    (path / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    return path


def _roles(source: str) -> str:
    """Control strings that a template writes with the role in them."""
    names = (
        ("user", "assistant", "system") if "|{{ m.role }}|" in source else ("sys", "usr") if "'usr'" in source else ()
    )
    return "".join(f"<|{name}|>" for name in names)
