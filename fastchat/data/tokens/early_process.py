"""The process that tokenises while a run imports its libraries, see early.py; `early` starts it.

It reads the request from stdin. It ends without a word if anything is wrong, and as soon as nobody reads its messages.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from fastchat.bars import BARS
from fastchat.conversation import use_template_file
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.sources import Source
from fastchat.data.tokens import cache
from fastchat.data.tokens.early import EarlyRequest
from fastchat.data.tokens.prepare import TokenSettings, prepare_job
from fastchat.errors import UserError
from fastchat.files import parse_json


def main() -> int:
    """Fill the cache; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the run as well, which ends this process
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that files and workers are cleaned up
    BARS.wanted = False
    try:
        fill(EarlyRequest(**parse_json(sys.stdin.buffer.read())))
    except (UserError, OSError):  # the run meets the same and reports it; or it has gone
        return 1
    return 0


def fill(request: EarlyRequest) -> None:
    """Tokenise what was requested. Raises UserError, and OSError if the cache cannot be used or nobody reads."""
    encoder, _ = TextEncoder.from_directory(request.model)
    if encoder is None:
        return
    name = use_template_file(request.template_file, request.template)
    chat_encoder = encoder.bind(encoder.choose(name, model_name=Path(request.model).name), request.train_on)
    settings = TokenSettings(**request.settings, columns=Columns(*request.columns))
    for data, named in request.data:
        sources = [Source(source, tuple(files)) for source, files in named]
        key, job, _ = prepare_job(data, sources, chat_encoder, settings, Path(request.cache))
        total = sum(map(os.path.getsize, job.states))
        _send({"name": data, "key": key, "total": total})
        job.on_progress = _send_progress
        _send({"made": cache.make_early(Path(request.cache), key, job, overwrite=settings.overwrite)})


def _send_progress(done: int, note: str) -> None:
    os.set_blocking(1, False)
    try:
        _send({"done": done, "note": note})
    except BlockingIOError:  # the run is not reading yet
        pass
    finally:
        os.set_blocking(1, True)


def _send(message: dict[str, Any]) -> None:
    os.write(1, f"{json.dumps(message)}\n".encode())  # short enough to be written at once or not at all


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
