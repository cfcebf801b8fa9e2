"""Whether adapters of layers with one input gain from one skinny product: q|k|v with A stacked to [3 r, width].

    python playground/benchmark/fused_lora.py

A prototype, compared with peft's layers on the same weights: outputs and gradients first, then CPU seconds of a forward
and a backward pass of all three layers, by turns. The stacked adapters compute in the dtype of the input, where peft
computes in float32 and converts input and output. Dropout is 0: peft draws a mask for each layer, a stacked product has
one input.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

NAMES = ("q", "k", "v")
Pass = Callable[[torch.Tensor], list[torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Fused LoRA layers, a prototype.")
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'width':>6} {'tokens':>7} {'rank':>5} {'dtype':>9} {'peft ms':>9} {'fused ms':>9} {'base ms':>9} {'gain':>7}"
    )
    for width, tokens in ((64, 512), (1024, 256), (1024, 1024)):
        for dtype in (torch.float32, torch.bfloat16):
            for rank in (8, 16) if width > 64 else (8,):
                line(width, tokens, rank, dtype, args.repeat)


def line(width: int, tokens: int, rank: int, dtype: torch.dtype, repeat: int) -> None:
    peft, fused, base = layers(width, rank, dtype)
    hidden = torch.randn(1, tokens, width, dtype=dtype)
    compare(peft, fused, hidden, 1e-4 if dtype == torch.float32 else 5e-2)
    times: dict[str, list[float]] = {"peft": [], "fused": [], "base": []}
    count = max(1, 200_000 // (width * tokens // 64))
    for _ in range(repeat):
        for name, way in (("peft", peft), ("fused", fused), ("base", base)):
            times[name].append(seconds(way, hidden, count))
    ms = {name: 1000 * statistics.median(found) for name, found in times.items()}
    gain = 1 - ms["fused"] / ms["peft"]
    kind = str(dtype).removeprefix("torch.")
    numbers = " ".join(f"{ms[name]:>9.2f}" for name in ("peft", "fused", "base"))
    print(f"{width:>6} {tokens:>7} {rank:>5} {kind:>9} {numbers} {gain:>7.0%}", flush=True)


def layers(width: int, rank: int, dtype: torch.dtype) -> tuple[Pass, Pass, Pass]:
    """(peft's layers, the fused ones, the layers without adapters): each [1, T, H] -> three of them."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in NAMES}).to(dtype)
    plain: list[Any] = [model[name] for name in NAMES]
    config = LoraConfig(r=rank, lora_alpha=16, target_modules=list(NAMES), init_lora_weights=False)
    adapted: Any = get_peft_model(model, config).base_model.model  # pyright: ignore
    adapted.requires_grad_(False)
    mine = [adapted[name] for name in NAMES]
    stacked_a = torch.cat([layer.lora_A["default"].weight for layer in mine]).to(dtype).requires_grad_()
    each_b = [layer.lora_B["default"].weight.detach().to(dtype).requires_grad_() for layer in mine]
    for layer in mine:
        layer.lora_A["default"].weight.requires_grad_()
        layer.lora_B["default"].weight.requires_grad_()
    scale = 16 / rank

    def fused(hidden: torch.Tensor) -> list[torch.Tensor]:
        flat = hidden.flatten(0, 1)
        low = F.linear(flat, stacked_a).split(rank, dim=1)
        bases = (F.linear(flat, layer.weight) for layer in plain)
        made = (torch.addmm(y, x, b.t(), alpha=scale) for y, x, b in zip(bases, low, each_b, strict=True))
        return [y.view_as(hidden) for y in made]

    return lambda hidden: [layer(hidden) for layer in mine], fused, lambda hidden: [layer(hidden) for layer in plain]


def compare(peft: Pass, fused: Pass, hidden: torch.Tensor, tolerance: float) -> None:
    """AssertionError where outputs or the gradient of the input differ by more, relative to their norm."""
    found = []
    for way in (peft, fused):
        given = hidden.clone().requires_grad_()
        outputs = way(given)
        torch.stack(outputs).float().square().mean().backward()
        found.append([*outputs, given.grad])
    for one, other in zip(*found, strict=True):
        off = float((one - other).detach().float().norm() / one.detach().float().norm())
        assert off <= tolerance, (off, tolerance)


def seconds(way: Pass, hidden: torch.Tensor, count: int) -> float:
    """CPU seconds of one forward and backward pass."""
    began = time.process_time()
    for _ in range(count):
        given = hidden.clone().requires_grad_()
        torch.stack(way(given)).sum().backward()
    return (time.process_time() - began) / count


if __name__ == "__main__":
    main()
