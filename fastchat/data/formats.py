"""Row -> Dialogue: the three shapes a conversation file may have, read strictly.

    ShareGPT   {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}   (or "items")
    messages   {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    Alpaca     {"instruction": "...", "input": "...", "output": "...", "history": [["question", "answer"], ...]}

Each may have a "system" text and an "id" (or "idx"); a turn may say "train": false. Nothing is coerced: a number where
a text belongs is a bad row. What an unusual but sound dialogue undergoes is counted by name (see TREATMENTS).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from fastchat.conversation import Dialogue, Turn
from fastchat.data.bad_rows import BadRow, shown
from fastchat.data.strict_json import json_kind
from fastchat.errors import nearest

USER, ASSISTANT, TOOL, SYSTEM = "user", "assistant", "tool", "system"
CALL = "function_call"

# The call is written by the assistant and trained; what the tool answers is not.
MESSAGE_ROLES = {
    "system": SYSTEM, "user": USER, "assistant": ASSISTANT,
    CALL: ASSISTANT, "observation": TOOL, "tool": TOOL,
}  # fmt: skip
# ShareGPT dumps name the assistant after the product that answered.
SHAREGPT_ROLES = MESSAGE_ROLES | {
    "human": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT,
}  # fmt: skip

TREATMENTS = {
    "leading_assistant_turns": "assistant turns before the first user turn, removed",
    "leading_tool_turns": "tool turns before the first user turn, removed",
    "trailing_user_turns": "user or tool turns after the last answer, removed",
    "empty_assistant_turns": "assistant turns without text, kept but not trained",
    "empty_user_turns": "user turns without text, kept",
    "ignored_tools": "dialogues trained without their list of tools; the system text has to name them",
    "calls_as_text": "dialogues with function calls, learned as the text that they are in the data",
}


@dataclass(frozen=True)
class _TurnKeys:
    role: str
    text: str
    roles: dict[str, str]


_TURN_LISTS = {
    "conversations": _TurnKeys("from", "value", SHAREGPT_ROLES),
    "items": _TurnKeys("from", "value", SHAREGPT_ROLES),
    "messages": _TurnKeys("role", "content", MESSAGE_ROLES),
}
_ALPACA_KEY = "instruction"
FORMAT_KEYS = (*_TURN_LISTS, _ALPACA_KEY)  # one of these says which shape a row has
_SURELY_MEANT = 0.75  # "conversation" and "instructions" are above 0.9, "completion" is 0.61 like "conversations"
COLUMNS = (*FORMAT_KEYS, "input", "output", "history", "system", "tools", "id", "idx")  # everything that is read


@dataclass(frozen=True)
class Parsed:
    """What one row said: a dialogue fit to train on, or why it is not; and how often each treatment was applied."""

    dialogue: Dialogue | None
    dropped: str | None
    treatments: Counter[str]


def parse_row(row: dict[str, Any], source: str = "", line: int = 0) -> Parsed:
    """Turn one JSON object into a Dialogue.

    Returns:
        `dropped` is "empty_dialogue" (no turns) or "no_assistant_turn" (nothing answered); None for a usable dialogue.

    Raises:
        BadRow: wrong keys, types or roles; a system turn that is not first; two different system texts.
    """
    system, turns = _alpaca(row) if _format_of(row) == _ALPACA_KEY else _turn_list(row, _format_of(row))
    if not turns:
        return Parsed(None, "empty_dialogue", Counter())
    treatments: Counter[str] = Counter()
    kept = [_checked(turn, treatments) for turn in _trimmed(turns, treatments)]
    if not kept:
        return Parsed(None, "no_assistant_turn", Counter())
    treatments["ignored_tools"] += _has_tools(row)
    treatments["calls_as_text"] += _has_calls(row)
    return Parsed(Dialogue(turns=tuple(kept), system=system, source=source, line=line), None, +treatments)


def row_id(row: dict[str, Any]) -> str | None:
    """The name a record gives itself, for messages: its "id" or "idx" where that is a text or a whole number."""
    for key in ("id", "idx"):
        if type(row.get(key)) in (str, int):
            return str(row[key])
    return None


def _format_of(row: dict[str, Any]) -> str:
    found = [key for key in FORMAT_KEYS if key in row]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadRow("two formats in one row", " and ".join(found))
    keys = ", ".join(shown(key) for key in list(row)[:6]) or "none"
    meant = [near for key in row for near in nearest(key, FORMAT_KEYS, n=1, cutoff=_SURELY_MEANT)]
    hint = f"; is {shown(meant[0])} meant?" if meant else f"; one of {', '.join(FORMAT_KEYS)} is needed"
    raise BadRow("no known format", f"keys: {keys}{hint}")


# --- ShareGPT and messages


def _turn_list(row: dict[str, Any], key: str) -> tuple[str | None, list[Turn]]:
    entries, keys = row[key], _TURN_LISTS[key]
    if not isinstance(entries, list):
        raise BadRow("wrong type", f"{shown(key)} is {_a_kind(entries)}, not an array")
    turns, system_turn = [], None
    for number, entry in enumerate(entries, start=1):
        role, text, train = _read_turn(entry, keys, f"turn {number}")
        if role != SYSTEM:
            turns.append(Turn(role=role, text=text, train=train))
        elif number == 1:
            system_turn = text
        else:
            raise BadRow("system turn not first", f"turn {number}")
    return _system(row, system_turn), turns


def _read_turn(entry: Any, keys: _TurnKeys, where: str) -> tuple[str, str, bool]:
    """One turn as (role, text, train)."""
    if not isinstance(entry, dict):
        raise BadRow("wrong type", f"{where} is {_a_kind(entry)}, not an object")
    name = _text(entry, keys.role, where)
    if name not in keys.roles:
        near = nearest(name, keys.roles, n=1)
        hint = f"nearest: {near[0]}" if near else f"known: {', '.join(keys.roles)}"
        raise BadRow("unknown role", f"{where} is from {shown(name)} ({hint})")
    if entry.get("tool_calls") or entry.get("function_call"):
        raise BadRow("tool_calls without text", f"{where}: write the call as text in a function_call turn")
    train = entry.get("train", True)
    if not isinstance(train, bool):
        raise BadRow("wrong type", f"'train' of {where} is {_a_kind(train)}, not true or false")
    return keys.roles[name], _text(entry, keys.text, where), train


def _system(row: dict[str, Any], system_turn: str | None) -> str | None:
    system_key = _optional_text(row, "system")
    if system_key is not None and system_turn is not None and system_key != system_turn:
        raise BadRow("two system texts", f"key {shown(system_key)}, first turn {shown(system_turn)}")
    return system_turn if system_key is None else system_key


# --- Alpaca


def _alpaca(row: dict[str, Any]) -> tuple[str | None, list[Turn]]:
    history = row.get("history")
    history = [] if history is None else history
    if not isinstance(history, list):
        raise BadRow("wrong type", f"'history' is {_a_kind(history)}, not an array")
    turns = []
    for number, pair in enumerate(history, start=1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow("wrong type", f"entry {number} of 'history' is not an array of two texts")
        turns += [Turn(USER, pair[0]), Turn(ASSISTANT, pair[1])]
    question, given = _text(row, _ALPACA_KEY, "the row"), _optional_text(row, "input") or ""
    # The words between the two are those of FastChat's own Alpaca converter.
    question = f"{question}\nInput:\n{given}" if given.strip() else question
    turns += [Turn(USER, question), Turn(ASSISTANT, _text(row, "output", "the row"))]
    return _optional_text(row, "system"), turns


# --- treatments


def _trimmed(turns: list[Turn], treatments: Counter[str]) -> list[Turn]:
    """The turns from the first user turn to the last answer; empty where no user turn is answered."""
    first = next((i for i, turn in enumerate(turns) if turn.role == USER), len(turns))
    last = next((i for i in reversed(range(first, len(turns))) if turns[i].role == ASSISTANT), -1)
    for turn in turns[:first]:
        treatments[f"leading_{turn.role}_turns"] += 1
    treatments["trailing_user_turns"] += len(turns) - (last + 1)
    return turns[first : last + 1]


def _checked(turn: Turn, treatments: Counter[str]) -> Turn:
    if turn.role == TOOL or turn.text.strip():
        return turn
    treatments[f"empty_{turn.role}_turns"] += 1
    return Turn(turn.role, turn.text, train=False) if turn.role == ASSISTANT else turn


def _has_tools(row: dict[str, Any]) -> bool:
    return row.get("tools") not in (None, "", "[]", [])


def _has_calls(row: dict[str, Any]) -> bool:
    key = _format_of(row)
    return key in _TURN_LISTS and any(entry[_TURN_LISTS[key].role] == CALL for entry in row[key])


# --- types


def _text(holder: dict[str, Any], key: str, where: str) -> str:
    if key not in holder:
        keys = ", ".join(shown(k) for k in list(holder)[:6]) or "none"
        raise BadRow("missing key", f"{where} has no {key!r}; keys there: {keys}")
    if not isinstance(holder[key], str):
        raise BadRow("wrong type", f"{key!r} of {where} is {_a_kind(holder[key])}, not a string")
    return holder[key]


def _optional_text(row: dict[str, Any], key: str) -> str | None:
    """A text that may be left out or null."""
    return None if row.get(key) is None else _text(row, key, "the row")


def _a_kind(value: object) -> str:
    kind = json_kind(value)
    return kind if kind == "null" else f"an {kind}" if kind[0] in "ao" else f"a {kind}"
