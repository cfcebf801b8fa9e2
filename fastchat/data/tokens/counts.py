"""Counts of what happened to every row and token, and their summary in a few lines.

rows                     in the files                  dialogues            rows that are trained on
dropped_<reason>         rows that are not             bad_rows             of these, malformed ones
examples                 of the dialogues, trained on  left_out_<reason>    those that are not, of trained dialogues
split_dialogues          dialogues that are several examples
plain_texts              rows of plain text            split_texts          of these, those that are several examples
tokens                   of all examples               supervised_tokens    of these, supervised
trained_turns            assistant turns trained on    untrained_turns      assistant turns that are not
truncated_dialogues      those with an example that was cut                 truncated_tokens     tokens they lost
lossy_dialogues          rows that lose supervised tokens to the length limit, cut or dropped
lost_supervised_tokens   the number that all of them lose
partly_counted           of these, dialogues far too long: their lost tokens are counted only in their beginning
cut_turns                answers that are not trained on because they are after a cut
turns                    of all roles, in the dialogues
special_token_strings    special-token strings in messages, encoded as plain text
escaped_strings          of these, those that needed an extra split
straddling_tokens        tokens with characters of an answer and of other text
note_<text>              examples that the template could only show as the text says
and one for each treatment in keys.TREATMENTS
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from fastchat.data.encoding.examples import REFUSED, Example, Outcome
from fastchat.data.rows.keys import TREATMENTS

_DROPPED, _LEFT_OUT, _NOTE = "dropped_", "left_out_", "note_"
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
    """Add one example, trained on or not; with the last one of a dialogue, the dialogue too."""
    if example.lost:
        counts["lost_supervised_tokens"] += example.lost
    if example.dropped is None:
        counts["examples"] += 1
        counts["tokens"] += len(example.input_ids)
        counts["supervised_tokens"] += example.num_supervised
        counts["trained_turns"] += example.trained_turns
        counts["cut_turns"] += example.cut_turns
        counts["truncated_tokens"] += example.truncated_tokens
        counts["straddling_tokens"] += example.straddling
        for note in example.notes:
            counts[_NOTE + note] += 1
    if example.is_last:
        _count_dialogue(counts, example.outcome, example)


def _count_dialogue(counts: Counter[str], outcome: Outcome, last: Example) -> None:
    counts["lossy_dialogues"] += outcome.loses
    if not outcome.trained:
        counts[f"{_DROPPED}{outcome.dropped}"] += 1
        return
    counts["dialogues"] += 1
    if outcome.left_out:
        counts[f"{_LEFT_OUT}{outcome.dropped}"] += outcome.left_out
        counts["cut_turns"] += outcome.unreached
    counts["plain_texts"] += outcome.plain
    counts["split_texts" if outcome.plain else "split_dialogues"] += last.parts > 1
    counts["untrained_turns"] += outcome.untrained_turns
    counts["truncated_dialogues"] += outcome.cut
    counts["partly_counted"] += outcome.at_least
    counts["turns"] += outcome.turns
    counts["special_token_strings"] += outcome.special_token_strings
    counts["escaped_strings"] += outcome.escaped


def refused_line(counts: Mapping[str, int], first: str) -> list[str]:
    """The message about rows that the template rejects, if there are any. `first`: the reason for the first one."""
    num = counts.get(_DROPPED + REFUSED, 0)
    return (
        [f"skipped {num:,} of {counts.get('rows', 0):,} rows that the template rejects; first: {first}"] if num else []
    )


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """Dropped rows, by reason."""
    return _by_reason(counts, _DROPPED)


def _by_reason(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {key.removeprefix(prefix): n for key, n in counts.items() if key.startswith(prefix) and n}


def _listed(by_reason: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(by_reason.items(), key=lambda item: -item[1]))


def _examples_lines(counts: Mapping[str, int]) -> list[str]:
    """How many examples the dialogues are, where that is another number; else nothing."""
    examples, left_out = counts.get("examples", 0), _by_reason(counts, _LEFT_OUT)
    if examples == counts.get("dialogues", 0) and not left_out:
        return []
    why = []
    if n := counts.get("split_dialogues"):
        why.append(f"{n:,} dialogues are several: the template shows earlier answers differently")
    if n := counts.get("split_texts"):
        why.append(f"{n:,} texts are several: they are longer than --model_max_length")
    more = f"; {sum(left_out.values()):,} more are not trained on ({_listed(left_out)})" if left_out else ""
    return [f"{examples:,} of {counts.get('dialogues', 0):,} rows; {'; '.join(why)}{more}"]


def plain_line(counts: Mapping[str, int]) -> str:
    """The warning about plain texts; "" if there are none."""
    num = counts.get("plain_texts", 0)
    if not num:
        return ""
    return (
        f"WARNING: {num:,} of {counts.get('rows', 0):,} rows are plain texts (continued pre-training): no chat "
        "template is applied to them, and every token except BOS is supervised"
    )


def table(counts: Mapping[str, int]) -> str:
    """The counts for the log: six lines, one more if dialogues are several examples, and one for each treatment that
    was applied.

    Example:
        rows         6,000: 5,998 trained on, 2 dropped (empty_dialogue 2)
        turns        30,000: 14,985 answers trained on, 0 not, 15 after a cut
        tokens       1,722,503: 1,012,345 supervised (58.8 %)
        truncated    12 dialogues, by 345 tokens
        straddling   0 tokens with characters of an answer and of other text
        special      3 special-token strings in messages are plain text, 1 of them by an extra split
    """
    out = dropped(counts)
    left_out = f", {sum(out.values()):,} dropped ({_listed(out)})" if out else ", none dropped"
    n: Callable[[str], str] = lambda key: f"{counts.get(key, 0):,}"  # noqa: E731
    tokens, supervised = counts.get("tokens", 0), counts.get("supervised_tokens", 0)
    share = f" ({100 * supervised / tokens:.1f} %)" if tokens else ""
    special = f"{n('special_token_strings')} special-token strings in messages are plain text"
    at_least = "at least " if counts.get("partly_counted") else ""
    cut = f", {n('cut_turns')} after a cut" if counts.get("cut_turns") else ""
    lost = f", {n('lost_supervised_tokens')} supervised tokens are lost" if counts.get("lost_supervised_tokens") else ""
    lines = [
        ("rows", f"{n('rows')}: {n('dialogues')} trained on{left_out}"),
        *(("examples", line) for line in _examples_lines(counts)),
        ("turns", f"{n('turns')}: {n('trained_turns')} answers trained on, {n('untrained_turns')} not{cut}"),
        ("tokens", f"{tokens:,}: {supervised:,} supervised{share}"),
        ("truncated", f"{n('truncated_dialogues')} dialogues, by {at_least}{n('truncated_tokens')} tokens{lost}"),
        ("straddling", f"{n('straddling_tokens')} tokens with characters of an answer and of other text"),
        ("special", f"{special}, {n('escaped_strings')} of them by an extra split"),
    ]
    lines += [("also", f"{counts[key]:,} {meaning}") for key, meaning in TREATMENTS.items() if counts.get(key)]
    lines += [("also", f"{number:,} examples: {note}") for note, number in _by_reason(counts, _NOTE).items()]
    return "\n".join(f"{name:<12} {value}" for name, value in lines)


def hint_at_causes(counts: Mapping[str, int], max_length: int) -> str:
    """The likely cause if no token of the data is supervised."""
    reasons = sorted(dropped(counts).items(), key=lambda item: -item[1])
    causes = [_CAUSES[reason].format(max_length=max_length) for reason, _ in reasons if reason in _CAUSES]
    if any(reason.startswith("bad_row") for reason, _ in reasons):
        causes.append("rows cannot be read; list them with --on_bad_row stop")
    return "Likely cause: " + ("; ".join(causes) or "the data") + "."
