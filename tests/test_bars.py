"""Progress bars: when they are drawn, what is written where there is no terminal, and a stderr that is gone."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from fastchat import bars
from fastchat.bars import BARS, Progress, bar, clock, each, waiting


class Terminal(io.StringIO):
    """A stderr that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(Terminal):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(bars.BARS, "wanted", True)  # a run with --disable_tqdm may have come first
    monkeypatch.delenv("RANK", raising=False)
    return seconds


def test_a_bar_is_drawn_after_two_seconds_and_removed(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with bar("verifying", 1000) as progress:
        now[0] += 1.9
        progress.advance(300)
        assert terminal.getvalue() == ""
        now[0] += 0.2
        progress.advance(200)
        assert "verifying:  50%" in terminal.getvalue() and "500/0.98k" in terminal.getvalue()
    assert terminal.getvalue().rpartition("\r")[2].strip() == "", "nothing of it stays"


def test_short_work_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(each([1, 2, 3], "merging", "layer")) == [1, 2, 3] and terminal.getvalue() == ""


def test_a_line_per_minute_where_there_is_no_terminal(
    now: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress("tokenising", 4 << 30, "B")
    for seconds in (30, 31, 30, 30):
        now[0] += seconds
        progress.to(progress.done + (1 << 30), "1,200 dialogues")
    assert capsys.readouterr().err.splitlines() == [
        "tokenising: 50 %, 1,200 dialogues, ETA 1:01",
        "tokenising: 100 %, 1,200 dialogues, ETA 0:00",
    ]
    assert Progress("x", 3 << 30, "B").line(1) == "x: 0 %, 0 MiB"
    assert Progress("x", None, "row").line(1) == "x: 0 rows"
    for name, value in (("RANK", "1"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
        progress = Progress("tokenising", 10, "row")
        now[0] += 70
        progress.advance()
        assert ("tokenising: 10 %, 1 row" in capsys.readouterr().err) is (value == "0"), "the first process speaks"


@pytest.mark.parametrize("stderr", ["gone", "closed", "none"])
def test_a_stderr_that_is_gone_ends_nothing(stderr: str, monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    closed = Terminal()
    closed.close()
    monkeypatch.setattr(sys, "stderr", {"gone": Gone(), "closed": closed, "none": None}[stderr])
    for _ in each(range(3), "merging", "layer"):
        now[0] += 5


def test_disable_tqdm_switches_all_off(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(BARS, "wanted", False)
    for _ in each(range(3), "merging", "layer"):
        now[0] += 90
    assert terminal.getvalue() == "" and not bars.are_drawn()
    monkeypatch.setattr(BARS, "wanted", True)
    assert bars.are_drawn()


def test_durations() -> None:
    assert (clock(61), clock(3599.6), clock(90005)) == ("1:01", "1:00:00", "25:00:05")


def test_a_bar_of_the_library_follows_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging as library

    from fastchat.model.source import loading

    for enabled in (True, False):
        monkeypatch.setattr("fastchat.model.source.are_drawn", lambda drawn=enabled: drawn)
        terminal = Terminal()
        with loading("m", "weights"), library.tqdm(total=9, desc="Loading weights", file=terminal, leave=True) as shown:
            shown.update(9)
        assert terminal.getvalue() == ""
    assert library.set_tqdm_hook(None) is None, "other uses of the library are as before"


def _until(terminal: Terminal, text: str) -> None:
    for _ in range(500):
        if text in terminal.getvalue():
            return
        threading.Event().wait(0.02)


def test_work_that_says_nothing_shows_its_time_or_what_it_has_written(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(bars.BARS, "wanted", True)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(bars, "AFTER_S", 0.0)
    monkeypatch.setattr(bars, "_WATCH_S", 0.01)
    with waiting("downloading"):
        _until(terminal, "downloading: 00:0")
    with pytest.raises(RuntimeError), waiting("converting", 100, lambda: 50):
        _until(terminal, "converting:  50%")
        raise RuntimeError
    assert "downloading: 00:0" in terminal.getvalue() and "converting:  50%" in terminal.getvalue()
    assert terminal.getvalue().rpartition("\r")[2].strip() == "", "nothing of it stays"


def test_a_file_that_is_not_there_yet_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> int:
        seen.set()
        raise FileNotFoundError

    seen = threading.Event()
    monkeypatch.setattr(bars, "_WATCH_S", 0.01)
    with waiting("converting", 100, gone):
        assert seen.wait(30)
