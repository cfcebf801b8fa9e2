"""A loss or gradient that is not finite never reaches the weights: it stops the run, or that update is left out."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastchat.errors import NumericError, say
from fastchat.processes import gather

_NAMED = 40  # sample ids in a message


def nan_if_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """The loss itself where it is finite. Else one whose gradient is NaN, which every process sees.

    An infinite loss can have finite gradients; this needs no message between processes and no wait for the device.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))


class FiniteGuard:
    """Looks at every step's gradient norm before the optimizer makes the step.

    `policy`: "stop" or "skip". `rows_of(step)`: for every micro-batch of this process in step number `step`
    (0-based) the input rows in it. `scaled`: under --fp16 an overflow is the scaler's business, and only losses count.
    """

    def __init__(self, policy: str, rows_of: Callable[[int], list[list[int]]], *, scaled: bool) -> None:
        self.policy, self.rows_of, self.scaled = policy, rows_of, scaled
        self.losses: list[torch.Tensor] = []
        self.skipped = 0

    def note(self, loss: torch.Tensor) -> None:
        """Remembers a micro-batch's loss, without waiting for the device."""
        self.losses.append(loss.detach())

    def may_step(self, norm: float, step: int) -> bool:
        """Whether the update may be made; `norm` is the same in every process. NumericError where that is the policy.

        `step` is the number of updates made so far.
        """
        losses, self.losses = self.losses, []
        if norm >= 0 and norm != float("inf"):  # DeepSpeed marks a bad norm by -1; NaN is not >= 0
            return True
        bad = [i for i, loss in enumerate(losses) if not torch.isfinite(loss).item()]
        micro = self.rows_of(step)
        mine = [row for i in bad if i < len(micro) for row in micro[i]]
        everyone = gather((mine, bool(bad), [row for part in micro for row in part]))
        if self.scaled and not any(found for _, found, _ in everyone):
            return True
        message = _message(step + 1, everyone)
        if self.policy == "stop":
            raise NumericError(
                f"{message}: stopped before the weights were changed. Lower --learning_rate or --max_grad_norm, look "
                "at these rows, or leave such updates out with --on_nonfinite skip"
            )
        self.skipped += 1
        say(f"WARNING: {message}: this update is left out (--on_nonfinite skip), {self.skipped} so far")
        return False


def _message(step: int, everyone: list[tuple[list[int], bool, list[int]]]) -> str:
    """Names the step and, where a loss was the cause, the ranks and rows of it; else all rows of the step."""
    parts = [f"rank {rank}, sample ids {_listed(rows)}" for rank, (rows, found, _) in enumerate(everyone) if found]
    if parts:
        return f"step {step}: the loss is not finite ({'; '.join(parts)})"
    rows = sorted(row for _, _, all_rows in everyone for row in all_rows)
    return f"step {step}: the gradient is not finite, although every loss is (sample ids {_listed(rows)})"


def _listed(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:_NAMED])) + (f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else "")
