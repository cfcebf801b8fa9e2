"""What became of every row and token: adding it up, and saying it in a few lines.

rows                     in the files                  dialogues            examples that are trained on
dropped_<reason>         rows that are not             bad_rows             of these, malformed ones
tokens                   of all examples               supervised_tokens    of these, learned
trained_turns            assistant turns learned       untrained_turns      assistant turns that are not
truncated_dialogues      examples that were cut        truncated_tokens     tokens they lost
lossy_dialogues          rows that lose supervised tokens to the length limit, cut or dropped
lost_supervised_tokens   how many all of them lose
partly_counted           of these, far too long ones: the tokens that they lost are counted in their beginning only
cut_turns                answers that are not learned because they lie behind a cut
turns                    of everybody, in the examples
special_token_strings    control strings in messages, kept text
straddling_tokens        hold characters of an answer and of something else
escaped_strings          of these, kept text by an extra split
and one for each treatment in formats.TREATMENTS
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from fastchat.data.encoding.examples import REFUSED, Example
from fastchat.data.rows.formats import TREATMENTS

_DROPPED = "dropped_"
# Why rows with nothing to learn are dropped, and the way out.
_CAUSES = {
    "no_answer_within_length": "what comes before the first answer alone has --model_max_length ({max_length}) tokens; "
    "raise it",
    "overlong": "dialogues have more than --model_max_length ({max_length}) tokens; raise it, or --overlong truncate",
    "no_trained_turn": 'every answer is empty or says "train": false',
    "no_assistant_turn": "no user turn is answered; are the roles right?",
    REFUSED: "the chat template refuses them; --conv_template chooses another",
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
    """What is said of records that their template refuses; nothing where there are none. `first`: why, of the first."""
    num = counts.get(_DROPPED + REFUSED, 0)
    return (
        [f"skipped {num:,} of {counts.get('rows', 0):,} rows that the template refuses; first: {first}"] if num else []
    )


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """Rows left out, by reason."""
    return {key.removeprefix(_DROPPED): n for key, n in counts.items() if key.startswith(_DROPPED) and n}


def table(counts: Mapping[str, int]) -> str:
    """The counts for the log: six lines that are always there, and one for each treatment that happened.

    Example:
        records      6,000: 5,998 trained on, 2 dropped (empty_dialogue 2)
        turns        30,000: 14,985 answers trained, 0 not, 15 behind a cut
        tokens       1,722,503: 1,012,345 supervised (58.8 %)
        truncated    12 dialogues, by 345 tokens
        straddling   0 tokens hold characters of an answer and of something else
        look-alikes  3 control strings stand in messages as text, 1 of them kept so by an extra split
    """
    out = dropped(counts)
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(out.items(), key=lambda item: -item[1]))
    left_out = f", {sum(out.values()):,} dropped ({reasons})" if out else ", none dropped"
    n: Callable[[str], str] = lambda key: f"{counts.get(key, 0):,}"  # noqa: E731
    tokens, supervised = counts.get("tokens", 0), counts.get("supervised_tokens", 0)
    share = f" ({100 * supervised / tokens:.1f} %)" if tokens else ""
    looks = f"{n('special_token_strings')} control strings stand in messages as text"
    at_least = "at least " if counts.get("partly_counted") else ""
    cut = f", {n('cut_turns')} behind a cut" if counts.get("cut_turns") else ""
    lost = f", {n('lost_supervised_tokens')} supervised tokens are lost" if counts.get("lost_supervised_tokens") else ""
    lines = [
        ("records", f"{n('rows')}: {n('dialogues')} trained on{left_out}"),
        ("turns", f"{n('turns')}: {n('trained_turns')} answers trained, {n('untrained_turns')} not{cut}"),
        ("tokens", f"{tokens:,}: {supervised:,} supervised{share}"),
        ("truncated", f"{n('truncated_dialogues')} dialogues, by {at_least}{n('truncated_tokens')} tokens{lost}"),
        ("straddling", f"{n('straddling_tokens')} tokens hold characters of an answer and of something else"),
        ("look-alikes", f"{looks}, {n('escaped_strings')} of them kept so by an extra split"),
    ]
    lines += [("also", f"{counts[key]:,} {meaning}") for key, meaning in TREATMENTS.items() if counts.get(key)]
    return "\n".join(f"{name:<12} {value}" for name, value in lines)


def hint_at_causes(counts: Mapping[str, int], max_length: int) -> str:
    """What is likely wrong with data in which nothing is supervised."""
    reasons = sorted(dropped(counts).items(), key=lambda item: -item[1])
    causes = [_CAUSES[reason].format(max_length=max_length) for reason, _ in reasons if reason in _CAUSES]
    if any(reason.startswith("bad_row") for reason, _ in reasons):
        causes.append("rows cannot be read; see them with --on_bad_row stop")
    return "Likely cause: " + ("; ".join(causes) or "the data") + "."
