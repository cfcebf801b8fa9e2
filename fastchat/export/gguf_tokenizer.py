"""The tokenizer of a GGUF file, as llama.cpp uses it, compared with the one of training.

llama.cpp cuts a text at its special tokens and encodes each rest by the file's scores (SentencePiece's algorithm) or
merges (byte-level BPE). Both are rebuilt here from the file alone, and must give the training ids of whole prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from fastchat.errors import CheckpointError, brief
from fastchat.export.gguf_file import ADDS_BOS, SPACE_PREFIX
from fastchat.files import read_object

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens, here as in SentencePiece
_SPACE = "▁"


class GgufTokenizer:
    """Encodes text as llama.cpp does with the metadata of one GGUF file.

    `metadata`: key -> value. `spec`: the `tokenizer.json` of training, for the splitting into words, which a GGUF file
    only names.
    """

    def __init__(self, metadata: Mapping[str, Any], spec: Mapping[str, Any]):
        self.kind: str = metadata["tokenizer.ggml.model"]
        self.tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        self.types: list[int] = metadata["tokenizer.ggml.token_type"]
        self.scores: list[float] = metadata.get("tokenizer.ggml.scores") or [0.0] * len(self.tokens)
        self.merges: list[str] = metadata.get("tokenizer.ggml.merges") or []
        self.bos: int | None = metadata.get("tokenizer.ggml.bos_token_id")
        self.eos: int | None = metadata.get("tokenizer.ggml.eos_token_id")
        self.chat_template: str | None = metadata.get("tokenizer.chat_template")
        self.adds_bos = bool(metadata.get(ADDS_BOS, self.kind == "llama"))
        self.space_prefix = bool(metadata.get(SPACE_PREFIX, self.kind == "llama"))
        self._spec = spec
        special = {t: i for i, (t, k) in enumerate(self._typed()) if k in (CONTROL, USER_DEFINED, UNKNOWN) and t}
        self._special = special
        ordered = sorted(special, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None

    def _typed(self) -> Iterator[tuple[str, int]]:
        return zip(self.tokens, self.types, strict=True)

    def prompt(self, text: str) -> list[int]:
        """The ids of a rendered prompt. A BOS at its beginning is not written twice."""
        bos = self.tokens[self.bos] if self.bos is not None else ""
        if self.adds_bos and self.bos is not None:
            return [self.bos, *self.encode(text.removeprefix(bos) if bos else text)]
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, in which special tokens are recognised."""
        ids: list[int] = []
        after_special = True
        for piece in self._cut.split(text) if self._cut else [text]:
            if piece in self._special:
                ids.append(self._special[piece])
                after_special = True
            elif piece:
                prefix = " " if self.kind == "llama" and self.space_prefix and after_special else ""
                ids += self._plain(prefix + piece)
                after_special = False
        return ids

    def _plain(self, text: str) -> list[int]:
        if self.kind == "llama":
            return self._sentencepiece.encode(text)
        return self._byte_level.encode(text, add_special_tokens=False).ids

    @cached_property
    def _sentencepiece(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        kinds = (k if k in (NORMAL, UNKNOWN, BYTE) else CONTROL for k in self.types)
        pieces = list(zip(self.tokens, self.scores, kinds, strict=True))
        return SentencePieceProcessor(model_proto=sentencepiece_model(pieces))

    @cached_property
    def _byte_level(self) -> Any:
        from tokenizers import Tokenizer

        known = {t: i for i, (t, k) in enumerate(self._typed()) if k in (NORMAL, BYTE)}
        model = {**self._spec["model"], "vocab": known, "merges": [m.split(" ", 1) for m in self.merges]}
        # Control tokens that are in the model's own vocabulary, as `<unk>` is in some.
        model["vocab"] = {**{t: i for t, i in self._spec["model"]["vocab"].items() if t not in known}, **known}
        rest = {key: self._spec.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")}
        spec = {"version": "1.0", "added_tokens": [], "post_processor": None, **rest, "model": model}
        return Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))


def check_vocabulary(tokenizer: GgufTokenizer, folder: Path, hf: Any) -> list[str]:
    """Compare tokens, types and merges with the tokenizer of `folder`; returns what is worth saying.

    Raises CheckpointError if a token has another text, a special token is not one in the file, the merges differ, the
    chat template differs, or BOS and EOS are other tokens.
    """
    spec = read_object(folder / "tokenizer.json")
    added = {token["id"]: token for token in spec["added_tokens"]}
    bytes_ = {number: text for text, number in _renamed_bytes(spec["model"]["vocab"]).items()}
    for text, number in hf.get_vocab().items():
        stored = tokenizer.tokens[number] if number < len(tokenizer.tokens) else None
        same = stored in (text, text.replace(_SPACE, " "), bytes_.get(number))
        if stored is None or not same and number not in added:
            raise CheckpointError(f"token {number} is {text!r} in the tokenizer and {stored!r} in the GGUF file")
        if number in added and added[number]["special"] and tokenizer.types[number] == NORMAL:
            raise CheckpointError(f"the special token {text!r} would be plain text in the GGUF file")
    if tokenizer.kind == "gpt2":
        ours = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
        if [merge.replace("Ġ", " ") for merge in ours] != [merge.replace("Ġ", " ") for merge in tokenizer.merges]:
            raise CheckpointError("the merges of the GGUF file are not those of the tokenizer")
    if tokenizer.chat_template != hf.chat_template:
        raise CheckpointError("the chat template of the GGUF file is not that of the model folder")
    for name, ours, theirs in (("BOS", hf.bos_token_id, tokenizer.bos), ("EOS", hf.eos_token_id, tokenizer.eos)):
        if ours is not None and ours != theirs:
            raise CheckpointError(f"{name} is token {theirs} in the GGUF file and {ours} in the model folder")
    now = [t for i, t in enumerate(tokenizer.tokens) if tokenizer.types[i] == CONTROL and _was_text(added.get(i))]
    return (
        [f"llama.cpp treats {brief(', '.join(now), 80)} as control tokens: its answers do not show them"] if now else []
    )


def _was_text(token: Mapping[str, Any] | None) -> bool:
    return token is not None and not token["special"]


def sentencepiece_model(pieces: list[tuple[str, float, int]]) -> bytes:
    """A SentencePiece model of (piece, score, type) in the order of their ids, which changes nothing in a text."""
    from sentencepiece import sentencepiece_model_pb2

    pb: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    if not any(kind == UNKNOWN for _, _, kind in pieces):  # SentencePiece needs one; with all bytes it is never used
        stand_in = next((i for i, (_, _, kind) in enumerate(pieces) if kind in (CONTROL, UNUSED)), None)
        if stand_in is None:
            raise CheckpointError("the tokenizer has no special token at all, and SentencePiece needs an unknown token")
        pieces = [(t, s, UNKNOWN if i == stand_in else kind) for i, (t, s, kind) in enumerate(pieces)]
    proto: Any = pb.ModelProto()
    for text, score, kind in pieces:
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = pb.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = any(kind == BYTE for _, _, kind in pieces)
    proto.trainer_spec.vocab_size = len(pieces)
    unknown = next(i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN)
    proto.trainer_spec.unk_id, proto.trainer_spec.unk_piece = unknown, pieces[unknown][0]
    proto.trainer_spec.bos_id = proto.trainer_spec.eos_id = proto.trainer_spec.pad_id = -1
    normal = proto.normalizer_spec
    normal.name, normal.add_dummy_prefix, normal.remove_extra_whitespaces = "identity", False, False
    normal.escape_whitespaces = True
    return proto.SerializeToString()


def _renamed_bytes(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Byte tokens that a vocabulary has under the character instead, as Gemma's tab: `<0x09>` -> id."""
    missing = (byte for byte in range(128) if f"<0x{byte:02X}>" not in vocabulary)
    return {f"<0x{byte:02X}>": vocabulary[chr(byte)] for byte in missing if chr(byte) in vocabulary}


def pieces_of(spec: Mapping[str, Any]) -> list[tuple[str, float, int]] | None:
    """The SentencePiece pieces of a `tokenizer.json` with ▁ for spaces and byte fallback; None for any other kind.

    The score of a piece is the negative rank of the merge that makes it, so that SentencePiece merges in that order.
    """
    model = spec["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback") or "<0x0A>" not in model["vocab"]:
        return None
    rank: dict[str, int] = {}
    for merge in model["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        rank.setdefault(left + right, len(rank))
    texts = {number: text for text, number in model["vocab"].items()}
    texts |= {number: text for text, number in _renamed_bytes(model["vocab"]).items()}
    added = {token["id"]: token for token in spec["added_tokens"]}
    pieces = []
    for number in range(max([*texts, *added], default=-1) + 1):
        text = added[number]["content"] if number in added else texts.get(number, f"[PAD{number}]")
        if text == model.get("unk_token"):
            kind = UNKNOWN
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            kind = BYTE
        elif number in added:
            kind = CONTROL if added[number]["special"] else USER_DEFINED
        else:
            kind = NORMAL if number in texts else UNUSED
        plain = kind == NORMAL
        pieces.append((text, -float(rank.get(text, len(rank) + number)) - 1 if plain else 0.0, kind))
    return pieces
