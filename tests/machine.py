"""Ports and waiting for tests, on machines that may be busy."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable


def free_port() -> int:
    """A TCP port that nothing listens on.

    Below those that the kernel gives to outgoing connections (from 32768 on), one of which could take it before the
    launcher does.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_for(happened: Callable[[], bool], seconds: float = 600) -> None:
    """Returns once it has happened; AssertionError if it does not happen in time."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)
