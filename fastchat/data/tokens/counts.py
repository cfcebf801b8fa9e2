"""Counts of what happened to every row and token, and their summary in a few lines.

rows                     in the files                  dialogues            examples that are trained on
dropped_<reason>         rows that are not             bad_rows             of these, malformed ones
tokens                   of all examples               supervised_tokens    of these, supervised
trained_turns            assistant turns trained on    untrained_turns      assistant turns that are not
truncated_dialogues      examples that were cut        truncated_tokens     tokens they lost
lossy_dialogues          rows that lose supervised tokens to the length limit, cut or dropped
lost_supervised_tokens   the number that all of them lose
partly_counted           of these, dialogues far too long: their lost tokens are counted only in their beginning
cut_turns                answers that are not trained on because they are after a cut
turns                    of all roles, in the examples
special_token_strings    special-token strings in messages, encoded as plain text
escaped_strings          of these, those that needed an extra split
straddling_tokens        tokens with characters of an answer and of other text
and one for each treatment in formats.TREATMENTS
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from fastchat.data.encoding.examples import REFUSED, Example
from fastchat.data.rows.keys import TREATMENTS

_DROPPED = "dropped_"
# Why rows without supervised tokens are dropped, and what to do.
_CAUSES = {
    "no_answer_within_length": "the text before the first answer already has --model_max_length ({max_length}) tokens; "
    "raise it",
    "overlong": "dialogues have more than --model_max_length ({max_length}) tokens; raise it, or --overlong truncate",
    "no_trained_turn": 'every answer is empty or has "train": false',
    "no_assistant_turn": "no user turn is answered; are the roles right?",
    REFUSED: "the chat template rejects them; choose another one with --conv_template",
    "empty_dialogue": "dialogues have no turns; are they under another key?",
}


def count_example(counts: Counter[str], example: Example) -> None:
    """Add one tokenised dialogue, dropped or not."""
    if example.lost:
        counts["lossy_dialogues"] += 1
        counts["lost_supervised_tokens"] += example.lost
    if example.dropped is not None:
        counts[_DROPPED + example.dropped] += 1
        return
    counts["dialogues"] += 1
    counts["tokens"] += len(example.input_ids)
    counts["supervised_tokens"] += example.num_supervised
    counts["trained_turns"] += example.trained_turns
    counts["untrained_turns"] += example.untrained_turns
    counts["cut_turns"] += example.cut_turns
    counts["truncated_dialogues"] += example.truncated_tokens > 0
    counts["truncated_tokens"] += example.truncated_tokens
    counts["partly_counted"] += example.at_least
    counts["straddling_tokens"] += example.straddling
    counts["turns"] += example.turns
    counts["special_token_strings"] += example.special_token_strings
    counts["escaped_strings"] += example.escaped


def refused_line(counts: Mapping[str, int], first: str) -> list[str]:
    """The message about rows that the template rejects, if there are any. `first`: the reason for the first one."""
    num = counts.get(_DROPPED + REFUSED, 0)
    return (
        [f"skipped {num:,} of {counts.get('rows', 0):,} rows that the template rejects; first: {first}"] if num else []
    )


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """Dropped rows, by reason."""
    return {key.removeprefix(_DROPPED): n for key, n in counts.items() if key.startswith(_DROPPED) and n}


def table(counts: Mapping[str, int]) -> str:
    """The counts for the log: six lines, and one more for each treatment that was applied.

    Example:
        rows         6,000: 5,998 trained on, 2 dropped (empty_dialogue 2)
        turns        30,000: 14,985 answers trained on, 0 not, 15 after a cut
        tokens       1,722,503: 1,012,345 supervised (58.8 %)
        truncated    12 dialogues, by 345 tokens
        straddling   0 tokens with characters of an answer and of other text
        special      3 special-token strings in messages are plain text, 1 of them by an extra split
    """
    out = dropped(counts)
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(out.items(), key=lambda item: -item[1]))
    left_out = f", {sum(out.values()):,} dropped ({reasons})" if out else ", none dropped"
    n: Callable[[str], str] = lambda key: f"{counts.get(key, 0):,}"  # noqa: E731
    tokens, supervised = counts.get("tokens", 0), counts.get("supervised_tokens", 0)
    share = f" ({100 * supervised / tokens:.1f} %)" if tokens else ""
    special = f"{n('special_token_strings')} special-token strings in messages are plain text"
    at_least = "at least " if counts.get("partly_counted") else ""
    cut = f", {n('cut_turns')} after a cut" if counts.get("cut_turns") else ""
    lost = f", {n('lost_supervised_tokens')} supervised tokens are lost" if counts.get("lost_supervised_tokens") else ""
    lines = [
        ("rows", f"{n('rows')}: {n('dialogues')} trained on{left_out}"),
        ("turns", f"{n('turns')}: {n('trained_turns')} answers trained on, {n('untrained_turns')} not{cut}"),
        ("tokens", f"{tokens:,}: {supervised:,} supervised{share}"),
        ("truncated", f"{n('truncated_dialogues')} dialogues, by {at_least}{n('truncated_tokens')} tokens{lost}"),
        ("straddling", f"{n('straddling_tokens')} tokens with characters of an answer and of other text"),
        ("special", f"{special}, {n('escaped_strings')} of them by an extra split"),
    ]
    lines += [("also", f"{counts[key]:,} {meaning}") for key, meaning in TREATMENTS.items() if counts.get(key)]
    return "\n".join(f"{name:<12} {value}" for name, value in lines)


def hint_at_causes(counts: Mapping[str, int], max_length: int) -> str:
    """The likely cause if no token of the data is supervised."""
    reasons = sorted(dropped(counts).items(), key=lambda item: -item[1])
    causes = [_CAUSES[reason].format(max_length=max_length) for reason, _ in reasons if reason in _CAUSES]
    if any(reason.startswith("bad_row") for reason, _ in reasons):
        causes.append("rows cannot be read; list them with --on_bad_row stop")
    return "Likely cause: " + ("; ".join(causes) or "the data") + "."
