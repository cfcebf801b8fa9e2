"""Plain texts for continued pre-training -> ids: BOS where the tokenizer adds one, the text, EOS.

Nothing in the text becomes a control token, and every token except BOS is supervised. A text that is longer than the
maximum length becomes several pieces, and each token is supervised in exactly one of them. A piece after the first one
begins with the token before it, as context, so that its first own token is predicted from the text too:

    maximum length 4    <s> a b c    <s> c d e    <s> e </s>
    supervised              a b c          d e          </s>
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator

from fastchat.conversation import Dialogue
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.errors import SettingsError

# Characters that are encoded at a time: of a text of several megabytes the tokenizer would need a gigabyte.
AT_ONCE = 1 << 18
_WORD_END = re.compile(r"\S(?=\s)")
_LONGEST_WORD = 1 << 10


def text_of(dialogue: Dialogue) -> str:
    """The text of a plain dialogue."""
    assert dialogue.plain, dialogue.where
    return "".join(turn.text for turn in dialogue.turns)


def lead_of(chat_encoder: ChatEncoder) -> list[int]:
    """The ids that begin every piece and are not supervised: BOS, if the tokenizer adds one."""
    encoder = chat_encoder.encoder
    return [encoder.bos.id] if encoder.adds_bos and encoder.bos else []


def encode_text(text: str, chat_encoder: ChatEncoder) -> tuple[array[int], int]:
    """The ids of the text and EOS, without BOS; and the number of splits that kept it plain text.

    Raises DataError if a character of the text cannot be kept plain text.
    """
    ids, escaped = array("i"), 0
    for number, section in enumerate(_sections(text)):
        found, cuts = chat_encoder.encode_text(section, "inside" if number else "first")
        ids.extend(found)
        escaped += cuts
    if chat_encoder.encoder.eos is not None:
        ids.append(chat_encoder.encoder.eos.id)
    return ids, escaped


def pieces_of(num_tokens: int, lead: int, max_length: int) -> list[tuple[int, int]]:
    """(start, end) of the tokens that each piece supervises; before them it has `lead` ids and, except in the first
    piece, the token before its start. None is longer than `max_length`.

    Raises SettingsError if a piece has no room for a token of its own.

    >>> pieces_of(6, lead=1, max_length=4)
    [(0, 3), (3, 5), (5, 6)]
    """
    if max_length < lead + 2:
        raise SettingsError(f"--model_max_length {max_length} is too short for plain texts; raise it")
    pieces = [(0, min(max_length - lead, num_tokens))]
    while pieces[-1][1] < num_tokens:
        start = pieces[-1][1]
        pieces.append((start, min(start + max_length - lead - 1, num_tokens)))
    return pieces


def _sections(text: str) -> Iterator[str]:
    """The text in parts of about AT_ONCE characters, which end at the end of a word if there is one nearby."""
    start = 0
    while len(text) - start > AT_ONCE + _LONGEST_WORD:
        end = start + AT_ONCE
        found = _WORD_END.search(text, end, end + _LONGEST_WORD)
        end = found.end() if found else end
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
