"""Loading a tokenizer, and choosing the token that pads a batch.

Padding is masked by length everywhere in this project, so the pad id is only ever looked up in the embedding table.
The choice still matters: other programs read the saved tokenizer and mask *by id*, and with a pad token
that is also the end of a turn, a model trained by them never learns to stop.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError
from fastchat.model.source import is_local, loading, read_json
from fastchat.model.tokenizer_files import (
    FILE,
    SENTENCEPIECE,
    config_of,
    find_file,
    from_class,
    from_file,
    from_sentencepiece,
)
from fastchat.security import brings_code, check_references

TOKENIZER_FILES = (
    *(FILE, SENTENCEPIECE, "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tekken.json", "tiktoken.model"),
)

# Tried in this order against the added tokens; none of these kinds occurs in ordinary training text.
UNUSED_PATTERNS = (
    (re.compile(r"^[<\[]\|?pad\|?[>\]]$", re.I), "it is the vocabulary's padding token"),
    (re.compile(r"^<\|?[\w ]*_?pad(_id)?\|?>$", re.I), "it is a padding token that no template uses"),
    (re.compile(r"^<\|?reserved[\w ]*\|?>$", re.I), "it is reserved and unused"),
    (re.compile(r"^[<\[]\|?unused[\w ]*\|?[>\]]$", re.I), "it is unused"),
)


_OWN_PAD = "it is the tokenizer's own pad token"


@dataclass(frozen=True)
class PadChoice:
    """The token that fills up the shorter rows of a batch, and why; `token` is None if only an id is borrowed."""

    id: int
    token: str | None
    reason: str

    @property
    def is_own(self) -> bool:
        """Whether it is the tokenizer's own pad token, so that nothing had to be chosen."""
        return self.reason == _OWN_PAD

    @property
    def line(self) -> str:
        """The message that a run prints about it."""
        return f"Padding with {self.token or 'a borrowed token'} (id {self.id}): {self.reason}."


def load_tokenizer(
    model_dir: str,
    *,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
    padding_side: str = "right",
    use_class: bool = False,
    stop_ids: Collection[int] = (),
    embedding_rows: int | None = None,
) -> tuple[Any, PadChoice]:
    """The fast tokenizer of a folder or hub name, with its pad token chosen by `choose_pad`.

    `stop_ids`: ids that end a turn in the template, as far as known; `choose_pad` may be called again with more.
    `embedding_rows`: see `choose_pad`.
    Raises SettingsError for a missing folder, a folder without a tokenizer, or one without a fast version.
    """
    tokenizer = load_plain(model_dir, cache_dir=cache_dir, trust_remote_code=trust_remote_code, use_class=use_class)
    tokenizer.padding_side = padding_side
    return tokenizer, choose_pad(tokenizer, stop_ids=stop_ids, embedding_rows=embedding_rows)


def load_plain(
    model_dir: str, *, cache_dir: str | None = None, trust_remote_code: bool = False, use_class: bool = False
) -> Any:
    """The tokenizer as its files describe it, with no pad token chosen for it. Raises as `load_tokenizer` does.

    `tokenizer.json` determines the ids if there is one; with `use_class` the class in transformers does, and with
    `trust_remote_code` the folder's own code.
    """
    if is_local(model_dir):
        _check_tokenizer_directory(model_dir)
        model_dir = str(Path(model_dir).expanduser())
    with loading(model_dir, "tokenizer", trust_remote_code=trust_remote_code):
        code = brings_code(config_of(model_dir, cache_dir=cache_dir))
        if use_class or code:
            tokenizer = from_class(model_dir, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
            if use_class or trust_remote_code:
                return tokenizer  # otherwise its class is one of transformers' own, and no code is needed
        if find_file(model_dir, FILE, cache_dir):
            return from_file(model_dir, cache_dir=cache_dir)
        if model := find_file(model_dir, SENTENCEPIECE, cache_dir):
            return from_sentencepiece(model_dir, model, cache_dir=cache_dir)
        return from_class(model_dir, cache_dir=cache_dir, trust_remote_code=trust_remote_code)


def choose_pad(tokenizer: Any, *, stop_ids: Collection[int] = (), embedding_rows: int | None = None) -> PadChoice:
    """Choose the pad token, set it on `tokenizer`, and return it. Nothing is added to the vocabulary.

    Never chosen: the EOS, any of `stop_ids`, and any id without a row among `embedding_rows` (default: the vocab size
    in a config.json next to the tokenizer). In order of preference: the tokenizer's own pad token, a
    padding/reserved/unused added token, `<unk>`, the BOS, and last any other id (then the tokenizer's pad token is left
    unset, since none is suitable).

    >>> choose_pad(gemma_tokenizer).token            # doctest: +SKIP
    '<pad>'
    """
    rows = embedding_rows or _rows_from_config(tokenizer.name_or_path) or len(tokenizer)
    barred = {int(i) for i in stop_ids} | {tokenizer.eos_token_id}
    # The value in the files, not one that an earlier call has set.
    own = str(tokenizer.init_kwargs.get("pad_token") or "")
    own_id = tokenizer.convert_tokens_to_ids(own) if own else None
    if own_id is None:
        why_not_own = "the tokenizer names no pad token"
    elif own_id in barred:
        why_not_own = f"its own {own} ends a turn"
    elif own_id >= rows:
        why_not_own = f"its own {own} (id {own_id}) has no row in the embedding of {rows}"
    else:
        tokenizer.pad_token = own
        return PadChoice(own_id, own, _OWN_PAD)
    for token, token_id, reason in _candidates(tokenizer):
        if token_id not in barred and token_id < rows:
            tokenizer.pad_token = token
            return PadChoice(token_id, token, f"{reason}; {why_not_own}")
    borrowed = next(i for i in range(rows) if i not in barred)
    tokenizer.pad_token = None
    return PadChoice(borrowed, None, f"{why_not_own} and no token is free; padding is masked by length")


def base_stop_ids(model: Any, added: Container[int]) -> list[int]:
    """The ids that end a generation by the configurations of `model`: a base may have more than its tokenizer's EOS
    (Llama-3.1's `<|eom_id|>`).

    Only `added` tokens count: a configuration that names none has its class's default (2), which is text elsewhere.
    """
    ends = (getattr(part, "eos_token_id", None) for part in (model.generation_config, model.config.get_text_config()))
    return configured_stop_ids(ends, added)


def configured_stop_ids(ends: Iterable[int | Sequence[int] | None], added: Container[int]) -> list[int]:
    """The same from the values of `eos_token_id`."""
    found: dict[int, None] = {}
    for ids in ends:
        found |= dict.fromkeys([] if ids is None else [ids] if isinstance(ids, int) else ids)
    return [token_id for token_id in found if token_id in added]


def _candidates(tokenizer: Any) -> Iterator[tuple[str, int, str]]:
    """(token, id, reason) of every possible pad token, best first."""
    added = sorted((token_id, token.content) for token_id, token in tokenizer.added_tokens_decoder.items())
    for pattern, reason in UNUSED_PATTERNS:
        for token_id, token in added:
            if pattern.match(token):
                yield token, token_id, reason
    if tokenizer.unk_token is not None:
        yield tokenizer.unk_token, tokenizer.unk_token_id, "it does not end a turn"
    if tokenizer.bos_token is not None:
        yield tokenizer.bos_token, tokenizer.bos_token_id, "it does not end a turn and is never trained"


def _check_tokenizer_directory(model_dir: str) -> None:
    folder = Path(model_dir).expanduser()
    check_references(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise SettingsError(
            f"{model_dir} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}). Copy the tokenizer files of the "
            "model's original download into it."
        )


def _rows_from_config(model_dir: str) -> int | None:
    path = Path(model_dir).expanduser() / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    return config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
