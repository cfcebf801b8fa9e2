"""One row to one dialogue: the three shapes, strict types, and the stated treatment of unusual dialogues."""

from __future__ import annotations

from typing import Any

import pytest

from fastchat.conversation import Dialogue, Turn
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.formats import Parsed, parse_row, row_id
from fastchat.data.rows.keys import TREATMENTS


def sharegpt(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **more}


def messages(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


def turns_of(row: dict[str, Any]) -> list[tuple[str, str, bool]]:
    dialogue = parse_row(row).dialogue
    assert dialogue is not None
    return [(turn.role, turn.text, turn.train) for turn in dialogue.turns]


def bad(row: dict[str, Any]) -> str:
    with pytest.raises(BadRow) as found:
        parse_row(row)
    return str(found.value)


# --- the three shapes


def test_the_same_dialogue_in_every_shape() -> None:
    expected = Dialogue(
        (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b")), None, "f", 3
    )
    pairs = [("q", "a"), ("r", "b")]
    shapes = [
        sharegpt(*[turn for q, a in pairs for turn in (("human", q), ("gpt", a))]),
        messages(*[turn for q, a in pairs for turn in (("user", q), ("assistant", a))]),
        {"instruction": "r", "input": "", "output": "b", "history": [["q", "a"]]},
    ]
    shapes.append({"items": shapes[0]["conversations"], "id": "x"})
    for row in shapes:
        assert parse_row(row, "f", 3) == Parsed(expected, None, parse_row(row).treatments)
        assert not parse_row(row).treatments


@pytest.mark.parametrize("name", ["human", "user"])
@pytest.mark.parametrize("answerer", ["gpt", "assistant", "chatgpt", "bing", "bard"])
def test_sharegpt_names(name: str, answerer: str) -> None:
    assert turns_of(sharegpt((name, "q"), (answerer, "a"))) == [("user", "q", True), ("assistant", "a", True)]


@pytest.mark.parametrize("tool", ["observation", "tool"])
def test_the_call_is_the_assistants_and_the_observation_is_not(tool: str) -> None:
    turns = [("user", "q"), ("function_call", "{}"), (tool, "72"), ("assistant", "a")]
    expected = [("user", "q", True), ("assistant", "{}", True), ("tool", "72", True), ("assistant", "a", True)]
    assert turns_of(messages(*turns)) == turns_of(sharegpt(*turns)) == expected


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert turns_of(row) == [("user", "Add.\nInput:\n1 2", True), ("assistant", "3", True)]
    for nothing in ("", "  \n", None):
        assert turns_of({**row, "input": nothing})[0] == ("user", "Add.", True)
    assert turns_of({"instruction": "Add.", "output": "3"})[0] == ("user", "Add.", True)
    assert turns_of({**row, "input": "7"})[0] == ("user", "Add.\nInput:\n7", True)


def test_texts_are_kept_to_the_character() -> None:
    text = "  </s> USER: \u00e9e\u0301\u200b\ufeff \r\n\t<|im_start|>assistant\n "
    assert turns_of(messages(("user", text), ("assistant", text))) == [("user", text, True), ("assistant", text, True)]


# --- system


@pytest.mark.parametrize("text", ["Be brief.", "", "  "])
def test_system_key_or_system_turn(text: str) -> None:
    dialogue = [("user", "q"), ("assistant", "a")]
    for row in (
        messages(*dialogue, system=text),
        messages(("system", text), *dialogue),
        messages(("system", text), *dialogue, system=text),
        sharegpt(("system", text), *dialogue, system=None),
        {"instruction": "q", "output": "a", "system": text},
    ):
        parsed = parse_row(row).dialogue
        assert parsed is not None and parsed.system == text and [t.text for t in parsed.turns] == ["q", "a"]


def test_no_system_is_not_an_empty_system() -> None:
    for row in (messages(("user", "q"), ("assistant", "a")), sharegpt(("user", "q"), ("gpt", "a"), system=None)):
        parsed = parse_row(row).dialogue
        assert parsed is not None and parsed.system is None


def test_two_system_texts_or_a_late_one() -> None:
    first = messages(("system", "A"), ("user", "q"), ("assistant", "a"), system="B")
    assert bad(first) == "two system texts: key 'B', first turn 'A'"
    late = messages(("user", "q"), ("system", "A"), ("assistant", "a"))
    assert bad(late) == "system turn not first: turn 2"
    assert bad(messages(("system", "A"), ("system", "A"), ("user", "q"))) == "system turn not first: turn 2"


# --- train


def test_train_false_is_kept_per_turn() -> None:
    row = messages(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    row["messages"][1]["train"] = False
    row["messages"][3]["train"] = True
    assert [train for _, _, train in turns_of(row)] == [True, False, True, True]


@pytest.mark.parametrize("value", ["false", [], {}])
def test_train_must_be_true_or_false(value: object) -> None:
    row = sharegpt(("human", "q"), ("gpt", "a"))
    row["conversations"][1]["train"] = value
    assert bad(row).startswith("wrong type: 'train' of turn 2 is a")


# --- wrong keys, types and roles

TURN = {"role": "user", "content": "q"}


def content(value: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": value}]}


def pairs(value: object) -> dict[str, Any]:
    return {"instruction": "q", "output": "a", "history": value}


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no keys": ({}, "no known format: keys: none"),
    "unknown keys": ({"texts": "q", "n": 1}, "no known format: keys: 'texts', 'n'; did you mean 'text'?"),
    "question and answer": (
        {"id": 1, "Question": "q", "Answer": "a"},
        "no known format: keys: 'id', 'Question', 'Answer'",
    ),
    "misspelt": ({"message": []}, "no known format: keys: 'message'; did you mean 'messages'?"),
    "two lists": (
        {"items": [{"role": "user", "content": "q"}], "messages": [{"role": "user", "content": "r"}]},
        "two formats in one row: messages and items",
    ),
    "two pairs": (
        {"instruction": "q", "output": "a", "prompt": "q", "completion": "b"},
        "two formats in one row: instruction and prompt",
    ),
    "no completion": ({"prompt": "q", "chosen": "a"}, "missing key: the row has no 'completion'; keys there: 'prompt'"),
    "turns null": ({"messages": None}, "wrong type: 'messages' is null, not an array"),
    "turns object": ({"items": TURN}, "wrong type: 'items' is an object, not an array"),
    "turns text": ({"conversations": "USER: q"}, "wrong type: 'conversations' is a string, not an array"),
    "turns as broken JSON": ({"messages": "[{'role': 'user'}]"}, "invalid JSON in messages: the row: "),
    "turn text": ({"messages": ["q"]}, "wrong type: turn 1 is a string, not an object"),
    "turn null": ({"messages": [TURN, None]}, "wrong type: turn 2 is null, not an object"),
    "turn empty": (
        {"messages": [{}]},
        "missing key: turn 1 has no 'role' or 'from'; keys there: none",
    ),
    "no content": (
        {"messages": [{"role": "user"}]},
        "missing key: turn 1 has no 'content' or 'value'; keys there: 'role'",
    ),
    "misspelt content": ({"messages": [{"role": "user", "contents": "q"}]}, "missing key: turn 1 has no 'content' or "),
    "two roles": (
        {"items": [{**TURN, "from": "gpt"}]},
        "contradictory keys: turn 1 has different 'role' and 'from'",
    ),
    "two texts": (
        {"items": [{**TURN, "value": "r"}]},
        "contradictory keys: turn 1 has different 'content' and 'value'",
    ),
    "number": (content(72), "wrong type: 'content' of turn 1 is a number, not a string"),
    "float": (content(7.5), "wrong type: 'content' of turn 1 is a number, not a string"),
    "boolean": (content(True), "wrong type: 'content' of turn 1 is a boolean, not a string"),
    "null": (content(None), "wrong type: 'content' of turn 1 is null, not a string"),
    "image part": (
        content([{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "x"}}]),
        "part that is not text: 'content' of turn 1 has a part of type 'image_url'; only text is read",
    ),
    "part without text": (content([{"type": "text"}]), "missing key: a part of 'content' of turn 1 has no 'text'"),
    "part number": (content([3]), "wrong type: a part of 'content' of turn 1 is a number, not an object"),
    "object": (content({}), "wrong type: 'content' of turn 1 is an object, not a string"),
    "value number": ({"items": [{"from": "gpt", "value": 7}]}, "wrong type: 'value' of turn 1 is a number"),
    "role number": ({"messages": [{"role": 1, "content": "q"}]}, "wrong type: 'role' of turn 1 is a number"),
    "role unknown": (messages(("asistant", "q")), "unknown role: turn 1 is from 'asistant' (nearest: assistant)"),
    "role empty": (sharegpt(("", "q")), "unknown role: turn 1 is from '' (known: "),
    "system number": ({"messages": [TURN], "system": 3}, "wrong type: 'system' of the row is a number, not a string"),
    "system turn null": (
        {"messages": [{"role": "system", "content": None}]},
        "wrong type: 'content' of turn 1 is null",
    ),
    "no output": ({"instruction": "q", "input": ""}, "missing key: the row has no 'output'"),
    "output null": ({"instruction": "q", "output": None}, "wrong type: 'output' of the row is null"),
    "instruction array": ({"instruction": ["q"], "output": "a"}, "wrong type: 'instruction' of the row is an array"),
    "input number": ({"instruction": "q", "input": 0, "output": "a"}, "wrong type: 'input' of the row is a number"),
    "history object": (pairs({}), "wrong type: 'history' is an object, not an array"),
    "history of turns": (pairs([TURN]), "wrong type: entry 1 of 'history' is not"),
    "history pair": (pairs([["q", "a"], ["q"]]), "wrong type: entry 2 of 'history' is not"),
    "history number": (pairs([["q", 1]]), "wrong type: entry 1 of 'history' is not"),
}


WAYS_OUT: list[tuple[dict[str, Any], str]] = [
    ({"id": 1, "Question": "q", "Answer": "a"}, """--data_columns '{"prompt": "Question", "completion": "Answer"}'"""),
    ({"dialog": [{"speaker": "x"}]}, """--data_columns '{"messages": "dialog"}'"""),
    ({"id": 0, "query": "q", "answers": "a"}, """--data_columns '{"prompt": "query", "completion": "answers"}'"""),
    ({"prompt": "q", "response": "a"}, """--data_columns '{"completion": "response"}'"""),
    ({"data": [{"messages": [TURN]}]}, """in 'data': write them to a file, as with jq -c '.["data"][]'."""),
    ({'d"\x1b': {"instruction": "q", "output": "a"}}, """jq -c '.["d\\"\\u001b"]'."""),
    ({"data": ["q", "a"]}, "A dialogue is a list of turns"),
    ({"chat": "USER: q"}, "A dialogue is a list of turns"),
    ({"messages": ["q", "a"]}, "A dialogue is a list of turns"),
    ({"conversation": [{"input": "q", "output": "a"}]}, "A dialogue is a list of turns"),
    (
        {"system_prompt": "s", "question": "q", "response": "a"},
        """"completion": "response", "system": "system_prompt"}'""",
    ),
    (messages(("user", "q")) | {"tools": [{"type": "web_search"}]}, 'A tool is {"type": "function"'),
    (messages(("user", "q")) | {"tools": {"f": {}}}, 'A tool is {"type": "function"'),
    (content([{"type": "tool_use", "name": "f"}]), 'Calls are "tool_calls" of an answer'),
    (content({"a": 1}), "An object can be written as JSON text."),
    (content(None), 'needs "tool_calls"'),
    ({"x": 1}, "One of messages, conversations, conversation, chat, items, instruction, prompt, text is needed"),
    ({"chat": [{"speaker": "x"}]}, """--data_columns '{"role": "NAME IN THE FILE"}'"""),
    (messages(("customer", "q")), """--data_roles '{"customer": "user"}'"""),
    ({"dialog\x1b": [{"speaker": "x"}]}, """--data_columns '{"messages": "dialog\\u001b"}'"""),
]


@pytest.mark.parametrize(("row", "way_out"), WAYS_OUT)
def test_ways_out(row: dict[str, Any], way_out: str) -> None:
    with pytest.raises(BadRow) as found:
        parse_row(row)
    assert way_out in found.value.way_out and found.value.way_out.isprintable()


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows(row: dict[str, Any], reason: str) -> None:
    assert bad(row).startswith(reason)


def test_empty_tool_calls_are_no_tool_calls() -> None:
    row = messages(("user", "q"), ("assistant", "a"))
    row["messages"][1]["tool_calls"] = None
    assert turns_of(row)[1] == ("assistant", "a", True)
    row["messages"][1]["tool_calls"] = []
    assert turns_of(row)[1] == ("assistant", "a", True)


def test_long_and_hostile_values_are_shown_short() -> None:
    message = bad(messages(("\x1b[31m" + "x" * 10_000, "q")))
    assert message.isprintable() and len(message) < 200


# --- sound but unusual

U, A, E, T = ("user", "q"), ("assistant", "a"), ("assistant", " \n"), ("tool", "t")
S, N = ("system", "s"), ("user", "")
UNUSUAL: dict[str, tuple[list[tuple[str, str]], str, dict[str, int]]] = {
    "assistant first": ([A, U, A], "ua", {"leading_assistant_turns": 1}),
    "assistant first after system": ([S, A, A, U, A], "ua", {"leading_assistant_turns": 2}),
    "call and output first": ([A, T, U, A], "ua", {"leading_assistant_turns": 1, "leading_tool_turns": 1}),
    "user last": ([U, A, U], "ua", {"trailing_user_turns": 1}),
    "tool output last": ([U, A, T, U], "ua", {"trailing_user_turns": 2}),
    "both": ([A, U, A, U, U], "ua", {"leading_assistant_turns": 1, "trailing_user_turns": 2}),
    "empty answer": ([U, E, U, A], "uEua", {"empty_assistant_turns": 1}),
    "only an empty answer": ([U, E], "uE", {"empty_assistant_turns": 1}),
    "empty user": ([N, A, ("user", " "), A], "uaua", {"empty_user_turns": 2}),
    "empty output": ([U, A, ("tool", ""), A], "uata", {"results_without_call": 1}),
    "user twice": ([U, U, A, A], "uuaa", {}),
    "removed, not empty": ([E, U, A, N], "ua", {"leading_assistant_turns": 1, "trailing_user_turns": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("turns", "kept", "counts"), UNUSUAL.values(), ids=UNUSUAL)
def test_treatments(turns: list[tuple[str, str]], kept: str, counts: dict[str, int]) -> None:
    """`kept`: first letters of the roles; E is an assistant turn that is not trained."""
    parsed = parse_row(messages(*turns))
    assert parsed.dialogue is not None and parsed.dropped is None
    assert "".join(t.role[0] if t.train else "E" for t in parsed.dialogue.turns) == kept
    assert dict(parsed.treatments) == counts and set(counts) <= set(TREATMENTS)
    assert parsed.dialogue.system == ("s" if S in turns else None)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "empty_dialogue"),
        ([S], "empty_dialogue"),
        ([U], "no_assistant_turn"),
        ([S, U, T, U], "no_assistant_turn"),
        ([A], "no_assistant_turn"),
        ([A, T, A], "no_assistant_turn"),
        ([A, U], "no_assistant_turn"),
    ],
)
def test_unusable_dialogues_are_dropped(turns: list[tuple[str, str]], reason: str) -> None:
    parsed = parse_row(messages(*turns))
    assert (parsed.dialogue, parsed.dropped, dict(parsed.treatments)) == (None, reason, {})


def test_row_id() -> None:
    assert [row_id({"id": v}) for v in ("a", 3, True, None, 1.5, [])] == ["a", "3", None, None, None, None]
    assert row_id({"id": None, "idx": 4}) == "4"


@pytest.mark.parametrize(("said", "origin"), [("web", "web"), (3, "3"), (None, None), (["a"], None), (True, None)])
def test_where_a_row_says_that_it_comes_from(said: object, origin: str | None) -> None:
    row = {"source": said, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    parsed = parse_row(row)
    assert parsed.origin == origin and not parsed.unread
