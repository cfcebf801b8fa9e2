"""Row -> Dialogue: every form of a row, read strictly.

    messages      {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    ShareGPT      {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    Alpaca        {"instruction": "...", "input": "...", "output": "...", "history": [["question", "answer"], ...]}
    prompt        {"prompt": "...", "completion": "..."}, each a text or a list of turns
    text          {"text": "..."}: a text without turns, of which every token is trained on (Dialogue.plain)

The names of keys and roles are in keys.py, others are mapped by columns.py. A row may have a "system" text, "tools" and
an "id". A turn or row may say whether it is trained on (TRAIN_KEYS), and a turn may have calls and the reasoning before
its answer. Media, and other keys about training, are rejected by name; any other key is counted. A null value is the
same as a missing key. Nothing is coerced: a number in place of a text is a bad row. Changes made to an unusual but
valid dialogue are counted by name (see keys.TREATMENTS).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from fastchat.conversation import Dialogue, Turn
from fastchat.data.rows.bad_rows import AS_TURNS, BadRow, shown
from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.drop_reasons import EMPTY, UNANSWERED
from fastchat.data.rows.keys import (
    ANSWERS,
    ARGUMENTS,
    ASSISTANT,
    FORM_KEYS,
    IDS,
    INSTRUCTION,
    ORIGIN,
    PAIRS,
    PROMPT,
    QUESTIONS,
    REASONING_KEYS,
    RESERVED_ARGUMENTS,
    ROW_KEYS,
    SYSTEM_KEY,
    TEXT,
    THINKING_SWITCH,
    TOOL,
    TOOLS,
    TURN_LISTS,
    TURN_ROLE,
    TURN_TEXT,
    USER,
    seems_to_be,
)
from fastchat.data.rows.tool_calls import calls_in, count_references, tools_of, tools_with
from fastchat.data.rows.train_keys import refuse_unsupported, says_train, unread_keys
from fastchat.data.rows.turns import Reading, TurnsOfRow, calls_of_tools, read_turns, reasoning_of, split_thought
from fastchat.data.rows.usual import UsualRow, usual_row
from fastchat.data.rows.values import (
    THE_ROW,
    a_kind,
    as_json,
    check_json,
    is_given,
    json_list,
    keys_of,
    missing,
    optional_text,
    parsed,
    text_of,
)
from fastchat.errors import nearest

_SURELY_MEANT = 0.75  # similarity of "message" and "messages", for example


@dataclass(frozen=True)
class Parsed:
    """One row, parsed: a dialogue to train on, or the reason why there is none; and the number of each treatment.

    Attributes:
        unread: ("row" or "turn", key) -> how many have this key, which is not read.
        form: one of keys.FORM_KEYS.
        id: the row's own id, for messages.
        origin: what the row says under `source`.
        entries: for each turn of the dialogue, the position in the row's list of turns where it begins; and that after
            the last turn. Empty if the row is not a list of turns.
    """

    dialogue: Dialogue | None
    dropped: str | None
    treatments: Counter[str]
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)
    form: str = field(default="", compare=False)
    id: str | None = field(default=None, compare=False)
    origin: str | None = field(default=None, compare=False)
    entries: tuple[int, ...] = field(default=(), compare=False)


def parse_row(
    row: dict[str, Any], source: str = "", line: int = 0, columns: Columns = AS_THEY_ARE, thinks: bool = False
) -> Parsed:
    """Turn one JSON object into a Dialogue.

    Args:
        columns: names of keys and roles in this file.
        thinks: whether `<think>...</think>` at the start of an answer is separate reasoning.

    Returns:
        `dropped` is "empty_dialogue" (no turns) or "no_assistant_turn" (nothing answered); None for a usable dialogue.

    Raises:
        BadRow: wrong keys, types or roles; a system turn that is not first; two different system texts.
    """
    usual = usual_row(row, columns, thinks)
    return parse_any_row(row, source, line, columns, thinks) if usual is None else _of_usual(usual, row, source, line)


def _of_usual(made: UsualRow, row: dict[str, Any], source: str, line: int) -> Parsed:
    dialogue = Dialogue(tuple(made.turns), made.system, source, line, system_role=made.system_role)
    unread = Counter({("row", key): 1 for key in made.unread})
    entries = tuple(range(made.system is not None, len(row[made.form]) + 1))
    return Parsed(dialogue, None, Counter(), unread, made.form, row_id(row), row_origin(row), entries)


def parse_any_row(
    row: dict[str, Any], source: str = "", line: int = 0, columns: Columns = AS_THEY_ARE, thinks: bool = False
) -> Parsed:
    """`parse_row`, but for rows of any kind."""
    renamed = columns.row(row)
    row = {**renamed.value, **{key: json_list(renamed.value.get(key), key, THE_ROW) for key in _texts(renamed.value)}}
    form = format_of(row, renamed.mapped)
    refuse_unsupported(row, THE_ROW)
    reading = Reading(columns, thinks, says_train(row, THE_ROW))
    reading.unread.update(("row", key) for key in renamed.shadowed)
    reading.unread.update(unread_keys(row, "row", _KNOWN[form]))
    others = (key for key in FORM_KEYS if key != form and is_given(row.get(key)))
    reading.treatments["turn_list_used"] += form in TURN_LISTS and any(others)
    if form == TEXT:
        return _plain(row, reading, source, line)
    tools = tools_of(row, reading.treatments)
    reading.tools = frozenset(tool["function"]["name"] for tool in tools)
    made = _read(row, form, reading)
    system, arguments = _system(row, made.system), _template_arguments(row)
    tools = tools_with(tools, made.tools, reading.treatments)
    if not made.turns:
        return Parsed(None, EMPTY, Counter(), reading.unread, form)
    kept = _trimmed(made.turns, reading.treatments)
    turns = [_checked(made.turns[i], reading.treatments) for i in kept]
    if not turns:
        return Parsed(None, UNANSWERED, Counter(), reading.unread, form)
    count_references(turns, reading.treatments)
    said = (made.system_train, made.system_role, tools, arguments)
    dialogue = Dialogue(tuple(turns), system, source, line, *said)
    ends = [*made.entries, len(row[form])] if form in TURN_LISTS else []
    entries = tuple(ends[kept.start : kept.stop + 1])
    return Parsed(dialogue, None, +reading.treatments, reading.unread, form, row_id(row), row_origin(row), entries)


def _texts(row: dict[str, Any]) -> list[str]:
    """The columns of turn lists that are texts."""
    return [key for key in TURN_LISTS if isinstance(row.get(key), str)]


def row_id(row: dict[str, Any]) -> str | None:
    """The row's own id, for messages: its "id" or "idx" if that is a string or an integer."""
    for key in IDS:
        if type(row.get(key)) in (str, int):
            return str(row[key])
    return None


def row_origin(row: dict[str, Any]) -> str | None:
    """Where the row says that it comes from: its "source" if that is a string or an integer."""
    found = row.get(ORIGIN)
    return str(found) if type(found) in (str, int) else None


def format_of(row: dict[str, Any], mapped: Collection[str] = ()) -> str:
    """The key that identifies the form of a row: one of keys.FORM_KEYS. A list of turns takes precedence, then a pair
    that is complete; `mapped`, the columns that the user has named, over all.

    Raises:
        BadRow: it has none of the forms, or two of the same kind.
    """
    lists = [key for key in TURN_LISTS if isinstance(row.get(key), list)]
    full = [key for key in lists if row[key]]
    pairs = [key for key in PAIRS if row.get(key) is not None]
    complete = [key for key in pairs if row.get(PAIRS[key]) is not None]
    groups = [full, complete, [TEXT] if row.get(TEXT) is not None and not pairs else [], pairs, lists]
    groups.append([key for key in TURN_LISTS if row.get(key) is not None])
    groups.append([key for key in FORM_KEYS if key in row])
    named = [[key for key in group if key in mapped or PAIRS.get(key) in mapped] for group in groups]
    found = next((group for group in [*named, *groups] if group), None)
    if found is None:
        raise BadRow("no known format", f"keys: {keys_of(row)}{_meant(row)}", _way_out(row))
    if any(row[key] != row[found[0]] for key in found) or (len(found) > 1 and found[0] in PAIRS):
        raise BadRow("two formats in one row", " and ".join(found))
    return found[0]


def _meant(row: dict[str, Any]) -> str:
    """What a misspelt key of a row with none of the forms stands for."""
    meant = [near for key in row for near in nearest(key, FORM_KEYS, n=1, cutoff=_SURELY_MEANT)]
    return f"; did you mean {shown(meant[0])}?" if meant else ""


def _way_out(row: dict[str, Any], missing_key: str = "") -> str:
    """What to do about rows without a form, or with a prompt only: columns that look like a dialogue are suggested,
    because each may mean something else."""
    lower = {key.lower(): key for key in row}
    asked, said = (next((lower[key] for key in keys if key in lower), None) for keys in (QUESTIONS, ANSWERS))
    turns = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    inside = None if missing_key else next((key for key, value in row.items() if _holds_rows(value)), None)
    if inside is not None:
        path = f".[{json.dumps(inside)}]" + "[]" * isinstance(row[inside], list)
        return f"The rows seem to be in {shown(inside)}: write them to a file, as with jq -c '{path}'."
    names = {}
    if missing_key and said:
        names = {missing_key: said}
    elif turns and not missing_key:
        names = {TURN_LISTS[0]: turns[0]}
    elif asked and said:
        names = {PROMPT: asked, PAIRS[PROMPT]: said}
    if names:
        names |= {ours: key for key in row if (ours := seems_to_be(key)) and ours not in row and ours in ROW_KEYS}
        return f"If these columns are the dialogue, name them: --data_columns '{as_json(names)}'."
    needed = f"One of {', '.join(FORM_KEYS)} is needed; other columns are named with --data_columns."
    return f"{needed} {AS_TURNS}" if any(isinstance(value, list) for value in row.values()) else needed


def _holds_rows(value: Any) -> bool:
    """Whether a value is a row with a known form, or a list of such rows."""
    inner = value[0] if isinstance(value, list) and value else value
    if not isinstance(inner, dict) or any(key in inner for key in (*TURN_ROLE, *TURN_TEXT)):
        return False
    return any(isinstance(inner.get(key), list) for key in TURN_LISTS) or any(
        inner.get(key) is not None and inner.get(other) is not None for key, other in PAIRS.items()
    )


# The row keys that are read in a row of each form.
_KNOWN = {
    form: frozenset((*keys, *ROW_KEYS, *(REASONING_KEYS if form in PAIRS else ()))) for form, keys in FORM_KEYS.items()
}
_KNOWN[TEXT] -= {SYSTEM_KEY, ARGUMENTS, THINKING_SWITCH, *TOOLS}


# --- forms


def _read(row: dict[str, Any], form: str, reading: Reading) -> TurnsOfRow:
    if form in TURN_LISTS:
        if not isinstance(row[form], list):
            raise BadRow("wrong type", f"{shown(form)} is {a_kind(row[form])}, not an array", AS_TURNS)
        return read_turns(row[form], reading)
    return _alpaca(row, reading) if form == INSTRUCTION else _prompt(row, reading)


def _alpaca(row: dict[str, Any], reading: Reading) -> TurnsOfRow:
    train = reading.train is not False
    history = row.get("history")
    history = [] if history is None else history
    if not isinstance(history, list):
        raise BadRow("wrong type", f"'history' is {a_kind(history)}, not an array")
    turns = []
    for number, pair in enumerate(history, start=1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow("wrong type", f"entry {number} of 'history' is not an array of two texts")
        text, reasoning = split_thought(pair[1], None, f"entry {number} of 'history'", reading)
        turns += [Turn(USER, pair[0], train), Turn(ASSISTANT, text, train, reasoning)]
    question, given = text_of(row, INSTRUCTION, THE_ROW), optional_text(row, "input") or ""
    # The text between the two is that of FastChat's own Alpaca converter.
    question = f"{question}\nInput:\n{given}" if given.strip() else question
    turns += [Turn(USER, question, train), _answer(row, PAIRS[INSTRUCTION], reading)]
    return TurnsOfRow(turns, [], system_train=train)


def _answer(row: dict[str, Any], key: str, reading: Reading) -> Turn:
    if key not in row:
        raise missing(row, (key,), THE_ROW, _way_out(row, key))
    reasoning = reasoning_of(row, ASSISTANT, THE_ROW)
    if isinstance(row[key], str) and calls_of_tools(row[key], THE_ROW, reading):
        calls = calls_in(row[key], THE_ROW, reading.treatments)
        reading.treatments["calls_in_output"] += 1
        return Turn(ASSISTANT, "", reading.train is not False, reasoning, calls)
    text, reasoning = split_thought(text_of(row, key, THE_ROW), reasoning, THE_ROW, reading)
    return Turn(ASSISTANT, text, reading.train is not False, reasoning)


def _prompt(row: dict[str, Any], reading: Reading) -> TurnsOfRow:
    """Prompt and completion, each a text or a list of turns. Answers in the prompt's list are context."""
    completion = PAIRS[PROMPT]
    prompt, said = row[PROMPT], row.get(completion)
    if said is None:
        raise missing(row, (completion,), THE_ROW, _way_out(row, completion))
    train = reading.train is not False
    if isinstance(prompt, list):
        both = read_turns([*prompt, *(said if isinstance(said, list) else ())], reading, context=len(prompt))
    else:
        both = read_turns(said, reading) if isinstance(said, list) else TurnsOfRow([], [], system_train=train)
        both.turns.insert(0, Turn(USER, text_of(row, PROMPT, THE_ROW), train))
    if not isinstance(said, list):
        both.turns.append(_answer(row, completion, reading))
    elif reasoning_of(row, ASSISTANT, THE_ROW) is not None:
        raise BadRow("reasoning outside an answer", f"{THE_ROW} has it next to a list of turns; put it into the turn")
    return both


def _plain(row: dict[str, Any], reading: Reading, source: str, line: int) -> Parsed:
    text = text_of(row, TEXT, THE_ROW)
    if not text.strip():
        return Parsed(None, EMPTY, Counter(), reading.unread, TEXT)
    turn = Turn(ASSISTANT, text, reading.train is not False)
    dialogue = Dialogue((turn,), None, source, line, plain=True)
    return Parsed(dialogue, None, +reading.treatments, reading.unread, TEXT, row_id(row), row_origin(row))


# --- what a row says about its dialogue


def _system(row: dict[str, Any], system_turn: str | None) -> str | None:
    system_key = optional_text(row, SYSTEM_KEY)
    if system_key is not None and system_turn is not None and system_key != system_turn:
        raise BadRow("two system texts", f"key {shown(system_key)}, first turn {shown(system_turn)}")
    return system_turn if system_key is None else system_key


def _template_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """What `chat_template_kwargs` and `enable_thinking` say."""
    given = parsed(row.get(ARGUMENTS), ARGUMENTS, THE_ROW)
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise BadRow("wrong type", f"{ARGUMENTS!r} of {THE_ROW} is {a_kind(given)}, not an object")
    check_json(given, repr(ARGUMENTS))
    made = {key: value for key, value in given.items() if value is not None}
    for key in made:
        if key in RESERVED_ARGUMENTS or not key.isidentifier():
            raise BadRow("reserved template argument", f"{ARGUMENTS!r} of {THE_ROW} has {shown(key)}; remove it")
    switch = row.get(THINKING_SWITCH)
    if switch is not None and not isinstance(switch, bool):
        raise BadRow("wrong type", f"{THINKING_SWITCH!r} of {THE_ROW} is {a_kind(switch)}, not true or false")
    if switch is not None and made.setdefault(THINKING_SWITCH, switch) != switch:
        raise BadRow("contradictory keys", f"{THE_ROW} has another {THINKING_SWITCH!r} in {ARGUMENTS!r}")
    return made


# --- treatments


def _trimmed(turns: list[Turn], treatments: Counter[str]) -> range:
    """The positions from the first user turn to the last answer; empty if no user turn is answered."""
    first = next((i for i, turn in enumerate(turns) if turn.role == USER), len(turns))
    last = next((i for i in reversed(range(first, len(turns))) if turns[i].role == ASSISTANT), -1)
    for turn in turns[:first]:
        treatments[f"leading_{turn.role}_turns"] += 1
    treatments["trailing_user_turns"] += len(turns) - (last + 1)
    return range(first, last + 1)


def _checked(turn: Turn, treatments: Counter[str]) -> Turn:
    if turn.role == TOOL or not turn.is_empty:
        return turn
    treatments[f"empty_{turn.role}_turns"] += 1
    return replace(turn, train=False) if turn.role == ASSISTANT else turn
