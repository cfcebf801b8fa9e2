"""Tokenising in a process of its own while the run imports torch and transformers, which takes seconds on one core.

    EARLY.start(request)              as soon as the settings have been checked
    ...                               the imports, the tokenizer, the template
    EARLY.has_made("train", key)      waits for that process; then the tokens are in the cache

That process (early_process.py) needs neither library: it puts the tokens into the cache, under the key made of all that
they depend on. The run then asks the cache as usual. So whatever goes wrong there, the run does the work itself,
and it alone reports errors. The process sends one JSON object per line: {"name", "key", "total"} when it begins with
the data of that name, {"done", "note"} after each batch, and {"made"} at its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fastchat
from fastchat import files
from fastchat.bars import bar
from fastchat.data.tokens.known import FOLDER as KNOWN
from fastchat.one_thread import NO_LIBRARY_THREADS, NO_TOKENIZER_THREADS
from fastchat.streams import detail

_ENDS_WITHIN_S = 5.0


@dataclass(frozen=True)
class EarlyRequest:
    """What to tokenise: all that decides the ids, as JSON.

    Attributes:
        model: the folder with `tokenizer.json`.
        template, template_file, train_on: the settings conv_template, conv_template_file and train_on.
        data: what is read, in order: (name, [(name of the source, its files), ...]).
        settings: the fields of `TokenSettings`; the columns as the settings data_columns and data_roles.
        cache: the folder of the cache.
        processes: how many will tokenise.
    """

    model: str
    template: str | None
    template_file: str | None
    train_on: str
    data: Sequence[tuple[str, Sequence[tuple[str, Sequence[str]]]]]
    settings: dict[str, Any]
    columns: tuple[Any, Any]
    cache: str
    processes: int

    def note(self) -> Path:
        """The file that says which entries this request has led to, for the files as they are now. Raises OSError."""
        read = [self.model, *(os.path.join(self.model, name) for name in sorted(os.listdir(self.model)))]
        read += [self.template_file] if self.template_file else []
        read += [file for _, sources in self.data for _, names in sources for file in names]
        states = [(path, (found := os.stat(path)).st_ino, found.st_size, found.st_mtime_ns) for path in read]
        asked = {name: value for name, value in asdict(self).items() if name != "processes"}
        return Path(self.cache) / KNOWN / files.sha256_of_json([asked, states])[:32]


def what_is_done(name: str, processes: int) -> str:
    """What the progress bar says."""
    return f"tokenising {name} data" + (f" ({processes} processes)" if processes > 1 else "")


class EarlyTokens:
    """The process that tokenises ahead, if there is one. One per process: `EARLY`."""

    def __init__(self) -> None:
        self._request: EarlyRequest | None = None
        self._process: subprocess.Popen[str] | None = None
        self._keys: dict[str, str] = {}
        self._began = 0.0

    def start(self, request: EarlyRequest) -> None:
        """Start it, unless the tokens are in the cache already by the note of an earlier start."""
        self.stop()
        self._request, self._keys, self._began = request, {}, time.monotonic()
        if not request.settings["overwrite"] and _all_cached(request):
            return
        own: dict[str, str] = {}
        if request.processes > 1:  # without threads it may fork its workers
            own = NO_LIBRARY_THREADS | NO_TOKENIZER_THREADS
        inherited = {
            name: text for name, text in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        }
        with suppress(OSError):  # no process can be started: the run does it later
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fastchat.data.tokens.early_process"],
                cwd=Path(fastchat.__file__).parents[1],
                env=inherited | own,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(asdict(request)))
            self._process.stdin.close()

    def has_made(self, name: str, key: str) -> bool:
        """Wait for the entry `key` with the data `name`; returns whether that process has just made it."""
        if self._request is None:
            return False
        made = self._process is not None and self._wait(self._request, name, key)
        self._keys[name] = key
        with suppress(OSError):
            note = self._request.note()
            note.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(note, json.dumps(self._keys), durable=False)
        return made

    def _wait(self, request: EarlyRequest, name: str, key: str) -> bool:
        messages = self._messages()
        begun = next((message for message in messages if message.get("name") == name), None)
        if begun is not None and begun["key"] == key:
            with bar(what_is_done(name, request.processes), begun["total"], since=self._began) as progress:
                for message in messages:
                    if "made" in message:
                        return bool(message["made"])
                    progress.to(message["done"], message["note"])
        self._end()
        detail(f"the {name} data was not tokenised during the imports")
        return False

    def _messages(self) -> Iterator[dict[str, Any]]:
        assert self._process is not None and self._process.stdout is not None
        while line := self._process.stdout.readline():
            with suppress(files.JsonError):  # the last line of a process that was killed
                yield files.parse_json(line)

    def stop(self) -> None:
        """The run has ended, or begins: end the process of before, if it still runs."""
        self._request = None
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _all_cached(request: EarlyRequest) -> bool:
    """Whether the entries that a start with the same files and settings has used are still there."""
    try:
        keys = files.read_object(request.note())
    except (OSError, files.JsonError):
        return False
    names = [name for name, _ in request.data]
    return all(name in keys and (Path(request.cache) / str(keys[name])).is_dir() for name in names)


EARLY = EarlyTokens()
