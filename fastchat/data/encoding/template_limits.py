"""What rendering a chat template may cost. A template is a program that came with a model, and forty characters of it
can ask for gigabytes or never end.

Every template is tried once, on the simplest dialogues, in a process of its own with a limit of memory and of time.
After that a rendering here is stopped where it has written too much or taken too long between two pieces of text.
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

MEMORY = 1 << 30  # bytes that a trial may need besides what the process has
SECONDS = 20.0
_MOST_WRITTEN = 256 << 20  # characters; several times the largest row
_MOST_OPERAND = 64 << 20
_DONE, _FAILED, _NO_MEMORY = 0, 1, 2


class TooMuch(ArithmeticError):
    """A template wants more memory or time than it may have."""


def joined(parts: Iterable[str]) -> str:
    """The parts in one text. Raises TooMuch where they are too many, or take too long."""
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
    """TooMuch where `left * right` or `left ** right` would be huge."""
    if operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > _MOST_OPERAND:
                raise TooMuch(f"it repeats a text or list {times:,} times")
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers and right > 0 and left.bit_length() * right > 1 << 16:
        raise TooMuch("it raises a number to a huge power")


def try_out(render: Callable[[], object], what: str) -> None:
    """Run `render` in a copy of this process with limits of memory and time; what it returns or raises is lost.

    Raises SettingsError, beginning with `what`, where it needs more than it may.
    """
    if sys.platform != "linux":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the copy uses none of what they hold
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
