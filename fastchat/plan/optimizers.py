"""Bytes of optimizer state per trained parameter, for the values of `--optim`."""

from __future__ import annotations

from dataclasses import dataclass

# One float32 scale per 256 values (bitsandbytes/optim/optimizer.py); tensors below 4,096 values keep 32 bits.
_SCALE_8BIT = 4 / 256
SMALLEST_8BIT = 4096
SMALLEST_PAGED = 100_000  # bitsandbytes: smaller tensors are never paged


@dataclass(frozen=True)
class Optimizer:
    """State of one optimizer.

    `states`: number of tensors of the parameter's size. `bytes_each`: bytes per value; None means the dtype of the
    parameter in the optimizer. `paged`: in memory that the driver moves to the host when the GPU runs out of memory.
    `copies`: temporary tensors of the size of all parameters during the step. `factored`: one row and one column
    instead of a matrix. `known`: False if the name is unknown and AdamW was assumed.
    """

    states: int = 2
    bytes_each: float | None = None
    paged: bool = False
    copies: int = 0
    factored: bool = False
    known: bool = True

    def state_bytes(self, parameters: float, parameter_bytes: int) -> float:
        """Bytes for `parameters` values, in tensors above the size limits of bitsandbytes."""
        each = parameter_bytes if self.bytes_each is None else self.bytes_each
        return self.states * each * parameters


_ADAM_FOREACH = Optimizer(copies=1)  # torch keeps sqrt(exp_avg_sq) of all parameters during the step
_EIGHT = 1 + _SCALE_8BIT
_TABLE: dict[str, Optimizer] = {
    "adamw_torch": _ADAM_FOREACH,
    "adamw_hf": _ADAM_FOREACH,
    "adamw_torch_fused": Optimizer(),
    "adamw_apex_fused": Optimizer(bytes_each=4),
    "adamw_torch_8bit": Optimizer(bytes_each=_EIGHT),
    "adamw_torch_4bit": Optimizer(bytes_each=0.5 + 4 / 128),  # torchao: blocks of 128
    "adamw_bnb_8bit": Optimizer(bytes_each=_EIGHT),
    "adamw_8bit": Optimizer(bytes_each=_EIGHT),
    "paged_adamw": Optimizer(bytes_each=4, paged=True),
    "paged_adamw_32bit": Optimizer(bytes_each=4, paged=True),
    "paged_adamw_8bit": Optimizer(bytes_each=_EIGHT, paged=True),
    "ademamix": Optimizer(states=3, bytes_each=4),
    "ademamix_8bit": Optimizer(states=3, bytes_each=_EIGHT),
    "paged_ademamix_32bit": Optimizer(states=3, bytes_each=4, paged=True),
    "paged_ademamix_8bit": Optimizer(states=3, bytes_each=_EIGHT, paged=True),
    "lion": Optimizer(states=1, bytes_each=4),
    "lion_32bit": Optimizer(states=1, bytes_each=4),
    "lion_8bit": Optimizer(states=1, bytes_each=_EIGHT),
    "paged_lion": Optimizer(states=1, bytes_each=4, paged=True),
    "paged_lion_32bit": Optimizer(states=1, bytes_each=4, paged=True),
    "paged_lion_8bit": Optimizer(states=1, bytes_each=_EIGHT, paged=True),
    "rmsprop": Optimizer(states=1, copies=1),
    "rmsprop_bnb": Optimizer(states=1, bytes_each=4),
    "rmsprop_bnb_32bit": Optimizer(states=1, bytes_each=4),
    "rmsprop_bnb_8bit": Optimizer(states=1, bytes_each=_EIGHT),
    "adagrad": Optimizer(states=1, copies=1),
    "sgd": Optimizer(states=0),
    "adafactor": Optimizer(states=1, bytes_each=4, factored=True),
    "schedule_free_adamw": Optimizer(states=2, copies=1),
    "schedule_free_sgd": Optimizer(states=1),
}
_UNKNOWN = Optimizer(copies=1, known=False)


def optimizer_of(name: str) -> Optimizer:
    """The state of the optimizer `name`; for an unknown name that of AdamW, with `known` False."""
    return _TABLE.get(name, _UNKNOWN)
