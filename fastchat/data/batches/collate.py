"""Examples -> a padded batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from fastchat.data.encoding.examples import IGNORED

if TYPE_CHECKING:
    import torch


def collate(
    batch: Sequence[Mapping[str, Any]], *, pad_token_id: int, padding_side: Literal["right", "left"] = "right"
) -> dict[str, torch.Tensor]:
    """Pad a batch to its own longest example.

    The attention mask is made from the lengths, never from the ids: the pad token may occur inside a dialogue.

    Args:
        batch: mappings with "input_ids" and "labels" of equal length; other keys are dropped.

    Returns:
        input_ids, labels, attention_mask: [B, T] int64, T the longest length.

    Example (pad_token_id=0):
        >>> collate([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}], pad_token_id=0)
        {"input_ids": [[5, 6], [7, 0]], "labels": [[-100, 6], [7, -100]], "attention_mask": [[1, 1], [1, 0]]}
    """
    import numpy as np
    import torch

    assert padding_side in ("right", "left"), padding_side
    lengths = [len(example["input_ids"]) for example in batch]
    shape = (len(batch), max(lengths))
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, (example, length) in enumerate(zip(batch, lengths, strict=True)):
        assert len(example["labels"]) == length, (len(example["labels"]), length)
        span = slice(length) if padding_side == "right" else slice(shape[1] - length, None)
        input_ids[row, span] = example["input_ids"]
        labels[row, span] = example["labels"]
        attention_mask[row, span] = 1
    made = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
    return {name: torch.from_numpy(array) for name, array in made.items()}
