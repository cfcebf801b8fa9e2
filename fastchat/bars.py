"""Progress bars with the remaining time, for every wait that may take more than two seconds.

    with bar("verifying", total=size, unit="B") as progress:
        for block in blocks:
            progress.advance(len(block))

    for layer in each(layers, "merging", "layer"):
        ...

They go to stderr, from the first process of a run. In a terminal a bar is drawn after two seconds, below what is
printed meanwhile, and removed when its work is done. Elsewhere (a file, a pipe) a line per minute says how far the work
is. Work that does not say how far it is (`waiting`) shows the time that it has taken, and what it has written. A stderr
that is closed, or whose reader is gone, never ends the work.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

from fastchat.errors import counted, percent, say

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
AFTER_S = 2.0  # a shorter wait needs no bar
_REDRAW_S, _LINE_S, _WATCH_S = 0.1, 60.0, 0.5
FOR_LIBRARIES = {"delay": AFTER_S, "leave": False}  # the same rules as arguments of tqdm, for bars of libraries


class Bars:
    """Whether progress is shown at all. One per process: `BARS`; `--disable_tqdm` switches it off for a run."""

    wanted = True


BARS = Bars()


def are_drawn() -> bool:
    """Whether this process draws bars; for libraries that draw their own."""
    return _are_shown() and _in_terminal()


def _are_shown() -> bool:
    return BARS.wanted and os.environ.get("RANK", "0") == "0"


def _in_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (OSError, ValueError):  # it is closed
        return False


class Progress:
    """How far some work is. `total`: how much there is, None if that is not known; `unit`: "B" for bytes, a noun, or ""
    where nothing is counted and only the time is shown; `since`: when it began (`time.monotonic`), None for now."""

    def __init__(self, what: str, total: int | None, unit: str, since: float | None = None) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.note = 0, ""
        self._bar: Any = None
        self._began = time.monotonic() if since is None else since
        self._terminal = _in_terminal()
        first = AFTER_S if self._terminal else _LINE_S
        self._next = self._began + first if _are_shown() else float("inf")

    def advance(self, number: int = 1) -> None:
        """So much more is done."""
        self.to(self.done + number)

    def to(self, done: int, note: str = "") -> None:
        """So much is done in total. `note` is shown next to it."""
        self.done, self.note = done, note
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_REDRAW_S if self._terminal else _LINE_S)
        if self._terminal:
            with suppress(OSError, ValueError):
                self._draw()
        else:
            say(self.line(now - self._began))

    def line(self, seconds: float) -> str:
        """Progress after so many seconds as a line of text."""
        share = self.done / self.total if self.total else None
        parts = [percent(share, 0)] if share is not None else []
        parts += [self.note or (_amount(self.done, self.unit) if self.unit else clock(seconds))]
        if share:
            parts.append(f"ETA {clock(seconds * (1 - share) / share)}")
        return f"{self.what}: {', '.join(parts)}"

    def _draw(self) -> None:
        if self._bar is None:
            from tqdm import tqdm

            class Bar(tqdm):
                monitor_interval = 0  # no thread that looks after slow bars: tokenising copies the process

            scaled: dict[str, Any] = {"unit_scale": True, "unit_divisor": 1024} if self.unit == "B" else {}
            if not self.unit:
                scaled = {"bar_format": "{desc}: {elapsed}"}
            unit = self.unit if self.unit == "B" else f" {self.unit}s"
            self._bar = Bar(
                total=self.total,
                desc=self.what,
                unit=unit,
                file=sys.stderr,
                leave=False,
                mininterval=0,
                miniters=0,
                smoothing=0,  # the mean speed: the first update came late
                **scaled,
            )
            self._bar.start_t -= time.monotonic() - self._began
        if self.note:
            self._bar.set_postfix_str(self.note, refresh=False)
        self._bar.update(self.done - self._bar.n)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()


@contextmanager
def bar(what: str, total: int | None = None, unit: str = "B", since: float | None = None) -> Iterator[Progress]:
    """Shows how far the work inside the block is, see `Progress`."""
    progress = Progress(what, total, unit, since)
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def waiting(what: str, total: int | None = None, written: Callable[[], int] | None = None) -> Iterator[None]:
    """For work that does not say how far it is, such as another program: shows the time that it has taken, or, with
    `written`, how many bytes there are of `total`."""
    with bar(what, total, "" if written is None else "B") as progress:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_WATCH_S):
                with suppress(OSError):  # a file that is moved away meanwhile
                    progress.to(0 if written is None else written())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


class Countable(Protocol[T_co]):
    """What has a length and can be gone through: a list, a dict's items, a data loader."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T_co]: ...


def each(items: Countable[T], what: str, unit: str) -> Iterator[T]:
    """The items, with a bar for what is done with each of them."""
    with bar(what, len(items), unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _amount(number: int, unit: str) -> str:
    if unit != "B":
        return counted(number, unit)
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds.

    >>> clock(61), clock(3600 * 25 + 5)
    ('1:01', '25:00:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
