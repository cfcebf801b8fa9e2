"""How the ids of a prompt compare with those of the dialogue that it begins: shared by every proof of the mask."""

from __future__ import annotations

from collections.abc import Sequence

# A prompt that nothing separates from its answer may be tokenised differently in its last tokens when it is encoded
# alone: a token that holds characters of both moves their border by no more than this.
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
    """Whether `ids` begin with `prompt`.

    Returns: whether the border is torn (the last tokens of the prompt differ), and the position of a difference that no
        torn token explains, None where there is none.
    """
    at = first_difference(ids[: len(prompt)], prompt)
    return at is not None, at if at is not None and at < len(prompt) - TORN else None
