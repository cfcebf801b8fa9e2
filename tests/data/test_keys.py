"""Keys of rows and turns besides role and text: obeyed, refused by name, or counted; never silently dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.keys import REASONING_KEYS, TRAIN_KEYS, UNCLEAR_KEYS
from fastchat.data.rows.records import Records
from fastchat.errors import DataError

MEDIA_KEYS = ("image", "images", "video", "videos", "audio", "audios", "image_url", "Images", "video_path", "img")
NOTHING: tuple[Any, ...] = (None, "", [], [None], {}, False)


def row(turn: dict[str, Any] | None = None, ask: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Two rounds; `turn` goes to the first answer, `ask` to the first question, the rest to the row."""
    texts = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    turns = [{"role": role, "content": text} for role, text in texts]
    turns[0] |= ask or {}
    turns[1] |= turn or {}
    return {"messages": turns, **more}


def trained(made: dict[str, Any]) -> list[bool]:
    dialogue = parse_row(made).dialogue
    assert dialogue is not None
    return [turn.train for turn in dialogue.turns if turn.role == "assistant"]


def bad(made: dict[str, Any]) -> str:
    with pytest.raises(BadRow) as found:
        parse_row(made)
    return str(found.value)


# --- what is learned


@pytest.mark.parametrize("key", TRAIN_KEYS)
@pytest.mark.parametrize("value", [True, False, 1, 0, 1.0, 0.0])
def test_a_turn_and_a_row_say_whether_they_are_learned(key: str, value: Any) -> None:
    learned = bool(value) == TRAIN_KEYS[key]
    assert trained(row({key: value})) == [learned, True]
    assert trained(row(**{key: value})) == [learned, learned]
    alpaca = {"instruction": "q", "output": "a", "history": [["x", "y"]], key: value}
    assert trained(alpaca) == [learned, learned]
    assert trained(row({key: None}, **{key: None})) == [True, True]
    assert not parse_row(row({key: value}, **{key: value})).unread


def test_the_usual_polarity_of_each_key() -> None:
    assert [key for key, learned in TRAIN_KEYS.items() if not learned] == ["masked"]
    assert {"train", "training", "trainable", "weight", "loss", "loss_mask"} < set(TRAIN_KEYS)


@pytest.mark.parametrize(("value", "reason"), [(0.5, "fractional weight"), (2, "fractional weight"), (-1, "fract")])
def test_other_weights_are_refused(value: float, reason: str) -> None:
    assert bad(row({"weight": value})).startswith(f"{reason}")
    assert f"'weight' of turn 2 is {value}" in bad(row({"weight": value}))
    assert f"'weight' of the row is {value}" in bad(row(weight=value))


def test_contradictory_keys_are_refused() -> None:
    assert bad(row({"train": True, "weight": 0})) == (
        "contradictory keys: turn 2 is trained on according to train, but not according to weight"
    )
    assert bad(row({"masked": 1, "loss": True})).startswith(
        "contradictory keys: turn 2 is trained on according to loss, but"
    )
    assert bad(row({"train": True}, train=False)).startswith("contradictory keys: the row is marked as not trained on")
    assert trained(row({"train": False, "masked": 1, "weight": 0.0})) == [False, True]
    assert trained(row({"weight": 0}, train=True)) == [False, True]


def test_a_prompt_that_asks_to_be_learned_is_counted() -> None:
    assert parse_row(row(ask={"weight": 1})).treatments["asked_prompts"] == 1
    assert not parse_row(row(ask={"weight": 0, "masked": True})).treatments


@pytest.mark.parametrize("key", UNCLEAR_KEYS)
def test_unclear_keys_are_refused(key: str) -> None:
    assert bad(row({key: 1})).startswith(f"unclear key: turn 2 has '{key}'") and "train" in bad(row({key: 1}))
    assert trained(row({key: None})) == [True, True]


@pytest.mark.parametrize(
    "key", ["Train", "loss_weight", "lossMask", "is_masked", "train_on", "ignore", "TRAIN ", "mask"]
)
def test_keys_that_seem_to_say_what_is_learned_are_refused(key: str) -> None:
    for value in (False, True, [0, 1]):
        assert bad(row({key: value})).startswith(f"unclear key: turn 2 has '{key}'") and '"train"' in bad(row({key: 1}))
        assert bad(row(**{key: value})).startswith(f"unclear key: the row has '{key}'")


@pytest.mark.parametrize(
    "made", [{"train_id": "a"}, {"training_step": 3}, {"weight_class": "heavy"}, {"restrained": False}]
)
def test_other_keys_with_such_words_are_only_counted(made: dict[str, Any]) -> None:
    assert set(parse_row(row(**made)).unread) == {("row", key) for key in made}


def test_prompts_know_whether_they_may_be_learned() -> None:
    dialogue = parse_row(
        {"messages": [{"role": "system", "content": "s", "weight": 0}, *row({}, {"train": False})["messages"]]}
    ).dialogue
    assert dialogue is not None and [turn.train for turn in dialogue.turns] == [False, True, True, True]
    assert not dialogue.system_train
    dialogue = parse_row(row(train=False, system="s")).dialogue
    assert dialogue is not None and not dialogue.system_train and not any(turn.train for turn in dialogue.turns)


# --- what a model of text cannot learn


@pytest.mark.parametrize("key", MEDIA_KEYS)
def test_media_are_refused_by_name(key: str) -> None:
    for value in ("a.png", ["a.png"], [{"bytes": "x"}], {"url": "x"}):
        assert bad(row(ask={key: value})).startswith(f"images, video or audio: turn 1 has '{key}'")
        assert bad(row(**{key: value})).startswith(f"images, video or audio: the row has '{key}'")
        assert bad({"instruction": "q", "output": "a", key: value}).startswith("images, video or audio")
    for value in NOTHING:
        assert trained(row(ask={key: value}, **{key: value})) == [True, True]


def test_parts_of_a_message_are_named() -> None:
    parts = [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert bad(row(ask={"content": parts})) == (
        "part that is not text: 'content' of turn 1 has a part of type 'image_url'; only text is read"
    )


# --- reasoning


@pytest.mark.parametrize("key", REASONING_KEYS)
def test_reasoning_is_kept_apart(key: str) -> None:
    dialogue = parse_row(row({key: "Hm."})).dialogue
    assert dialogue is not None and [turn.reasoning for turn in dialogue.turns] == [None, "Hm.", None, None]
    for nothing in (None, "", " \n"):
        dialogue = parse_row(row({key: nothing})).dialogue
        assert dialogue is not None and not any(turn.reasoning for turn in dialogue.turns)
    assert bad(row({key: 3})) == f"wrong type: '{key}' of turn 2 is a number, not a string"
    assert bad(row(ask={key: "Hm."})).startswith("reasoning outside an answer: turn 1 has role user")
    alpaca = parse_row({"instruction": "q", "output": "a", key: "Hm."}).dialogue
    assert alpaca is not None and alpaca.turns[-1].reasoning == "Hm."


def test_two_texts_of_reasoning() -> None:
    assert bad(row({"reasoning": "x", "thinking": "y"})).startswith("contradictory keys: turn 2 has different texts")
    dialogue = parse_row(row({"reasoning": "x", "reasoning_content": "x"})).dialogue
    assert dialogue is not None and dialogue.turns[1].reasoning == "x"


# --- files


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        keys = dict.fromkeys(key for made in rows for key in made)  # pyarrow looks at the first row only
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict.fromkeys(keys) | made for made in rows]), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_reasoning_is_never_lost_under_a_template_that_does_not_show_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row({"thinking": "Hm."}), row()])
    with pytest.raises(DataError, match=r"a.jsonl:1: reasoning that the template does not show: 'Hm.'") as stop:
        list(Records([path]))
    assert "Reasoning needs --conv_template tokenizer and a chat template that shows it. Or" in str(stop.value)
    assert [r.dropped for r in Records([path], on_bad_row="skip")][1:] == [None]
    assert [r.dropped for r in Records([path], reasoning=True)] == [None, None]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_unknown_keys_are_counted_and_said_once(
    tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row({"note": "x", "weight": 1}, site="web", id="a"), row(site="book", id="b")]
    rows[1]["messages"][3]["note"] = "y"
    rows[1]["messages"][0]["note"] = None
    records = Records([write(tmp_path / f"a.{ending}", rows)])
    assert len(list(records)) == 2
    assert (
        capsys.readouterr().err.splitlines()
        == records.lines
        == [
            "keys of turns that are not read: 'note' (2 turns)",
            "keys of rows that are not read: 'site' (2 rows)",
        ]
    )


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_keys_that_seem_to_mean_ours_come_with_the_mapping_that_reads_them(tmp_path: Path, ending: str) -> None:
    rows = [row({"cot": "Hm."}, system_prompt="Be brief.", parallel_tool_calls=False, reasoning_effort="low")]
    path = write(tmp_path / f"a.{ending}", rows)
    records = Records([path])
    assert len(list(records)) == 1
    of_turns, of_rows = records.lines
    assert of_turns.endswith("""'cot' (1 turn); name the ones to read: --data_columns '{"reasoning_content": "cot"}'""")
    assert of_rows.endswith("""; name the ones to read: --data_columns '{"system": "system_prompt"}'""")
    (named,) = Records([path], columns=Columns({"system": "system_prompt", "reasoning_content": "cot"}), reasoning=True)
    assert named.dialogue is not None and named.dialogue.system == "Be brief."
    assert [turn.reasoning for turn in named.dialogue.turns if turn.reasoning] == ["Hm."]


def test_made_up_keys_do_not_fill_the_memory_or_the_screen(tmp_path: Path) -> None:
    rows = [row(**{f"key{i}_{k}": 1 for k in range(100)}) for i in range(20)]
    records = Records([write(tmp_path / "a.jsonl", rows)])
    assert len(list(records)) == 20
    (line,) = records.lines
    assert line.endswith(" and 992 or more others") and len(line) < 300


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_null_is_as_good_as_absent_in_every_format(tmp_path: Path, ending: str) -> None:
    keys = [*TRAIN_KEYS, *REASONING_KEYS, *MEDIA_KEYS, *UNCLEAR_KEYS, "tool_calls", "function_call", "name", "other"]
    nulls = dict.fromkeys(keys)
    full = [row({**nulls}, {**nulls}, **nulls, conversations=None, instruction=None, system=None, tools=None, id=None)]
    alpaca = {"instruction": "q", "output": "a", "input": None, "history": None, "messages": None, "items": None}
    plain = Records([write(tmp_path / "a.jsonl", [row(), {"instruction": "q", "output": "a"}])])
    records = Records([write(tmp_path / f"b.{ending}", [*full, {**alpaca, **nulls}])])
    wanted = [(r.dialogue.turns, r.dialogue.system) for r in plain if r.dialogue]
    assert [(r.dialogue.turns, r.dialogue.system) for r in records if r.dialogue] == wanted
    assert not records.lines
