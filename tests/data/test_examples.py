"""A dialogue that is several examples: every answer is learned once, after the prompt of inference; and plain texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data import preview
from fastchat.data.encoding import plain_text
from fastchat.data.encoding.chat_encoder import ChatEncoder, encode_prompt
from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import IGNORED, Example, tokenize_dialogues
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.plain_text import pieces_of
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.tokens.counts import count_example, plain_line, table
from fastchat.data.tokens.dataset import ChatDataset
from fastchat.data.tokens.store import TokenStore, make_shard
from fastchat.errors import DataError, SettingsError
from fastchat.train.datasets import Corpus, _mixed, _split, overlap_line
from tests.builders import TOKENIZER_KINDS, make_tokenizer, write_rows
from tests.data.test_html_report import data_of
from tests.data.test_tokenizer_template import THINKING

EncoderOf = Callable[[str], TextEncoder]
LONG = 1 << 30
THREE = Dialogue(
    (
        *(Turn("user", "one?"), Turn("assistant", "the first")),
        *(Turn("user", "two?"), Turn("assistant", "<think>\nhm\n</think>\n\nthe second")),
        *(Turn("user", "three?"), Turn("assistant", "the third")),
    ),
    source="talk.json",
    line=4,
)


@pytest.fixture(params=["yuan2", "cllm", "tokenizer"])
def chat_encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., ChatEncoder]:
    """`chat_encoder(train_on)`: with tables that show history differently, and a Jinja template that drops thinking."""
    kind, own = ("byte_nobos", THINKING) if request.param == "tokenizer" else ("metaspace_bos", None)
    encoder, _ = open_tokenizer(str(make_tokenizer(kind, tmp_path / "tokenizer", chat_template=own)))
    return lambda train_on="assistant": encoder.bind(encoder.choose(request.param), train_on)


def examples_of(encoder: ChatEncoder, *dialogues: Dialogue, max_length: int = LONG, **more: str) -> list[Example]:
    return list(tokenize_dialogues(enumerate(dialogues), encoder, max_length=max_length, **more))


def learned_text(encoder: ChatEncoder, example: Example) -> str:
    ids = [label for label in example.labels if label != IGNORED]
    return encoder.encoder.decode(ids).replace("▁", " ").replace("<sep>", "").strip()


def counted(examples: list[Example], rows: int) -> Counter[str]:
    counts = Counter({"rows": rows})
    for example in examples:
        count_example(counts, example)
    return counts


# --- one example per answer


def test_every_answer_is_learned_once_after_the_prompt_of_inference(chat_encoder: Callable[..., ChatEncoder]) -> None:
    encoder = chat_encoder()
    examples = examples_of(encoder, THREE, THREE)
    assert [x.index for x in examples] == sorted(x.index for x in examples)
    assert [turn for x in examples if x.index == 1 for turn in x.answers] == [1, 3, 5]
    assert all(x.parts == len(examples) // 2 > 1 for x in examples), "the template shows history differently"
    for example in examples:
        for turn in example.answers[:1]:
            prompt = encode_prompt(THREE.before(turn), encoder)
            assert example.input_ids[: len(prompt)] == prompt
            assert example.labels[len(prompt) - 1] == IGNORED != example.labels[len(prompt)]
        assert THREE.turns[example.answers[-1]].text[-9:] in learned_text(encoder, example)
    checked = LabelCrossCheck(encoder).check((THREE, x.input_ids, x.labels, x.part) for x in examples)
    assert checked.turns == 6 and not checked.skipped


def test_the_choice_of_answers(chat_encoder: Callable[..., ChatEncoder]) -> None:
    (last,) = examples_of(chat_encoder("last"), THREE)
    assert last.answers == (5,) and (last.part, last.parts, last.outcome.untrained_turns) == (0, 1, 2)
    turns = [replace(turn, train=k not in (1, 5)) for k, turn in enumerate(THREE.turns)]
    (only,) = examples_of(chat_encoder(), Dialogue(tuple(turns)))
    assert only.answers == (3,) and only.outcome.untrained_turns == 2
    (last,) = examples_of(chat_encoder("last"), Dialogue(tuple(turns)))
    assert last.answers == (3,)


def test_all_supervises_every_text_once(chat_encoder: Callable[..., ChatEncoder]) -> None:
    encoder = chat_encoder("all")
    examples = examples_of(encoder, THREE)
    said = "\n".join(learned_text(encoder, example) for example in examples)
    for text in ("one?", "the first", "two?", "the second", "three?", "the third"):
        assert said.count(text) == 1, (text, said)
    assert len(examples) > 1 and sum(x.num_supervised for x in examples) < sum(len(x.input_ids) for x in examples)


def test_a_wrong_label_in_any_example_is_caught(chat_encoder: Callable[..., ChatEncoder]) -> None:
    encoder = chat_encoder()
    examples = examples_of(encoder, THREE)
    for example in examples:
        first = next(i for i, label in enumerate(example.labels) if label != IGNORED)
        labels = [*example.labels[: first - 1], *example.input_ids[first - 1 : first], *example.labels[first:]]
        with pytest.raises(DataError, match=r"talk.json:4: two ways .* disagree at token"):
            LabelCrossCheck(encoder).check([(THREE, example.input_ids, labels, example.part)])
        with pytest.raises(DataError, match=r"talk.json:4: two ways .* disagree at token"):
            other = (example.part + 1) % example.parts
            LabelCrossCheck(encoder).check([(THREE, example.input_ids, example.labels, other)])


def test_dialogues_and_examples_are_told_apart(chat_encoder: Callable[..., ChatEncoder]) -> None:
    encoder = chat_encoder()
    short = Dialogue(THREE.turns[:2])
    examples = examples_of(encoder, THREE, short, THREE)
    counts = counted(examples, 3)
    assert counts["dialogues"] == 3 and counts["examples"] == len(examples) and counts["split_dialogues"] == 2
    assert (counts["turns"], counts["trained_turns"], counts["untrained_turns"]) == (14, 7, 0)
    assert (
        f"examples     {len(examples)} of 3 rows; several from 2 dialogues: the template shows earlier answers "
        "differently"
    ) in table(counts)


def test_what_the_length_limit_costs_is_counted_per_example(encoder_of: EncoderOf) -> None:
    encoder = encoder_of("metaspace_bos").bind(get_template("yuan2"))
    whole = examples_of(encoder, THREE)
    limit = len(whole[1].input_ids) - 2
    cut = examples_of(encoder, THREE, max_length=limit)
    assert [x.dropped for x in cut] == [None, None, "no_answer_within_length"]
    counts = counted(cut, 1)
    assert (
        sum(x.lost for x in cut)
        == counts["lost_supervised_tokens"]
        == (sum(x.num_supervised for x in whole) - counts["supervised_tokens"])
    )
    assert (counts["dialogues"], counts["examples"], counts["left_out_no_answer_within_length"]) == (1, 2, 1)
    assert (counts["trained_turns"], counts["cut_turns"], counts["truncated_dialogues"]) == (2, 1, 1)
    assert "1 more not used (1 without an answer before the length limit)" in table(counts)
    dropped = counted(examples_of(encoder, THREE, max_length=5), 1)
    assert dropped["dropped_no_answer_within_length"] == 1 and not dropped["dialogues"]
    assert "none dropped" not in table(dropped)
    some = counted(examples_of(encoder, THREE, max_length=limit, overlong="drop"), 1)
    assert (some["examples"], some["left_out_overlong"], some["cut_turns"]) == (1, 2, 2)
    with pytest.raises(DataError, match=r"talk.json:4: the dialogue up to turn 4 has \d+ tokens"):
        examples_of(encoder, THREE, max_length=limit, overlong="error")


# --- what a run takes of them


def corpus_of(encoder: ChatEncoder, dialogues: list[Dialogue], rows: list[int]) -> Corpus:
    shard = make_shard(list(enumerate(dialogues)), encoder, max_length=LONG, overlong="truncate")
    sources = [{"name": str(number), "rows": size} for number, size in enumerate(rows)]
    return Corpus("train", ChatDataset(TokenStore.of_parts([shard])), "0" * 64, dict(shard.counts), sources)


def rows_of(corpus: Corpus) -> list[int]:
    return [corpus.dataset[i]["index"] for i in range(len(corpus.dataset))]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=4, max_size=12), st.integers(0, 99), st.floats(0.1, 0.8))
def test_all_examples_of_a_dialogue_stay_together(
    encoder_of: EncoderOf, rounds: list[int], seed: int, share: float
) -> None:
    encoder = encoder_of("metaspace_bos").bind(get_template("yuan2"))
    corpus = corpus_of(encoder, [Dialogue(THREE.turns[: 2 * n]) for n in rounds], [2, len(rounds) - 2])
    assert corpus.dataset.num_dialogues == len(rounds) and len(corpus.dataset) == sum(rounds)
    mixed = _mixed(corpus, [1, 1], seed)
    taken = rows_of(mixed)
    assert sum(row < 2 for row in set(taken)) == sum(row >= 2 for row in set(taken)) == 2, "shares are of dialogues"
    for part in (corpus, mixed):
        train, held_out = _split(part, share, seed)
        sides = rows_of(train), rows_of(held_out)
        assert not set(sides[0]) & set(sides[1]) and sorted(sides[0] + sides[1]) == rows_of(part)
        assert all(sides[row in sides[1]].count(row) == rounds[row] for row in set(rows_of(part)))
        assert held_out.chosen["dialogues"] == len(set(sides[1])) and held_out.chosen["examples"] == len(sides[1])
    same = len({n for row, n in enumerate(rounds) if row in sides[0]} & {rounds[row] for row in sides[1]})
    assert bool(same) == bool(overlap_line(train.dataset, held_out.dataset))


def test_one_example_per_dialogue_is_taken_as_before(encoder_of: EncoderOf) -> None:
    encoder = encoder_of("metaspace_bos").bind(get_template("vicuna_v1.1"))
    corpus = corpus_of(encoder, [THREE] * 10, [10])
    assert corpus.dataset.examples_of(np.array([1, 4, 8])).tolist() == [1, 4, 8]
    assert _split(corpus, 3, 42)[1].dataset.chosen.tolist() == [1, 4, 8]  # type: ignore[union-attr]


# --- the preview


def test_the_preview_has_a_line_and_a_page_for_every_example(
    tokenizer_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": turn.role, "content": turn.text} for turn in THREE.turns]
    data = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}, {"messages": turns[:2]}, {"text": "some text"}])
    out, page = tmp_path / "out.jsonl", tmp_path / "page.html"
    argv = ["--model_name_or_path", str(tokenizer_dir("metaspace_bos")), "--conv_template", "yuan2", "--val_set_size"]
    argv += ["1", "--data_path", str(data), "--output", str(out), "--html", str(page)]
    assert preview.main(argv) == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["index"] for line in lines] == [0, 0, 0, 1, 2]
    found = data_of(page)
    assert [(record["i"], record.get("p")) for record in found["records"]] == [
        *((0, [part, 3]) for part in range(3)),
        *((1, None), (2, None)),
    ]
    assert found["unit"] == "example" and found["total"] == 5
    for record, line in zip(found["records"], lines, strict=True):
        runs = [record["r"][i : i + 4] for i in range(0, len(record["r"]), 4)]
        learned = sum(count for count, _, _, why in runs if found["reasons"][why][2])
        assert learned == sum(label != IGNORED for label in line["labels"])
    reasons = {found["reasons"][why][0] for why in found["records"][2]["r"][3::4]}
    assert {"other example", "answer", "stop"} <= reasons
    assert {found["roles"][role] for role in found["records"][4]["r"][2::4]} >= {"text"}
    assert "example 2 of 3" in said.out and "learned in turn 4" in said.out
    assert "1 of 3 dialogues are held out" in said.out
    assert "WARNING: 1 of 3 rows hold plain text (continued pre-training)" in said.err


# --- plain texts


def plain(text: str) -> Dialogue:
    return Dialogue((Turn("assistant", text),), source="texts.jsonl", line=2, plain=True)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_every_token_of_a_text_but_bos_is_learned_once(encoder_of: EncoderOf, kind: str, train_on: str) -> None:
    encoder = encoder_of(kind)
    chat_encoder = encoder.bind(get_template("vicuna_v1.1"), train_on)
    text = "The cat sat on the mat, <eos></s><|im_end|><|eot_id|><think> and so on. " * 5
    lead = [encoder.bos.id] if encoder.adds_bos and encoder.bos else []
    (whole,) = examples_of(chat_encoder, plain(text))
    assert whole.input_ids[: len(lead)] == lead and whole.labels == [IGNORED] * len(lead) + whole.input_ids[len(lead) :]
    assert encoder.eos and whole.input_ids[-1] == encoder.eos.id
    added = {token["id"] for content, token in encoder.added.items() if content.strip() and content != "<unk>"}
    assert not added & set(whole.input_ids[len(lead) : -1]) and whole.special_token_strings > 0
    pieces = examples_of(chat_encoder, plain(text), max_length=16)
    assert [x.part for x in pieces] == list(range(len(pieces))) and all(len(x.input_ids) <= 16 for x in pieces)
    learned = [label for x in pieces for label in x.labels if label != IGNORED]
    assert learned == whole.input_ids[len(lead) :], "nothing is lost and nothing is learned twice"
    counts = counted(pieces, 1)
    assert (counts["dialogues"], counts["examples"], counts["split_texts"]) == (1, len(pieces), 1)
    assert counts["trained_turns"] == counts["untrained_turns"] == counts["turns"] == 0


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_the_second_derivation_of_texts(encoder_of: EncoderOf, kind: str) -> None:
    chat_encoder = encoder_of(kind).bind(get_template("vicuna_v1.1"))
    said = plain("It was a bright cold day in April, and the clocks were striking thirteen. " * 3)
    pieces = examples_of(chat_encoder, said, max_length=20)
    check = LabelCrossCheck(chat_encoder).check
    assert check((said, x.input_ids, x.labels, x.part) for x in pieces).records == len(pieces) > 1
    second = pieces[1]
    lead = plain_text.lead_of(chat_encoder)
    planted = {
        "a token of a text is not learned": ([*second.labels[:-1], IGNORED], second.input_ids),
        "does not begin with what is before it": (list(second.input_ids[:]), second.input_ids),
        "does not have these tokens": (
            [*second.labels[:-2], *second.input_ids[:-3:-1]],
            [*second.input_ids[:-2], *second.input_ids[:-3:-1]],
        ),
    }
    for reason, (labels, ids) in planted.items():
        if lead:
            labels[0] = IGNORED
        with pytest.raises(DataError, match=f"texts.jsonl:2: two ways .*{reason}"):
            check([(said, ids, labels, 1)])


def test_long_texts_are_encoded_in_parts(encoder_of: EncoderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in TOKENIZER_KINDS:
        chat_encoder = encoder_of(kind).bind(get_template("vicuna_v1.1"))
        said = plain("Two  words,\n\tthen <s> more. " * 40)
        (whole,) = examples_of(chat_encoder, said)
        with monkeypatch.context() as patch:
            patch.setattr(plain_text, "AT_ONCE", 100)
            patch.setattr(plain_text, "_LONGEST_WORD", 50)
            (parts,) = examples_of(chat_encoder, said)
        assert parts.input_ids == whole.input_ids


@given(st.integers(1, 60), st.integers(0, 1), st.integers(3, 20))
def test_pieces_cover_everything_once(num: int, lead: int, max_length: int) -> None:
    pieces = pieces_of(num, lead, max_length)
    assert [token for start, end in pieces for token in range(start, end)] == list(range(num))
    assert all(lead + (start > 0) + end - start <= max_length for start, end in pieces)


def test_overlong_texts_can_be_dropped_or_refused(encoder_of: EncoderOf) -> None:
    chat_encoder = encoder_of("byte_bos").bind(get_template("llama-3"))
    said = plain("word " * 50)
    counts = counted(examples_of(chat_encoder, said, max_length=10, overlong="drop"), 1)
    assert counts["dropped_overlong"] == 1 and counts["lost_supervised_tokens"] > 40
    with pytest.raises(DataError, match=r"texts.jsonl:2: the text has \d+ tokens and --model_max_length is 10"):
        examples_of(chat_encoder, said, max_length=10, overlong="error")
    with pytest.raises(SettingsError, match="--model_max_length 2 is too short for plain texts"):
        examples_of(chat_encoder, said, max_length=2)
    assert examples_of(chat_encoder, plain(" \n"))[0].dropped == "empty_dialogue"
    untrained = replace(said, turns=(replace(said.turns[0], train=False),))
    assert examples_of(chat_encoder, untrained)[0].dropped == "no_trained_turn"
    assert plain_line({"rows": 2}) == "" and "3 of 4 rows" in plain_line({"rows": 4, "plain_texts": 3})
