"""LoRA+ (Hayou et al., 2024): the B matrices of an adapter learn at a multiple of the A matrices' rate.

peft's `create_loraplus_optimizer` also gives biases, norms and embeddings rates of their own, and drops weight decay.
Here only the rate of the B matrices changes, with whatever optimizer and schedule the run has.
"""

from __future__ import annotations

from typing import Any

from fastchat.errors import SettingsError


def raise_rates(optimizer: Any, model: Any, ratio: float) -> None:
    """Moves the B matrices of `model` into parameter groups of their own, whose rate is `ratio` times that of the group
    they were in. A second call changes nothing. SettingsError for an optimizer without a rate per group."""
    ours = {id(p) for name, p in model.named_parameters() if p.requires_grad and ".lora_B." in name}
    for group in list(optimizer.param_groups):
        faster = [p for p in group["params"] if id(p) in ours]
        if group.get("loraplus") or not faster:
            continue
        if group.get("lr") is None:
            raise SettingsError(
                f"--loraplus_lr_ratio: the optimizer {type(optimizer).__name__} has no learning rate per group of "
                "parameters: choose another --optim"
            )
        rest = {name: value for name, value in group.items() if name != "params"}
        group["params"] = [p for p in group["params"] if id(p) not in ours]
        optimizer.add_param_group({**rest, "params": faster, "lr": group["lr"] * ratio, "loraplus": True})
