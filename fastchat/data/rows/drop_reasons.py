"""Why a row is dropped: names for programs (counts, JSON files), and the same in words for people."""

from __future__ import annotations

from collections.abc import Mapping

EMPTY, UNANSWERED, NOTHING_TO_LEARN = "empty_dialogue", "no_assistant_turn", "no_trained_turn"
NO_ANSWER_FITS, TOO_LONG, REFUSED = "no_answer_within_length", "overlong", "refused_by_template"
UNREADABLE = "bad_row: "  # before the reason of a BadRow
# Each is said of a row or, with a number, of several: "dropped: empty", "3 empty".
_WORDS = {
    EMPTY: "empty",
    UNANSWERED: "without an answer",
    NOTHING_TO_LEARN: "without an answer to learn",
    NO_ANSWER_FITS: "without an answer before the length limit",
    TOO_LONG: "longer than the length limit",
    REFUSED: "rejected by the template",
}


def in_words(reason: str) -> str:
    """A reason for people.

    >>> in_words("overlong"), in_words("bad_row: broken JSON"), in_words("too short")
    ('longer than the length limit', 'unreadable: broken JSON', 'too short')
    """
    if reason.startswith(UNREADABLE):
        return f"unreadable: {reason.removeprefix(UNREADABLE)}"
    return _WORDS.get(reason, reason)


def listed(by_reason: Mapping[str, int]) -> str:
    """Numbers of rows by reason, the largest first.

    >>> listed({"overlong": 1, "empty_dialogue": 1200})
    '1,200 empty, 1 longer than the length limit'
    """
    ordered = sorted(by_reason.items(), key=lambda item: -item[1])
    return ", ".join(f"{number:,} {in_words(reason)}" for reason, number in ordered)
