"""Optimizer states at 7B against those of the real optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastchat.plan.known import architecture_of_size
from fastchat.plan.run import Run
from fastchat.plan.states import states_of


def parameters_of(run: Run) -> list[torch.Tensor]:
    """What is trained, without data: the adapter's matrices in float32, or all weights in the stored dtype."""
    a = run.architecture
    if run.lora:
        shapes = [s for x in run.adapted for s in ((run.lora_r, x.inputs), (x.outputs, run.lora_r))] * a.num_layers
    else:
        shapes = [(x.outputs, x.inputs) for x in a.linears] * a.num_layers
        shapes += [(a.vocab, a.hidden)] * 2 + [(a.hidden,)] * (2 * a.num_layers + 1)
    dtype = torch.float32 if run.trained_bytes == 4 else torch.bfloat16
    return [torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape in shapes]


def adafactor(parameters: list[torch.Tensor]) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(parameters, scale_parameter=False, relative_step=False, lr=1e-3)


REAL: dict[str, Any] = {
    "adamw_torch": lambda p: torch.optim.AdamW(p, foreach=False),
    "adamw_torch_fused": lambda p: torch.optim.AdamW(p, foreach=False),  # the same states
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adafactor": adafactor,
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("lora", [True, False])
def test_states_after_a_step(name: str, lora: bool) -> None:
    run = Run(architecture_of_size("7b"), lora=lora, lora_r=16, optim=name)
    parameters = parameters_of(run)
    assert sum(p.numel() for p in parameters) == run.trained
    optimizer = REAL[name](parameters)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    kept = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v) and v.dim()]
    assert states_of(run).optimizer == pytest.approx(sum(v.nbytes for v in kept), rel=0.05, abs=1)
