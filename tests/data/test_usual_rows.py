"""Rows of the usual kind are read in a quick way of their own: it gives what the general way gives."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.formats import parse_any_row, parse_row
from fastchat.data.rows.usual import usual_row

PLAIN = Columns()
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
ROLES = ("user", "human", "USER", "assistant", "gpt", "system", "developer", "tool", "function_call", "agent", "x", 7)
TEXTS = (
    *("Hi", "Yo", "a\nb", "", " \n", None, 3, ["a"], [{"type": "text", "text": "a"}], "<think>hm</think>yes"),
    *("<think>hm", "so</think>", "<tool_call>{}</tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', "ſ"),
)
TURN_EXTRAS = (
    *({}, {"note": "n"}, {"note": None}, {"tool_calls": None}, {"name": "f"}, {"weight": 1}, {"weight": None}),
    *({"mask": False}, {"image": "i.png"}, {"image": None}, {"reasoning": "hm"}, {"train": False}, {"value": "Hi"}),
)
ROW_EXTRAS = (
    *({}, {"id": 3}, {"idx": "a"}, {"id": 1.5}, {"source": "web"}, {"source": 2}, {"score": 0.5}, {"score": None}),
    *({"system": "S."}, {"system": None}, {"tools": []}, {"tools": None}, {"tools": [{"name": "f"}]}, {"train": True}),
    *({"train": None}, {"mask": False}, {"mask": None}, {"loss_weight": 1}, {"images": ["i"]}, {"images": []}),
    *({"prompt": "p"}, {"text": "t"}, {"conversation": TURNS}, {"chat": None}, {"items": []}, {"reasoning": "hm"}),
    *({"enable_thinking": False}, {"chat_template_kwargs": {"a": 1}}, {"lossy": True}, {"trainable_x": True}),
)
MAPPED = ({}, {"messages": "score"}, {"content": "note"})


def outcome(parse: Any, row: Any, columns: Columns, thinks: bool) -> Any:
    """What a row is parsed to, or the problem with it."""
    try:
        parsed = parse(row, "f.json", 4, columns, thinks)
    except BadRow as bad:
        return bad.reason, bad.detail, bad.way_out
    return parsed, parsed.form, parsed.id, parsed.origin, parsed.entries, type(parsed.unread), type(parsed.treatments)


def some_turns(chosen: random.Random) -> Any:
    """A list of turns, mostly an ordinary one."""
    if not chosen.randrange(20):
        return chosen.choice([[], None, "[]", {}, [None], ["a"], [[]], [{}], [TURNS], [{"role": "user"}]])
    keys = chosen.choice([("role", "content"), ("from", "value")])
    made = []
    for number in range(chosen.randrange(1, 5)):
        role, text = ("user", "assistant")[number % 2], f"t{number}"
        if not chosen.randrange(8):
            role = chosen.choice(ROLES)
        if not chosen.randrange(8):
            text = chosen.choice(TEXTS)
        names = keys if chosen.randrange(30) else ("role", "value")
        made.append(dict(zip(names, (role, text), strict=True)))
        if not chosen.randrange(8):
            made[-1] |= chosen.choice(TURN_EXTRAS)
    return [{keys[0]: "system", keys[1]: "S."}, *made] if not chosen.randrange(4) else made


@pytest.mark.parametrize("mapped", MAPPED, ids=str)
@pytest.mark.parametrize("thinks", [False, True])
def test_both_ways_give_the_same_for_every_row(thinks: bool, mapped: dict[str, str]) -> None:
    chosen, quick = random.Random(0), 0
    for _ in range(6000):
        row = {chosen.choice(["messages", "conversations", "chat"]): some_turns(chosen)}
        for _ in range(chosen.randrange(3)):
            row = {**chosen.choice(ROW_EXTRAS), **row} if chosen.randrange(2) else {**row, **chosen.choice(ROW_EXTRAS)}
        columns = [Columns(mapped, {"agent": "assistant"}) for _ in range(2)]
        found = outcome(parse_row, row, columns[0], thinks)
        assert found == outcome(parse_any_row, row, columns[1], thinks), row
        assert columns[0]._seen == columns[1]._seen, row
        quick += usual_row(row, columns[0], thinks) is not None
    assert (quick > 500) == (not mapped)  # neither way is compared with itself


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": SHAREGPT, "id": "a"},
        {"messages": [{"role": "system", "content": "S."}, *TURNS]},
        {"id": 1, "messages": TURNS, "source": "web", "category": "math", "score": None, "tools": None},
        {"messages": [{**turn, "tool_calls": None, "name": None} for turn in TURNS]},
    ],
)
def test_common_rows_are_read_quickly(row: dict[str, Any]) -> None:
    assert usual_row(row, PLAIN, thinks=True) is not None
