"""With two processes, ZeRO-3 trains an adapter, also on nf4, exactly as one process does."""

from __future__ import annotations

import json

import pytest
import torch

from tests.model import zero3_program


def alone(base: str, quantization: bool) -> list[float]:
    """The same training without DeepSpeed, on the whole batch."""
    model = zero3_program.build(base, quantization, 200, checkpointing=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = zero3_program.batch(model.get_base_model().config.vocab_size)

    def step() -> float:
        model.train()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def evaluate() -> float:
        return model.eval()(input_ids=ids, labels=ids).loss.item()

    return zero3_program.train(step, evaluate)


@pytest.mark.launch
def test_two_processes_equal_one(warm, tiny_model_dir, tmp_path):
    base = str(tiny_model_dir("llama", hidden=64, max_positions=64))
    half = str(tiny_model_dir("llama", hidden=64, max_positions=64, dtype="bfloat16"))
    experts = str(tiny_model_dir("mixtral", hidden=64, num_local_experts=4, num_experts_per_tok=2))
    done = warm.run([base, half, experts], tmp_path / "out", script="tests.model.zero3_program")
    lines = [line for line in done.err.splitlines() if line.startswith("RESULT ")]
    assert warm.codes == [0, 0] and lines, done.err[-6000:]
    found = json.loads(lines[0].removeprefix("RESULT "))
    for name, quantization in (("lora", False), ("q_lora", True)):
        wanted = alone(base, quantization)
        assert found[name]["losses"] == pytest.approx(wanted, abs=2e-5), name
        assert wanted[-1] < wanted[0] - 0.01
        assert found[name]["partitioned"]
    # Adapters on the weights of experts, and a forward pass before the engine exists.
    wanted = alone(experts, quantization=False)
    assert found["experts"]["losses"] == pytest.approx(wanted, abs=2e-5) and found["experts"]["partitioned"]
    assert found["experts"]["loss_before"] == pytest.approx(wanted[0], abs=2e-5)
    assert found["lora"]["parameters"] == found["q_lora"]["parameters"]
    assert found["q_lora"]["quantization"]["type"] == "nf4" and found["q_lora"]["quantization"]["linear4bit"] == 14
    # A bf16 checkpoint stays bf16 although nothing in the DeepSpeed settings says so; in bf16 mode nf4 stays nf4.
    assert found["half"]["weights"] == found["half_q_lora"]["weights"] == "torch.bfloat16"
    for name, quantization in (("half", False), ("half_q_lora", True)):
        assert found[name]["losses"] == pytest.approx(alone(half, quantization), abs=0.02), name
