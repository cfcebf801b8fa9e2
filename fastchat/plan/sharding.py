"""The states of a run under FSDP2: every number is divided among `group` GPUs.

With full sharding the group is all GPUs; with hybrid sharding the GPUs of one host, and every host has a copy. In half
precision what is trained is kept, summed and updated in float32, and a unit (one layer, or embedding, last norm and
head together) is gathered in 16 bits.
"""

from __future__ import annotations

from fastchat.plan.optimizers import optimizer_of
from fastchat.plan.run import Run
from fastchat.plan.states import States, base_weights
from fastchat.plan.units import ceil_div

_WIDE = 4  # bytes of what is trained, of its gradient, and of the sums of gradients


def fsdp_states(run: Run, group: int) -> States:
    """The states per GPU, in bytes; `run` is one without DeepSpeed and with torch's AdamW."""
    mine = ceil_div(run.trained, group)
    optimizer = optimizer_of(run.optim)
    base, scales = base_weights(run)
    frozen = ceil_div(base, group) if run.lora else 0
    return States(
        weights=frozen + _WIDE * mine,
        scales=scales,
        gradients=_WIDE * mine,
        optimizer=round(optimizer.state_bytes(mine, _WIDE)),
        buffers=_gathered(run) + _reduced(run) if group > 1 else 0,
        loading=0,
        stepping=optimizer.copies * _WIDE * mine,
    )


def _gathered(run: Run) -> int:
    """The first unit stays whole during the step; of the layers, the current one and the next one are whole."""
    return run.compute_bytes * (_outside(run) + 2 * _largest_layer(run))


def _reduced(run: Run) -> int:
    """The complete gradient of a unit and the float32 copy that is summed. An adapter's is too small to matter."""
    return 0 if run.lora else (run.compute_bytes + _WIDE) * max(_largest_layer(run), _outside(run))


def _outside(run: Run) -> int:
    """Elements outside the layers."""
    a = run.architecture
    return a.parameters - a.other - sum(kind.elements * n for kind, n in a.kind_counts)


def _largest_layer(run: Run) -> int:
    """Elements of the largest layer; nf4 packs two into a byte, so a quarter of 16 bits."""
    elements = max(kind.elements for kind in run.architecture.kinds)
    return ceil_div(elements, 4) if run.q_lora else elements
