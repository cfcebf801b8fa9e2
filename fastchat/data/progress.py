"""A progress bar for tokenising."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from fastchat.data.tokenization import Example


def with_bar(examples: Iterable[Example], total: int, progress: bool) -> Iterable[Example]:
    """The same examples; with `progress`, a bar on stderr counts them while they are made."""
    if not progress:
        return examples
    from tqdm import tqdm

    return tqdm(examples, total=total, desc="tokenising", unit=" dialogues", file=sys.stderr, delay=1)
