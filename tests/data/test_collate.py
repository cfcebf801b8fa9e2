"""A batch is as wide as its longest example, and masked by length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastchat.data.batches.collate import collate

BATCH = [
    {"input_ids": np.array([5, 0, 7], np.int32), "labels": np.array([-100, 0, 7], np.int32), "index": 3},
    {"input_ids": [0], "labels": [0], "index": 9},
]


def test_right() -> None:
    made = collate(BATCH, pad_token_id=0)
    assert list(made) == ["input_ids", "labels", "attention_mask"]
    assert all(tensor.dtype == torch.int64 and tensor.shape == (2, 3) for tensor in made.values())
    assert made["input_ids"].tolist() == [[5, 0, 7], [0, 0, 0]]
    assert made["labels"].tolist() == [[-100, 0, 7], [0, -100, -100]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]  # the pad id inside a dialogue is not padding


def test_left() -> None:
    made = collate(BATCH, pad_token_id=9, padding_side="left")
    assert made["input_ids"].tolist() == [[5, 0, 7], [9, 9, 0]]
    assert made["labels"].tolist() == [[-100, 0, 7], [-100, -100, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_no_wider_than_its_longest_example() -> None:
    assert collate(BATCH[1:], pad_token_id=0)["input_ids"].shape == (1, 1)
    assert collate(BATCH[:1] * 4, pad_token_id=0)["attention_mask"].tolist() == [[1, 1, 1]] * 4


def test_unequal_lengths_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        collate([{"input_ids": [1, 2], "labels": [1]}], pad_token_id=0)
