"""A list of turns: OpenAI's `role`/`content` and ShareGPT's `from`/`value`, in any mixture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastchat.conversation import ToolCall, Turn
from fastchat.data.rows.bad_rows import AS_TURNS, MAX_SHOWN, BadRow, shown
from fastchat.data.rows.columns import Columns
from fastchat.data.rows.keys import (
    ASSISTANT,
    CALL,
    CALL_ID,
    DEVELOPER,
    REASONING_KEYS,
    ROLE_NAMES,
    SYSTEM,
    TOOL,
    TOOL_NAME,
    TOOLS,
    TURN_KEYS,
    TURN_ROLE,
    TURN_TEXT,
    USER,
)
from fastchat.data.rows.tool_calls import calls_in, calls_of
from fastchat.data.rows.train_keys import refuse_unsupported, says_train, unread_keys
from fastchat.data.rows.values import (
    a_kind,
    as_json,
    content_of,
    is_given,
    missing,
    optional_text,
    split_parts,
    text_of,
)
from fastchat.errors import nearest

TAG = "<tool_"  # the beginning of such a tag
_TAGS = re.compile("</?tool_(call|response)>")
OPENING, CLOSING = "<think>", "</think>"
# The keys that are read in a turn of each kind, where they are not TURN_KEYS.
_KNOWN = {TOOL: TURN_KEYS | {CALL_ID, TOOL_NAME}, **dict.fromkeys((SYSTEM, DEVELOPER), TURN_KEYS | set(TOOLS))}


@dataclass
class Reading:
    """How a row is read, and what was found while reading it.

    Attributes:
        thinks: whether `<think>...</think>` at the start of an answer is separate reasoning: only if the template shows
            such reasoning itself.
        train: what the row says about training on its answers.
        tools: the names of the row's tools.
        unread: ("row" or "turn", key) -> how many have this key, which is not read.
    """

    columns: Columns
    thinks: bool
    train: bool | None = None
    tools: frozenset[str] = frozenset()
    treatments: Counter[str] = field(default_factory=Counter)
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class TurnsOfRow:
    """The turns of a list, without the system turn; `entries`: the position in the list where each turn begins;
    `tools`: what the system turn has under the keys of tools."""

    turns: list[Turn]
    entries: list[int]
    system: str | None = None
    system_train: bool = True
    system_role: str = SYSTEM
    tools: dict[str, Any] = field(default_factory=dict)


def read_turns(entries: Sequence[Any], reading: Reading, context: int = 0) -> TurnsOfRow:
    """The turns of a list; the answers among the first `context` are not trained on unless they say so.

    Raises:
        BadRow: wrong keys, types or roles; a system turn that is not first.
    """
    made = TurnsOfRow([], [], system_train=reading.train is not False)
    for number, entry in enumerate(entries, start=1):
        where = f"turn {number}"
        entry = reading.columns.turn(entry)
        kind = kind_of(entry, reading.columns, where)
        said = _says_train(entry, kind, where, reading) if len(entry) > 2 else None
        learned = said if said is not None else reading.train is not False
        if kind not in (SYSTEM, DEVELOPER):
            as_context = number <= context and said is None and kind in (ASSISTANT, CALL)
            turn = _turn(entry, kind, learned and not as_context, where, reading)
            _add(made, turn, kind, number - 1, reading)
        elif number == 1:
            calls_of(entry, kind, where, reading.treatments, reading.unread)  # refused, like reasoning
            reasoning_of(entry, kind, where)
            tools = {key: entry[key] for key in TOOLS if is_given(entry.get(key))}
            text = "" if tools and not _has_text(entry) else content_of(entry, _text_key(entry, where), where)
            made = TurnsOfRow([], [], text or (None if tools else text), learned, kind, tools)
        else:
            raise BadRow("system turn not first", where)
    return made


def kind_of(entry: Any, columns: Columns, where: str) -> str:
    """What a turn is: a key of ROLE_NAMES. Raises BadRow for an unknown role."""
    if not isinstance(entry, dict):
        raise BadRow("wrong type", f"{where} is {a_kind(entry)}, not an object", AS_TURNS)
    if not any(key in entry for key in (*TURN_ROLE, *TURN_TEXT)) and len(entry) > 1:
        raise missing(entry, TURN_ROLE, where, f"{AS_TURNS} {missing(entry, TURN_ROLE, where).way_out}")
    name = text_of(entry, _only(entry, TURN_ROLE, where), where)
    kind = columns.role(name)
    if kind is None:
        near = nearest(name, columns.roles, n=1)
        hint = f"nearest: {near[0]}" if near else f"known: {', '.join(ROLE_NAMES)}"
        example = {name[:MAX_SHOWN]: columns.roles[near[0]] if near else USER}
        way_out = f"Other roles are given with --data_roles '{as_json(example)}'."
        raise BadRow("unknown role", f"{where} is from {shown(name)} ({hint})", way_out)
    return kind


def _only(entry: dict[str, Any], keys: Sequence[str], where: str) -> str:
    """The one of `keys` that a turn has. Raises BadRow for none, or for two with different values."""
    found = [key for key in keys if entry.get(key) is not None] or [key for key in keys if key in entry]
    if not found:
        raise missing(entry, keys, where)
    if len(found) > 1 and any(entry[key] != entry[found[0]] for key in found):
        raise BadRow("contradictory keys", f"{where} has different {' and '.join(map(repr, found))}")
    return found[0]


def _has_text(entry: dict[str, Any]) -> bool:
    return any(entry.get(key) is not None for key in TURN_TEXT)


def _text_key(entry: dict[str, Any], where: str) -> str:
    return _only(entry, TURN_TEXT, where)


def _says_train(entry: dict[str, Any], kind: str, where: str, reading: Reading) -> bool | None:
    refuse_unsupported(entry, where)
    said = says_train(entry, where)
    if said and reading.train is False:
        raise BadRow("contradictory keys", f"the row is marked as not trained on, {where} as trained on")
    reading.treatments["asked_prompts"] += said is True and kind not in (ASSISTANT, CALL)
    reading.unread.update(unread_keys(entry, "turn", _KNOWN.get(kind, TURN_KEYS)))
    return said


def _turn(entry: dict[str, Any], kind: str, train: bool, where: str, reading: Reading) -> Turn:
    role = ASSISTANT if kind == CALL else kind
    bare = len(entry) == 2 and any(key in entry for key in TURN_TEXT)
    calls = () if bare else calls_of(entry, role, where, reading.treatments, reading.unread)
    reasoning = None if bare else reasoning_of(entry, role, where)
    if calls and not _has_text(entry):
        text = ""
    else:
        key = _text_key(entry, where)
        if kind == CALL and not calls:
            calls = calls_in(entry[key], where, reading.treatments)
            if calls:
                return Turn(role, "", train, reasoning, calls)
            reading.treatments["calls_as_text"] += 1
        content, thought = split_parts(entry[key], key, where) if role == ASSISTANT else (entry[key], None)
        text, reasoning = content_of({key: content}, key, where), _agreed(reasoning, thought, where)
    if role in (TOOL, ASSISTANT) and TAG in text:
        reading.treatments["tags_as_text"] += _TAGS.search(text) is not None
    if role == TOOL:
        name, call_id = (optional_text(entry, key, where) or None for key in (TOOL_NAME, CALL_ID))
        return Turn(role, text, train, name=name, call_id=call_id)
    if role == ASSISTANT:
        reading.treatments["json_as_text"] += bool(calls_of_tools(text, where, reading))
        text, reasoning = split_thought(text, reasoning, where, reading)
    return Turn(role, text, train, reasoning, calls)


def calls_of_tools(text: str, where: str, reading: Reading) -> tuple[ToolCall, ...]:
    """The calls of which a text is the JSON, if all are calls of the row's tools."""
    if not reading.tools or text.lstrip()[:1] not in ("{", "["):
        return ()
    calls = calls_in(text, where, Counter())
    return calls if all(call.name in reading.tools for call in calls) else ()


def _agreed(reasoning: str | None, other: str | None, where: str) -> str | None:
    """The reasoning that is given in two places, or in one of them."""
    if not (other or "").strip():
        return reasoning
    if reasoning is not None and other is not None and reasoning.strip() != other.strip():
        raise BadRow("contradictory keys", f"{where} has reasoning under a key, and other reasoning in its content")
    return other if reasoning is None else reasoning


def _add(made: TurnsOfRow, turn: Turn, kind: str, entry: int, reading: Reading) -> None:
    """Append a turn. Calls in a turn of their own belong to the assistant turn before them: what the model generates
    in one go, a text and its calls or several calls, is one turn."""
    before = made.turns[-1] if made.turns else None
    if kind == CALL and turn.calls and before is not None and before.role == ASSISTANT:
        same = before.train == turn.train and turn.reasoning is None and not turn.text
        if same:
            made.turns[-1] = replace(before, calls=before.calls + turn.calls)
            reading.treatments["merged_calls"] += 1
            return
    made.turns.append(turn)
    made.entries.append(entry)


def reasoning_of(holder: dict[str, Any], role: str, where: str) -> str | None:
    """The text under one of REASONING_KEYS; None if there is none, or only white space."""
    found = {key: content_of(holder, key, where) for key in REASONING_KEYS if holder.get(key) is not None}
    found = {key: text for key, text in found.items() if text.strip()}
    if len(set(found.values())) > 1:
        raise BadRow("contradictory keys", f"{where} has different texts under {', '.join(found)}")
    if found and role != ASSISTANT:
        raise BadRow("reasoning outside an answer", f"{where} has role {role} and key {shown(next(iter(found)))}")
    return next(iter(found.values()), None)


def split_thought(text: str, reasoning: str | None, where: str, reading: Reading) -> tuple[str, str | None]:
    """(text, reasoning) of an answer; a thought at the start of the text is its reasoning if the template shows such.

    Line breaks next to the marks are the template's to write.
    """
    start = text.lstrip()
    if not reading.thinks or not start.startswith(OPENING) or CLOSING not in start:
        return text, reasoning
    thought, _, answer = start.removeprefix(OPENING).partition(CLOSING)
    thought = thought.strip("\n")
    if not thought.strip():
        reading.treatments["empty_reasoning"] += 1
        return answer.lstrip("\n"), reasoning
    return answer.lstrip("\n"), _agreed(reasoning, thought, where)
