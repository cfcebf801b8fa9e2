"""What runs on each host: answers orders that arrive as JSON lines on stdin, until stdin ends.

Only the order `all_reduce` imports torch.
"""

from __future__ import annotations

import fcntl
import glob
import importlib.metadata
import json
import os
import platform
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import fastchat
from fastchat.errors import brief, show, without_secrets
from fastchat.files import parse_json, sha256_of, write_text
from fastchat.plan.machine import detect_gpus
from fastchat.settings.help import asked_for_help, help_head

MARK = "@fastchat "  # answers begin with it; a login shell may print other lines
LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "accelerate", "datasets", "tokenizers", "bitsandbytes")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")  # too large to be read: their sizes are compared
_GREETING = 64  # bytes
_WAIT_S = 10  # for a connection
_MEET_S = 60  # for the processes of an all-reduce
_SIOCGIFADDR = 0x8915


def facts() -> dict[str, Any]:
    """Host name, versions (None: not installed) and names of the GPUs."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "fastchat": fastchat.__version__}
    for name in LIBRARIES:
        versions[name] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"host": socket.gethostname(), "versions": versions, "gpus": [gpu.name for gpu in detect_gpus()]}


def clock() -> dict[str, float]:
    return {"seconds": time.time()}


_listeners: list[socket.socket] = []


def listen(port: int, greeting: str) -> dict[str, Any]:
    """Opens the port on all interfaces and greets everyone who connects, until `close_port`."""
    listener = socket.create_server(("", port))
    _listeners.append(listener)
    threading.Thread(target=_greet, args=(listener, greeting.encode()), daemon=True).start()
    return {}


def _greet(listener: socket.socket, greeting: bytes) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(greeting)


def close_port() -> dict[str, Any]:
    for listener in _listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        listener.close()
    _listeners.clear()
    return {}


def connect(host: str, port: int, greeting: str) -> dict[str, Any]:
    """Connects to a port that `listen` opened; returns the address and the interface that this host used."""
    with socket.create_connection((host, port), timeout=_WAIT_S) as connection:
        found = b""
        while part := connection.recv(_GREETING - len(found)):
            found += part
        address = connection.getsockname()[0]
    if found.decode(errors="replace") != greeting:
        raise OSError(f"another program answers on port {port}")
    return {"address": address, "interface": _interface(address)}


def _interface(address: str) -> str | None:
    """The name of the interface with this IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                found = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None


def write_note(folder: str, name: str, text: str) -> dict[str, Any]:
    """Writes a small file into a folder, which is made if necessary; `made` is the first folder that was."""
    path = Path(folder).expanduser()
    made = next((str(p) for p in reversed([path, *path.parents]) if not p.exists()), None)
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / name, text)
    return {"made": made}


def read_note(folder: str, name: str, text: str, wait: float) -> dict[str, Any]:
    """Whether that file is there with that text, now or within `wait` seconds."""
    path = Path(folder).expanduser() / name
    end = time.monotonic() + wait
    while True:
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == text:
                return {"seen": True}
            with suppress(OSError):
                os.listdir(path.parent)  # makes NFS look again
        if time.monotonic() > end:
            return {"seen": False}
        time.sleep(0.2)


def remove_note(folder: str, name: str, made: str | None) -> dict[str, Any]:
    """Removes the file, and the folders that were made for it while they are empty."""
    path = Path(folder).expanduser()
    (path / name).unlink(missing_ok=True)
    while made is not None and path.is_relative_to(made):
        with suppress(OSError):
            path.rmdir()
        path = path.parent
    return {}


def files(path: str) -> dict[str, Any]:
    """{name: what identifies its content} of a file, a folder, or all files of a pattern; empty if nothing is there."""
    given = Path(path).expanduser()
    if given.is_file():
        return {"files": {given.name: _identity(given)}}
    if given.is_dir():
        found = sorted(p for p in given.rglob("*") if p.is_file() and not _hidden(p.relative_to(given)))
        return {"files": {str(p.relative_to(given)): _identity(p) for p in found}}
    matching = sorted(glob.glob(str(given), recursive=True)) if glob.has_magic(str(given)) else []
    return {"files": {name: _identity(Path(name)) for name in matching if os.path.isfile(name)}}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _identity(path: Path) -> str:
    return f"{path.stat().st_size} bytes" if path.suffix in _WEIGHTS else f"sha256 {sha256_of(path)[:12]}"


def all_reduce(
    rank: int, world: int, address: str, port: int, interface: str | None, size: int, gpu: bool
) -> dict[str, Any]:
    """Sums `size` bytes of float32 over all hosts, one process on each, with NCCL (`gpu`) or gloo.

    Returns the best of three times in seconds, and whether the sum is right.
    """
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if interface:
            os.environ.setdefault(variable, interface)
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    meet = f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
    wait = timedelta(seconds=_MEET_S)
    dist.init_process_group("nccl" if gpu else "gloo", meet, wait, world, rank)
    try:
        number = size // 4
        times = []
        right = True
        for _ in range(4):  # the first one makes the connections
            values = torch.full((number,), float(rank + 1), device=device)
            dist.barrier()
            begun = time.perf_counter()
            dist.all_reduce(values)
            right &= bool((values == world * (world + 1) / 2).all())  # waits for the GPU as well
            times.append(time.perf_counter() - begun)
    finally:
        dist.destroy_process_group()
    return {"seconds": min(times[1:]), "right": right}


ORDERS: dict[str, Callable[..., dict[str, Any]]] = {
    order.__name__: order
    for order in (facts, clock, listen, close_port, connect, write_note, read_note, remove_note, files, all_reduce)
}


def answer(line: str) -> dict[str, Any]:
    """The answer to one order; {"error": reason} where it fails."""
    order = parse_json(line)
    try:
        return ORDERS[order.pop("do")](**order)
    except Exception as problem:  # noqa: BLE001  (whatever fails there is a finding here)
        return {"error": without_secrets(brief(str(problem) or type(problem).__name__, 200))}


def main() -> int:
    """Answers until the command that gives the orders ends, or its connection."""
    if asked_for_help(sys.argv[1:]) is not None:
        about = "Answer the orders of `fastchat doctor --hosts`, which starts this on every host."
        show("\n".join(help_head("python -m fastchat.host_checks.member", about, [])))
        return 0
    for line in sys.stdin:
        print(f"{MARK}{json.dumps(answer(line))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
