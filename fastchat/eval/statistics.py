"""95 % confidence intervals. Needs only the standard library."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054  # standard deviations on both sides of the mean that hold 95 %


def proportion(successes: float, number: int) -> tuple[float, float]:
    """Wilson's interval for a share of independent trials, of which some may be right in part; (0, 1) without any.

    >>> [round(bound, 4) for bound in proportion(8, 10)]
    [0.4902, 0.9433]
    """
    if not number:
        return 0.0, 1.0
    share, z2 = successes / number, Z * Z / number
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(share * (1 - share) / number + z2 / (4 * number))
    # At the ends the formula gives the share itself, up to rounding.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    return low, 1.0 if successes == number else min(1.0, middle + half)


def ratio(pairs: Sequence[tuple[float, int]]) -> tuple[float, float] | None:
    """(sum / count over all pairs, half the width of its interval); None if nothing was counted.

    `pairs`: (sum, count) of each dialogue. Tokens of one dialogue are alike, so it is dialogues that are taken as
    independent, and the variance is that of a ratio of two sums. The width is infinite for a single dialogue.

    >>> ratio([(2.0, 2), (6.0, 2)])
    (2.0, 1.9599639845400538)
    """
    count = sum(number for _, number in pairs)
    if not count:
        return None
    mean = math.fsum(total for total, _ in pairs) / count
    clusters = sum(number > 0 for _, number in pairs)
    if clusters < 2:
        return mean, math.inf
    squares = math.fsum((total - mean * number) ** 2 for total, number in pairs)
    return mean, Z * math.sqrt(squares * clusters / (clusters - 1)) / count
