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
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fastchat.data.encoding.examples import Example, Outcome
from fastchat.data.rows.drop_reasons import (
    EMPTY,
    NO_ANSWER_FITS,
    NOTHING_TO_LEARN,
    REFUSED,
    TOO_LONG,
    UNANSWERED,
    UNREADABLE,
    listed,
)
from fastchat.data.rows.keys import TREATMENTS
from fastchat.data.tokens.lost import Lost
from fastchat.errors import counted

_DROPPED, _LEFT_OUT, _NOTE = "dropped_", "left_out_", "note_"
# Why rows without supervised tokens are dropped, and what to do.
_CAUSES = {
    NO_ANSWER_FITS: "the text before the first answer already has --model_max_length ({max_length}) tokens; raise it",
    TOO_LONG: "dialogues have more than --model_max_length ({max_length}) tokens; raise it, or --overlong truncate",
    NOTHING_TO_LEARN: 'every answer is empty or has "train": false',
    UNANSWERED: "no user turn is answered; are the roles right?",
    REFUSED: "the chat template rejects them; choose another one with --conv_template",
    EMPTY: "dialogues have no turns; are they under another key?",
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
        [f"skipped {num:,} of {counted(counts.get('rows', 0), 'row')} that the template rejects; first: {first}"]
        if num
        else []
    )


def dropped(counts: Mapping[str, int]) -> dict[str, int]:
    """Dropped rows, by reason."""
    return _by_reason(counts, _DROPPED)


def _by_reason(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {key.removeprefix(prefix): n for key, n in counts.items() if key.startswith(prefix) and n}


def plain_line(counts: Mapping[str, int]) -> str:
    """The warning about plain texts; "" if there are none."""
    num = counts.get("plain_texts", 0)
    if not num:
        return ""
    return (
        f"WARNING: {num:,} of {counted(counts.get('rows', 0), 'row')} hold plain text (continued pre-training): no "
        "chat template is applied to it, and every token except BOS is learned"
    )


# --- the table


class Part(NamedTuple):
    """A piece of a line. `filter`: the rows on the page that it counts, a name of STATES in the page's script."""

    text: str
    filter: str = ""


class Line(NamedTuple):
    """A line of the table. `happened`: False if all that it counts is zero."""

    name: str
    parts: Sequence[Part]
    happened: bool = True

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


def lines(counts: Mapping[str, int]) -> list[Line]:
    """All counts in words, also those that are zero."""
    n: Callable[[str], int] = lambda key: counts.get(key, 0)  # noqa: E731
    out, tokens, learned = dropped(counts), n("tokens"), n("supervised_tokens")
    special = n("special_token_strings")
    found = [
        Line("rows", [
            Part(f"{n('rows'):,}: "), Part(f"{n('dialogues'):,} used", "trained"), Part(", "),
            Part(f"{sum(out.values()):,} dropped", "dropped") if out else Part("none dropped"),
            Part(f" ({listed(out)})" if out else ""),
        ]),
        *_examples(counts),
        Line("turns", [Part(f"{n('turns'):,}: {counted(n('trained_turns'), 'answer')} learned"), *_others(counts)]),
        Line("tokens", [Part(f"{tokens:,}: {learned:,} learned ({percent(learned, tokens)})")]),
        _cut(counts),
        Line(
            "boundary",
            [
                Part(counted(n("straddling_tokens"), "token"), "boundary"),
                Part(" with characters of an answer and of other text"),
            ],
            n("straddling_tokens") > 0,
        ),
        Line(
            "special",
            [
                Part(counted(special, "special-token string"), "lookalikes"),
                Part(f" in messages, kept as plain text; {n('escaped_strings'):,} by an extra split"),
            ],
            special > 0,
        ),
    ]  # fmt: skip
    found += [
        Line("also", [Part(f"{meaning}: {counts[key]:,}")]) for key, meaning in TREATMENTS.items() if counts.get(key)
    ]
    notes = _by_reason(counts, _NOTE).items()
    return found + [Line("also", [Part(f"{counted(number, 'example')}: {note}")]) for note, number in notes]


def _others(counts: Mapping[str, int]) -> list[Part]:
    untrained, cut = counts.get("untrained_turns", 0), counts.get("cut_turns", 0)
    left_out = [Part(", "), Part(f"{untrained:,} not", "untrained")] if untrained else []
    return left_out + ([Part(f", {cut:,} after a cut")] if cut else [])


def _cut(counts: Mapping[str, int]) -> Line:
    """What the length limit costs: it matters where something that would be learned is lost."""
    lossy, lost = counts.get("lossy_dialogues", 0), counts.get("lost_supervised_tokens", 0)
    dialogues, tokens = counts.get("truncated_dialogues", 0), counts.get("truncated_tokens", 0)
    at_least = "at least " if counts.get("partly_counted") else ""
    parts = [Part(f"{at_least}{counted(lost, 'token')} that would be learned, in ")]
    parts.append(Part(counted(lossy, "dialogue"), "cut"))
    if dialogues:
        left = " that are used" if any(counts.get(f"dropped_{why}") for why in (NO_ANSWER_FITS, TOO_LONG)) else ""
        cut = f"; {at_least}{counted(tokens, 'token')} of any kind, from {counted(dialogues, 'dialogue')}{left}"
        parts.append(Part(cut))
    return Line("cut", parts, lossy + dialogues > 0)


def _examples(counts: Mapping[str, int]) -> list[Line]:
    """How many examples the dialogues are, where that is another number; else nothing."""
    examples, left_out = counts.get("examples", 0), _by_reason(counts, _LEFT_OUT)
    if examples == counts.get("dialogues", 0) and not left_out:
        return []
    why = []
    if n := counts.get("split_dialogues"):
        why.append(f"several from {counted(n, 'dialogue')}: the template shows earlier answers differently")
    if n := counts.get("split_texts"):
        why.append(f"several from {counted(n, 'text')} longer than --model_max_length")
    more = [f"{sum(left_out.values()):,} more not used ({listed(left_out)})"] if left_out else []
    said = [f"{examples:,} of {counted(counts.get('dialogues', 0), 'row')}", *why, *more]
    return [Line("examples", [Part("; ".join(said))])]


def percent(part: int, whole: int) -> str:
    """
    >>> percent(588, 1000), percent(1, 4000), percent(1, 100_000), percent(0, 0)
    ('58.8 %', '0.03 %', '0.001 %', '0 %')
    """
    share = 100 * part / whole if whole else 0
    return f"{share:.1f} %" if share >= 1 else f"{share:.1g} %"


def verdict(counts: Mapping[str, int], lost: Lost | None = None, max_length: int | None = None) -> str:
    """The most important facts in one sentence: how much is learned, and what is lost.

    Example:
        58.8 % of the tokens are learned; 34 dialogues lost answers or parts of them at 1,024 tokens: 2,048 keeps all
    """
    said = [f"{percent(counts.get('supervised_tokens', 0), counts.get('tokens', 0))} of the tokens are learned"]
    if lossy := counts.get("lossy_dialogues", 0):
        at = f" at {max_length:,} tokens" if max_length else ""
        ways = ", ".join(f"{length:,} keeps {what}" for length, what in (lost.lengths if lost else []))
        said.append(f"{counted(lossy, 'dialogue')} lost answers or parts of them{at}" + (f": {ways}" if ways else ""))
    else:
        said.append("no answer is cut off")
    if num := sum(dropped(counts).values()):
        said.append(f"{num:,} of {counted(counts.get('rows', 0), 'row')} dropped")
    return "; ".join(said)


def table(counts: Mapping[str, int], lost: Lost | None = None, max_length: int | None = None) -> str:
    """The counts for the terminal: the verdict, then one line for everything that happened.

    Example:
        58.8 % of the tokens are learned; 12 dialogues lost answers or parts of them at 1,024 tokens: 2,048 keeps all
        rows         6,000: 6,000 used, none dropped
        turns        30,000: 14,985 answers learned, 15 after a cut
        tokens       1,722,503: 1,012,345 learned (58.8 %)
        cut          310 tokens that would be learned, in 12 dialogues; 345 tokens of any kind, from 14 dialogues
        special      3 special-token strings in messages, kept as plain text; 1 by an extra split
    """
    said = [f"{line.name:<12} {line.text}" for line in lines(counts) if line.happened]
    return "\n".join([verdict(counts, lost, max_length), *said])


def hint_at_causes(counts: Mapping[str, int], max_length: int) -> str:
    """The likely cause if no token of the data is learned."""
    reasons = sorted(dropped(counts).items(), key=lambda item: -item[1])
    causes = [_CAUSES[reason].format(max_length=max_length) for reason, _ in reasons if reason in _CAUSES]
    if any(reason.startswith(UNREADABLE) for reason, _ in reasons):
        causes.append("rows cannot be read; list them with --on_bad_row stop")
    return "Likely cause: " + ("; ".join(causes) or "the data") + "."
