"""Files -> a store of tokens on disk: streamed, made by several processes, and cached for the next run.

    rows -> records -> batches of dialogues -> (workers) -> shards -> files of a store -> the token cache

Only the batches in progress and a few sample dialogues are in memory, however long the files are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat.bars import bar
from fastchat.conversation import Dialogue
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.cross_check import Checked, LabelCrossCheck
from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.fingerprint import KnownSums, state_of
from fastchat.data.rows.records import OnBadRow, Record, Records
from fastchat.data.rows.sources import Source
from fastchat.data.tokens import cache as token_cache
from fastchat.data.tokens.counts import plain_line, refused_line
from fastchat.data.tokens.early import EARLY, what_is_done
from fastchat.data.tokens.lost import Lost
from fastchat.data.tokens.store import StoreWriter, TokenShard, TokenStore, check_supervised
from fastchat.data.tokens.workers import BATCH, Batch, num_workers, rarely_collected, tokenised
from fastchat.errors import DataError, counted, say
from fastchat.files import sha256_of
from fastchat.streams import detail

_ABOUT = 6  # increment whenever the result of `TokenizeJob` changes: it is part of the key
_SAMPLES = 64  # examples whose labels are derived a second time
_MOST_CHARACTERS = 1 << 26  # of the examples of a batch, so that their arrays stay small


@dataclass(frozen=True)
class TokenSettings:
    """What determines the ids in addition to data, tokenizer and template; and how they are made.

    workers: number of processes, None to choose by CPUs and data. overwrite: do not use cached tokens.
    """

    max_length: int
    overlong: str
    on_bad_row: OnBadRow
    columns: Columns = AS_THEY_ARE
    workers: int | None = None
    overwrite: bool = False


class NothingToLearn(DataError):
    """No token of the data is supervised.

    Attributes:
        counts: over all rows, see counts.py. gains: (length, tokens), see Lost.
    """

    counts: dict[str, int]
    gains: list[tuple[int, int]]

    @classmethod
    def of(cls, error: DataError, counts: dict[str, int], gains: Counter[int]) -> NothingToLearn:
        """With the message of `error`."""
        made = cls(str(error))
        made.counts, made.gains = counts, sorted(gains.items())
        return made


@dataclass
class TokenizedData:
    """The tokens of some sources, and what is known about them.

    Attributes:
        entry: where they are.
        counts: over all rows, see counts.py.
        rows: the number of rows of each source.
        sums: sha256 of the files of each source.
        samples: some of the records, spread evenly over all.
        gains: (length, tokens) of the tokens lost to the length limit, see Lost.
        lost: the supervised tokens lost to the length limit.
        found: whether they were cached.
    """

    entry: token_cache.Entry
    counts: dict[str, int]
    rows: list[int]
    sums: list[list[str]]
    samples: list[Record]
    gains: list[tuple[int, int]]
    found: bool
    lost: Lost


def get_or_create_tokens(
    name: str,
    sources: Sequence[Source],
    chat_encoder: ChatEncoder,
    settings: TokenSettings,
    output_dir: str | None = None,
) -> TokenizedData:
    """Get the tokens of all sources, from the cache or by tokenising. Logs what was skipped and what was verified.

    Raises:
        DataError: the data cannot be read, or it has no supervised tokens.
        SettingsError: the cache folder is not allowed. ResourceError: there is no disk space for the tokens.
    """
    folder = token_cache.cache_folder(output_dir)
    key, job, sums = prepare_job(name, sources, chat_encoder, settings, folder)
    made_early = EARLY.has_made(name, key)
    entry, found = token_cache.obtain(folder, key, job, overwrite=settings.overwrite and not made_early)
    for line in entry.about["lines"] if found else ():
        say(line)
    files = list(job.states)
    samples = [(number, _from_json(value, files)) for number, value in entry.about["samples"]]
    detail(f"{name} {_checked(samples, entry.store(), chat_encoder).line}")
    counts, records = entry.about["counts"], [record for _, record in samples]
    if line := plain_line(counts):
        say(line)
    gains = [(length, tokens) for length, tokens in entry.about["gains"]]
    found = found and not made_early
    if not found and (slow := entry.about["slow"]):
        say(f"tokenizer: without the fast path, because {slow}; the tokens are the same, making them took longer")
    return TokenizedData(entry, counts, entry.about["rows"], sums, records, gains, found, Lost.of(counts, gains))


def prepare_job(
    name: str, sources: Sequence[Source], chat_encoder: ChatEncoder, settings: TokenSettings, folder: Path
) -> tuple[str, TokenizeJob, list[list[str]]]:
    """(key of the entry in the cache `folder`, what makes it, sha256 of the files of each source). Raises DataError."""
    sum_of = KnownSums(folder / "sums")
    states = {file: state_of(file) for source in sources for file in source.files}
    sums = [[sum_of(file) for file in source.files] for source in sources]
    key = token_cache.key_of(
        data=sums,
        making=sha256_of(__file__),
        encoder=chat_encoder.described(),
        max_length=settings.max_length,
        overlong=settings.overlong,
        on_bad_row=settings.on_bad_row,
        columns=settings.columns.described,
        about=_ABOUT,
    )
    return key, TokenizeJob(name, sources, chat_encoder, settings, states), sums


def _checked(samples: Sequence[tuple[int, Record]], store: TokenStore, chat_encoder: ChatEncoder) -> Checked:
    examples = [(record.dialogue, store[number]) for number, record in samples if record.dialogue is not None]
    return LabelCrossCheck(chat_encoder).check(
        (dialogue, found["input_ids"].tolist(), found["labels"].tolist(), found["part"]) for dialogue, found in examples
    )


class TokenizeJob:
    """Makes an entry of the cache; called with the folder to write into.

    on_progress: told the bytes read and what has been made of them, after every batch.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[Source],
        chat_encoder: ChatEncoder,
        settings: TokenSettings,
        states: dict[str, list[int]],
    ):
        self.name, self.sources, self.chat_encoder, self.settings, self.states = (
            name,
            sources,
            chat_encoder,
            settings,
            states,
        )
        self.on_progress: Callable[[int, str], None] = lambda done, note: None
        self.counts: Counter[str] = Counter()
        self.gains: Counter[int] = Counter()

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.counts.clear()
        self.gains.clear()
        settings, samples = self.settings, _Samples(_SAMPLES)
        files = [file for source in self.sources for file in source.files]
        template = self.chat_encoder.template
        records = Records(
            files,
            on_bad_row=settings.on_bad_row,
            reasoning=template.shows_reasoning,
            calls=template.shows_calls,
            reads_argument=template.reads_argument,
            columns=settings.columns,
        )
        workers = num_workers(settings.workers, records.num_bytes)
        self.chat_encoder.encoder.fast.expect(records.num_bytes)
        parts = tokenised(
            self._batches(records),
            self.chat_encoder,
            max_length=settings.max_length,
            overlong=settings.overlong,
            on_bad_row=settings.on_bad_row,
            workers=workers,
        )
        writer, refusal, slow, num_dialogues = StoreWriter(folder), "", "", 0
        with bar(what_is_done(self.name, workers), records.num_bytes) as progress, rarely_collected():
            for batch, part in parts:
                writer.add(part)
                samples.add(batch, part)
                refusal, slow = refusal or part.refusal, slow or part.slow
                self.counts.update(part.counts)
                self.gains.update(part.gains)
                self.counts.update(batch.dropped)
                num_dialogues += len(batch.dialogues)
                done = batch.bytes_read, counted(num_dialogues, "dialogue")
                progress.to(*done)
                self.on_progress(*done)
        files = writer.close()
        self._check_unchanged()
        counts = {**records.counts, **self.counts}
        refused = refused_line(counts, refusal)
        for line in refused:
            say(line)
        try:
            check_supervised(Counter(counts), settings.max_length)
        except DataError as error:
            raise NothingToLearn.of(error, counts, self.gains) from None
        return {
            "files": files,
            "counts": counts,
            "gains": sorted(self.gains.items()),
            "rows": self._rows(records),
            "lines": [*records.lines, *refused],
            "slow": slow,
            "samples": [(number, _to_json(record, list(self.states))) for number, record in samples.kept],
        }

    def _check_unchanged(self) -> None:
        """Raise DataError if a file has changed since the key was made."""
        for file, before in self.states.items():
            if state_of(file) != before:
                raise DataError(f"{file}: it was modified while it was read; start again when it is complete.")

    def _batches(self, records: Records) -> Iterator[Batch]:
        """The dialogues, in batches. After a malformed row that will stop the run, the files are only checked."""
        batch, size = Batch(), 0
        for record in records:
            if records.stopping:
                continue
            if record.dialogue is not None:
                batch.dialogues.append((record.index, record.dialogue))
                batch.names[record.index] = record.id
                # At most: each answer may be an example of its own, with everything before it.
                size += record.dialogue.num_characters * len(record.dialogue.turns)
            else:
                batch.dropped[f"dropped_{record.dropped}"] += 1
            if len(batch.dialogues) == BATCH or size > _MOST_CHARACTERS:
                batch.bytes_read = records.bytes_read
                yield batch
                batch, size = Batch(), 0
        batch.bytes_read = records.num_bytes
        yield batch

    def _rows(self, records: Records) -> list[int]:
        ends = iter(records.rows_of_file)
        return [sum(next(ends) for _ in source.files) for source in self.sources]


class _Samples:
    """Up to `most` examples spread evenly over a stream of unknown length, as (number, record), with the first one."""

    def __init__(self, most: int):
        self.most, self.every, self.seen = most, 1, 0
        self.kept: list[tuple[int, Record]] = []

    def add(self, batch: Batch, part: TokenShard) -> None:
        """Keep every `every`-th example; if there are too many, drop every other one and double `every`."""
        dialogues = dict(batch.dialogues)
        for index in part.arrays["index"].tolist():
            if self.seen % self.every == 0 and len(self.kept) == self.most:
                del self.kept[1::2]
                self.every *= 2
            if self.seen % self.every == 0:
                dialogue = dialogues[index]
                record = Record(index, dialogue, None, dialogue.source, dialogue.line, batch.names[index])
                self.kept.append((self.seen, record))
            self.seen += 1


def _to_json(record: Record, files: list[str]) -> list[Any]:
    """With the index of its file in `files`: the key does not contain names, and the next run may have other names."""
    assert record.dialogue is not None
    return [record.dialogue.to_dict(), record.index, files.index(record.source), record.line, record.id]


def _from_json(value: list[Any], files: list[str]) -> Record:
    made, index, place, line, name = value
    source = files[place]
    return Record(index, Dialogue.from_dict(made, source, line), None, source, line, name)
