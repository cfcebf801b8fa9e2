"""The largest microbatch and context of a configuration that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastchat.plan.estimate import Plan, estimate
from fastchat.plan.run import Run

LARGEST_MICROBATCH = 65_536
LARGEST_CONTEXT = 1 << 22


def largest_microbatch(run: Run) -> int | None:
    """The largest `--per_device_train_batch_size` that fits; 0 if not even 1 does, None without a known limit."""
    if not run.machine.limit_known:
        return None
    return _largest(lambda n: _fits(replace(run, per_device_train_batch_size=n)), LARGEST_MICROBATCH)


def largest_context(run: Run) -> int | None:
    """The largest `--model_max_length` that fits at this microbatch; 0 and None as in `largest_microbatch`."""
    if not run.machine.limit_known:
        return None
    return _largest(lambda n: _fits(replace(run, model_max_length=n)), LARGEST_CONTEXT)


def _fits(run: Run) -> bool:
    plan: Plan = estimate(run)
    return bool(plan.fits)


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest n in 0..limit with fits(n), which is monotonic: doubling, then bisection."""
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    if bad > limit:
        return limit
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
