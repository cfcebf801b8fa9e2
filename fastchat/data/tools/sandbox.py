"""Runs a piece of Python code from a dataset in a separate process with restricted permissions.

On every supported system:
    a new interpreter without this project's modules, environment variables or open files, in an empty folder that is
    deleted afterwards; stopped after the time limit with everything in its process group; output cut at its limit;
    memory and processor time limited by the kernel (macOS ignores the memory limit); no file can grow. Sockets, other
    programs, processes, signals, writing, deleting, and reading outside Python's own folders are blocked by the
    interpreter (audit hook), which does not stop code that breaks out of the interpreter.

Added by the Linux kernel if available (`protections()` tries it and reports):
    calls    seccomp filter: sockets, new processes, other programs, signals and tracing fail in any case
    files    Landlock: nothing can be written or deleted, and nothing read but Python's folders and system libraries

This cannot protect against bugs in the kernel or the interpreter. For malicious code use a machine without secrets.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastchat.errors import ResourceError, SettingsError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/urandom")
_ENVIRONMENT = {  # one thread each: threads count as processes, and as memory
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONIOENCODING": "utf-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_PROTECTION_LOST = 70  # the child's exit code


@dataclass(frozen=True)
class Limits:
    """The limits for one piece of code: `timeout` in seconds, `memory` and `output` in bytes."""

    timeout: float = 5.0
    memory: int = 1 << 30
    output: int = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """The result of a run. `status`: "ok", "error" (it raised, or ran out of memory), "timeout", "output" (too much).

    `output`: everything printed, and the value of a last line that is an expression, as in a notebook; complete only
    if the status is "ok" or "error". `error`: the last line of the traceback, else "".
    """

    status: str
    output: str
    error: str = ""


def run_python(code: str, limits: Limits | None = None) -> Outcome:
    """Run `code` in the sandbox.

    Raises:
        SettingsError: this system has no process limits (Windows).
        ResourceError: no process could be started, or a protection that was available before is not any more.

    >>> run_python("x = 6 * 7\\nx").output
    '42\\n'
    """
    return _run(code, limits or Limits(), protections())


@functools.cache
def protections() -> tuple[str, ...]:
    """Which of "files" and "calls" the kernel enforces here, determined by trying; empty if it supports neither."""
    _check_system()
    outcome = _run("", Limits(), (), probe=True)
    if outcome.status != "ok":
        raise ResourceError(f"the sandbox cannot start: {outcome.error or outcome.status}")
    return tuple(outcome.output.split())


def guarantee() -> str:
    """One line for the user about how code is isolated on this system."""
    kernel = protections()
    if set(kernel) == {"files", "calls"}:
        return "code runs isolated: the kernel blocks network, processes and files (seccomp, Landlock)"
    held = {"calls": "network and processes (seccomp)", "files": "files (Landlock)"}
    by_kernel = f"the kernel blocks {held[kernel[0]]}, " if kernel else ""
    return (
        f"code runs with limits: {by_kernel}only the interpreter blocks the rest; this is safe for careless code, "
        "not for malicious code"
    )


def _check_system() -> None:
    if sys.platform == "win32":
        raise SettingsError("running code needs the process limits of Linux or macOS; use WSL on Windows.")


def _run(code: str, limits: Limits, kernel: tuple[str, ...], probe: bool = False) -> Outcome:
    folder = tempfile.mkdtemp(prefix="sandbox-")
    settings = {
        "timeout": limits.timeout,
        "memory": limits.memory,
        "readable": [*_readable(), os.path.realpath(folder)],
        "packages": _packages(),
        "kernel": kernel,
        "probe": probe,
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-S", "-B", "-s", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**_ENVIRONMENT, "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
            close_fds=True,
        )
    except OSError as problem:
        raise ResourceError(f"no process could be started to run code in: {problem}") from None
    try:
        return _finish(process, marshal.dumps((settings, code)), limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _packages() -> list[str]:
    """Folders of installed packages (numpy, sympy); their .pth files are not run."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


@functools.cache
def _readable() -> list[str]:
    python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = {os.path.realpath(path) for path in (*python, os.path.join(sys.base_prefix, "lib"), *_SYSTEM)}
    return sorted(path for path in folders if os.path.exists(path))


def _finish(process: subprocess.Popen[bytes], sent: bytes, limits: Limits) -> Outcome:
    """Send the code, read the output until the process ends or a limit is reached, and clean up."""
    deadline = time.monotonic() + limits.timeout
    pipes: dict[str, Any] = {"out": process.stdout, "err": process.stderr}
    read = {"out": bytearray(), "err": bytearray()}
    status = None
    try:
        with selectors.DefaultSelector() as selector:
            for name, pipe in pipes.items():
                selector.register(pipe, selectors.EVENT_READ, name)
            _send(process.stdin, sent)
            while status is None and selector.get_map():
                status = _read_some(selector, read, deadline, limits.output)
        if status is None:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        status = "timeout"
    finally:
        _end(process)
    output = bytes(read["out"][: limits.output]).decode("utf-8", "replace")
    error = bytes(read["err"]).decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
    if process.returncode == _PROTECTION_LOST:
        raise ResourceError(
            "a protection of the sandbox that was available when the command began is not any more; nothing was run"
        )
    if status is None:
        status = "ok" if process.returncode == 0 else "timeout" if process.returncode in _TIMED_OUT else "error"
        if status == "error" and not error:
            error = f"ended with {process.returncode}"
    return Outcome(status, output, error if status == "error" else "")


_TIMED_OUT = (-signal.SIGXCPU, -signal.SIGALRM) if sys.platform != "win32" else ()


def _send(pipe: IO[bytes] | None, sent: bytes) -> None:
    assert pipe is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit code says why
        pipe.write(sent)
        pipe.close()


def _read_some(selector: Any, read: dict[str, bytearray], deadline: float, limit: int) -> str | None:
    """Read available output, waiting for it if necessary; returns a status if the run is over, else None."""
    left = deadline - time.monotonic()
    if left <= 0:
        return "timeout"
    for key, _ in selector.select(left):
        part = os.read(key.fd, 65536)
        if not part:
            selector.unregister(key.fileobj)
        read[key.data] += part
        if len(read[key.data]) > limit:
            return "output"
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and whatever it started; close the pipes."""
    for kill in (lambda: os.killpg(process.pid, signal.SIGKILL), process.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
