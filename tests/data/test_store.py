"""Records to flat arrays: nothing lost, everything counted, saved whole or not at all; and the datasets over them."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import Example, tokenize_dialogue
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.rows.records import Record, load_dialogues
from fastchat.data.tokens.counts import lines, table, verdict
from fastchat.data.tokens.dataset import ChatDataset
from fastchat.data.tokens.lost import Lost
from fastchat.data.tokens.store import StoreWriter, TokenShard, TokenStore, collect, damage
from fastchat.errors import DataError
from tests.data.in_memory import build_store

TokenizerDir = Callable[[str], Path]


@pytest.fixture(scope="module")
def chat_encoder(tokenizer_dir: TokenizerDir) -> ChatEncoder:
    encoder, _ = open_tokenizer(str(tokenizer_dir("byte_nobos")))
    return encoder.bind(get_template("chatml"))


def records_of(*turns: list[Turn] | str) -> list[Record]:
    """One record for each: a list of turns, or the reason why there is no dialogue."""
    made = []
    for index, item in enumerate(turns):
        dialogue = None if isinstance(item, str) else Dialogue(tuple(item), None, "f.jsonl", index + 1)
        made.append(Record(index, dialogue, item if isinstance(item, str) else None, "f.jsonl", index + 1))
    return made


def pair(question: str, answer: str, train: bool = True) -> list[Turn]:
    return [Turn("user", question), Turn("assistant", answer, train)]


MIXED = records_of(
    pair("What is 2 + 2?", "4"),
    "empty_dialogue",
    pair("q", "a") + pair("r", "b" * 400),
    "bad_row: broken JSON",
    pair("q", "not this", train=False) + pair("r", "this"),
    pair("q", "a", train=False),
    pair("x" * 4000, "a"),
    "bad_row: broken JSON",
    pair("last", "one"),
)


def test_every_usable_record_is_one_example_and_everything_is_counted(chat_encoder: ChatEncoder) -> None:
    store, counts = build_store(MIXED, chat_encoder, max_length=100, overlong="truncate")
    assert list(store.index) == [0, 2, 4, 8] == [store[i]["index"] for i in range(len(store))]
    tokens = supervised = 0
    for i, index in enumerate(store.index):
        dialogue = MIXED[index].dialogue
        assert dialogue is not None
        alone = tokenize_dialogue(dialogue, chat_encoder, max_length=100, index=int(index))
        row = store[i]
        assert row["input_ids"].tolist() == alone.input_ids and row["labels"].tolist() == alone.labels
        assert row["input_ids"].dtype == row["labels"].dtype == np.int32
        assert (store.lengths[i], store.supervised[i]) == (len(alone.input_ids), alone.num_supervised)
        tokens, supervised = tokens + len(alone.input_ids), supervised + alone.num_supervised
    long = tokenize_dialogue(MIXED[2].dialogue, chat_encoder, max_length=100)  # type: ignore[arg-type]
    assert long.truncated_tokens > 0 and long.cut_turns > 0
    unlimited = [tokenize_dialogue(MIXED[i].dialogue, chat_encoder, max_length=10_000) for i in (2, 6)]  # type: ignore[arg-type]
    lost = sum(example.num_supervised for example in unlimited) - long.num_supervised
    assert {key: n for key, n in counts.items() if n} == {
        "rows": 9,
        "dialogues": 4,
        "examples": 4,
        "tokens": tokens,
        "supervised_tokens": supervised,
        "trained_turns": 4,
        "untrained_turns": 1,
        "cut_turns": long.cut_turns,
        "turns": 12,
        "truncated_dialogues": 1,
        "truncated_tokens": long.truncated_tokens,
        "lossy_dialogues": 2,
        "lost_supervised_tokens": lost,
        "dropped_empty_dialogue": 1,
        "dropped_bad_row: broken JSON": 2,
        "dropped_no_trained_turn": 1,
        "dropped_no_answer_within_length": 1,
    }
    assert counts["rows"] == counts["dialogues"] + sum(n for key, n in counts.items() if key.startswith("dropped_"))


def test_overlong_drop_and_error(chat_encoder: ChatEncoder) -> None:
    store, counts = build_store(MIXED, chat_encoder, max_length=100, overlong="drop")
    assert list(store.index) == [0, 4, 8]
    assert counts["dropped_overlong"] == 2 and not counts["truncated_tokens"]
    with pytest.raises(DataError, match=r"f.jsonl:3: the dialogue has \d+ tokens and --model_max_length is 100"):
        build_store(MIXED, chat_encoder, max_length=100, overlong="error")


@pytest.mark.parametrize(
    ("records", "max_length", "hint"),
    [
        ([], 100, "Likely cause: the data."),
        (records_of("empty_dialogue"), 100, "dialogues have no turns"),
        (records_of("no_assistant_turn"), 100, "no user turn is answered"),
        (records_of(pair("q", "a", train=False)), 100, 'has "train": false'),
        (records_of(pair("q", "a")), 3, r"--model_max_length \(3\) tokens; raise it"),
        (records_of("bad_row: wrong type", "bad_row: broken JSON"), 100, "rows cannot be read"),
    ],
)
def test_nothing_supervised_stops(chat_encoder: ChatEncoder, records: list[Record], max_length: int, hint: str) -> None:
    with pytest.raises(DataError, match="(?s)No learned tokens in the data.*" + hint):
        build_store(records, chat_encoder, max_length=max_length, overlong="truncate")


def test_the_message_about_nothing_supervised_holds_the_counts(chat_encoder: ChatEncoder) -> None:
    records = records_of(pair("q", "a", train=False), "empty_dialogue", pair("q", "a", train=False))
    with pytest.raises(DataError, match=r"rows +3: 0 used, 3 dropped \(2 without an answer to learn, 1 empty\)"):
        build_store(records, chat_encoder, max_length=100, overlong="truncate")


# --- the arrays


def part_of(*lengths: int) -> TokenShard:
    ids = iter(range(1, 10_000))
    examples = []
    for index, length in enumerate(lengths):
        row = [next(ids) for _ in range(length)]
        examples.append((Example(index * 10, row, [-100] + row[1:]), 7 * index))
    return collect(examples)


def store_of(*lengths: int) -> TokenStore:
    return TokenStore.of_parts([part_of(*lengths)])


def written(folder: Path, *parts: TokenShard) -> dict[str, list[int]]:
    """Parts written into a new folder; what `damage` needs."""
    folder.mkdir(parents=True)
    writer = StoreWriter(folder)
    for part in parts:
        writer.add(part)
    return writer.close()


def test_indexing(tmp_path: Path) -> None:
    store = store_of(2, 1, 3)
    assert [store[i]["input_ids"].tolist() for i in range(3)] == [[1, 2], [3], [4, 5, 6]]
    assert [store[i]["labels"].tolist() for i in range(3)] == [[-100, 2], [-100], [-100, 5, 6]]
    assert store[-1]["index"] == 20 and store.supervised.tolist() == [1, 0, 2]
    for i in (3, -4):
        with pytest.raises(IndexError):
            store[i]
    assert len(list(ChatDataset(store))) == 3  # iteration ends  # type: ignore[call-overload]


NAMES = ("ids", "labels", "offsets", "index", "part", "supervised", "digests")


def test_what_is_written_in_parts_is_read_as_one(tmp_path: Path) -> None:
    whole, folder = store_of(2, 1, 3), tmp_path / "deep" / "store"
    files = written(folder, part_of(2), part_of(), part_of(2, 1, 3))
    loaded = TokenStore.load(folder)
    assert isinstance(loaded.ids, np.memmap) and not loaded.ids.flags.writeable
    assert [loaded[i]["input_ids"].tolist() for i in range(4)] == [[1, 2], [1, 2], [3], [4, 5, 6]]
    for name in NAMES:
        ours = getattr(whole, name)
        theirs = getattr(loaded, name)
        assert ours.dtype == theirs.dtype
        if name == "offsets":
            ours, theirs = np.diff(ours), np.diff(theirs)
        assert theirs[-len(ours) :].tolist() == ours.tolist(), name
    again = pickle.loads(pickle.dumps(ChatDataset(loaded)))  # as a data loader's worker gets it
    assert isinstance(again.store.ids, np.memmap), "mapped anew, not copied"
    assert again[3]["input_ids"].tolist() == [4, 5, 6] and again.lengths.tolist() == [2, 2, 1, 3]
    assert pickle.loads(pickle.dumps(whole))[2]["labels"].tolist() == [-100, 5, 6]
    assert sorted(os.listdir(folder)) == sorted(files) == sorted(f"{name}.bin" for name in NAMES)


def test_an_empty_store_can_be_written(tmp_path: Path) -> None:
    written(tmp_path / "empty", part_of())
    assert len(TokenStore.load(tmp_path / "empty")) == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_damage_is_noticed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "whole"
    files = written(folder, part_of(2, 1, 3))
    assert damage(folder, files) == ""
    content = (folder / f"{name}.bin").read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for number, other in enumerate((None, b"", content[:-1], content + b"\0" * 8, bytes(flipped))):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        (copy / f"{name}.bin").unlink() if other is None else (copy / f"{name}.bin").write_bytes(other)
        assert f"{name}.bin" in damage(copy, files)
        if other is None or len(other) != len(content):
            with pytest.raises(DataError, match="token store"):
                TokenStore.load(copy)


def test_offsets_that_go_back_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "store", part_of(2, 1, 3))
    np.array([0, 4, 3, 6]).tofile(tmp_path / "store" / "offsets.bin")
    with pytest.raises(DataError, match="are not consistent"):
        TokenStore.load(tmp_path / "store")


def test_a_choice_of_examples_is_a_dataset_of_its_own() -> None:
    chosen = ChatDataset(store_of(2, 1, 3, 2), np.array([1, 3]))
    assert [row["index"] for row in (chosen[0], chosen[1], chosen[-1])] == [10, 30, 30] and len(chosen) == 2
    assert chosen.lengths.tolist() == [1, 2] and chosen.digests.tolist() == [7, 21]
    assert chosen.num_supervised.tolist() == [0, 1] and len(list(chosen)) == 2  # type: ignore[call-overload]


# --- the table


PLAIN = {
    "rows": 1200,
    "dialogues": 1200,
    "examples": 1200,
    "tokens": 4000,
    "supervised_tokens": 1000,
    "trained_turns": 1200,
}
MORE = {
    "dialogues": 1195,
    "examples": 1195,
    "dropped_overlong": 1,
    "dropped_empty_dialogue": 4,
    "lossy_dialogues": 1,
    "lost_supervised_tokens": 20,
    "truncated_dialogues": 2,
    "truncated_tokens": 30,
    "trailing_user_turns": 7,
    "calls_as_text": 1195,
    "straddling_tokens": 3,
    "special_token_strings": 9,
    "escaped_strings": 8,
    "untrained_turns": 5,
    "cut_turns": 1,
}


def test_the_table_leads_with_its_verdict_and_leaves_out_what_did_not_happen() -> None:
    assert table({**PLAIN, "turns": 2400, "truncated_dialogues": 0, "bad_rows": 0}).splitlines() == [
        "25.0 % of the tokens are learned; no answer is cut off",
        "rows         1,200: 1,200 used, none dropped",
        "turns        2,400: 1,200 answers learned",
        "tokens       4,000: 1,000 learned (25.0 %)",
    ]
    assert table({**PLAIN, **MORE}, Lost(1000, 1, Counter({700: 20})), 512).splitlines() == [
        "25.0 % of the tokens are learned; 1 dialogue lost answers or parts of them at 512 tokens: 700 keeps all; "
        "5 of 1,200 rows dropped",
        "rows         1,200: 1,195 used, 5 dropped (4 empty, 1 longer than the length limit)",
        "turns        0: 1,200 answers learned, 5 not, 1 after a cut",
        "tokens       4,000: 1,000 learned (25.0 %)",
        "cut          20 tokens that would be learned, in 1 dialogue; 30 tokens of any kind, from 2 dialogues that are "
        "used",
        "boundary     3 tokens with characters of an answer and of other text",
        "special      9 special-token strings in messages, kept as plain text; 8 by an extra split",
        "also         user or tool turns after the last answer, removed: 7",
        "also         function_call turns whose text is not the JSON of calls, learned as text: 1,195",
    ]
    assert table({}).startswith("0 % of the tokens are learned; no answer is cut off\nrows         0: 0 used")


def test_the_page_has_the_lines_that_count_nothing_too() -> None:
    assert [line.name for line in lines(PLAIN) if not line.happened] == ["cut", "boundary", "special"]
    assert all(line.text[0] == "0" for line in lines(PLAIN) if not line.happened)


@pytest.mark.parametrize(
    "key", ["straddling_tokens", "special_token_strings", "truncated_dialogues", "lossy_dialogues"]
)
def test_one_is_singular(key: str) -> None:
    told = table({**PLAIN, key: 1, "truncated_tokens": 1, "lost_supervised_tokens": 1, "rows": 1, "dropped_x": 1})
    assert re.search(r"\b1 (token|dialogue|special-token string)\b", told) and "1 of 1 row dropped" in told
    assert not re.search(r"(?<![\d,.])1 (tokens|dialogues|special-token strings|rows|answers)\b", told)


def test_what_keeps_the_lost_tokens() -> None:
    gains = Counter({600: 900, 4000: 100})
    loud = Lost(1000, 12, gains)
    assert loud.lengths == [(600, "95 %"), (4000, "all")] and loud.loud
    assert "12 dialogues lost answers or parts of them at 512 tokens: 600 keeps 95 %, 4,000 keeps all" in verdict(
        {**PLAIN, "lossy_dialogues": 12}, loud, 512
    )
    line = loud.line(512, {600: "+1 GiB per GPU, fits", 4000: "+9 GiB per GPU, does not fit"})
    assert line == (
        "WARNING: 50.0 % of the tokens to learn (1,000 of 2,000, in 12 dialogues) are cut off at --model_max_length "
        "512: --model_max_length 600 keeps 95 % (+1 GiB per GPU, fits); --model_max_length 4000 keeps all (+9 GiB "
        "per GPU, does not fit)"
    )
    little = Lost(100_000, 1, gains)
    assert not little.loud and little.line(512) is None
    assert little.line(512, {4000: "+9 GiB per GPU"}) == "--model_max_length 4000 keeps all (+9 GiB per GPU)"
    partly = Lost(1000, 12, gains, at_least=True)
    assert partly.lengths == [(600, "95 % of what was counted")] and Lost(9, 0).lengths == []


# --- the real data and tokenizers


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        ("tokenizers/llama-2", "vicuna_v1.1"),
        ("tokenizers/gemma", "gemma"),
        ("tokenizers/llama-3", "llama-3"),
        ("tokenizers/qwen2.5", "chatml"),
        ("models/stories260K", "vicuna_v1.1"),
    ],
)
def test_shared_data(shared: Path, tokenizer: str, template: str) -> None:
    names = ("alpaca_en_demo.json", "dummy_conversation.json", "gsm8k_multiturn.jsonl")
    encoder, note = open_tokenizer(str(shared / tokenizer))
    assert note == ""
    real = encoder.bind(get_template(template))
    for name in names:
        records = load_dialogues([str(shared / "data" / name)]).records[:300]
        store, counts = build_store(records, real, max_length=1024, overlong="truncate")
        assert counts["rows"] == len(records) and len(store) > 0.7 * len(records)
        assert counts["tokens"] == len(store.ids) and store.lengths.max() <= 1024
        trained = store.labels != -100
        assert counts["supervised_tokens"] == trained.sum() == store.supervised.sum()
        assert (store.labels[trained] == store.ids[trained]).all() and (store.supervised > 0).all()
