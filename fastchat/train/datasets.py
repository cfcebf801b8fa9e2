"""From the data named in the settings to the dialogues a run trains and evaluates on, tokenised once per machine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastchat.conversation import Dialogue
from fastchat.data.batches.packing import PackedDataset, Packs
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.cross_check import spread
from fastchat.data.rows.fingerprint import combined
from fastchat.data.rows.records import Record
from fastchat.data.rows.sources import Source, find_sources
from fastchat.data.tokens.counts import table
from fastchat.data.tokens.dataset import ChatDataset, WithoutTails
from fastchat.data.tokens.lost import Lost
from fastchat.data.tokens.mixing import held_out, held_out_line, num_held_out, proportional, proportions_line
from fastchat.data.tokens.prepare import TokenSettings, get_or_create_tokens
from fastchat.data.view.showing import first_example
from fastchat.data.view.terminal import wants_colour
from fastchat.errors import DataError, SettingsError, say
from fastchat.processes import barrier, local_rank, on_all_processes, on_local_main_process, rank
from fastchat.train.hosts import check_same_data
from fastchat.train.resuming import digest

_SAMPLE = 16  # dialogues that the saved chat template is compared on


@dataclass
class Corpus:
    """The training or the evaluation data of a run.

    `fingerprint` is of the bytes of the files and of what was chosen of them. `sources` and `counts` are about all that
    the files hold; `chosen` about what the run takes of it, where that is not all. `sample`: dialogues spread over
    it. `lost`: what the length limit costs of all that the files hold.
    """

    name: str
    dataset: ChatDataset
    fingerprint: str
    counts: dict[str, int]
    sources: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    sample: list[Dialogue] = field(default_factory=list)
    lost: Lost | None = None

    def record(self) -> dict[str, Any]:
        """For training.json."""
        paths = [file for source in self.sources for file in source["files"]]
        more = {"chosen": self.chosen} if self.chosen else {}
        found = {"paths": paths, "sources": self.sources, "fingerprint": self.fingerprint, "counts": self.counts}
        return {**found, **more}


@dataclass(frozen=True)
class Data:
    """What a run trains and evaluates on, by name: "train" and, where an evaluation was asked for, "eval".

    packs: which examples share a row; empty without --packing.
    """

    corpora: dict[str, Corpus]
    packs: dict[str, Packs]

    def rows(self, name: str) -> WithoutTails | PackedDataset:
        """What the Trainer indexes: examples, or packs of them."""
        dataset = WithoutTails(self.corpora[name].dataset)
        return PackedDataset(dataset, self.packs[name]) if name in self.packs else dataset


@dataclass(frozen=True)
class Named:
    """Data as the settings name it. `flag`: the setting that does; `paths`: its values, of which some may be datasets
    of the hub, with their `split` and `revision`."""

    flag: str
    paths: list[str]
    split: str
    revision: str | None


def read_corpora(
    train: Named,
    evaluation: Named | None,
    chat_encoder: ChatEncoder,
    how: TokenSettings,
    *,
    proportions: Sequence[float],
    val_set_size: float,
    evaluates: bool,
    seed: int,
    cache_dir: str | None,
    output_dir: str,
) -> dict[str, Corpus]:
    """{"train": ..., "eval": ...}; the second only where the run `evaluates`. Every process calls it.

    `proportions`: shares of the sources of `train`, empty for all that they hold. `val_set_size`: how many of the
    dialogues, or which share of them, are held out, with all their examples. `seed` decides which. `output_dir`: of the
    run. A DataError in the one process that reads is raised in all.
    """

    def read(name: str, named: Named) -> Corpus:
        sources = _find(named, cache_dir)
        return _read(name, sources, chat_encoder, how, output_dir)

    corpora = {"train": read("train", train)}
    if proportions:
        corpora["train"] = _mixed(corpora["train"], proportions, seed)
    if val_set_size:
        corpora["train"], held_out = _split(corpora["train"], val_set_size, seed)
        if evaluates:
            corpora["eval"] = held_out
    elif evaluation is not None and evaluates:
        corpora["eval"] = read("eval", evaluation)
    if "eval" in corpora and (line := overlap_line(corpora["train"].dataset, corpora["eval"].dataset)):
        say(line)
    return corpora


def check_enough(data: Data, global_batch: int) -> None:
    """SettingsError where `--dataloader_drop_last` would leave nothing of the examples or packs."""
    num_rows = len(data.rows("train"))
    if num_rows < global_batch:
        raise SettingsError(
            f"--dataloader_drop_last: there are {num_rows} rows to train on, less than one global batch of "
            f"{global_batch}, so nothing would be trained; leave it out or lower the batch"
        )


def longest(corpora: dict[str, Corpus]) -> int:
    """Tokens of the longest example of all, as it is trained on or evaluated."""
    return max(int(corpus.dataset.lengths.max(initial=0)) for corpus in corpora.values())


def _find(named: Named, cache_dir: str | None) -> list[Source]:
    return on_local_main_process(
        lambda: find_sources(
            f"--{named.flag}", named.paths, split=named.split, revision=named.revision, cache_dir=cache_dir
        )
    )


def _read(name: str, sources: list[Source], chat_encoder: ChatEncoder, how: TokenSettings, output_dir: str) -> Corpus:
    check_same_data(name, sources, output_dir)
    made = on_local_main_process(lambda: get_or_create_tokens(name, sources, chat_encoder, how, output_dir))
    if made.found:
        say(f"{name} tokens: found in {made.entry.folder}")
    store = on_all_processes(made.entry.store)
    if made.entry.temporary:  # gone as soon as every process has mapped it, so that a killed run leaves nothing
        store.folder = None
        barrier()
        if local_rank() == 0:
            shutil.rmtree(made.entry.folder, ignore_errors=True)
    if name == "train":
        _show_first(made.samples[:1], chat_encoder, how)
    told = table(made.counts, made.lost, how.max_length)
    say(f"{name} data, {', '.join(source.name for source in sources)}: {told}")
    records = [_record(source) | {"rows": rows} for source, rows in zip(sources, made.rows, strict=True)]
    fingerprint = combined([s for sums in made.sums for s in sums])
    sample = spread([r.dialogue for r in made.samples if r.dialogue is not None], _SAMPLE)
    return Corpus(name, ChatDataset(store), fingerprint, made.counts, records, sample=sample, lost=made.lost)


def _record(source: Source) -> dict[str, Any]:
    revision = {"revision": source.revision} if source.revision else {}
    return {"name": source.name, "files": list(source.files), **revision}


def _show_first(records: Sequence[Record], chat_encoder: ChatEncoder, how: TokenSettings) -> None:
    """One example, as it is trained on."""
    if rank() == 0:
        colour = wants_colour(sys.stderr)
        say(first_example(records, chat_encoder, colour=colour, max_length=how.max_length, overlong=how.overlong))


def _mixed(corpus: Corpus, proportions: Sequence[float], seed: int) -> Corpus:
    """What `--data_proportions` takes of each source."""
    dataset = corpus.dataset
    row_of = dataset.store.index[dataset.dialogue_starts]
    ends = np.searchsorted(row_of, np.cumsum([source["rows"] for source in corpus.sources]))
    starts = np.concatenate([[0], ends[:-1]])
    taken = proportional((ends - starts).tolist(), proportions, seed)
    empty = [i for i, part in enumerate(taken) if not len(part)]
    if empty:
        have = ends - starts
        worst = min(empty, key=lambda i: have[i])  # one that has nothing leaves nothing of the others
        raise DataError(
            f"--data_proportions: of {corpus.sources[worst]['name']} not one dialogue would be trained on (it has "
            f"{have[worst]} that can be); change the shares, or leave that --data_path out"
        )
    chosen = np.concatenate([part + start for part, start in zip(taken, starts, strict=True)])
    for source, part in zip(corpus.sources, taken, strict=True):
        source["dialogues_taken"] = len(part)
    names = [source["name"] for source in corpus.sources]
    say(proportions_line(names, list(map(len, taken)), (ends - starts).tolist()))
    what = {"sources": [source["rows"] for source in corpus.sources], "proportions": list(proportions), "seed": seed}
    return _chosen(corpus, corpus.name, dataset.examples_of(chosen), what)


def _split(corpus: Corpus, val_set_size: float, seed: int) -> tuple[Corpus, Corpus]:
    """(what is trained on, what `--val_set_size` holds out)."""
    num = corpus.dataset.num_dialogues
    size = num_held_out(val_set_size, num)
    stays, out = (corpus.dataset.examples_of(part) for part in held_out(num, size, seed))
    say(held_out_line(size, num))
    before = corpus.dataset.chosen
    if before is not None:
        stays, out = before[stays], before[out]
    what = {"val_set_size": size, "seed": seed}
    return _chosen(corpus, "train", stays, what), _chosen(corpus, "eval", out, {**what, "held_out": True})


def _chosen(corpus: Corpus, name: str, numbers: np.ndarray, what: dict[str, Any]) -> Corpus:
    """The part of a corpus with these examples; `what` says how they were chosen."""
    dataset = ChatDataset(corpus.dataset.store, numbers)
    counts = {
        "dialogues": dataset.num_dialogues,
        "examples": len(dataset),
        "tokens": int(dataset.lengths.sum()),
        "supervised_tokens": int(dataset.num_supervised.sum()),
    }
    fingerprint = digest([corpus.fingerprint, what])
    chosen = {**corpus.chosen, **what, **counts}
    return replace(corpus, name=name, dataset=dataset, fingerprint=fingerprint, chosen=chosen)


def overlap_line(train: ChatDataset, evaluation: ChatDataset) -> str:
    """Says how many dialogues of the evaluation are trained as well, word for word; "" where none is."""
    digests = evaluation.digests[evaluation.dialogue_starts]
    same = int(np.isin(digests, train.digests).sum())
    if not same:
        return ""
    return (
        f"WARNING: {same} of {len(digests)} evaluation dialogues are in the training data too, word for word: the "
        "evaluation loss is better than it would be on new ones"
    )
