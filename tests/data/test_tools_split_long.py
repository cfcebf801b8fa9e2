"""split_long_conversation: no round is lost, every piece fits, and none could have held more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastchat.conversation import get_template
from fastchat.data import split_long_conversation
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import tokenize_dialogue
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.formats import parse_row
from fastchat.data.split_long_conversation import find_rounds, split_row
from fastchat.data.tools.row_tool import Dropped, Tally, turn_list
from tests.data.test_tools import chat, run, write

EncoderOf = Callable[[str], TextEncoder]
TEMPLATES = ("vicuna_v1.1", "llama-2", "chatml", "gemma", "one_shot", "yuan2")
ROLES = {"conversations": ("from", "value"), "items": ("from", "value"), "messages": ("role", "content")}
NAMES = ("user", "assistant", "function_call", "observation")


def length(row: dict[str, Any], chat_encoder: ChatEncoder) -> int:
    """The tokens of the training example that a row makes."""
    dialogue = parse_row(row).dialogue
    assert dialogue is not None
    return len(chat_encoder.encode(chat_encoder.template.render(dialogue)).input_ids)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    key = draw(st.sampled_from(list(ROLES)))
    role_key, text_key = ROLES[key]
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20) | st.just("word " * 12)
    names = draw(st.lists(st.sampled_from(NAMES), max_size=14) | st.just(list(NAMES[:2]) * draw(st.integers(1, 9))))
    turns = [{role_key: name, text_key: draw(texts), "n": i} for i, name in enumerate(names)]
    if draw(st.booleans()):
        turns.insert(0, {role_key: "system", text_key: draw(texts)})
    row = {"id": "x", key: turns, "model": "m"}
    return row | ({"system": None} if draw(st.booleans()) else {})


@settings(max_examples=120, deadline=None)
@given(row=rows(), max_length=st.integers(1, 200), template=st.sampled_from(TEMPLATES))
def test_pieces(encoder_of: EncoderOf, row: dict[str, Any], max_length: int, template: str) -> None:
    chat_encoder = encoder_of("byte_bos").bind(get_template(template))
    tally, whole = Tally(), turn_list(row)
    try:
        pieces = list(split_row(row, chat_encoder, max_length, tally))
    except Dropped as dropped:
        assert dropped.reason == parse_row(row).dropped
        return
    parsed = parse_row(row)
    assert parsed.dialogue is not None and parsed.dropped is None
    lists = [turn_list(piece) for piece in pieces]
    # Nothing is lost but what training leaves out, and nothing else changes.
    system = whole.entries[: whole.num_system]
    assert all(piece.entries[: len(system)] == system for piece in lists)
    kept = [entry for piece in lists for entry in piece.entries[len(system) :]]
    assert [text for piece in lists for text in piece.texts[len(system) :]] == [
        turn.text for turn in parsed.dialogue.turns
    ]
    removed = sum(n for note, n in tally.notes.items() if note.endswith("removed"))
    assert len(kept) + len(system) + removed == len(whole.entries)
    for piece, turns in zip(pieces, lists, strict=True):
        assert {**piece, whole.key: 0, "id": 0} == {**row, whole.key: 0, "id": 0} and turns.key == whole.key
        found = parse_row(piece)
        assert found.dialogue is not None and not any("removed" in name for name in found.treatments)
        assert found.dialogue.system == parsed.dialogue.system
        assert turns.roles[turns.num_system] == "user" and turns.roles[-1] == "assistant"
    assert len({piece["id"] for piece in pieces}) == len(pieces)
    # Every piece fits or is one round, and could not have held the round behind it.
    rounds = [find_rounds(piece.roles) for piece in lists]
    too_long = [length(piece, chat_encoder) > max_length for piece in pieces]
    assert all(len(spans) == 1 for spans, long in zip(rounds, too_long, strict=True) if long)
    assert tally.notes["rounds that are too long by themselves, kept: training cuts the answer"] == sum(too_long)
    for (piece, turns), (_, following), spans in zip(
        zip(pieces, lists, strict=True), list(zip(pieces, lists, strict=True))[1:], rounds[1:], strict=False
    ):
        start, end = spans[0]
        assert length({**piece, whole.key: [*turns.entries, *following.entries[start:end]]}, chat_encoder) > max_length


@pytest.mark.parametrize("kind", ["metaspace_bos", "gemma", "byte_bos", "byte_nobos"])
def test_a_piece_of_exactly_the_length_is_not_split(encoder_of: EncoderOf, kind: str) -> None:
    chat_encoder = encoder_of(kind).bind(get_template("vicuna_v1.1"))
    row = chat("Hello there", "Hi.", "More?", "Yes, more of it.", "And the last one?", "That is lost upstream.", id=7)
    exact = length(row, chat_encoder)
    assert list(split_row(row, chat_encoder, exact, Tally())) == [{**row, "id": "7_0"}]
    first, second = split_row(row, chat_encoder, exact - 1, Tally())
    assert [len(piece["conversations"]) for piece in (first, second)] == [4, 2]
    assert (first["id"], second["id"]) == ("7_0", "7_4")
    assert second["conversations"][-1]["value"] == "That is lost upstream."
    dialogue = parse_row(first).dialogue
    assert (
        dialogue is not None and tokenize_dialogue(dialogue, chat_encoder, max_length=exact - 1).truncated_tokens == 0
    )


def test_calls_and_their_outputs_stay_together() -> None:
    roles = ["assistant", "user", "assistant", "tool", "assistant", "user", "user", "tool", "assistant", "user"]
    assert find_rounds(roles) == [(1, 5), (5, 9)]
    assert find_rounds(["user", "assistant"]) == [(0, 2)]
    assert find_rounds(["system", "user", "assistant", "assistant", "user", "assistant"]) == [(1, 4), (4, 6)]


def test_a_conversation_of_many_small_rounds_is_quick(encoder_of: EncoderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    chat_encoder = encoder_of("byte_bos").bind(get_template("vicuna_v1.1"))
    row = chat(*["hi", "yo"] * 3000)
    encoded = watch(monkeypatch)
    pieces = list(split_row(row, chat_encoder, 1000, Tally()))
    assert sum(len(piece["conversations"]) for piece in pieces) == 6000
    assert sum(encoded) < 4 * encoded[0]  # the whole once, and each piece a few times


def test_nothing_is_encoded_twice(encoder_of: EncoderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    chat_encoder = encoder_of("byte_bos").bind(get_template("vicuna_v1.1"))
    row = chat("Hello there", "Hi.", "More?", "Yes, more of it.")
    exact, alone = length(row, chat_encoder), length(chat("q", "a " * 100), chat_encoder)
    encoded = watch(monkeypatch)
    for given_row, max_length, wanted in (
        (row, exact, [exact]),  # fits as a whole
        (chat("q", "a " * 100), 5, [alone]),  # one round, too long alone
    ):
        list(split_row(given_row, chat_encoder, max_length, Tally()))
        assert encoded == wanted
        encoded.clear()
    list(split_row(row, chat_encoder, 1, Tally()))
    assert len(encoded) == 3 and encoded[0] == exact  # the whole, and each of its rounds


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of everything that is encoded from now on."""
    encoded: list[int] = []
    original = ChatEncoder.count

    def counting(self: ChatEncoder, rendered: Any) -> Any:
        found = original(self, rendered)
        encoded.append(found.total())
        return found

    monkeypatch.setattr(ChatEncoder, "count", counting)
    monkeypatch.setattr(ChatEncoder, "encode_many", lambda *_: pytest.fail("labels are made that nobody needs"))
    return encoded


def test_the_command(tokenizer_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "a.jsonl", [
        chat("q " * 70, "a " * 70, "q " * 70, "a " * 70, id="long"), chat("q", "a", id="short"), chat("q", id="open"),
        chat("q", "b " * 900), {"instruction": "i", "output": "o"}, chat("not", "taken"),
    ])  # fmt: skip
    out, model = tmp_path / "o.jsonl", str(tokenizer_dir("metaspace_bos"))
    argv = ["--in", data, "--out", str(out), "--model-name-or-path", model, "--max-length", "400", "--end", "5"]
    assert run(split_long_conversation, *argv) == 3
    assert (
        "not a list of turns: a row with 'instruction'; convert it with convert_alpaca first" in capsys.readouterr().err
    )
    assert run(split_long_conversation, *argv, "--on-bad-row", "skip", "--conv-template", "vicuna_v1.1") == 0
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.get("id") for row in made] == ["long_0", "long_2", "short_0", None]
    assert capsys.readouterr().out.splitlines() == [
        "#in: 5, #out: 4",
        "dropped: 2 (1 without an answer, 1 unreadable)",
        "conversations split: 1",
        "rounds that are too long by themselves, kept: training cuts the answer: 1",
    ]
    for more, message in (
        (["--max-length", "0"], "--max-length 0: must be at least 1"),
        (["--conv-template", "vicunna"], "'vicunna' is not a known template"),
        (["--model-name-or-path", str(tmp_path)], "there is no tokenizer in it"),
    ):
        assert run(split_long_conversation, *argv, *more) == 2 and message in capsys.readouterr().err
