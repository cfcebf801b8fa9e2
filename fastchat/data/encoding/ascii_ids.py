"""Ids of ASCII texts with tiktoken, for BPE: several times as fast as `tokenizers`, and the same ids.

tiktoken merges the two neighbours whose union has the smallest rank, `tokenizers` the pair that is first in the list of
merges. These are the same merges, and so the same ids, for every text if

1  the merges that make one token are next to each other in the list, and the tokens are ranked by them, and
2  each token, encoded alone by merges only, is one token; or, where a whole word of the vocabulary is its token without
   any merge (`ignore_merges`), is not two tokens.

For suppose that tiktoken first does something else: it unites a and b to a token c, and no merge lists that pair.
Everything done so far within the text of c is what encoding c alone begins with, as nothing has crossed its ends; so
encoding c alone comes to a, b, and stops there with two tokens, which 2 excludes. Tokens that take more steps to fail
are never made by either. What is left is how a text is cut into words: by the same regular expression, which two
libraries read. So only expressions that both read alike are accepted, only ASCII texts are encoded, in which no library
has other classes of characters, and `FastPath` compares the ids of all pairs of characters. A tokenizer that writes a
space as "▁" may take the whole text as one word. It is cut before spaces where no token has a space after another
character, so that no merge crosses the cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from fastchat.data.encoding.word_cuts import may_cut

# What the step ByteLevel splits at by itself, in the order of GPT-2.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ESCAPE = r"\\[rntsSdDwW]|\\[pP]\{\w+\}|\\[^\w\s]"
_PORTABLE = re.compile(
    rf"(?:{_ESCAPE}"
    rf"|\[\^?(?:{_ESCAPE}|(?!&&|--|~~)[^\\\[\]])+\]"  # a class, without the operators that only some libraries have
    r"|\(\?(?:i?:|<?[!=])|\((?!\?)|\)|\|"
    r"|[?*+][?+]?|\{\d+(?:,\d*)?\}(?![?*+])"
    r"|[^\\\[\](){}|?*+^$.])+"
)

SPACE = "▁"  # as which tokenizers that are not byte-level write a space
_CHARACTERS = [SPACE if byte == 0x20 else chr(byte) for byte in range(128)]
_ALL = r"[\s\S]+"
_SPACE_INSIDE = re.compile(f"[^{SPACE}]{SPACE}")

Ids = Callable[[str], list[int]]


class AsciiIds(NamedTuple):
    """The ids of an ASCII text, and whether other texts can be cut before spaces to encode the ASCII part so."""

    ids: Ids
    cuts: bool


def byte_characters() -> list[str]:
    """[256]: the character as which a byte-level tokenizer writes each byte in its vocabulary."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust has stopped at an internal error. The class of such errors cannot be imported, and it
    is not an `Exception`."""
    return type(error).__name__ == "PanicException"


def ascii_ids(model: Any, spec: dict[str, Any], steps: Sequence[dict[str, Any]]) -> tuple[AsciiIds | None, str]:
    """What encodes ASCII texts, or None and the reason why there is nothing.

    Args:
        model: the BPE model of a tokenizer. spec: the same in its `tokenizer.json`.
        steps: of its pre-tokenizer.
    """
    try:
        import regex
        import tiktoken
    except ImportError as error:
        return None, f"{error.name} is not installed (pip install tiktoken)"
    if spec["type"] != "BPE":
        return None, f"its model is {spec['type']}"
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    if spec.get("ignore_merges") and not byte_level:
        return None, "it looks for whole texts in its vocabulary"
    patterns, why = _patterns(steps) if byte_level else _patterns_of_spaces(steps, spec["vocab"])
    if why:
        return None, why
    ranks, id_of, why = _ranks(model, spec, byte_characters()[:128] if byte_level else _CHARACTERS)
    if why:
        return None, why
    try:
        splits = [regex.compile(pattern, regex.VERSION0) for pattern in patterns]
        # Where an expression matches nothing, the text is cut too; tiktoken cannot have a word of no characters.
        last = _ALL if _matches_nothing(splits[-1]) else patterns[len(splits := splits[:-1])]
        # What the expression does not match is a word too; tiktoken would leave it out.
        last = rf"{last}|(?:(?!{last})[\s\S])+"
        words = tiktoken.Encoding("", pat_str=last, mergeable_ranks=ranks, special_tokens={}).encode_ordinary
    except (ValueError, regex.error) as error:
        return None, f"its pre-tokenizer's expression cannot be compiled ({error})"
    cuts = may_cut(patterns)
    if not splits and not id_of:
        return AsciiIds(words, cuts), ""

    def ids(text: str) -> list[int]:
        pieces = [text]
        for split in splits:
            pieces = [part for piece in pieces for part in _isolated(split, piece)]
        found = [token for piece in pieces for token in words(piece)]
        return [id_of[rank] for rank in found] if id_of else found

    return AsciiIds(ids, cuts), ""


def _matches_nothing(pattern: Any) -> bool:
    """Whether a pattern has matches of no characters; looked for between all pairs of ASCII characters."""
    characters = list(map(chr, range(128)))
    texts = ["", *("".join(f"{a}{b}" for b in characters) for a in characters)]
    return any(found.start() == found.end() for text in texts for found in pattern.finditer(text))


def _isolated(pattern: Any, text: str) -> list[str]:
    """A text cut before and after every match."""
    edges = [0, *(edge for found in pattern.finditer(text) for edge in found.span()), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]


def _patterns(steps: Sequence[dict[str, Any]]) -> tuple[list[str], str]:
    """The expressions that a pre-tokenizer splits a text by, one after the other; or the reason why there are none."""
    found = []
    for step in steps:
        pattern = step.get("pattern", {})
        if step["type"] == "ByteLevel":
            found += [_WORDS] if step.get("use_regex", True) else []
        elif step["type"] == "Digits":
            found.append(r"\p{N}" if step["individual_digits"] else r"\p{N}+")
        elif step["type"] != "Split" or step["behavior"] != "Isolated" or step.get("invert"):
            return [], f"its pre-tokenizer splits in a way that tiktoken has not ({step['type']})"
        elif "String" in pattern:
            found.append(re.escape(pattern["String"]))
        elif _PORTABLE.fullmatch(pattern["Regex"]):
            found.append(pattern["Regex"])
        else:
            return [], "its pre-tokenizer's expression may mean something else to tiktoken"
    if not steps or steps[-1]["type"] != "ByteLevel":
        return [], "its pre-tokenizer does not end with ByteLevel"
    return found or [_ALL], ""  # one word where nothing splits the text


def _patterns_of_spaces(steps: Sequence[dict[str, Any]], vocabulary: Iterable[str]) -> tuple[list[str], str]:
    """The same for a tokenizer that writes a space as "▁"."""
    if any(step["type"] != "Metaspace" for step in steps):
        return [], "its pre-tokenizer does more than to replace spaces"
    if any(step.get("split", True) for step in steps):
        return [" ?[^ ]+| "], ""
    return [_ALL if any(map(_SPACE_INSIDE.search, vocabulary)) else " *[^ ]+| +"], ""


def _ranks(model: Any, spec: dict[str, Any], characters: list[str]) -> tuple[dict[bytes, int], list[int], str]:
    """The tokens that ASCII texts can have.

    Args:
        characters: [128], as which the vocabulary writes each byte.

    Returns: the rank of each token, by its bytes; the id of each rank, empty if they are the same; and "", or the
        reason why merging by rank does not give the same tokens as the list of merges (see the top of this file).
    """
    vocabulary, whole_words = spec["vocab"], bool(spec.get("ignore_merges"))
    of_ascii, to_byte = frozenset(characters), str.maketrans({c: chr(byte) for byte, c in enumerate(characters)})
    words = [word for word in vocabulary if of_ascii.issuperset(word)]
    fallback = (f"<0x{byte:02X}>" if spec.get("byte_fallback") else "" for byte in range(128))
    single = {
        bytes([byte]): vocabulary.get(character, vocabulary.get(instead))
        for byte, (character, instead) in enumerate(zip(characters, fallback, strict=True))
    }
    if None in single.values():
        return {}, [], "its vocabulary has not every ASCII character"
    made = [vocabulary[pair.replace(" ", "", 1) if isinstance(pair, str) else "".join(pair)] for pair in spec["merges"]]
    order = list(dict.fromkeys(made))
    if len(order) != np.count_nonzero(np.diff(made, prepend=-1)):
        return {}, [], "the merges of one token are apart in its list"
    sizes = dict(zip(words, _num_tokens(model, words), strict=True))
    if whole_words and 2 in sizes.values():
        return {}, [], "a word of its vocabulary is two tokens when it is merged"
    kept = words if whole_words else [word for word in words if sizes[word] == 1]
    ids = single | {word.translate(to_byte).encode("ascii"): vocabulary[word] for word in kept}
    if (np.diff(order) > 0).all():
        return ids, [], ""
    order += set(ids.values()) - set(order)
    rank_of = {token: rank for rank, token in enumerate(order)}
    return {word: rank_of[token] for word, token in ids.items()}, order, ""


def _num_tokens(model: Any, words: Sequence[str]) -> list[int]:
    """The number of tokens of each word, by merges only."""
    before = model.ignore_merges
    model.ignore_merges = False
    try:
        found = Tokenizer(model).encode(words, is_pretokenized=True, add_special_tokens=False)
        return np.bincount(np.array(found.word_ids, np.int64), minlength=len(words)).tolist()
    finally:
        model.ignore_merges = before
