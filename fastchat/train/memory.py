"""Measures the peak memory of a run, next to what was planned.

On a GPU: `torch.cuda.max_memory_allocated`, from before the model is built. On a CPU: the largest resident memory of
the process while training, less what it had before the model was built. Evaluations and saving are left out, because
they are not what is planned.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from fastchat.plan.api import Measured, Plan
from fastchat.train.planning import for_batch

_PROCESS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class MemoryWatch(TrainerCallback):
    """Follows one process. To be made right before the model is built.

    `plan` is None where nothing could be planned; then there is only the measurement. Where neither a GPU nor Linux'
    /proc can be asked, nothing is measured.
    """

    def __init__(self, plan: Plan | None, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.before = resident()[0] if device.type == "cpu" else 0
        self.peak = 0
        self.largest = (0, 0)  # [B, T] of the microbatch with the most tokens
        self._predicted, self._predicted_for = 0, (0, 0)
        self.found: Measured | None = None  # over all processes, at the last row that was logged
        self.works = self._reset()

    def see(self, ids: torch.Tensor) -> None:
        """`ids` [B, T] are about to be trained on."""
        self.largest = max(self.largest, (ids.shape[0], ids.shape[1]), key=lambda shape: shape[0] * shape[1])

    def mine(self) -> list[int]:
        """[measured, predicted] of this process, bytes; 0 for what is not known."""
        if self._predicted_for != self.largest and self.plan is not None:
            self._predicted, self._predicted_for = for_batch(self.plan, *self.largest).allocated, self.largest
        return [max(0, self.peak - self.before), self._predicted]

    def agree(self, largest: list[int]) -> dict[str, Any]:
        """Takes the largest numbers of all processes, and gives what is logged of them."""
        measured, predicted = largest
        if not measured:
            return {}
        if self.plan is None or not predicted:
            return {"memory_measured": measured}
        self.found = Measured(predicted, measured, on_cpu=self.device.type == "cpu")
        return {"memory_measured": measured, "memory_predicted": predicted}

    def record(self) -> dict[str, Any] | None:
        """For training.json: prediction and measurement, for which largest microbatch, and how it was measured."""
        if self.found is None:
            return None
        how = "growth of the resident memory" if self.found.on_cpu else "torch.cuda.max_memory_allocated"
        return {**self.found.record(), "largest_batch": list(self.largest), "measured_as": how}

    # ---- the run's events ----

    def built(self) -> None:
        """The model is built. On a CPU how it was loaded is left out: that depends on the page cache."""
        if self.device.type == "cuda":
            self._note()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reset()  # what was tried on the model before is no training

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note()

    def leave_out(self) -> None:
        """What was done since the last step is no training."""
        self._reset()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reset()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reset()

    def _note(self) -> None:
        if self.works:
            on_cpu = self.device.type == "cpu"
            self.peak = max(self.peak, resident()[1] if on_cpu else torch.cuda.max_memory_allocated(self.device))

    def _reset(self) -> bool:
        """Resets the high-water mark; False where there is none."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        return self.device.type == "cpu" and reset_resident_peak()


def resident() -> tuple[int, int]:
    """(resident memory of this process now, its peak since the last reset), bytes; zeros where /proc is missing."""
    try:
        text = _PROCESS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0, 0
    sizes = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", text, re.MULTILINE))
    return int(sizes.get("VmRSS", 0)) * 1024, int(sizes.get("VmHWM", 0)) * 1024


def reset_resident_peak() -> bool:
    """Lets the kernel reset its high-water mark (proc(5), clear_refs 5); False where it does not allow that."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
