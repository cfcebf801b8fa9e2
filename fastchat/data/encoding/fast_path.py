"""The ids of plain texts without offsets: from tiktoken, or from `tokenizers` without the work of locating tokens.

Where tokens begin and end then follows from their lengths in bytes. That is right for a tokenizer whose tokens are the
text itself: byte-level ones, and those that write a space as "▁" and other bytes as <0x0A>. Whether a tokenizer is of
such a kind is read from its `tokenizer.json`; that its ids and places really are the same is proven on texts that are
chosen to be difficult, and on a sample of the data, before the first use. For each text, the lengths must add up to
that of the text. Every other text, and every other tokenizer, takes the usual way (`TextEncoder.plain_tokens`).

Preparing it takes one or two seconds, so it is done only where there is much data.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fastchat.data.encoding.ascii_ids import SPACE, AsciiIds, Ids, ascii_ids, is_panic
from fastchat.data.encoding.supervision import PlainTokens, Tokens
from fastchat.data.encoding.word_cuts import parts_of

if TYPE_CHECKING:
    from fastchat.data.encoding.text_encoder import TextEncoder

WORTH = 1 << 21  # characters of data after which the fast path is prepared
_SAMPLE = 1 << 16  # characters of the data on which it is proven
_LONGEST = 1 << 16  # characters of a text for tiktoken, whose regular expressions may overflow on a longer one
_UNKNOWN = -(1 << 24)  # the length of a token whose text is not known: no text's lengths add up with it
Form = Literal["NFC", "NFD", "NFKC", "NFKD"]


class FastPath:
    """The fast way from plain texts to tokens, for one tokenizer.

    Attributes:
        lengths: int32 [V], the bytes of each id's text; None as long as the fast path is not used.
        why_not: why it is not used, or only in part; "" if it is, or has not been needed yet.
    """

    def __init__(self, encoder: TextEncoder):
        self.lengths: np.ndarray | None = None
        self.why_not = ""
        self._encoder = encoder
        self._seen = 0
        self._refused = False
        self._ascii: AsciiIds | None = None
        self._forms: list[Form] = []  # the Unicode normalisations, one after the other

    def expect(self, num_characters: int) -> None:
        """Say how much data will be announced, so that its first texts prepare the fast path already."""
        self._seen += num_characters

    def announce(self, texts: Iterable[str]) -> None:
        """Say what data is going to be encoded. Where there is much of it, the fast path is prepared. Nothing else
        prepares it: a server's request must not wait for that."""
        if self.lengths is None and not self._refused:
            sample = list(texts)
            self._seen += sum(map(len, sample))
            if self._seen >= WORTH:
                self.prepare(sample)

    def tokens(self, texts: Sequence[str], position: str) -> list[Tokens]:
        """The tokens of plain texts; `position` as in `TextEncoder.plain`."""
        if self.lengths is None:
            return self._slowly(texts, position)
        return self._quickly(texts, position, self.lengths)

    def prepare(self, sample: Sequence[str]) -> None:
        """Make the fast path and prove it on difficult texts and on a sample of the data, or say why it is not used."""
        encoder = self._encoder
        lengths, why = _lengths(encoder)
        if lengths is not None:
            self._forms = [step["type"] for step in encoder.steps("normalizer") if _is_form(step)]
            try:
                self._ascii, self.why_not = self._with_tiktoken(encoder.steps("pre_tokenizer"))
                why = self._difference([*difficult_texts(), *_beginning(sample, _SAMPLE)], lengths)
            except BaseException as error:
                if not is_panic(error):
                    raise
                why = f"a library cannot encode difficult texts with it ({error})"
            encoder.whole.model._clear_cache()  # of words: it is full of those of difficult texts now
        if why:
            self.why_not, self._refused, self._ascii = why, True, None
        else:
            self.lengths = lengths

    def _with_tiktoken(self, steps: Sequence[dict[str, Any]]) -> tuple[AsciiIds | None, str]:
        if self._encoder.spaces:
            return None, "it has added tokens of white space"
        return ascii_ids(self._encoder.whole.model, self._encoder.spec["model"], steps)

    def _slowly(self, texts: Sequence[str], position: str) -> list[Tokens]:
        return [Tokens(ids, offsets) for ids, offsets in self._encoder.plain_tokens(texts, position)]

    def _quickly(self, texts: Sequence[str], position: str, lengths: np.ndarray) -> list[Tokens]:
        """The tokens of each text, with offsets where the tokens' lengths do not add up to that of the text."""
        found = self._ids(texts, position)
        normal = [text.isascii() or self._is_normalized(text) for text in texts]
        edges = np.cumsum([0, *map(len, found)])
        widths = lengths[np.fromiter(chain.from_iterable(found), np.int32, int(edges[-1]))]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(widths, dtype=np.int64)])[edges]
        sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
        made: list[Tokens] = []
        others: list[int] = []
        for at, added in enumerate((np.diff(ends) - sizes).tolist()):
            if not normal[at] or not (added == 0 or (added == 1 and self._begins_with_space(found[at]))):
                others.append(at)
                added = 0
            made.append(Tokens(found[at], None, added))
        for at, tokens in zip(others, self._slowly([texts[at] for at in others], position), strict=True):
            made[at] = tokens
        return made

    def _ids(self, texts: Sequence[str], position: str) -> list[list[int]]:
        if self._ascii is None:
            return self._encoder.plain_ids(texts, position)
        encode, cuts = self._ascii
        if not cuts:
            return self._ids_of_parts(texts, position, encode)
        parts = [[text] if text.isascii() else parts_of(text) for text in texts]
        found = self._ids_of_parts([first for first, *_ in parts], position, encode)
        others = iter(self._ids_of_parts([part for _, *rest in parts for part in rest], "inside", encode))
        for ids, (_, *rest) in zip(found, parts, strict=True):
            ids.extend(chain.from_iterable(itertools.islice(others, len(rest))))
        return found

    def _ids_of_parts(self, texts: Sequence[str], position: str, encode: Ids) -> list[list[int]]:
        unless = self._encoder.no_space_before(position)
        ascii_only = [text.isascii() and len(text) <= _LONGEST for text in texts]
        others = [text for text, ours in zip(texts, ascii_only, strict=True) if not ours]
        rest = iter(self._encoder.plain_ids(others, position) if others else ())
        given = (
            texts
            if unless is None
            else [f" {text}" if text and not text.startswith(unless) else text for text in texts]
        )
        return [_or_nothing(encode, text) if ours else next(rest) for text, ours in zip(given, ascii_only, strict=True)]

    def _is_normalized(self, text: str) -> bool:
        """Whether the tokenizer's normalisations change nothing."""
        changed = text
        for form in self._forms:
            changed = unicodedata.normalize(form, changed)
        return changed == text

    def _begins_with_space(self, ids: Sequence[int]) -> bool:
        return (self._encoder.whole.id_to_token(ids[0]) or "").startswith(SPACE)

    def _difference(self, texts: Sequence[str], lengths: np.ndarray) -> str:
        """How the tokens of texts differ from those of the usual way; "" if they are the same in every position."""
        for position in self._encoder.positions:
            usual = self._encoder.plain_tokens(texts, position)
            for text, wanted, tokens in zip(texts, usual, self._quickly(texts, position, lengths), strict=True):
                if tokens.ids != wanted[0]:
                    return f"the ids of {text[:40]!r} are others"
                if tokens.offsets is not None and self._ascii is not None and text.isascii():
                    return f"the tokens of {text[:40]!r} are not the whole text"
                if tokens.offsets is None and not _same_places(text, wanted, tokens, lengths):
                    return f"the tokens of {text[:40]!r} are at other places"
        return ""


def _or_nothing(encode: Ids, text: str) -> list[int]:
    """The ids of a text; none where tiktoken's regular expressions give up on it, which are then not the whole text."""
    try:
        return encode(text)
    except BaseException as error:
        if not is_panic(error):
            raise
        return []


def _lengths(encoder: TextEncoder) -> tuple[np.ndarray | None, str]:
    """int32 [V], the bytes of each id's text; or None and the reason why the tokens are not the text itself."""
    normalizer, pre_tokenizer = encoder.steps("normalizer"), encoder.steps("pre_tokenizer")
    model = encoder.spec["model"]
    byte_level = _is_byte_level(pre_tokenizer)
    if model["type"] not in ("BPE", "Unigram"):
        return None, f"its model is {model['type']}"
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        return None, "its model marks the parts of words, or is random"
    if bad := [s["type"] for s in normalizer if not (_is_form(s) if byte_level else _is_space(s))]:
        return None, f"its normalizer has the step {bad[0]}"
    if bad := [s["type"] for s in pre_tokenizer if not _keeps_text(s, byte_level)]:
        return None, f"its pre-tokenizer has the step {bad[0]}"
    if any(token.get("lstrip") or token.get("rstrip") for token in encoder.spaces):
        return None, "it has added tokens that remove white space"
    most = max(*encoder.vocabulary.values(), *(token["id"] for token in encoder.spaces))
    made = np.full(most + 1, _UNKNOWN, np.int32)
    fallback = bool(model.get("byte_fallback"))
    for token, token_id in encoder.vocabulary.items():
        if byte_level:
            made[token_id] = len(token)
        elif fallback and len(token) == 6 and token.startswith("<0x"):
            made[token_id] = 1
        else:
            made[token_id] = len(token.encode()) - 2 * token.count(SPACE)
    for token in encoder.spaces if byte_level else ():
        made[token["id"]] = len(token["content"].encode())
    if (unknown := encoder.vocabulary.get(encoder.unknown or "")) is not None:
        made[unknown] = _UNKNOWN
    return made, ""


def _is_byte_level(pre_tokenizer: Sequence[dict[str, Any]]) -> bool:
    return any(step["type"] == "ByteLevel" for step in pre_tokenizer)


def _is_form(step: dict[str, Any]) -> bool:
    return step["type"] in get_args(Form)


def _is_space(step: dict[str, Any]) -> bool:
    """Whether a normalizer only writes spaces as "▁", or one before the text."""
    replaces = step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE
    return replaces or (step["type"] == "Prepend" and step["prepend"] == SPACE)


def _keeps_text(step: dict[str, Any], byte_level: bool) -> bool:
    """Whether a step of a pre-tokenizer only splits the text, or writes it as bytes or with "▁"."""
    if step["type"] == "Split":
        return step["behavior"] != "Removed"
    if step["type"] == "ByteLevel":
        return not step.get("add_prefix_space")
    return step["type"] == "Digits" or (step["type"] == "Metaspace" and step["replacement"] == SPACE and not byte_level)


def _same_places(text: str, usual: PlainTokens, tokens: Tokens, lengths: np.ndarray) -> bool:
    """Whether every token has the characters that it has by its usual offsets. A token may have some bytes of one."""
    widths = lengths[tokens.ids].astype(np.int64)
    widths[:1] -= tokens.added
    ends = np.cumsum(widths)
    starts = ends - widths
    seen = ends > 0  # not the space that the tokenizer added
    sizes = 1 if text.isascii() else [len(character.encode()) for character in text]
    character_of = np.repeat(np.arange(len(text)), sizes)
    if len(widths) != len(usual[1]) or (seen.any() and ends[-1] != len(character_of)) or (widths[seen] <= 0).any():
        return False
    places = np.array(usual[1], np.int64).reshape(-1, 2)[seen]
    return np.array_equal(character_of[starts[seen]], places[:, 0]) and np.array_equal(
        character_of[ends[seen] - 1] + 1, places[:, 1]
    )


def _beginning(texts: Sequence[str], size: int) -> list[str]:
    """The first texts, up to `size` characters together."""
    before = itertools.accumulate(map(len, texts), initial=0)
    return [text[:size] for text, so_far in zip(texts, before, strict=False) if so_far < size]


def difficult_texts() -> list[str]:
    """Texts in which tokenizers differ if they differ: all pairs of ASCII characters, runs of digits, of white space
    and of punctuation, line ends, contractions, code, control tokens' look-alikes, other scripts."""
    characters = list(map(chr, range(128)))
    pairs = ["".join(f"{a}{b}x" for b in characters) for a in characters]
    kinds = ("a", "Z", "7", " ", "\n", "\r\n", "\t", "'", ".", "_")
    mixed = ["".join(f"{a}{b}{c}{d}" for c in kinds for d in kinds) for a in kinds for b in kinds]
    runs = [
        f"x{c * n}y{c * n}" for c in ("7", " ", "\n", "\t", "\r\n", "=", "a", " \n", "ab") for n in (2, 3, 7, 64, 999)
    ]
    endings = ("s", "t", "re", "ve", "m", "ll", "d", "S", "LL", "Re", "x")
    words = [f"{a}I{b}{c} it" for a in ("", " ") for b in "'`" for c in endings]
    code = [
        "def f(x):\n\tif x >= 10_000:  # no\n        return x[1:-1] ** 2\n\n\nclass A: pass\n",
        '{"a": [1, 2.50], "b": "\\n"}',
    ]
    looks = ["<s>", "</s>", "<unk>", "<|im_start|>user\n", "<|endoftext|>", "[INST] <<SYS>>", "<0x0A>", "<pad> <bos>"]
    scripts = [
        "naïve café",
        "e\u0301 A\u030a \ufb01",
        "汉字テスト한국어",
        "🙂👩‍👩‍👧 ok",
        "مرحبا ١٢٣",
        "\u00a0\u2003\u2028x\u0085",
        "▁a ▁",
        "It’s five  times more than this – so “one\tword” is\n 7 × 3 = 21 £ (not 20 €)... ",
        *(f"{'long enough to be cut '.replace(' ', a) * 4}é{b * 70} ü" for a in " ._" for b in ("x ", " .", "7 a")),
        "ſ K I\u2019m",
    ]
    return [*pairs, *mixed, *runs, *words, *code, *looks, *scripts, "", " ", "\0", "a\0b"]
