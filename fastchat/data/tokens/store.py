"""All examples of some data in flat arrays: no Python object per token, and files that every process can map.

ids         int32  [N]      the token ids of all examples, one after the other
labels      int32  [N]      for each id: the id itself if it is supervised, else -100
offsets     int64  [E + 1]  example i is ids[offsets[i]:offsets[i + 1]]
index       int64  [E]      the row of the input it was made from
part        int32  [E]      its number among the examples of that row, from 0
supervised  int32  [E]      the number of its supervised tokens
digests     uint64 [E]      of its dialogue's texts: equal digests mean the same dialogue, word for word
"""

from __future__ import annotations

import hashlib
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastchat.bars import bar
from fastchat.conversation import Dialogue
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import Example, examples_in_arrays
from fastchat.data.rows.records import Record
from fastchat.data.tokens.counts import count_example, hint_at_causes, table
from fastchat.errors import DataError, ResourceError

_FIELDS: dict[str, Any] = {
    "ids": np.int32,
    "labels": np.int32,
    "offsets": np.int64,
    "index": np.int64,
    "part": np.int32,
    "supervised": np.int32,
    "digests": np.uint64,
}
_PER_EXAMPLE: dict[str, Any] = {
    "lengths": np.int64,
    "index": np.int64,
    "part": np.int32,
    "supervised": np.int32,
    "digests": np.uint64,
}
_CODES = {np.int32: "i", np.int64: "q", np.uint64: "Q"}
_BLOCK = 1 << 24


class TokenStore:
    """Examples in flat arrays; `store[i]` is a dict with input_ids and labels (int32 [T], views), index and part.

    `folder` is where the arrays are mapped from, None if they are in memory; an unpickled store is mapped again.
    """

    def __init__(self, arrays: dict[str, np.ndarray], folder: Path | None = None):
        self.folder = folder
        self.ids, self.labels, self.offsets = arrays["ids"], arrays["labels"], arrays["offsets"]
        self.index, self.part = arrays["index"], arrays["part"]
        self.supervised, self.digests = arrays["supervised"], arrays["digests"]

    @classmethod
    def of_parts(cls, parts: Iterable[TokenShard]) -> TokenStore:
        """All examples of some shards, in memory."""
        parts = list(parts)
        arrays = {n: np.concatenate([p.arrays[n] for p in parts]) for n in _FIELDS if n != "offsets"}
        ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *(p.arrays["lengths"] for p in parts)]))
        return cls({**arrays, "offsets": ends})

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> TokenStore:
        """Map what a StoreWriter wrote; all processes share one copy.

        Raises:
            DataError: a file is missing or cut off, or the files do not belong together.
        """
        folder = Path(directory)
        try:
            arrays = {name: _mapped(folder / f"{name}.bin", dtype) for name, dtype in _FIELDS.items()}
        except (OSError, ValueError) as error:
            raise DataError(f"{directory}: not a readable token store ({error}).") from None
        store = cls(arrays, folder)
        if not store._is_consistent():
            raise DataError(f"{directory}: the arrays of this token store are not consistent.")
        return store

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        self._check_whole()
        span = slice(*self.offsets[i % len(self) :][:2])
        place = {"index": int(self.index[i]), "part": int(self.part[i])}
        return {"input_ids": self.ids[span], "labels": self.labels[span], **place}

    def __reduce__(self) -> Any:
        if self.folder is not None:
            return TokenStore.load, (self.folder,)
        return TokenStore, ({name: np.asarray(getattr(self, name)) for name in _FIELDS},)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example: int64 [E]."""
        self._check_whole()
        return np.diff(self.offsets)

    def _check_whole(self) -> None:
        """Raise ResourceError if a mapped file has been truncated: reading there would be a bus error, which kills the
        process without a message."""
        for values in (self.ids, self.labels, self.offsets, self.index):
            mapped = getattr(values, "_mmap", None)
            if mapped is not None and mapped.size() < len(mapped):
                raise ResourceError(
                    f"the tokens in {self.folder} were truncated by another process while this run used them; run the "
                    "same command again: it makes them again and resumes from the last checkpoint"
                )

    def _is_consistent(self) -> bool:
        per_example = (self.index, self.part, self.supervised, self.digests)
        sizes = {len(self.offsets) - 1, *map(len, per_example)}
        if not (len(sizes) == 1 and len(self.ids) == len(self.labels)):
            return False
        return bool(self.offsets[0] == 0 and self.offsets[-1] == len(self.ids) and (np.diff(self.offsets) > 0).all())


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


# --- shards


@dataclass
class TokenShard:
    """Some examples in flat arrays (as in a store, but with `lengths` int64 [E] instead of offsets), and their counts.

    `gains`: length limit -> supervised tokens that it would keep in addition, see lost.py. `refusal`: why the template
    rejects the first dialogue that it rejects. `slow`: why the fast path of `FastPath` is not used, "" if it is, or was
    not needed.
    """

    arrays: dict[str, np.ndarray]
    counts: Counter[str] = field(default_factory=Counter)
    gains: Counter[int] = field(default_factory=Counter)
    refusal: str = ""
    slow: str = ""


def make_shard(
    dialogues: Sequence[tuple[int, Dialogue]],
    chat_encoder: ChatEncoder,
    *,
    max_length: int,
    overlong: str,
    on_bad_row: str = "stop",
) -> TokenShard:
    """Tokenise (index, dialogue) pairs. Raises DataError as `tokenize_dialogues` does."""
    how = {"max_length": max_length, "overlong": overlong, "on_bad_row": on_bad_row}
    examples = examples_in_arrays(dialogues, chat_encoder, **how)
    shard = collect(_with_digests(examples, dict(dialogues)))
    shard.slow = chat_encoder.encoder.fast.why_not
    return shard


def _with_digests(examples: Iterable[Example], dialogues: Mapping[int, Dialogue]) -> Iterator[tuple[Example, int]]:
    number = 0
    for example in examples:
        if example.part == 0:
            number = digest(dialogues[example.index])
        yield example, number


def collect(examples: Iterable[tuple[Example, int]]) -> TokenShard:
    """Flat arrays of (example, digest) pairs; dropped examples are only counted."""
    counts: Counter[str] = Counter()
    gains: Counter[int] = Counter()
    refusal = ""
    ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    made = {name: array(_CODES[dtype]) for name, dtype in _PER_EXAMPLE.items()}
    for example, number in examples:
        count_example(counts, example)
        refusal = refusal or example.refusal
        for length, tokens in example.gains:
            gains[length] += tokens
        if example.dropped is None:
            ids.append(np.asarray(example.input_ids, np.int32))
            labels.append(np.asarray(example.labels, np.int32))
            made["lengths"].append(len(example.input_ids))
            made["index"].append(example.index)
            made["part"].append(example.part)
            made["supervised"].append(example.num_supervised)
            made["digests"].append(number)
    arrays = {n: np.frombuffer(made[n], dtype=d) if made[n] else np.empty(0, d) for n, d in _PER_EXAMPLE.items()}
    arrays |= {"ids": _joined(ids), "labels": _joined(labels)}
    return TokenShard(arrays, counts, gains, refusal)


def _joined(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(rows) if rows else np.empty(0, np.int32)


def digest(dialogue: Dialogue) -> int:
    """A 64-bit digest of what a dialogue says, apart from what is trained on."""
    turns = [(turn.role, len(turn.text), turn.reasoning or "", turn.calls) for turn in dialogue.turns]
    about = repr((dialogue.system, turns, dialogue.tools, dialogue.template_arguments))
    text = "".join([about, *(turn.text for turn in dialogue.turns)]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class StoreWriter:
    """Writes a store into an existing folder, shard by shard; what has been written is not kept in memory.

    Raises OSError if writing fails.
    """

    def __init__(self, folder: Path):
        self._files: dict[str, IO[bytes]] = {}
        self._sums = dict.fromkeys(_FIELDS, 0)
        self._end = 0
        for name in _FIELDS:
            self._files[name] = open(folder / f"{name}.bin", "wb")  # noqa: SIM115 (closed by `close`)
        self._write("offsets", np.zeros(1, np.int64))

    def add(self, part: TokenShard) -> None:
        """Append the examples of a shard."""
        ends = self._end + np.cumsum(part.arrays["lengths"])
        self._end = int(ends[-1]) if len(ends) else self._end
        for name in _FIELDS:
            self._write(name, ends if name == "offsets" else part.arrays[name])

    def close(self) -> dict[str, list[int]]:
        """Close all files; returns the size in bytes and the CRC-32 of each, for `damage`."""
        sizes = {name: file.tell() for name, file in self._files.items()}
        for file in self._files.values():
            file.close()
        return {f"{name}.bin": [size, self._sums[name]] for name, size in sizes.items()}

    def _write(self, name: str, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, dtype=_FIELDS[name]).tobytes()
        self._files[name].write(data)
        self._sums[name] = zlib.crc32(data, self._sums[name])


def damage(folder: Path, files: dict[str, list[int]]) -> str:
    """What is wrong with the files listed by `StoreWriter.close`; "" if every byte is as it was written."""
    with bar("checking the cached tokens", sum(size for size, _ in files.values())) as progress:
        for name, (size, wanted) in files.items():
            try:
                if (folder / name).stat().st_size != size:
                    return f"{name} has another size"
                found = 0
                with open(folder / name, "rb") as file:
                    while block := file.read(_BLOCK):
                        found = zlib.crc32(block, found)
                        progress.advance(len(block))
            except OSError as error:
                return f"{name}: {error.strerror or error}"
            if found != wanted:
                return f"{name} is not what was written"
    return ""


# --- records


def usable(records: Iterable[Record]) -> list[tuple[int, Dialogue]]:
    """The dialogues of some records, each with its index."""
    return [(record.index, record.dialogue) for record in records if record.dialogue is not None]


def check_supervised(counts: Counter[str], max_length: int) -> None:
    """Raise DataError if there are no supervised tokens."""
    if not counts["supervised_tokens"]:
        raise DataError(
            "No learned tokens in the data: there is nothing to train on.\n"
            f"{table(counts)}\n{hint_at_causes(counts, max_length)}"
        )
