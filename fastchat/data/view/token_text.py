"""What each token contributes to the text, fast enough for whole files: from a table of tokens, with bytes if needed.

Most tokens have the same text in every position, so it is looked up. A character whose bytes are spread over several
tokens is assembled from the bytes and belongs to the last of them; the others contribute "".
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Any

from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.view.terminal import token_texts

_BROKEN = "\ufffd"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TokenTexts:
    """The texts of one tokenizer's tokens. Attribute `pieces`: the vocabulary entry of every id."""

    def __init__(self, encoder: TextEncoder):
        self.encoder = encoder
        self.pieces = {token_id: piece for piece, token_id in encoder.vocabulary.items()}
        self._known: dict[int, str | None] = {}
        self._bytes = _byte_reader(encoder)
        # Decoders drop the space that the encoder adds before a text, so the first token is not looked up.
        self._anchor = encoder.plain(["a"], "first")[0][0][0]
        self._anchor_text = encoder.decode([self._anchor])

    def of(self, ids: Sequence[int]) -> list[str]:
        """One text per id; together they are `encoder.decode(ids)`."""
        if not ids:
            return []
        found = [self._own(token_id) for token_id in ids]
        found[0] = self.encoder.decode(ids[:1])
        texts = self._complete(ids, found)
        return texts if texts and "".join(texts) == self.encoder.decode(ids) else token_texts(self.encoder, ids)

    def _own(self, token_id: int) -> str | None:
        """The token's text inside a text; None if it is only part of a character."""
        if token_id not in self._known:
            text = self.encoder.decode([self._anchor, token_id]).removeprefix(self._anchor_text)
            self._known[token_id] = None if _BROKEN in text else text
        return self._known[token_id]

    def _complete(self, ids: Sequence[int], found: Sequence[str | None]) -> list[str] | None:
        """`found` with every None replaced; None if the tokens' bytes are not known."""
        if _BROKEN not in (found[0] or "") and None not in found:
            return [text or "" for text in found]
        if self._bytes is None:
            return None
        reader = codecs.getincrementaldecoder("utf-8")(errors="replace")
        texts = []
        for i, (token_id, text) in enumerate(zip(ids, found, strict=True)):
            if text is not None and _BROKEN not in text:
                texts.append(text)
                continue
            last_part = i + 1 == len(ids) or found[i + 1] is not None
            texts.append(reader.decode(self._bytes(self.pieces[token_id]), final=last_part))
        return texts


def _byte_reader(encoder: TextEncoder) -> Callable[[str], bytes] | None:
    """The function from a vocabulary entry to its bytes; None if the decoder is not one of the two kinds known here."""
    kinds = _decoder_kinds(encoder.spec.get("decoder"))
    if "ByteLevel" in kinds:
        alphabet = _byte_level_alphabet()
        return lambda piece: bytes(alphabet[c] for c in piece) if set(piece) <= set(alphabet) else piece.encode()
    if "ByteFallback" in kinds:
        return lambda piece: bytes([int(piece[3:5], 16)]) if _BYTE.fullmatch(piece) else piece.encode()
    return None


def _decoder_kinds(step: dict[str, Any] | None) -> set[str]:
    if step is None:
        return set()
    return {step["type"]}.union(*(_decoder_kinds(inner) for inner in step.get("decoders", ())))


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's mapping of bytes to visible characters: itself if it is printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}
