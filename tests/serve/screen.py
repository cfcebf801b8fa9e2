"""A terminal in memory: as much of one as the chat's answers need."""

from __future__ import annotations

import re

from rich.cells import cell_len

_ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """What was written, row by row, with the rows that scrolled off. Colours are left out.

    It fails for a sequence it does not know, and for a cursor that would have to go above the visible rows.
    """

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            escape = _ESCAPE.match(text, at)
            if escape:
                self._escape(escape[1], escape[2])
                at = escape.end()
            else:
                self._character(text[at])
                at += 1

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """All rows, without the spaces at their ends."""
        return "\n".join("".join(row).rstrip() for row in self.rows).rstrip("\n")

    @property
    def visible(self) -> int:
        """The first row that is visible."""
        return max(0, len(self.rows) - self.height)

    def _escape(self, number: str, kind: str) -> None:
        if kind == "A":
            self.row -= int(number)
            assert self.row >= self.visible, "above the screen"
        elif kind == "J":
            del self.rows[self.row + 1 :]
            del self.rows[self.row][self.column :]
        else:
            assert kind == "m", kind

    def _character(self, character: str) -> None:
        if character == "\n":
            self._to(self.row + 1, 0)
        elif character == "\r":
            self.column = 0
        else:
            assert character.isprintable() or character in "\xa0\u200d\ufe0f", repr(character)
            cells = cell_len(character)
            if self.column + cells > self.width:
                self._to(self.row + 1, 0)
            row = self.rows[self.row]
            row.extend(" " * (self.column - len(row)))
            row[self.column : self.column + max(cells, 1)] = [character] + [""] * (cells - 1)
            self.column += max(cells, 1)

    def _to(self, row: int, column: int) -> None:
        self.row, self.column = row, column
        if row == len(self.rows):
            self.rows.append([])
