"""Started by test_zero3.py in two processes: trains adapters under ZeRO-3 and prints what happened as JSON."""

from __future__ import annotations

import json
from typing import Any

import torch

STEPS, LENGTH, ROWS = 3, 48, 4
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def batch(vocabulary: int) -> torch.Tensor:
    """[ROWS, LENGTH] fixed random ids."""
    return torch.randint(vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(5))


def build(base: str, quantization: bool, rope_length: int, checkpointing: bool, partitioned: Any = None) -> Any:
    """The adapter on its base, the same on every process and in the test."""
    from fastchat.model.loading import load_base_model, load_config
    from fastchat.model.lora import add_lora
    from fastchat.model.rope import choose_rope

    rope = choose_rope(load_config(base), model_max_length=rope_length)
    model = load_base_model(base, rope=rope, quantization=quantization, partitioned=partitioned)
    torch.manual_seed(0)
    experts = EXPERTS if model.config.model_type == "mixtral" else None
    return add_lora(model, r=4, dropout=0.0, target_parameters=experts, gradient_checkpointing=checkpointing)


def train(step: Any, evaluate: Any) -> list[float]:
    """Losses of STEPS steps with an evaluation after the first."""
    losses = []
    for number in range(STEPS):
        losses.append(step())
        if number == 0:
            losses.append(evaluate())
    return losses


def zero3(base: str, quantization: bool, precision: str) -> dict[str, Any]:
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    from fastchat.model.loading import count_parameters, describe_quantization
    from fastchat.train.adapter import gathered_with_adapters
    from fastchat.train.engine import ZeRO

    settings = {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "train_micro_batch_size_per_gpu": ROWS // 2,
        "bf16": {"enabled": precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    alive = HfDeepSpeedConfig(settings)  # read by from_pretrained for as long as it exists
    ours = ZeRO(settings, torch.distributed.get_world_size())
    model = gathered_with_adapters(build(base, quantization, 200, checkpointing=True, partitioned=ours.loading()), ours)
    dtypes: dict[str, Any] = {"weights": str(model.get_base_model().model.norm.weight.dtype)}
    trained = [p for p in model.parameters() if p.requires_grad]
    rank = torch.distributed.get_rank()
    ids = batch(model.get_base_model().config.vocab_size)[rank::2]

    def mean(value: torch.Tensor) -> float:
        value = value.detach().clone()
        torch.distributed.all_reduce(value)
        return value.item() / 2

    with ours.weights_in_reach(model):
        dtypes["loss_before"] = mean(model(input_ids=ids, labels=ids).loss)
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(trained, lr=1e-2), config=settings)

    def loss() -> torch.Tensor:
        return engine(input_ids=ids, labels=ids).loss

    def step() -> float:
        engine.train()
        value = loss()
        engine.backward(value)
        engine.step()
        return mean(value)

    def evaluate() -> float:
        engine.eval()
        with torch.no_grad():
            return mean(loss())

    result = {"losses": train(step, evaluate), "quantization": describe_quantization(engine.module), **dtypes}
    result["parameters"] = list(count_parameters(engine.module, ours.numel))
    result["partitioned"] = all(p.ds_tensor.numel() < p.ds_numel for p in engine.module.parameters() if p.ds_numel > 1)
    del alive
    return result


def main(words: list[str]) -> None:
    """One process; `words`: models in float32 and in bfloat16, and one with experts. Rank 0 prints the results."""
    from fastchat.processes import start_processes

    start_processes(use_cpu=True, deepspeed=True, backend="gloo", timeout_s=600)
    found = {}
    for name, base, quantization, precision in (
        ("lora", words[0], False, "fp32"),
        ("q_lora", words[0], True, "fp32"),
        ("experts", words[2], False, "fp32"),
        ("half", words[1], False, "fp32"),
        ("half_q_lora", words[1], True, "bf16"),
    ):
        found[name] = zero3(base, quantization, precision)
    if torch.distributed.get_rank() == 0:
        print("RESULT " + json.dumps(found), flush=True)
