"""HTML pages that are one file: no request leaves them, and texts of users stay texts. Standard library only.

A page is a shell with {{NAME}} in the places of its parts. Its style and its script are inline and allowed by their
hashes, and the Content-Security-Policy of the shell blocks everything else.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from fastchat.files import sha256_of_text

_PLACE = re.compile(r"\{\{([A-Z-]+)\}\}")


def safe_json(value: Any) -> str:
    """JSON that can be embedded in a page: ASCII only, without characters that are special in HTML."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def visible(text: str) -> str:
    r"""`text` with characters that are invisible, or change how others are shown, as escapes: `\x1b`, `\u202e`. Line
    ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escaped(value: object) -> str:
    """Any value as text in HTML, inside an element or a quoted attribute.

    >>> escaped('<b a="1">')
    '&lt;b a=&quot;1&quot;&gt;'
    """
    return html.escape(visible(str(value)))


def asset(package: str, *path: str) -> str:
    """The text of a file in a package: a part of a page."""
    return resources.files(package).joinpath(*path).read_text(encoding="utf-8")


def allowed(style: str, script: str) -> dict[str, str]:
    """The parts STYLE and SCRIPT of a shell, and the hashes for its policy that allow them."""
    return {"STYLE": style, "SCRIPT": script, "STYLE-HASH": policy_hash(style), "SCRIPT-HASH": policy_hash(script)}


def filled(shell: str, parts: Mapping[str, str]) -> str:
    """`shell` with its parts; a {{NAME}} inside a part is text.

    >>> filled("<p>{{A}}</p>", {"A": "{{B}}"})
    '<p>{{B}}</p>'
    """
    pieces = _PLACE.split(shell)
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def policy_hash(text: str) -> str:
    """The hash of an inline style or script, as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(bytes.fromhex(sha256_of_text(text))).decode()
