"""Row -> Dialogue: the three formats of a conversation file, read strictly.

    ShareGPT   {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}   (or "items")
    messages   {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    Alpaca     {"instruction": "...", "input": "...", "output": "...", "history": [["question", "answer"], ...]}

Each may have a "system" text and an "id" (or "idx"). A turn or row may say whether it is trained on (TRAIN_KEYS), and a
turn may have the reasoning before its answer (REASONING_KEYS). Media that a text model does not see (is_media), and
other keys about training (UNCLEAR_KEYS, is_about_learning), are rejected by name; any other key is counted. A null
value is the same as a missing key. Nothing is coerced: a number in place of a text is a bad row. Changes made to an
unusual but valid dialogue are counted by name (see TREATMENTS).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from fastchat.conversation import Dialogue, Turn
from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.strict_json import json_kind
from fastchat.errors import nearest

USER, ASSISTANT, TOOL, SYSTEM = "user", "assistant", "tool", "system"
CALL = "function_call"

# The call is written by the assistant and trained on; the tool's output is not.
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
    "empty_assistant_turns": "assistant turns without text, kept but not trained on",
    "empty_user_turns": "user turns without text, kept",
    "asked_prompts": "user, tool or system turns marked for training; only --train_on all trains on them",
    "ignored_tools": "dialogues trained on without their list of tools; describe the tools in the system text",
    "calls_as_text": "dialogues with function calls, trained on as the text they have in the data",
}


@dataclass(frozen=True)
class TurnKeys:
    """The keys of a turn's role and text, and the role that each name stands for."""

    role: str
    text: str
    roles: dict[str, str]


TURN_LISTS = {
    "conversations": TurnKeys("from", "value", SHAREGPT_ROLES),
    "items": TurnKeys("from", "value", SHAREGPT_ROLES),
    "messages": TurnKeys("role", "content", MESSAGE_ROLES),
}
_ALPACA_KEY = "instruction"
_ALPACA_KEYS = (_ALPACA_KEY, "input", "output", "history")
FORMAT_KEYS = (*TURN_LISTS, _ALPACA_KEY)  # one of these identifies the format of a row
_SURELY_MEANT = 0.75  # "conversation" and "instructions" are above 0.9, "completion" is 0.61 like "conversations"

# Keys that say whether a turn, or every answer of a row, is trained on; and the value that means yes.
TRAIN_KEYS = {
    "train": True, "training": True, "trainable": True, "weight": True, "loss": True, "loss_mask": True,
    "masked": False,
}  # fmt: skip
# The model's reasoning before an answer.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Keys of media, which a text model does not see.
_MEDIA = re.compile(r"(image|img|picture|photo|video|audio)s?(_?(url|uri|path|file|base64|bytes|data)s?)?", re.I)
# Also about training, but not for a whole turn, or with two meanings.
UNCLEAR_KEYS = {
    "mask": "some tools mark with it what is trained on, others what is not",
    "train_detail": "a turn is trained on as a whole",
    "training_detail": "a turn is trained on as a whole",
}
# Words in a key that, with true, false or a number as its value, seems to say what is trained on, and is not supported.
_LEARNING = frozenset(
    ("train", "training", "trained", "trainable", "loss", "mask", "masks", "masked", "weight", "weights")
    + ("supervise", "supervised", "learn", "learned", "ignore", "ignored", "exclude", "excluded", "skip")
)
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
TOOL_LISTS = ("tools", "functions")
_CALL_KEYS = ("tool_calls", "function_call")
_ROW_KEYS = ("system", "id", "idx", *TOOL_LISTS, *TRAIN_KEYS, *UNCLEAR_KEYS)
_TURN_KEYS = (*TRAIN_KEYS, *REASONING_KEYS, *UNCLEAR_KEYS, *_CALL_KEYS)
_ALPACA_ROW = (*_ALPACA_KEYS, *REASONING_KEYS)
_COLUMNS = frozenset((*TURN_LISTS, *_ALPACA_ROW, *_ROW_KEYS))


@dataclass(frozen=True)
class Parsed:
    """One row, parsed: a dialogue to train on, or the reason why there is none; and the number of each treatment.

    `unread`: ("row" or "turn", key) -> how many have this key, which is not read.
    """

    dialogue: Dialogue | None
    dropped: str | None
    treatments: Counter[str]
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)


def parse_row(row: dict[str, Any], source: str = "", line: int = 0) -> Parsed:
    """Turn one JSON object into a Dialogue.

    Returns:
        `dropped` is "empty_dialogue" (no turns) or "no_assistant_turn" (nothing answered); None for a usable dialogue.

    Raises:
        BadRow: wrong keys, types or roles; a system turn that is not first; two different system texts.
    """
    kind = format_of(row)
    refuse_unsupported(row, "the row")
    treatments, unread = Counter[str](), _unread(row, "row", *(_ALPACA_ROW if kind == _ALPACA_KEY else (kind,)))
    train = _says_train(row, "the row")
    if kind == _ALPACA_KEY:
        system_train = train is not False
        system, turns = _alpaca(row, system_train)
    else:
        system, system_train, turns = _turn_list(row, kind, train, treatments, unread)
    if not turns:
        return Parsed(None, "empty_dialogue", Counter(), unread)
    kept = [_checked(turn, treatments) for turn in _trimmed(turns, treatments)]
    if not kept:
        return Parsed(None, "no_assistant_turn", Counter(), unread)
    treatments["ignored_tools"] += any(_is_given(row.get(key)) for key in TOOL_LISTS)
    treatments["calls_as_text"] += kind in TURN_LISTS and _has_calls(row, kind)
    dialogue = Dialogue(tuple(kept), system, source, line, system_train)
    return Parsed(dialogue, None, +treatments, unread)


def refuse_reasoning(dialogue: Dialogue) -> None:
    """Raise BadRow for a dialogue with reasoning that its template would drop."""
    reasoning = next((turn.reasoning for turn in dialogue.turns if turn.reasoning is not None), None)
    if reasoning is not None:
        raise BadRow(
            "reasoning that the template does not show",
            f"{shown(reasoning)}; use --conv_template tokenizer with a chat template that reads {REASONING_KEYS[0]}, "
            "write it into the answer's text, or remove the key",
        )


def row_id(row: dict[str, Any]) -> str | None:
    """The row's own id, for messages: its "id" or "idx" if that is a string or an integer."""
    for key in ("id", "idx"):
        if type(row.get(key)) in (str, int):
            return str(row[key])
    return None


def format_of(row: dict[str, Any]) -> str:
    """Which of FORMAT_KEYS a row has. Raises BadRow if it has none of them, or more than one."""
    found = [key for key in FORMAT_KEYS if row.get(key) is not None] or [key for key in FORMAT_KEYS if key in row]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadRow("two formats in one row", " and ".join(found))
    keys = ", ".join(shown(key) for key in list(row)[:6]) or "none"
    meant = [near for key in row for near in nearest(key, FORMAT_KEYS, n=1, cutoff=_SURELY_MEANT)]
    hint = f"; did you mean {shown(meant[0])}?" if meant else f"; one of {', '.join(FORMAT_KEYS)} is needed"
    raise BadRow("no known format", f"keys: {keys}{hint}")


# --- ShareGPT and messages


def _turn_list(
    row: dict[str, Any],
    key: str,
    row_train: bool | None,
    treatments: Counter[str],
    unread: Counter[tuple[str, str]],
) -> tuple[str | None, bool, list[Turn]]:
    """The system text, whether it may be trained on, and the turns."""
    entries, keys = row[key], TURN_LISTS[key]
    if not isinstance(entries, list):
        raise BadRow("wrong type", f"{shown(key)} is {_a_kind(entries)}, not an array")
    turns, system_turn, system_train = [], None, row_train is not False
    for number, entry in enumerate(entries, start=1):
        where = f"turn {number}"
        role, text = _role_and_text(entry, keys, where)
        train, reasoning = None, None
        if len(entry) > 2:
            refuse_unsupported(entry, where)
            train, reasoning = _says_train(entry, where), _reasoning(entry, role, where)
            unread.update(_unread(entry, "turn", keys.role, keys.text))
        if train and row_train is False:
            raise BadRow("contradictory keys", f"the row is marked as not trained on, {where} as trained on")
        treatments["asked_prompts"] += train is True and role != ASSISTANT
        learned = row_train is not False if train is None else train
        if role != SYSTEM:
            turns.append(Turn(role, text, learned, reasoning))
        elif number == 1:
            system_turn, system_train = text, learned
        else:
            raise BadRow("system turn not first", where)
    return _system(row, system_turn), system_train, turns


def _role_and_text(entry: Any, keys: TurnKeys, where: str) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise BadRow("wrong type", f"{where} is {_a_kind(entry)}, not an object")
    name = _text(entry, keys.role, where)
    if name not in keys.roles:
        near = nearest(name, keys.roles, n=1)
        hint = f"nearest: {near[0]}" if near else f"known: {', '.join(keys.roles)}"
        raise BadRow("unknown role", f"{where} is from {shown(name)} ({hint})")
    if any(_is_given(entry.get(key)) for key in _CALL_KEYS):
        raise BadRow("tool_calls without text", f"{where}: write the call as text in a function_call turn")
    return keys.roles[name], _text(entry, keys.text, where)


def _system(row: dict[str, Any], system_turn: str | None) -> str | None:
    system_key = _optional_text(row, "system")
    if system_key is not None and system_turn is not None and system_key != system_turn:
        raise BadRow("two system texts", f"key {shown(system_key)}, first turn {shown(system_turn)}")
    return system_turn if system_key is None else system_key


# --- keys other than role and text


def _says_train(holder: dict[str, Any], where: str) -> bool | None:
    """What the TRAIN_KEYS of a row or turn say; None if it has none."""
    said: dict[str, bool] = {}
    for key, learned in TRAIN_KEYS.items():
        value = holder.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float):
            raise BadRow("wrong type", f"{key!r} of {where} is {_a_kind(value)}, not true or false (or 1 or 0)")
        if value not in (0, 1):
            hint = "a turn is trained on as a whole or not at all; use true, false, 1 or 0"
            raise BadRow("fractional weight", f"{key!r} of {where} is {shown(value)}: {hint}")
        said[key] = bool(value) == learned
    if len(set(said.values())) > 1:
        yes, no = (", ".join(key for key, says in said.items() if says == wanted) for wanted in (True, False))
        raise BadRow("contradictory keys", f"{where} is trained on according to {yes}, but not according to {no}")
    return next(iter(said.values()), None)


def _reasoning(holder: dict[str, Any], role: str, where: str) -> str | None:
    """The text under one of REASONING_KEYS; None if there is none, or only white space."""
    found = {key: _text(holder, key, where) for key in REASONING_KEYS if holder.get(key) is not None}
    found = {key: text for key, text in found.items() if text.strip()}
    if len(set(found.values())) > 1:
        raise BadRow("contradictory keys", f"{where} has different texts under {', '.join(found)}")
    if found and role != ASSISTANT:
        raise BadRow("reasoning outside an answer", f"{where} has role {role} and key {shown(next(iter(found)))}")
    return next(iter(found.values()), None)


def refuse_unsupported(holder: dict[str, Any], where: str) -> None:
    """Raise BadRow if a row or turn has media, or a key whose meaning for training is not clear."""
    for key, value in holder.items():
        if is_media(key) and _is_given(value):
            hint = "only text is supported; remove the row, or remove the key and any reference to it in the text"
            raise BadRow("images, video or audio", f"{where} has {key!r}: {hint}")
    for key, why in UNCLEAR_KEYS.items():
        if _is_given(value := holder.get(key)) or (value is False and key == "mask"):
            raise BadRow("unclear key", f'{where} has {key!r}: {why}; use "train": true or false instead')
    for key, value in holder.items():
        if key not in TRAIN_KEYS and is_about_learning(key) and _is_flag(value, of_row=where == "the row"):
            hint = 'it seems to say what is trained on; use "train": true or false instead, or rename it'
            raise BadRow("unclear key", f"{where} has {shown(key)}: {hint}")


def is_media(key: str) -> bool:
    """Whether a key holds or refers to media, which a text model does not see: "images", "video_path"."""
    return _MEDIA.fullmatch(key) is not None


def is_about_learning(key: str) -> bool:
    """Whether a word of a key is about training.

    >>> is_about_learning("lossWeight"), is_about_learning("is_masked"), is_about_learning("restrained")
    (True, True, False)
    """
    return any(word.lower() in _LEARNING for word in _WORD.findall(key))


def _is_flag(value: object, of_row: bool) -> bool:
    """Whether a value can say what is trained on: true or false, in a turn also a number, or a list of them."""
    values = value if isinstance(value, list) else [value]
    kinds = bool if of_row and values is not value else bool | int | float
    return bool(values) and all(isinstance(item, kinds) for item in values)


def _unread(holder: dict[str, Any], kind: str, *known: str) -> Counter[tuple[str, str]]:
    known_keys = {*known, *(_ROW_KEYS if kind == "row" else _TURN_KEYS)}
    return Counter(
        (kind, key)
        for key, value in holder.items()
        if key not in known_keys and value is not None and not is_media(key)
    )


def is_read(column: str) -> bool:
    """Whether a column of a table is relevant to its rows as conversations."""
    return column in _COLUMNS or is_media(column) or is_about_learning(column)


def _is_given(value: object) -> bool:
    """Whether a key has a value: null, false, and empty texts and lists count as none."""
    if isinstance(value, list):
        return any(item is not None for item in value)
    return value is not None and value is not False and value not in ("", "[]", "{}", {})


# --- Alpaca


def _alpaca(row: dict[str, Any], train: bool) -> tuple[str | None, list[Turn]]:
    history = row.get("history")
    history = [] if history is None else history
    if not isinstance(history, list):
        raise BadRow("wrong type", f"'history' is {_a_kind(history)}, not an array")
    turns = []
    for number, pair in enumerate(history, start=1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow("wrong type", f"entry {number} of 'history' is not an array of two texts")
        turns += [Turn(USER, pair[0], train), Turn(ASSISTANT, pair[1], train)]
    question, given = _text(row, _ALPACA_KEY, "the row"), _optional_text(row, "input") or ""
    # The text between the two is that of FastChat's own Alpaca converter.
    question = f"{question}\nInput:\n{given}" if given.strip() else question
    reasoning = _reasoning(row, ASSISTANT, "the row")
    turns += [Turn(USER, question, train), Turn(ASSISTANT, _text(row, "output", "the row"), train, reasoning)]
    return _optional_text(row, "system"), turns


# --- treatments


def _trimmed(turns: list[Turn], treatments: Counter[str]) -> list[Turn]:
    """The turns from the first user turn to the last answer; empty if no user turn is answered."""
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
    return replace(turn, train=False) if turn.role == ASSISTANT else turn


def _has_calls(row: dict[str, Any], key: str) -> bool:
    return any(entry[TURN_LISTS[key].role] == CALL for entry in row[key])


# --- types


def _text(holder: dict[str, Any], key: str, where: str) -> str:
    if key not in holder:
        keys = ", ".join(shown(k) for k in list(holder)[:6]) or "none"
        raise BadRow("missing key", f"{where} has no {key!r}; keys there: {keys}")
    if not isinstance(holder[key], str):
        raise BadRow("wrong type", f"{key!r} of {where} is {_a_kind(holder[key])}, not a string{_parts(holder[key])}")
    return holder[key]


def _parts(value: object) -> str:
    """The types of a message's parts, if it is an array of parts."""
    parts = [part.get("type") for part in value if isinstance(part, dict)] if isinstance(value, list) else []
    kinds = dict.fromkeys(kind for kind in parts if isinstance(kind, str))
    return f"; its parts are {', '.join(map(shown, list(kinds)[:4]))}" if kinds else ""


def _optional_text(row: dict[str, Any], key: str) -> str | None:
    """A text that may be missing or null."""
    return None if row.get(key) is None else _text(row, key, "the row")


def _a_kind(value: object) -> str:
    kind = json_kind(value)
    return kind if kind == "null" else f"an {kind}" if kind[0] in "ao" else f"a {kind}"
