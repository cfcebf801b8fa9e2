"""Tools and calls in every form are the same objects; what is no call is refused or counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastchat.conversation import Dialogue, ToolCall, Turn
from fastchat.data.convert_alpaca import to_sharegpt
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.keys import ROW_COLUMNS, TURN_KEYS
from fastchat.data.tools.row_tool import Tally
from tests.data.row_forms import ASK, CALL, CALLS, PARAMETERS, QA, SAY, TOOL, Row, bad, call_turn, read, treated

# --- tools and calls


@pytest.mark.parametrize("form", CALLS)
def test_calls_in_every_form(form: str) -> None:
    result = {"role": "tool", "content": "r", "tool_call_id": "c"}
    row = {"messages": [ASK, CALLS[form], result, SAY]}
    called = Turn("assistant", "", calls=(ToolCall("f", {"x": 1}, "c"),))
    parsed = parse_row(row)
    assert parsed.dialogue is not None and not parsed.unread
    assert parsed.dialogue.turns == (QA[0], called, Turn("tool", "r", call_id="c"), QA[1])
    assert parsed.treatments == ({"null_arguments": 1} if form == "with nulls" else {})


def test_the_older_form_and_sharegpt_are_the_same_calls() -> None:
    text = json.dumps({"name": "f", "arguments": {"x": 1}})
    older = [ASK, {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x": 1}'}}]
    older.append({"role": "function", "name": "f", "content": "r"})
    sharegpt = [{"from": "human", "value": "q"}, {"from": "function_call", "value": text}]
    sharegpt.append({"from": "observation", "value": "r"})
    called = Turn("assistant", "", calls=(CALL,))
    assert read({"messages": [*older, SAY]}).turns == (QA[0], called, Turn("tool", "r", name="f"), QA[1])
    assert read({"conversations": [*sharegpt, SAY]}).turns == (QA[0], called, Turn("tool", "r"), QA[1])
    for value in (json.loads(text), f"[{text}]", json.dumps([text]), '{"name": "f", "arguments": "{\\"x\\": 1}"}'):
        assert read({"items": [ASK, {"from": "tool_call", "value": value}, SAY]}).turns[1] == called
    two = read({"items": [ASK, {"from": "function_call", "value": f"[{text}, {text}]"}, SAY]}).turns[1]
    assert two.calls == (CALL, CALL)


@pytest.mark.parametrize(
    "text",
    [
        "f(x=1)",
        "{}",
        '{"name": "f"}',
        '{"name": "f", "arguments": {}, "why": 1}',
        "[1]",
        '{"name": 1, "arguments": {}}',
    ],
)
def test_a_call_in_another_form_stays_text(text: str) -> None:
    row = {"items": [ASK, {"from": "function_call", "value": text}, SAY]}
    assert read(row).turns[1] == Turn("assistant", text) and treated(row)["calls_as_text"] == 1


def test_what_is_generated_in_one_go_is_one_turn() -> None:
    called = {"role": "function_call", "content": '{"name": "f", "arguments": {"x": 1}}'}
    row = {"messages": [ASK, {**SAY, "reasoning": "r"}, called, called, {"role": "tool", "content": "t"}, called, SAY]}
    turns = read(row).turns
    assert turns[1] == Turn("assistant", "a", reasoning="r", calls=(CALL, CALL))
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant", "assistant"]
    assert treated(row) == {"merged_calls": 2}
    assert parse_row(row).entries == (0, 1, 4, 5, 6, 7)
    apart = read({"messages": [ASK, {**SAY, "train": False}, called, SAY]}).turns
    assert [(turn.train, len(turn.calls)) for turn in apart] == [(True, 0), (False, 0), (True, 1), (True, 0)]


def test_ids_that_do_not_fit_are_counted() -> None:
    one = {"id": "c", "name": "f", "arguments": {}}
    results = [{"role": "tool", "content": "r", "tool_call_id": name} for name in ("c", "d")]
    assert treated({"messages": [ASK, call_turn(one, one), *results, SAY]}) == {
        "duplicate_call_ids": 1, "unknown_call_ids": 1,
    }  # fmt: skip
    assert treated({"messages": [ASK, {"role": "tool", "content": "r"}, SAY]}) == {"results_without_call": 1}


def test_a_result_has_the_name_that_the_row_gives() -> None:
    """Inference sends what the row has; templates that need a name look it up (messages.py, calls.py)."""
    called = call_turn({"name": "f", "id": "x", "arguments": {}})
    results = [{"role": "tool", "content": "r", "tool_call_id": "x"}, {"role": "tool", "content": "r", "name": "h"}]
    turns = read({"messages": [ASK, called, *results, SAY]}).turns
    assert [turn.name for turn in turns if turn.role == "tool"] == [None, "h"]


@pytest.mark.parametrize("system", [{"content": "s"}, {"content": ""}, {"content": None}, {}])
@pytest.mark.parametrize("key", ["tools", "functions"])
def test_tools_of_a_system_turn_are_the_tools_of_the_row(key: str, system: Row) -> None:
    row = {"messages": [{"role": "system", **system, key: json.dumps([TOOL])}, ASK, SAY]}
    parsed = parse_row(row)
    assert parsed.dialogue == Dialogue(QA, system.get("content") or None, tools=(TOOL,)) and not parsed.unread
    assert read({**row, "tools": [TOOL]}).tools == (TOOL,)
    other = {**TOOL, "function": {"name": "g"}}
    assert bad({**row, "tools": [other]}).startswith("contradictory keys: the row has different tools")
    assert parse_row({"messages": [{**ASK, key: [TOOL]}, SAY]}).unread == {("turn", key): 1}


@pytest.mark.parametrize("form", [("prompt", "completion"), ("instruction", "output")])
def test_an_output_that_is_the_json_of_calls_of_the_rows_tools_is_calls(form: tuple[str, str]) -> None:
    """xLAM's rows: query, answers, tools, all but the first as JSON text."""
    asked, answered = form
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {}}]
    row = {asked: "q", answered: json.dumps(calls), "tools": json.dumps([TOOL])}
    assert read(row).turns[1] == Turn("assistant", "", calls=(CALL, ToolCall("f", {})))
    assert treated(row) == {"calls_in_output": 1}
    for text in (json.dumps([{"name": "g", "arguments": {}}]), "[]", "No.", json.dumps({"x": 1})):
        assert read({**row, answered: text}).turns[1] == Turn("assistant", text)
    assert read({**row, "tools": None}).turns[1].calls == ()


def test_calls_in_a_text_stay_text_and_are_counted() -> None:
    """Hermes' rows, and those that have a call as the text of an answer."""
    said = {**SAY, "content": "<tool_call>\n{'name': 'f'}\n</tool_call>"}
    result = {"role": "tool", "content": "<tool_response>\n1\n</tool_response>"}
    row = {"messages": [ASK, said, result, {**SAY, "content": "<tool_box>"}]}
    assert treated(row) == {"tags_as_text": 2, "results_without_call": 1}
    spoken = {"messages": [ASK, {**SAY, "content": '{"name": "f", "arguments": {"x": null}}'}, SAY]}
    assert treated({**spoken, "tools": [TOOL]}) == {"json_as_text": 1} and not treated(spoken)
    assert read({**spoken, "tools": [TOOL]}).turns[1].text.startswith("{")


TOOLS: dict[str, Any] = {
    "OpenAI's": [TOOL],
    "bare": [TOOL["function"]],
    "no type": [{"function": TOOL["function"]}],
    "flat": [{"type": "function", **TOOL["function"]}],
    "text": json.dumps([TOOL]),
    "bare text": json.dumps(TOOL["function"]),
    "texts": [json.dumps(TOOL), None],
    "one": TOOL,
    "parameters as text": [{"name": "f", "parameters": json.dumps(PARAMETERS)}],
    "empty columns": [{"type": "function", "function": {**TOOL["function"], "strict": None}}, {}],
    "nulls": [
        {**TOOL["function"], "parameters": {"type": "object", "properties": {"x": {"type": "number"}, "y": None}}}
    ],
}


@pytest.mark.parametrize("key", ["tools", "functions"])
@pytest.mark.parametrize("form", TOOLS)
def test_tools_in_every_form(key: str, form: str) -> None:
    row = {"messages": [ASK, SAY], key: TOOLS[form]}
    assert read(row) == Dialogue(QA, tools=(TOOL,))
    assert treated(row) == ({"null_arguments": 1} if form == "nulls" else {})
    assert read({"instruction": "q", "output": "a", key: TOOLS[form]}).tools == (TOOL,)


@pytest.mark.parametrize("nothing", [None, "", " ", "[]", [], "{}", {}, [None], [{}], "null"])
def test_no_tools(nothing: Any) -> None:
    assert read({"messages": [ASK, SAY], "tools": nothing, "functions": [TOOL]}).tools == (TOOL,)
    assert read({"messages": [ASK, {**SAY, "tool_calls": nothing}], "tools": nothing}) == Dialogue(QA)


BAD: dict[str, tuple[Row, str]] = {
    "tools no JSON": ({"tools": "[{]"}, "invalid JSON in tools: the row: "),
    "tools NaN": ({"tools": '[{"name": NaN}]'}, "not a JSON number in tools: the row: NaN"),
    "tools number": ({"tools": 3}, "wrong type: 'tools' of the row is a number, not an array"),
    "tool no name": ({"tools": [{"description": "d"}]}, "tool without a name: tool 1 of 'tools'"),
    "tool number": ({"tools": [TOOL, 3]}, "wrong type: tool 2 of 'tools' is a number, not an object"),
    "other tool": ({"tools": [{"type": "retrieval"}]}, "tool that is not a function: tool 1 of 'tools' has type 'retr"),
    "two lists": ({"tools": [TOOL], "functions": [{"name": "g"}]}, "contradictory keys: the row has different tools"),
    "arguments no JSON": (call_turn({"name": "f", "arguments": "{x"}), "invalid JSON in arguments: a call of turn 2"),
    "arguments text": (call_turn({"name": "f", "arguments": '"x"'}), "wrong type: 'arguments' of a call of turn 2 is"),
    "arguments list": (call_turn({"name": "f", "arguments": []}), "wrong type: 'arguments' of a call of turn 2 is an"),
    "duplicate": (call_turn({"name": "f", "arguments": '{"a": 1, "a": 2}'}), "duplicate key in arguments: a call of"),
    "half": (call_turn({"name": "f", "arguments": '{"a": "\\ud800"}'}), "lone surrogate in arguments: a call of"),
    "call no name": (call_turn({"id": "c"}), "tool call without a name: turn 2; keys there: 'id'"),
    "call number": (call_turn(3), "wrong type: a call of turn 2 is a number, not an object"),
    "other call": (call_turn({"type": "custom", "name": "f"}), "tool call that is not a function: turn 2 has a call"),
    "call id": (call_turn({"id": 3, "name": "f"}), "wrong type: 'id' of a call of turn 2 is a number, not a string"),
    "system calls": ({**call_turn({"name": "f"}), "role": "system"}, "tool calls outside an answer: turn 1 has role"),
    "system thinks": (
        {"role": "developer", "content": "s", "thinking": "r"},
        "reasoning outside an answer: turn 1 has role developer and key 'thinking'",
    ),
    "user calls": ({**call_turn({"name": "f"}), "role": "user"}, "tool calls outside an answer: turn 2 has role user"),
    "both": (call_turn({"name": "f"}, function_call={"name": "g"}), "contradictory keys: turn 2 has different tool"),
    "arguments key": ({"chat_template_kwargs": {"messages": []}}, "reserved template argument: 'chat_template_kwargs'"),
    "arguments not": ({"chat_template_kwargs": "[1]"}, "wrong type: 'chat_template_kwargs' of the row is an array"),
    "switch": ({"enable_thinking": "yes"}, "wrong type: 'enable_thinking' of the row is a string, not true or false"),
    "two switches": (
        {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
        "contradictory keys: the row has another 'enable_thinking' in 'chat_template_kwargs'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "reason"), BAD.values(), ids=BAD)
def test_bad_tools_and_arguments(made: Row, reason: str) -> None:
    first = [] if made.get("role") in ("system", "developer") else [ASK]
    row: Row = {"messages": [*first, made, SAY]} if "role" in made else {"messages": [ASK, SAY], **made}
    assert bad(row).startswith(reason)


def test_template_arguments() -> None:
    row = {"messages": [ASK, SAY], "enable_thinking": False}
    assert read(row).template_arguments == {"enable_thinking": False}
    for kwargs in ({"reasoning_effort": "high", "x": None}, '{"reasoning_effort": "high"}'):
        arguments = read({**row, "chat_template_kwargs": kwargs}).template_arguments
        assert arguments == {"enable_thinking": False, "reasoning_effort": "high"}
    assert read({**row, "enable_thinking": None, "chat_template_kwargs": {}}).template_arguments == {}


def test_unknown_keys_of_a_call_are_counted() -> None:
    parsed = parse_row({"messages": [ASK, call_turn({"name": "f", "cost": 3}), SAY]})
    assert parsed.unread == {("turn", "tool_calls.cost"): 1}


# --- round trips

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(TEXTS, VALUES, max_size=3)
NAMES_OF_TOOLS = TEXTS.filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(NAMES_OF_TOOLS, ARGUMENTS), min_size=1, max_size=3), tools=st.lists(ARGUMENTS, max_size=2)
)
def test_every_form_of_random_calls_and_tools_is_the_same(calls: list[tuple[str, Row]], tools: list[Row]) -> None:
    wanted = Turn("assistant", "", calls=tuple(ToolCall(*call) for call in calls))
    schemas = [{"type": "function", "function": {"name": "f", "parameters": made}} for made in tools]
    objects = [{"name": name, "arguments": made} for name, made in calls]
    texts = [{"function": {"name": name, "arguments": json.dumps(made)}} for name, made in calls]
    shapes: list[list[Row]] = [
        [call_turn(*objects)], [call_turn(*texts)], [{"role": "assistant", "tool_calls": json.dumps(objects)}],
        [{"from": "function_call", "value": json.dumps(objects)}],
        [{"from": "function_call", "value": json.dumps(made)} for made in objects],
    ]  # fmt: skip
    for shape in shapes:
        for given_tools in (schemas, json.dumps(schemas), [made["function"] for made in schemas]):
            dialogue = read({"messages": [ASK, *shape, SAY], "tools": given_tools})
            assert dialogue == Dialogue((QA[0], wanted, QA[1]), tools=tuple(schemas))
            assert Dialogue.from_dict(json.loads(json.dumps(dialogue.to_dict()))) == dialogue


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_converted_row_is_the_same_dialogue(data: st.DataObject) -> None:
    """convert_alpaca writes everything that a row with a prompt says."""
    call = st.fixed_dictionaries({"id": st.sampled_from(["a", "b"]), "name": NAMES_OF_TOOLS, "arguments": ARGUMENTS})
    answer = st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": TEXTS},
        optional={"tool_calls": st.lists(call, max_size=2), "thinking": TEXTS, "train": st.booleans()},
    )
    asked = st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS})
    result = st.fixed_dictionaries(
        {"role": st.just("tool"), "content": TEXTS}, optional={"tool_call_id": st.just("a"), "name": TEXTS}
    )
    prompt = data.draw(TEXTS | st.lists(asked | result | answer, max_size=4).map(lambda turns: [ASK, *turns]))
    row: Row = {"prompt": prompt, "completion": data.draw(TEXTS | st.lists(answer, min_size=1, max_size=2))}
    row |= data.draw(st.fixed_dictionaries({}, optional={"system": TEXTS, "tools": st.just([TOOL])}))
    parsed = parse_row(row)
    (made,) = to_sharegpt(0, row, Tally())
    assert parse_row(made).dialogue == parsed.dialogue


# --- whatever a row has

KNOWN_KEYS = st.sampled_from(sorted(ROW_COLUMNS | TURN_KEYS | {"name", "arguments", "function", "type", "parameters"}))
ROLE_OR_TEXT = st.sampled_from(["user", "assistant", "tool", "function_call", "text", "[", "{}", "", '{"name": "f"}'])
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ROLE_OR_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KNOWN_KEYS, inner, max_size=4),
    max_leaves=12,
)
ANY_TURN = st.fixed_dictionaries({"role": ROLE_OR_TEXT}, optional={"content": ANYTHING, "tool_calls": ANYTHING})


@settings(max_examples=300, deadline=None)
@given(row=st.dictionaries(KNOWN_KEYS, ANYTHING | st.lists(ANY_TURN, max_size=4), max_size=4), thinks=st.booleans())
def test_every_row_is_a_dialogue_or_a_bad_row(row: Row, thinks: bool) -> None:
    try:
        parsed = parse_row(row, thinks=thinks)
    except BadRow as bad_row:
        assert str(bad_row).isprintable() and bad_row.way_out.isprintable()
        return
    if parsed.dialogue is not None:
        assert Dialogue.from_dict(json.loads(json.dumps(parsed.dialogue.to_dict(), allow_nan=False))) == parsed.dialogue


def test_values_that_no_template_can_write() -> None:
    deep: Any = {}
    for _ in range(300):
        deep = [deep]
    for value, reason in ((deep, "nested too deeply"), (1e999, "not a JSON number"), (b"x", "wrong type")):
        for made in ({"tools": [{"name": "f", "parameters": {"x": value}}]}, {"chat_template_kwargs": {"x": value}}):
            assert bad({"messages": [ASK, SAY], **made}).startswith(reason)
        assert bad({"messages": [ASK, call_turn({"name": "f", "arguments": {"x": value}}), SAY]}).startswith(reason)
    assert bad({"messages": [ASK, call_turn({"name": "f", "arguments": '{"x": 1e999}'})]}).startswith("not a JSON numb")
