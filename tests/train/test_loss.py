"""The loss sum: what counts, what does not, and that it can be put together from parts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fastchat.train.loss import count_tokens, loss_sum


class Tiny(torch.nn.Module):
    """An embedding and a head, called like a causal language model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = torch.nn.Embedding(11, 8), torch.nn.Linear(8, 11)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


def _batch(rows: list[tuple[list[int], list[int]]], length: int) -> dict[str, torch.Tensor]:
    def padded(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (length - len(values))

    return {
        "input_ids": torch.tensor([padded(ids, 0) for ids, _ in rows]),
        "labels": torch.tensor([padded(labels, -100) for _, labels in rows]),
        "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids, _ in rows]),
    }


ROW_A = ([1, 2, 3, 4], [-100, -100, 3, 4])
ROW_B = ([5, 6, 7], [-100, 6, -100])
MASKED = ([8, 9], [-100, -100])


def test_sum_over_supervised_tokens_only() -> None:
    model = Tiny()
    log_probs = torch.log_softmax(model(torch.tensor([[2, 3, 5]]), torch.ones(1, 3), False).logits[0], -1)
    expected = -(log_probs[0, 3] + log_probs[1, 4] + log_probs[2, 6])
    assert loss_sum(model, _batch([ROW_A, ROW_B], 4)).item() == pytest.approx(expected.item(), abs=1e-5)


def test_parts_add_up_with_any_padding() -> None:
    model = Tiny()
    whole = loss_sum(model, _batch([ROW_A, ROW_B, MASKED], 9))
    parts = sum(loss_sum(model, _batch([row], len(row[0]))) for row in (ROW_A, ROW_B, MASKED))
    assert whole.item() == pytest.approx(parts.item(), abs=1e-5)


def test_nothing_supervised_is_zero_with_a_gradient_of_zero() -> None:
    model = Tiny()
    loss = loss_sum(model, _batch([MASKED], 2))
    loss.backward()
    assert loss.item() == 0.0
    for parameter in model.parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_half_precision_logits_are_summed_in_float32() -> None:
    model = Tiny().to(torch.bfloat16)
    loss = loss_sum(model, _batch([ROW_A], 4))
    assert loss.dtype == torch.float32
    logits = model(torch.tensor([ROW_A[0]]), torch.ones(1, 4), False).logits[0, 1:3].float()
    assert loss.item() == pytest.approx(F.cross_entropy(logits, torch.tensor([3, 4]), reduction="sum").item())


def test_label_smoothing() -> None:
    model = Tiny()
    logits = model(torch.tensor([ROW_B[0]]), torch.ones(1, 3), False).logits[0, :1]
    expected = F.cross_entropy(logits, torch.tensor([6]), reduction="sum", label_smoothing=0.2)
    assert loss_sum(model, _batch([ROW_B], 3), 0.2).item() == pytest.approx(expected.item(), abs=1e-5)


def test_counts_leave_out_the_first_label_and_dummies() -> None:
    first = ([4, 5], [4, 5])  # nothing predicts the first token
    assert count_tokens([_batch([ROW_A, ROW_B], 4), _batch([MASKED], 2), _batch([first], 2)]).tolist() == [4, 9]
