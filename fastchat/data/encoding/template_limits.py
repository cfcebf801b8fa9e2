"""Limits for rendering a chat template. A template is a program that comes with a model, and forty characters are
enough to allocate gigabytes or to loop forever.

Every template is first tried on the simplest dialogues, in a separate process with memory and time limits. After that,
rendering in this process stops if the output is too long or takes too long, checked after each piece of text.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from fastchat.errors import SettingsError

MEMORY = 1 << 30  # bytes that a trial may allocate in addition to what the process has
SECONDS = 20.0
_MOST_WRITTEN = 256 << 20  # characters; several times the largest row
_MOST_OPERAND = 64 << 20
_DONE, _FAILED, _NO_MEMORY = 0, 1, 2


class TooMuch(ArithmeticError):
    """A template exceeds its memory or time limit."""


def joined(parts: Iterable[str]) -> str:
    """The parts joined. Raises TooMuch if they are too long, or take too long."""
    made, size, end = [], 0, time.monotonic() + SECONDS
    for part in parts:
        size += len(part)
        if size > _MOST_WRITTEN:
            raise TooMuch(f"it writes more than {_MOST_WRITTEN:,} characters")
        if time.monotonic() > end:
            raise TooMuch(f"it takes more than {SECONDS:.0f} seconds")
        made.append(part)
    return "".join(made)


def check_operands(operator: str, left: Any, right: Any) -> None:
    """Raise TooMuch if `left * right` or `left ** right` would be huge."""
    if operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > _MOST_OPERAND:
                raise TooMuch(f"it repeats a text or list {times:,} times")
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers and right > 0 and left.bit_length() * right > 1 << 16:
        raise TooMuch("it raises a number to a huge power")


def try_out(render: Callable[[], object], what: str) -> None:
    """Run `render` in a fork of this process with memory and time limits; its result and exceptions are discarded.

    Raises SettingsError, beginning with `what`, if it exceeds a limit.
    """
    if sys.platform != "linux":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the child uses nothing that they hold
        child = os.fork()
    if child == 0:
        _run(render)
    status, end = None, time.monotonic() + SECONDS
    pause = 0.001
    while status is None and time.monotonic() < end:
        done, found = os.waitpid(child, os.WNOHANG)
        if done:
            status = found
        else:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise SettingsError(f"{what} takes more than {SECONDS:.0f} seconds for a dialogue of two words")
    if os.waitstatus_to_exitcode(status) not in (_DONE, _FAILED):
        raise SettingsError(f"{what} takes more than {MEMORY >> 30} GiB of memory for a dialogue of two words")


def _run(render: Callable[[], object]) -> None:
    """In the child: never returns."""
    code = _NO_MEMORY
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        render()
        code = _DONE
    except MemoryError:
        pass
    except BaseException:
        code = _FAILED
    finally:
        os._exit(code)
