"""What a run prints while it trains: one line for each logged step and each evaluation, and a bar in a terminal.

    step 5/58  epoch 0.09  loss 4.083  lr 9.3e-4  grad 1.2  1,840 tok/s (640 learned)  mem 11.2/12.7 GiB  ETA 12:31
    step 20/58  evaluation  loss 3.912 (was 4.120)  670 learned tokens  1.4 s

`mem` is the measured peak, then what was planned for it. Speed does not count evaluation and saving; ETA does.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from transformers import TrainerCallback

from fastchat.bars import clock
from fastchat.errors import percent, say
from fastchat.plan.units import GIB, MIB


class ProgressLines(TrainerCallback):
    """Prints in the first process only. `bar`: whether a bar is drawn below the lines. `stepping`: seconds inside steps
    since the last line."""

    def __init__(self, bar: bool) -> None:
        self.bar_wanted = bar
        self._bar: Any = None
        self._began = self._step_began = self._eval_began = 0.0
        self.stepping = 0.0
        self._first_step = self._last_step = 0
        self._last_eval: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = self._last_step = state.global_step
        self._began = time.monotonic()
        if state.is_world_process_zero and self.bar_wanted:
            from tqdm import tqdm

            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", file=sys.stderr)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        self.stepping += now - self._step_began
        if state.global_step == self._first_step + 1:
            self._began = now  # the first step also compiles and allocates
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._eval_began = self._eval_began or time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            say(self._step_line(state, logs))
            self.stepping, self._last_step = 0.0, state.global_step
        elif "eval_loss" in logs:
            say(self._eval_line(state, logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _step_line(self, state: Any, logs: dict[str, Any]) -> str:
        parts = [f"step {state.global_step:,}/{state.max_steps:,}", f"epoch {state.epoch:.2f}"]
        parts.append(f"loss {number(logs['loss'])}")
        if "aux_loss" in logs:
            parts.append(f"aux {number(logs['aux_loss'])}")
        if "learning_rate" in logs:
            parts.append(f"lr {short(logs['learning_rate'])}")
        if "grad_norm" in logs:
            parts.append(f"grad {float(logs['grad_norm']):.2g}")
        if self.stepping > 0 and "num_tokens" in logs:
            per_second = [logs[name] / self.stepping for name in ("num_tokens", "num_supervised_tokens")]
            parts.append(f"{per_second[0]:,.0f} tok/s ({per_second[1]:,.0f} learned)")
        if "memory_measured" in logs:
            parts.append(f"mem {memory(logs['memory_measured'], logs.get('memory_predicted'))}")
        done = state.global_step - self._first_step - 1
        left = state.max_steps - state.global_step
        if left and done > 0:
            parts.append(f"ETA {clock((time.monotonic() - self._began) / done * left)}")
        return "  ".join(parts)

    def _eval_line(self, state: Any, logs: dict[str, Any]) -> str:
        parts = [f"step {state.global_step:,}/{state.max_steps:,}", "evaluation"]
        was = f" (was {number(self._last_eval)})" if self._last_eval is not None else ""
        parts.append(f"loss {number(logs['eval_loss'])}{was}")
        self._last_eval = logs["eval_loss"]
        shares = [name for name in logs if name.endswith("_match") or name == "eval_stopped"]
        parts += [f"{name.removeprefix('eval_').replace('_', ' ')} {percent(logs[name])}" for name in shares]
        if "eval_num_supervised_tokens" in logs:
            parts.append(f"{logs['eval_num_supervised_tokens']:,.0f} learned tokens")
        if self._eval_began:
            parts.append(f"{time.monotonic() - self._eval_began:.1f} s")
            self._eval_began = 0.0
        return "  ".join(parts)


def number(value: float) -> str:
    """A loss with four digits.

    >>> number(4.0831), number(0.0111), number(float("nan"))
    ('4.083', '0.01110', 'nan')
    """
    return f"{float(value):#.4g}"


def short(value: float) -> str:
    """A learning rate with two digits.

    >>> short(9.3e-4), short(0.0), short(3e-4)
    ('9.3e-4', '0', '3e-4')
    """
    if not value:
        return "0"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def memory(measured: float, planned: float | None) -> str:
    """Measured and planned bytes in one unit.

    >>> memory(12 << 30, 13 << 30), memory(180 << 20, 113 << 20), memory(180 << 20, None)
    ('12.0/13.0 GiB', '180/113 MiB', '180 MiB')
    """
    unit, name, digits = (GIB, "GiB", 1) if max(measured, planned or 0) >= GIB else (MIB, "MiB", 0)
    return "/".join(f"{size / unit:.{digits}f}" for size in (measured, planned) if size is not None) + f" {name}"
