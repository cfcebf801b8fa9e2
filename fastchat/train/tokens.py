"""From the files named in the settings to token ids, once per machine."""

from __future__ import annotations

import hashlib
import shutil
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastchat.conversation import Dialogue
from fastchat.data.binding import BoundEncoder
from fastchat.data.counts import table
from fastchat.data.dataset import ChatDataset, LazyChatDataset
from fastchat.data.loading import data_fingerprint, load_dialogues
from fastchat.data.proof import check_records, check_store, spread
from fastchat.data.showing import first_example
from fastchat.data.store import TokenStore, build_store
from fastchat.data.terminal import wants_colour
from fastchat.errors import say
from fastchat.train.processes import barrier, first_on_machine, local_rank, rank, together, world_size

_SAMPLE = 16  # dialogues that the saved chat template is compared on


@dataclass
class Corpus:
    """The training or the evaluation data of a run.

    `store` is None in all but the first process of a machine until `share` was called, and always None when dialogues
    are tokenised lazily. `counts` is known to the first process only.
    """

    name: str
    paths: list[str]
    store: TokenStore | None = None
    lazy: LazyChatDataset | None = None
    counts: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    digests: Counter[bytes] = field(default_factory=Counter)  # of the dialogues' texts, first process only
    sample: list[Dialogue] = field(default_factory=list)  # for checking what is saved, first process only

    @property
    def dataset(self) -> ChatDataset | LazyChatDataset:
        """What the Trainer indexes."""
        if self.lazy is not None:
            return self.lazy
        assert self.store is not None, f"{self.name} data has not been shared yet"
        return ChatDataset(self.store)

    def record(self) -> dict[str, Any]:
        """For training.json."""
        return {"paths": self.paths, "fingerprint": self.fingerprint, "counts": self.counts}


def read_corpus(
    name: str,
    paths: list[str],
    bound: BoundEncoder,
    *,
    max_length: int,
    overlong: str,
    on_bad_row: str,
    lazy: bool,
    progress: bool,
) -> Corpus:
    """Reads and tokenises the files; a DataError in the one process that does it is raised in all.

    With `lazy` every process keeps the dialogues and tokenises each when it is needed.
    """
    corpus = Corpus(name, [str(Path(path).expanduser().resolve()) for path in paths])

    def work() -> None:
        corpus.fingerprint = data_fingerprint(corpus.paths)
        loaded = load_dialogues(corpus.paths, on_bad_row=on_bad_row)  # pyright: ignore[reportArgumentType]
        corpus.counts = dict(loaded.counts)
        corpus.digests = Counter(_digest(r.dialogue) for r in loaded.records if r.dialogue is not None)
        corpus.sample = spread([r.dialogue for r in loaded.records if r.dialogue is not None], _SAMPLE)
        if lazy:
            corpus.lazy = LazyChatDataset(loaded.records, bound, max_length=max_length, overlong=overlong)
            if local_rank() == 0:
                say(f"{name} {check_records(loaded.records, bound, max_length=max_length, overlong=overlong).line}")
        else:
            corpus.store, counts = build_store(
                loaded.records, bound, progress=progress and local_rank() == 0, max_length=max_length, overlong=overlong
            )
            corpus.counts.update(counts)
            if local_rank() == 0:
                say(f"{name} {check_store(loaded.records, corpus.store, bound).line}")
        if name == "train" and rank() == 0:
            say(
                first_example(
                    loaded.records, bound, colour=wants_colour(sys.stderr), max_length=max_length, overlong=overlong
                )
            )

    if lazy:
        together(work)
    else:
        first_on_machine(work)
        say(f"{name} data, {', '.join(paths)}:\n{table(corpus.counts)}")
    return corpus


def overlap_line(train: Corpus, held_out: Corpus) -> str:
    """Says how many dialogues of the evaluation are trained as well, word for word; "" where none is."""
    same = sum(count for digest, count in held_out.digests.items() if digest in train.digests)
    total = sum(held_out.digests.values())
    if not same:
        return ""
    return (
        f"WARNING: {same} of {total} evaluation dialogues are in the training data too, word for word: the evaluation "
        "loss is better than it would be on new ones"
    )


def _digest(dialogue: Dialogue) -> bytes:
    turns = [(turn.role, turn.text) for turn in dialogue.turns]
    return hashlib.blake2b(repr((dialogue.system, turns)).encode("utf-8", "surrogatepass"), digest_size=12).digest()


def share(corpora: list[Corpus], output_dir: Path) -> None:
    """Lets the other processes of a machine read the first one's tokens, through files that are gone again afterwards.

    The files are unlinked as soon as every process has mapped them, so a killed run leaves none behind.
    """
    corpora = [corpus for corpus in corpora if corpus.lazy is None]
    if world_size() == 1 or not corpora:
        return
    folder = output_dir / f".tokens-{socket.gethostname()}"

    def save() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for corpus in corpora:
            assert corpus.store is not None
            corpus.store.save(folder / corpus.name)

    first_on_machine(save)
    for corpus in corpora:
        corpus.store = TokenStore.load(folder / corpus.name)
    barrier()
    if local_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
