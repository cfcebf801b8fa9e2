"""What a length limit costs: the supervised tokens that it cuts off, and the lengths that would keep them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from fastchat.errors import counted

LOUD = 0.05  # a warning is logged if a larger fraction is lost
_MOST = 0.95  # the fraction that the shorter of the two recommended lengths keeps
_KEEPS = f"{100 * _MOST:.0f} %"
_STEP = 16  # granularity of lengths inside one answer, in tokens


def gains_of(
    supervised: Sequence[bool], ends: Sequence[int], max_length: int, overlong: str
) -> tuple[int, list[tuple[int, int]]]:
    """The tokens of one dialogue that are lost with `max_length`, and how many of them longer limits would keep.

    Args:
        supervised: [T], of the whole dialogue.
        ends: the lengths at which one more answer is complete, ascending: the dialogue is cut at the last one that
            fits or, if none fits, anywhere.

    Returns: the number of supervised tokens lost, and (length, tokens) pairs: with a limit of `length`, that many more
        of them are kept. They add up to the number lost.
    """
    total = len(supervised)
    before = [0, *accumulate(supervised)]  # before[n]: supervised tokens among the first n
    if overlong == "drop":
        return before[-1], [(total, before[-1])] if before[-1] else []
    first = min(ends, default=total)
    fits = [end for end in ends if end <= max_length]
    kept = before[max(fits) if fits else min(max_length, first)]
    steps = list(range(max_length + _STEP, first, _STEP))
    lengths = [*steps, *(end for end in ends if end > max_length), total]
    gains, so_far = [], kept
    for length in dict.fromkeys(lengths):
        if before[length] > so_far:
            gains.append((length, before[length] - so_far))
            so_far = before[length]
    return before[-1] - kept, gains


@dataclass
class Lost:
    """The loss over all dialogues: `kept` supervised tokens are trained on, and `gains[length]` more with that limit.

    `dialogues`: how many lose tokens. `at_least`: some are so long that only their beginning was counted.
    """

    kept: int
    dialogues: int
    gains: Counter[int] = field(default_factory=Counter)
    at_least: bool = False

    @classmethod
    def of(cls, counts: Mapping[str, int], gains: Iterable[tuple[int, int]]) -> Lost:
        """From the counts of the data and (length, tokens) pairs."""
        return cls(
            counts.get("supervised_tokens", 0),
            counts.get("lossy_dialogues", 0),
            Counter(dict(gains)),
            bool(counts.get("partly_counted")),
        )

    @property
    def tokens(self) -> int:
        return self.gains.total()

    @property
    def share(self) -> float:
        """The lost fraction of all supervised tokens of the data."""
        return self.tokens / max(self.kept + self.tokens, 1)

    def length_for(self, share: float) -> int:
        """The smallest limit (within 16 tokens inside an answer) that keeps this fraction of them."""
        wanted, kept = share * (self.kept + self.tokens), self.kept
        for length, tokens in sorted(self.gains.items()):
            kept += tokens
            if kept >= wanted:
                return length
        return max(self.gains, default=0)

    @property
    def loud(self) -> bool:
        """Whether so much is lost that a warning is logged."""
        return self.share > LOUD

    @property
    def lengths(self) -> list[tuple[int, str]]:
        """(limit, what it keeps), shortest first; empty if nothing is lost, or if no such limit is known."""
        most, everything = self.length_for(_MOST), self.length_for(1.0)
        if self.at_least:  # what would keep everything is not known
            return [(most, f"{_KEEPS} of what was counted")] if self.loud else []
        if not self.tokens:
            return []
        short = [(most, _KEEPS)] if self.loud and most < everything else []
        return [*short, (everything, "all")]

    def line(self, max_length: int, costs: Mapping[int, str] | None = None) -> str | None:
        """What is said before training: a warning if much is lost; else only what the longer limit takes, if that is
        known; None if there is nothing to say. `costs`: the memory that each of `lengths` takes."""
        costs = costs or {}
        if not self.lengths or not (self.loud or costs):
            return None
        ways = "; ".join(
            f"--model_max_length {length} keeps {what}" + (f" ({costs[length]})" if costs.get(length) else "")
            for length, what in self.lengths
        )
        if not self.loud:
            return ways
        at_least = "at least " if self.at_least else ""
        return (
            f"WARNING: {at_least}{100 * self.share:.1f} % of the tokens to learn ({self.tokens:,} of "
            f"{self.kept + self.tokens:,}, in {counted(self.dialogues, 'dialogue')}) are cut off at --model_max_length "
            f"{max_length}: {ways}"
        )
