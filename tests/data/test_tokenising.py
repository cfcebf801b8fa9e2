"""Tokens are made once, the same by any number of processes, found again, and made again where anything differs."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastchat.conversation import get_template
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.records import load_dialogues
from fastchat.data.rows.sources import Source
from fastchat.data.tokens import cache as token_cache
from fastchat.data.tokens import prepare as tokenising
from fastchat.data.tokens import workers
from fastchat.data.tokens.prepare import TokenizedData, TokenSettings, get_or_create_tokens
from fastchat.data.tokens.store import TokenStore
from fastchat.errors import DataError, ResourceError
from fastchat.streams import DETAILS
from tests import builders
from tests.data.in_memory import build_store
from tests.data.test_loading import LINE, named, write

HOW = TokenSettings(max_length=200, overlong="truncate", on_bad_row="stop", workers=1)


@pytest.fixture(scope="module")
def chat_encoder(tokenizer_dir: Callable[[str], Path]) -> ChatEncoder:
    encoder, _ = open_tokenizer(str(tokenizer_dir("metaspace_bos")))
    return encoder.bind(get_template("vicuna_v1.1"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "_USING", {})
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """600 dialogues of 1 to 4 rounds, one with nothing to learn, one without turns, one too long, two the same."""
    rows = [row for rounds in (1, 2, 3, 4) for row in builders.chat_rows(150, rounds)]
    rows[3]["conversations"] = []
    rows[5]["conversations"][1]["value"] = ""
    rows[7]["conversations"][1]["value"] = "long " * 500
    rows[9] = rows[8]
    return builders.write_rows(tmp_path / "rows.jsonl", rows)


def obtain(*paths: Path | str, chat_encoder: ChatEncoder, how: TokenSettings = HOW) -> TokenizedData:
    return get_or_create_tokens("train", [Source(str(path), (str(path),)) for path in paths], chat_encoder, how)


def content(made: TokenizedData) -> dict[str, list[int]]:
    store = made.entry.store()
    names = ("ids", "labels", "offsets", "index", "supervised", "digests")
    return {name: getattr(store, name).tolist() for name in names}


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if (path / "entry.json").is_file()]


def test_the_stream_is_what_reading_everything_at_once_gives(
    chat_encoder: ChatEncoder, data: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "second.json", f"[{named('a')},\n{named('b')}]")
    made = obtain(data, other, chat_encoder=chat_encoder)
    loaded = load_dialogues([str(data), other])
    store, counts = build_store(loaded.records, chat_encoder, max_length=200, overlong="truncate")
    assert content(made) == {name: getattr(store, name).tolist() for name in content(made)}
    assert made.counts == {**loaded.counts, **counts} and made.rows == [600, 2]
    assert made.counts["dropped_no_trained_turn"] == made.counts["dropped_empty_dialogue"] == 1
    assert made.counts["truncated_dialogues"] == 1 and len(store) == 600
    digests = made.entry.store().digests
    assert len(set(digests.tolist())) == len(digests) - _repeated(loaded.records)


def _repeated(records: list[Any]) -> int:
    texts = [
        record.dialogue.turns for record in records if record.dialogue and any(t.train for t in record.dialogue.turns)
    ]
    return len(texts) - len(set(texts))


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(chat_encoder: ChatEncoder, data: Path, cache: Path) -> None:
    one = obtain(data, chat_encoder=chat_encoder)
    files = {path.name: path.read_bytes() for path in one.entry.folder.iterdir()}
    for number in (2, 3):
        shutil.rmtree(cache)
        made = obtain(data, chat_encoder=chat_encoder, how=replace(HOW, workers=number))
        assert {path.name: path.read_bytes() for path in made.entry.folder.iterdir()} == files, number


@pytest.mark.slow
def test_errors_are_told_alike_by_any_number_of_processes(
    chat_encoder: ChatEncoder, tokenizer_dir: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    lines = data.read_text().splitlines()
    lines[500] = lines[40] = '{"conversations": 3}'
    bad = write(tmp_path / "bad.jsonl", "\n".join(lines))
    told = set()
    for number in (1, 2):
        for path, how in ((bad, HOW), (data, replace(HOW, overlong="error"))):
            with pytest.raises(DataError) as error:
                obtain(path, chat_encoder=chat_encoder, how=replace(how, workers=number))
            told.add(str(error.value))
    assert len(told) == 2
    assert any(f"2 of 600 rows cannot be read:\n  {bad}:41: wrong type" in text for text in told)
    assert any(f"{data}:8: the dialogue has" in text and "--model_max_length is 200" in text for text in told)


@pytest.mark.slow
def test_a_worker_that_dies_is_named(chat_encoder: ChatEncoder, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_work", os._exit)  # what the main process asks of the worker: its end
    with pytest.raises(ResourceError, match="one of the 2 tokenising processes died.*--preprocessing_num_workers"):
        list(
            workers.tokenised([workers.Batch(dialogues=7)] * 2, chat_encoder, max_length=9, overlong="drop", workers=2)
        )  # type: ignore[arg-type]


def test_garbage_collection_is_as_before_afterwards(chat_encoder: ChatEncoder, data: Path, tmp_path: Path) -> None:
    before = gc.get_threshold()
    obtain(data, chat_encoder=chat_encoder)
    (tmp_path / "bad.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(DataError):
        obtain(tmp_path / "bad.jsonl", chat_encoder=chat_encoder)
    assert gc.get_threshold() == before


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(workers, "available_cpus", lambda: 8)
    assert [workers.num_workers(None, size << 20) for size in (0, 4, 12, 9999)] == [1, 1, 3, 8]
    assert workers.num_workers(5, 0) == 5


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(chat_encoder: ChatEncoder, tmp_path: Path) -> None:
    peaks = []
    chat_encoder.encoder.fast.prepare([])  # what it holds is the tokenizer's, and is made where there is much data
    for number in (512, 4608):
        path = builders.write_rows(tmp_path / f"{number}.jsonl", builders.chat_rows(number, 1))
        tracemalloc.start()
        obtain(path, chat_encoder=chat_encoder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 20e6, f"{peaks}: nine times the data; what is cleared when differs by a tenth"


def test_samples_are_spread_evenly_and_proven(
    chat_encoder: ChatEncoder, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = obtain(data, chat_encoder=chat_encoder)
    assert "derived a second time" not in capsys.readouterr().err  # a detail: for the log, and --log_level info
    monkeypatch.setattr(DETAILS, "shown", True)
    obtain(data, chat_encoder=chat_encoder)
    assert "train labels derived a second time: " in capsys.readouterr().err
    numbers = [number for number, _ in made.entry.about["samples"]]
    assert numbers == list(range(0, len(made.entry.store()), numbers[1])) and 32 <= len(numbers) <= 64
    records = load_dialogues([str(data)]).records
    assert made.samples == [records[made.entry.store()[number]["index"]] for number in numbers]
    write_ = tokenising.StoreWriter.add

    def wrong(self: Any, part: Any) -> None:
        part.arrays["labels"] = part.arrays["ids"].copy()
        write_(self, part)

    monkeypatch.setattr(tokenising.StoreWriter, "add", wrong)
    for how in (replace(HOW, overwrite=True), HOW):  # cached tokens are proven anew
        with pytest.raises(DataError, match="two ways of deriving the learned tokens disagree"):
            obtain(data, chat_encoder=chat_encoder, how=how)


# --- found again


def test_the_second_time_no_row_is_read(
    chat_encoder: ChatEncoder, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip = replace(HOW, on_bad_row="skip")
    with data.open("a") as file:
        file.write("{\n")
    first = obtain(data, chat_encoder=chat_encoder, how=skip)
    before = capsys.readouterr().err.splitlines()
    monkeypatch.setattr(tokenising, "Records", None)  # nothing opens a file
    second = obtain(data, chat_encoder=chat_encoder, how=skip)
    after = capsys.readouterr().err.splitlines()
    assert second.found and not first.found and content(first) == content(second)
    assert (second.counts, second.rows, second.sums) == (first.counts, first.rows, first.sums)
    assert after == before, "the same is said"
    assert before[0].startswith("skipped 1 of 601 rows that cannot be read (truncated JSON × 1)")


def test_wherever_the_same_bytes_lie_they_are_the_same_data(
    chat_encoder: ChatEncoder, data: Path, tmp_path: Path
) -> None:
    obtain(data, chat_encoder=chat_encoder)
    copy = tmp_path / "elsewhere" / "other.name"
    copy.parent.mkdir()
    shutil.copy(data, copy)
    again = obtain(copy, chat_encoder=chat_encoder)
    assert again.found and {sample.source for sample in again.samples} == {str(copy)}, "named as it is now"
    assert (
        not obtain(data, copy, chat_encoder=chat_encoder).found
        and not obtain(copy, chat_encoder=chat_encoder, how=replace(HOW, max_length=99)).found
    )


def test_a_file_that_is_written_to_meanwhile_is_not_cached(
    chat_encoder: ChatEncoder, data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tokenising.tokenised

    def written_to(*args: Any, **how: Any) -> Any:
        with open(data, "a") as file:
            file.write(json.dumps(builders.chat_rows(1)[0]) + "\n")
        return make(*args, **how)

    monkeypatch.setattr(tokenising, "tokenised", written_to)
    with pytest.raises(DataError, match="rows.jsonl: it was modified while it was read"):
        obtain(data, chat_encoder=chat_encoder)
    assert entries(cache) == []


@pytest.mark.parametrize(
    "change", ["max_length", "overlong", "on_bad_row", "template", "train_on", "tokenizer", "data", "code"]
)
def test_anything_that_decides_ids_is_part_of_the_key(
    chat_encoder: ChatEncoder,
    tokenizer_dir: Callable[[str], Path],
    data: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    obtain(data, chat_encoder=chat_encoder)
    how, other = HOW, chat_encoder
    if change == "template":
        table = chat_encoder.template.to_dict() | {"system_message": "Something else."}
        other = chat_encoder.encoder.bind(type(chat_encoder.template).from_dict(table))  # type: ignore[attr-defined]
    elif change == "train_on":
        other = chat_encoder.encoder.bind(chat_encoder.template, "all")
    elif change == "tokenizer":
        other, _ = open_tokenizer(str(tokenizer_dir("byte_bos")))
        other = other.bind(chat_encoder.template)
    elif change == "data":
        data.write_text(data.read_text().replace("What is", "What was", 1))
    elif change == "code":
        monkeypatch.setattr(token_cache, "code_version", lambda: "changed")
    else:
        how = replace(HOW, **{change: {"max_length": 201, "overlong": "drop", "on_bad_row": "skip"}[change]})
    assert not obtain(data, chat_encoder=other, how=how).found
    assert len(entries(cache)) == 2 and obtain(data, chat_encoder=other, how=how).found


def test_what_decides_no_id_is_not(chat_encoder: ChatEncoder, data: Path) -> None:
    obtain(data, chat_encoder=chat_encoder)
    assert obtain(data, chat_encoder=chat_encoder, how=replace(HOW, workers=7)).found
    renamed = TextEncoder(replace(chat_encoder.encoder.raw, name="/another/place")).bind(chat_encoder.template)
    assert obtain(data, chat_encoder=renamed).found


def test_an_encoder_is_what_it_says_of_itself(chat_encoder: ChatEncoder, tokenizer_dir: Callable[[str], Path]) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    raw = open_tokenizer(str(tokenizer_dir("byte_nobos")))[0].raw
    encoder = TextEncoder(replace(raw, chat_template=template))
    for one in (chat_encoder, encoder.bind(encoder.choose("tokenizer")), encoder.bind(get_template("chatml"))):
        described = json.loads(json.dumps(one.described()))
        again = TextEncoder.from_description(described)
        assert again.described() == one.described() == described
        assert again.template.to_dict() == one.template.to_dict()


def test_a_template_that_writes_the_date_is_another_one_tomorrow(
    tokenizer_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastchat.data.encoding import jinja_environment

    class Tomorrow(jinja_environment.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz).replace(year=2031)

    template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    )
    template += "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    raw = open_tokenizer(str(tokenizer_dir("byte_nobos")))[0].raw
    encoder = TextEncoder(replace(raw, chat_template=template))
    one = encoder.bind(encoder.choose("tokenizer"))
    today = token_cache.key_of(encoder=one.described())
    assert token_cache.key_of(encoder=one.described()) == today
    monkeypatch.setattr(jinja_environment, "datetime", Tomorrow)
    assert token_cache.key_of(encoder=one.described()) != today


def test_overwriting(chat_encoder: ChatEncoder, data: Path, cache: Path) -> None:
    first = obtain(data, chat_encoder=chat_encoder)
    inode = (first.entry.folder / "ids.bin").stat().st_ino
    again = obtain(data, chat_encoder=chat_encoder, how=replace(HOW, overwrite=True))
    assert not again.found and (again.entry.folder / "ids.bin").stat().st_ino != inode
    assert len(entries(cache)) == 1 and not list(cache.glob(".*"))


def test_nothing_to_learn_is_not_cached(chat_encoder: ChatEncoder, cache: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINE.replace("Yo", ""))
    with pytest.raises(DataError, match=r"(?s)No learned tokens in the data.*has \"train\": false"):
        obtain(path, chat_encoder=chat_encoder)
    assert entries(cache) == [] and not list(cache.glob(".*")) and not list(cache.glob("*.making"))


def test_memory_mapped_tokens_are_shared_not_copied(chat_encoder: ChatEncoder, data: Path) -> None:
    store = obtain(data, chat_encoder=chat_encoder).entry.store()
    assert isinstance(store, TokenStore) and isinstance(store.ids, np.memmap) and isinstance(store.offsets, np.memmap)
    assert isinstance(store[3]["input_ids"].base, np.ndarray) and not store[3]["input_ids"].flags.owndata
