"""Sequence parallelism on two CPU processes, compared with one process, for a row of one document and a pack of two:
DeepSpeed's Ulysses, torch's context parallel, and an exchange of heads that knows the documents.

    torchrun --nproc_per_node 2 playground/benchmark/sequence_parallel.py

A random Llama in float32 with SDPA. Each process has half of the row. Printed per case: the loss, and the largest
difference of a gradient relative to the largest gradient. `docs/long-context.md` explains the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TOKENS = 64
VOCABULARY = 97
IGNORED = -100


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").train()


def row(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Ids, positions that begin again with every document, and for each token the one that follows in its document."""
    ids = torch.randint(VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    targets = functional.pad(ids[:, 1:], (0, 1), value=IGNORED)
    targets[functional.pad(positions[:, 1:], (0, 1)) == 0] = IGNORED
    return {"ids": ids, "positions": positions, "targets": targets}


def loss_and_gradients(part: dict[str, torch.Tensor], targets: int, *, parts: int) -> tuple[float, list[torch.Tensor]]:
    """Of the sum over all processes, divided by the number of targets of the whole row."""
    network = model()
    logits = network(input_ids=part["ids"], position_ids=part["positions"], use_cache=False).logits
    loss = functional.cross_entropy(logits[0], part["targets"][0], ignore_index=IGNORED, reduction="sum") / targets
    loss.backward()
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in network.parameters()]
    total = loss.detach().clone()
    if parts > 1:
        for tensor in (total, *found):
            dist.all_reduce(tensor)
    return float(total), found


# ---- an exchange of heads that knows the documents


def exchange(tensor: torch.Tensor, scatter: int, gather: int) -> torch.Tensor:
    """Cuts along one dimension, sends part i to process i, and joins what arrives along another dimension."""
    parts = torch.stack(tensor.chunk(dist.get_world_size(), dim=scatter)).contiguous()
    group = dist.group.WORLD
    assert group is not None
    each = [1] * dist.get_world_size()
    received = all_to_all_single_autograd(parts, each, each, group)
    return torch.cat(received.unbind(0), dim=gather)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    position_ids: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """All tokens and a part of the heads: [batch, heads, tokens, channels] are exchanged before and after."""
    assert position_ids is not None
    query, key, value = (exchange(tensor, 1, 2) for tensor in (query, key, value))
    every = [torch.empty_like(position_ids) for _ in range(dist.get_world_size())]
    dist.all_gather(every, position_ids.contiguous())
    document = (torch.cat(every, dim=1) == 0).cumsum(1)
    mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
    found = functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=True)
    return exchange(found, 2, 1).transpose(1, 2), None


# ---- cases


def main() -> None:
    import deepspeed
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    deepspeed.init_distributed("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    plain: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS["sdpa"]
    UlyssesSPAttentionHF.register_with_transformers(
        model(), "sdpa", world, micro_batch_size=1, seq_length_is_variable=True
    )
    methods = {"DeepSpeed Ulysses": ALL_ATTENTION_FUNCTIONS["sdpa"], "exchange with documents": attention}
    for name, lengths in (("one document", [TOKENS]), ("two documents", [24, 40])):
        whole = row(lengths)
        targets = int((whole["targets"] != IGNORED).sum())
        ALL_ATTENTION_FUNCTIONS["sdpa"] = plain
        expected, wanted = loss_and_gradients(whole, targets, parts=1)
        if rank == 0:
            print(f"{name}, one process: loss {expected:.7f}")
        part = {key: value.chunk(world, dim=1)[rank].contiguous() for key, value in whole.items()}
        for method, function in methods.items():
            ALL_ATTENTION_FUNCTIONS["sdpa"] = function
            loss, found = loss_and_gradients(part, targets, parts=world)
            largest = max(float(g.abs().max()) for g in wanted)
            apart = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)) / largest
            if rank == 0:
                print(f"{name}, {method}: loss {loss:.7f}; gradients differ by {apart:.0e}")
    ALL_ATTENTION_FUNCTIONS["sdpa"] = plain
    print(f"one document, torch context_parallel, process {rank}: {torchs_own(row([TOKENS]), TOKENS - 1, world)}")


def torchs_own(whole: dict[str, torch.Tensor], targets: int, world: int) -> str:
    """The loss, or why there is none. Comes last: a process that fails here leaves the other one waiting for it."""
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("cp",))
    buffers = [tensor.clone() for tensor in whole.values()]
    try:
        with context_parallel(mesh, buffers=buffers, buffer_seq_dims=[1] * len(buffers)):
            part = dict(zip(whole, buffers, strict=True))
            loss, _ = loss_and_gradients(part, targets, parts=world)
    except Exception as problem:  # noqa: BLE001  (this is what the script is to show)
        return f"{type(problem).__name__}: {str(problem).splitlines()[0]}"
    return f"loss {loss:.7f}"


if __name__ == "__main__":
    main()
