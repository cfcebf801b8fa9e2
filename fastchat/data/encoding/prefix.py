"""Compares the ids of a prompt with those of the dialogue that begins with it; used by every check of the labels."""

from __future__ import annotations

from collections.abc import Sequence

# If nothing separates a prompt from its answer, its last tokens may differ when it is encoded alone: a token with
# characters of both moves the boundary by at most this many tokens.
TORN = 3


def first_difference(ids: Sequence[int], others: Sequence[int]) -> int | None:
    """The first position where two lists of ids differ, which may be the end of the shorter; None for equal ones.

    >>> first_difference([1, 2, 3], [1, 2]), first_difference([1, 2], [1, 3]), first_difference([1], [1])
    (2, 1, None)
    """
    shared = next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), None)
    if shared is None and len(ids) != len(others):
        return min(len(ids), len(others))
    return shared


def leaves_prompt(ids: Sequence[int], prompt: Sequence[int]) -> tuple[bool, int | None]:
    """Whether `ids` start with `prompt`.

    Returns: whether a token spans the boundary (the last tokens of the prompt differ), and the position of a difference
        that such a token does not explain, or None.
    """
    at = first_difference(ids[: len(prompt)], prompt)
    return at is not None, at if at is not None and at < len(prompt) - TORN else None
