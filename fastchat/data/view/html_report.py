"""`--html report.html`: one page that shows every token with its role, id, label and the reason for it.

The page is self-contained. Its style and script are inline, allowed by their hashes (the Content-Security-Policy blocks
everything else), its data is one block of JSON in ASCII that cannot be parsed as a tag, and its script writes texts
only with `textContent`, a part of one record at a time. The data:

    tokens    every token of the page once, most frequent first: [id, text, vocabulary entry, 1 if a control token]
    records   one per example                             p: [part, parts] of a row that is several examples
              t: the tokens, as indices into `tokens`     r: runs, flat: count, turn, role, reason, count, ...
              x: texts that differ from `tokens`, flat: position, text, ...     s: the role of every turn
              n: numbers of its tokens learned and cut off, of its answers learned and not, of boundary tokens, of
                 special-token strings in messages, and of tokens lost that would be learned
    counts    the lines of the table: name, [[text, filter], ...]; a filter is a name of STATES in search.js
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from fastchat.conversation import Dialogue, Rendered
from fastchat.data.encoding.beginning import encode_beginnings
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import Example
from fastchat.data.encoding.renderings import renderings_of
from fastchat.data.encoding.supervision import Encoded
from fastchat.data.rows.drop_reasons import NO_ANSWER_FITS, REFUSED, in_words
from fastchat.data.rows.records import Record
from fastchat.data.rows.writing import StagedFile
from fastchat.data.tokens.counts import lines, verdict
from fastchat.data.tokens.lost import Lost
from fastchat.data.view.histogram import Histogram
from fastchat.data.view.reasons import EXPLAINED, ROLES, Run, Why, explain, explain_text
from fastchat.data.view.token_text import TokenTexts
from fastchat.pages import allowed, asset, filled, safe_json

# 3 M tokens make a page of about 12 MB; later records are shown without tokens, and the page says so.
MAX_TOKENS = 3_000_000
_SCRIPTS = ("base.js", "search.js", "list.js", "record.js", "token.js", "overview.js", "chart.js", "keys.js", "main.js")
_BATCH = 256  # examples per call of the tokenizer


@dataclass
class _Entry:
    """What the page contains of one record."""

    record: Record
    example: Example
    ids: array[int] = field(default_factory=lambda: array("i"))
    runs: list[int] = field(default_factory=list)
    texts: list[int | str] = field(default_factory=list)

    @property
    def dialogue(self) -> Dialogue | None:
        """The dialogue, if it was tokenised."""
        return None if self.example.dropped == REFUSED else self.record.dialogue


class HtmlReport:
    """Collects the records and examples of the preview, then writes the page."""

    def __init__(self, chat_encoder: ChatEncoder, max_length: int, max_tokens: int = MAX_TOKENS):
        self.chat_encoder, self.max_length, self.left = chat_encoder, max_length, max_tokens
        self.num_examples = self.num_rows = 0
        self._renderings: tuple[Dialogue | None, list[Rendered]] = (None, [])  # of the last dialogue
        self._texts = TokenTexts(chat_encoder.encoder)
        self._waiting: list[_Entry] = []
        self._entries: list[_Entry] = []
        self._text_of: dict[int, str] = {}
        self._lengths = Histogram()

    def add(self, record: Record, example: Example) -> None:
        """Add the next example that training uses, with its record; of a record, all examples in order."""
        self.num_examples += 1
        self.num_rows += example.part == 0
        self._lengths.add(_length(example, self.max_length), _fate(example))
        if self.left > 0:
            self._waiting.append(_Entry(record, example))
            if len(self._waiting) == _BATCH:
                self._encode()

    def write(self, path: str, counts: Mapping[str, int], about: Mapping[str, str], lost: Lost | None = None) -> str:
        """Write the page; returns one line about it. `about`: the settings that were previewed, as names and values;
        `lost`: what the length limit costs.

        Raises ResourceError if `path` cannot be written.
        """
        self._encode()
        frequency = Counter(chain.from_iterable(entry.ids for entry in self._entries))
        place_of = {token_id: place for place, (token_id, _) in enumerate(frequency.most_common())}
        shown = len(self._entries)
        head = {
            "about": list(about.items()),
            "verdict": verdict(counts, lost, self.max_length),
            "counts": [[line.name, line.parts] for line in lines(counts)],
            "lengths": self._lengths.table(self.max_length),
            "roles": ROLES,
            "reasons": [[*EXPLAINED[why], int(why.learned)] for why in Why],
            "total": self.num_examples,
            "unit": "row" if self.num_examples == self.num_rows else "example",
            "tokens": [self._token(token_id) for token_id in place_of],
        }
        before, after = _page()
        with StagedFile(path, "--html") as file:
            file.write(before + safe_json(head)[:-1] + ',"records":[\n')
            for number, entry in enumerate(self._entries):
                file.write((",\n" if number else "") + safe_json(_row(entry, place_of)))
            file.write("]}" + after)
        rest = "" if shown == self.num_examples else f" (tokens only of the first {shown:,}, counts of all)"
        several = "" if self.num_examples == self.num_rows else f", {self.num_examples:,} examples"
        return f"report: {path} shows {self.num_rows:,} rows{several}{rest}"

    def _encode(self) -> None:
        """Encode the waiting records, up to the page's limit of tokens."""
        usable = [e for e in self._waiting if e.dialogue is not None and not e.dialogue.plain]
        rendered = [self._rendering(entry) for entry in usable]
        tokens = (x.encoded() for x in encode_beginnings(rendered, self.chat_encoder, self.max_length))
        encoded = dict(zip(map(id, usable), zip(rendered, tokens, strict=True), strict=True))
        for entry in self._waiting:
            if self.left <= 0:
                break
            self._entries.append(entry)
            if id(entry) in encoded:
                self._explain(entry, *encoded[id(entry)])
            elif entry.dialogue is not None:
                texts = self._texts.of(entry.example.input_ids)
                self._keep(entry, entry.example.input_ids, explain_text(entry.example, self.chat_encoder), texts)
        self._waiting.clear()

    def _rendering(self, entry: _Entry) -> Rendered:
        assert entry.dialogue is not None
        if self._renderings[0] is not entry.dialogue:
            self._renderings = (entry.dialogue, renderings_of(entry.dialogue, self.chat_encoder))
        return self._renderings[1][entry.example.part]

    def _explain(self, entry: _Entry, rendered: Rendered, encoded: Encoded) -> None:
        assert entry.dialogue is not None
        texts = self._texts.of(encoded.input_ids)
        shown = rendered.dialogue or entry.dialogue
        runs = explain(shown, rendered, encoded, entry.example, self.chat_encoder, texts)
        self._keep(entry, encoded.input_ids, runs, texts)

    def _keep(self, entry: _Entry, ids: Sequence[int], runs: Sequence[Run], texts: Sequence[str]) -> None:
        entry.runs = [n for run in runs for n in run]
        entry.ids.extend(ids)
        self.left -= len(entry.ids)
        for place, (token_id, own) in enumerate(zip(entry.ids, texts, strict=True)):
            if self._text_of.setdefault(token_id, own) != own:
                entry.texts += [place, own]

    def _token(self, token_id: int) -> list[Any]:
        piece = self._texts.pieces[token_id]
        control = token_id in {c.id for c in self.chat_encoder.controls.values() if c}
        control = control or bool(piece in self.chat_encoder.encoder.added and piece.replace("▁", " ").strip())
        return [token_id, self._text_of[token_id], piece, int(control)]


def _row(entry: _Entry, place_of: Mapping[int, int]) -> dict[str, Any]:
    record, example = entry.record, entry.example
    row = {
        "i": record.index,
        "at": f"{record.source}:{record.line}",
        "id": record.id,
        "drop": None if example.dropped is None else in_words(example.dropped),
        "n": [
            example.num_supervised,
            example.truncated_tokens,
            example.trained_turns,
            example.untrained_turns if example.parts == 1 else 0,
            example.straddling,
            example.special_token_strings,
            example.lost,
        ],
    }
    if example.parts > 1:
        row["p"] = [example.part, example.parts]
    if record.dialogue is not None:
        turns = record.dialogue.turns
        row["s"] = [ROLES.index("text" if record.dialogue.plain else turn.role) for turn in turns]
        row |= {"t": [place_of[token_id] for token_id in entry.ids], "r": entry.runs, "x": entry.texts}
    return row


def _length(example: Example, max_length: int) -> int:
    """The number of tokens of the whole dialogue; 0 if none of it can be trained on."""
    kept = max_length if example.dropped == NO_ANSWER_FITS else len(example.input_ids)
    return kept + example.truncated_tokens


def _fate(example: Example) -> str:
    return "dropped" if example.dropped else "cut" if example.lost else "whole"


def _page() -> tuple[str, str]:
    """The page before and after its data."""
    shell, style, script = _asset("page.html"), _asset("page.css"), "".join(map(_asset, _SCRIPTS))
    before, after = shell.split("{{DATA}}")
    parts = allowed(style, script)
    return filled(before, parts), filled(after, parts)


def _asset(name: str) -> str:
    return asset("fastchat.data.view", "report", name)
