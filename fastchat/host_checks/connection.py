"""Starts member.py on a host, over ssh as `deepspeed --hostfile` does (no password; the same Python, folder and
PYTHONPATH), or without ssh on this one, and exchanges orders and answers with it.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastchat.errors import brief
from fastchat.files import parse_json
from fastchat.host_checks.member import MARK

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
_KEPT = ("PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_KEPT_FAMILIES = ("NCCL_", "GLOO_")
_START_S, _END_S = 60, 5


class HostFailed(Exception):
    """A host does not answer, or its answer is an error; the message says why, without the name of the `host`."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(why)
        self.host = host


class Host:
    """A host that answers orders. Use as a context manager: its end ends what runs there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = name.rpartition("@")[2]  # `me@node-a` is for ssh only
        self._said: list[str] = []  # by ssh, the shell or Python, instead of an answer
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process = subprocess.Popen(
            command_for(name, os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C ends this command, and so the end of stdin there
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(parse_json(line.removeprefix(MARK)))
            elif line.strip():
                self._said.append(line.strip())
        self._answers.put(None)

    def order(self, do: str, **values: Any) -> None:
        """Gives an order without waiting for the answer."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it ended: `answer` says why
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()

    def answer(self, timeout: float = _START_S) -> dict[str, Any]:
        """The answer to the oldest order without one. Raises HostFailed."""
        try:
            found = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise HostFailed(self.name, f"no answer within {timeout:.0f} s") from None
        if found is None:
            self._answers.put(None)  # also for the next order
            code = self._process.wait()
            raise HostFailed(self.name, brief(self._said[-1], 200) if self._said else f"ended with exit code {code}")
        if "error" in found:
            raise HostFailed(self.name, found["error"])
        return found

    def ask(self, do: str, timeout: float = _START_S, **values: Any) -> dict[str, Any]:
        self.order(do, **values)
        return self.answer(timeout)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_END_S)


def command_for(name: str, environment: Mapping[str, str]) -> list[str]:
    """The words that start member.py on a host."""
    member = [sys.executable, "-m", "fastchat.host_checks.member"]
    if is_here(name):
        return member
    kept = {key: v for key, v in environment.items() if key in _KEPT or key.startswith(_KEPT_FAMILIES)}
    words = ["env", *(f"{key}={value}" for key, value in sorted(kept.items())), *member]
    return [*_SSH, name, f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(words)}"]


def is_here(name: str) -> bool:
    """Whether a name or address is this host's own; one with a user never is, since ssh has to change to that user."""
    if name in ("localhost", socket.gethostname()):
        return True
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_is_own(family, address) for family, _, _, _, address in found)


def _is_own(family: int, address: Any) -> bool:
    """A socket can be bound to an address of this host only."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def answers(hosts: Sequence[Host], timeout: float = _START_S) -> dict[str, dict[str, Any] | HostFailed]:
    """The next answer of every host, by name; HostFailed as a value where there is none."""
    found: dict[str, dict[str, Any] | HostFailed] = {}
    for host in hosts:
        try:
            found[host.name] = host.answer(timeout)
        except HostFailed as failed:
            found[host.name] = failed
    return found
