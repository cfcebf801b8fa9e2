"""Answers in a terminal: what was streamed looks as if it had been printed at once, and nothing of it is hidden."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from fastchat.serve import markdown_view
from fastchat.serve.markdown_view import CompareView, MarkdownView, block_starts, final_length, parts_of, printable
from tests.serve.screen import Screen

WIDTH = 44
LONG = "a long line of an answer that the terminal has to wrap because it is much wider"
PIECES = [
    "# Title\n", "## Part\n", "Some *text* with **bold** and `code`.\n", f"{LONG}\n", "\n", "\n", "- one\n", "- two\n",
    "  - below\n", "1. first\n", f"2. {LONG}\n", "10. tenth\n", "> quoted\n", "```python\n", "```\n", "x = 1  # five\n",
    "| a | b |\n", "|---|---|\n", "| 1 | 22 |\n", "---\n", "===\n", "\tindented\n", "a_1 + b_1 <vector> \\(x\\)\n",
    "<div>\n", "[1]: http://a.b\n", "[name](http://a.b)\n", "数学 naïve 🙂\n", "no end", "~~gone~~\n",
    "![pic](u)\n", "&lt;\n", "\x1b[31mred\n", "\r\n",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _every_piece_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown_view, "_INTERVAL", 0.0)
    monkeypatch.setattr(markdown_view, "_SHARE", 0)


def screen(height: int = 8, **options: Any) -> tuple[Screen, Console]:
    made = Screen(WIDTH, height)
    options = {"force_terminal": True, "color_system": "truecolor", "highlight": False} | options
    return made, Console(file=made, width=WIDTH, height=height, **options)  # pyright: ignore[reportArgumentType]


def shown(pieces: list[str], height: int = 8) -> str:
    made, console = screen(height)
    view = MarkdownView(console)
    view.begin("", None)
    for piece in pieces:
        view.piece(piece)
    view.end()
    view.close()
    return made.text


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join), st.integers(1, 20), st.integers(3, 12))
@example("1. one\n\n2. two\n", 1, 8)  # "2" alone would be a paragraph, and the list final
@example("".join(f"| {k} | {10**k} |\n|---|---|\n"[: None if k == 0 else -10] for k in range(12)), 3, 5)  # grows wider
@example("".join(f"{k}. {LONG}\n" for k in range(8, 12)), 5, 4)  # the numbers, and so every line, become wider
def test_what_is_streamed_looks_as_if_printed_at_once(text: str, size: int, height: int) -> None:
    whole, blocks = shown([text], 1000), shown([text[k : k + size] for k in range(0, len(text), size)], height)
    assert blocks == whole


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_what_is_final_stays_so(text: str) -> None:
    starts = block_starts(text)
    for end in range(len(text)):
        assert final_length(text[:end]) in starts


def test_nothing_that_a_model_writes_is_hidden() -> None:
    text = "Use std::vector<int> and <b>x</b>, \\(a\\) or \\[\\frac{1}{2}\\].\nNext line.\n\n[1]: http://x.y\n\n[n](http://z)"
    seen = " ".join(shown([text]).split())
    for word in ("vector<int>", "<b>x</b>,", "\\(a\\)", "\\[\\frac{1}{2}\\].", "[1]: http://x.y", "n (http://z)"):
        assert word in seen
    assert re.search(r"^Next line\.", shown([text]), re.M), "a line break of the model is one"


def test_an_answer_cannot_send_control_codes() -> None:
    assert printable("a\x1b[2J\x07\u202eb\r\nc\td\xa0é🙂") == "a\\x1b[2J\\x07\\u202eb\nc\td\xa0é🙂"
    assert "\\x1b[2J" in shown(["\x1b[2J"])


def test_what_was_final_scrolls_and_is_not_written_again() -> None:
    made, console = screen(6)
    view = MarkdownView(console)
    view.begin("", None)
    written: list[str] = []
    original, made.write = made.write, lambda text: (written.append(text), original(text))[1]  # type: ignore[method-assign]
    for number in range(30):
        view.piece(f"paragraph {number}\n\n")
    view.end()
    assert "".join(written).count("paragraph 3\n") <= 3 and made.visible > 20


def test_reasoning_and_calls_are_parts_of_their_own() -> None:
    def kinds(text: str, thinking: str = "") -> list[tuple[str, str]]:
        return [(part.kind, text[part.start : part.end]) for part in parts_of(text, thinking)]

    thought, call = "<think>\nHm.\n</think>", '<tool_call>\n{"name": "f"}\n</tool_call>'
    assert kinds(f"{thought}\n\nYes.") == [("thought", thought), ("text", "\n\nYes.")]
    assert kinds("Hm.</think>Yes.", "<think>") == [("thought", "Hm.</think>"), ("text", "Yes.")]
    assert kinds("<think>Hm") == [("thought", "<think>Hm")]
    assert kinds(f"I call:\n{call}\n{call}") == [("text", "I call:\n"), ("call", call), ("call", call)]
    assert kinds("The `<think>` tag, and <tool_call> too.") == [("text", "The `<think>` tag, and <tool_call> too.")]
    seen = shown([f"{thought}\nYes.\n{call}"])
    assert "Hm." in seen and "<think>" not in seen and '{"name": "f"}' in seen


def test_no_colour_if_the_user_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    made, console = screen()
    codes: list[str] = []
    original, made.write = made.write, lambda text: (codes.append(text), original(text))[1]  # type: ignore[method-assign]
    view = MarkdownView(console)
    view.begin("", None)
    view.piece("`code`\n\n```python\nx = 1\n```\n> q\n")
    view.end()
    assert "x = 1" in made.text
    assert not re.search(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|4[0-8]|9\d)(?:;|m)", "".join(codes))


def test_two_answers_are_next_to_each_other() -> None:
    made, console = screen(height=6)
    view = CompareView(console)
    for label, answer in (("base", "left word\n" * 10), ("tuned", "right")):
        view.begin(label, None)  # pyright: ignore[reportArgumentType]
        for character in answer:
            view.piece(character)
        view.end()
    view.close()
    rows = [row.split() for row in made.text.splitlines()]
    assert rows[:2] == [["base", "tuned"], ["left", "word", "right"]] and rows[1:].count(["left", "word"]) == 9
