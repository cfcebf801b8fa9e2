"""The messages that were typed in earlier chats, for the arrow keys and Ctrl-R.

    $XDG_STATE_HOME/fschat/chat_history, else ~/.local/state/fschat/chat_history

One JSON string per line, oldest first. Only the user can read the file, and what looks like a password or token is not
written into it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History

from fastchat import files
from fastchat.errors import say, without_secrets

MAX_BYTES = 1 << 20  # a longer file is shortened to its newer half
# Tokens by the prefixes that their services give them; a private key; a value after a name such as password=.
_SECRETS = re.compile(
    r"(?P<name>(?:token|passwd|password|secret|api[_-]?key)[\"']?\s*[=:]\s*)\S+"
    r"|\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AKIA|AIza|eyJ)[\w.-]{12,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.S | re.I,
)


def history_file() -> Path:
    """Where the history is kept."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "fschat" / "chat_history"


class InputHistory(History):
    """prompt_toolkit's history in a file. If the file cannot be used, this is said once and the chat goes on."""

    def __init__(self, path: Path):
        super().__init__()
        self._path: Path | None = path

    def load_history_strings(self) -> Iterable[str]:
        """The entries, newest first. Lines that are not a JSON string are skipped."""
        try:
            lines = self._path.read_bytes().splitlines() if self._path else []
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(error)
            return
        for line in reversed(lines):
            try:
                entry = files.parse_json(line)
            except files.JsonError:
                continue
            if isinstance(entry, str):
                yield entry

    def store_string(self, string: str) -> None:
        """Append an entry."""
        if self._path is None:
            return
        line = json.dumps(without_tokens(string)).encode() + b"\n"
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._shorten(self._path)
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(handle, 0o600)
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            self._give_up(error)

    def _shorten(self, path: Path) -> None:
        if not path.exists() or path.stat().st_size <= MAX_BYTES:
            return
        data = path.read_bytes()
        with files.atomic(path, "wb", durable=False) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data[data.find(b"\n", len(data) // 2) + 1 :])

    def _give_up(self, error: OSError) -> None:
        say(f"(the history of messages is not kept: {self._path}: {error.strerror})")
        self._path = None


def without_tokens(text: str) -> str:
    """`text` with *** in place of what looks like a secret.

    >>> without_tokens("use hf_abcdefghijklmnop and token=12345")
    'use *** and token=***'
    """
    return _SECRETS.sub(lambda found: f"{found['name'] or ''}***", without_secrets(text))
