"""The size of quantized matrices against the storage of bitsandbytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastchat.plan.known import architecture_of_size
from fastchat.plan.model_files import read_architecture
from fastchat.plan.nf4 import quantised_size
from fastchat.plan.run import Run
from fastchat.plan.states import states_of


def real_bytes(layer: Any) -> tuple[int, int]:
    """(codes, everything else) of a quantised bitsandbytes layer."""
    state = layer.weight.quant_state
    tensors = (state.absmax, state.state2.absmax, state.state2.code, state.code, state.offset)
    return layer.weight.data.nbytes, sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("shape", [(64, 64), (100, 70), (33, 7), (1024, 2816), (4096, 256)])
def test_one_matrix(shape: tuple[int, int]) -> None:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(*shape, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    size = quantised_size(shape[0] * shape[1])
    assert (size.codes, size.scales) == real_bytes(layer)


@pytest.mark.parametrize(
    ("family", "more"), [("llama", {}), ("llama", {"tied": True}), ("qwen2", {}), ("gemma2", {"tied": True})]
)
def test_a_whole_quantised_model(tiny_model_dir: Any, family: str, more: dict[str, Any]) -> None:
    """Codes, scales and what stays unquantised, as the training code loads it."""
    import torch

    from fastchat.model.loading import linear4bit_layers, load_base_model

    folder: Path = tiny_model_dir(family, hidden=64, layers=3, **more)
    model = load_base_model(str(folder), dtype=torch.bfloat16, quantization=True)
    layers = linear4bit_layers(model)
    codes = sum(real_bytes(layer)[0] for layer in layers.values())
    scales = sum(real_bytes(layer)[1] for layer in layers.values())
    quantised = {id(layer.weight) for layer in layers.values()}
    others = sum(p.nbytes for p in model.parameters() if id(p) not in quantised)
    run = Run(read_architecture(str(folder)), q_lora=True, dtype="bfloat16")
    states = states_of(run)
    assert states.weights - run.trained * run.adapter_bytes == codes + others
    assert states.scales == scales


def test_llama_7b_in_nf4_is_what_is_published() -> None:
    """FACTS: 3.6 GiB with double quantisation, 12.6 GiB in bf16."""
    run = Run(architecture_of_size("7b"), q_lora=True)
    states = states_of(run)
    adapter = run.trained * run.adapter_bytes
    assert (states.weights - adapter + states.scales) / 2**30 == pytest.approx(3.6, rel=0.02)
    plain = states_of(Run(architecture_of_size("7b")))
    assert (plain.weights - adapter) / 2**30 == pytest.approx(12.6, rel=0.005)


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("autocast", [False, True])
def test_activations_on_a_quantised_base(
    tiny_model_dir: Any, monkeypatch: pytest.MonkeyPatch, dropout: float, autocast: bool
) -> None:
    """nf4 cannot run on tensors without data, so a small model really runs, as the training code prepares it."""
    import contextlib

    import torch

    from fastchat.model.loading import load_base_model
    from fastchat.model.lora import add_lora
    from fastchat.plan.activations import activations_of
    from fastchat.plan.zero import Zero
    from tests.plan.counting import as_on_a_gpu, register_attention, saved_bytes

    folder: Path = tiny_model_dir("llama", hidden=256, layers=3)
    model = add_lora(load_base_model(str(folder), dtype=torch.bfloat16, quantization=True), r=8, dropout=dropout)
    model.base_model.model.set_attn_implementation(register_attention())
    if not autocast:  # as DeepSpeed does
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    model.train()
    ids = torch.zeros(2, 128, dtype=torch.int64)

    def forward() -> Any:
        cast = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
        with cast, monkeypatch.context() as inside:
            if autocast:  # peft asks for a GPU's autocast; what the block restores is asked before and set after this
                inside.setattr(torch, "is_autocast_enabled", lambda *device: True)
            return model.base_model.model.model(input_ids=ids, use_cache=False).last_hidden_state

    with as_on_a_gpu():
        saved = saved_bytes(model, forward)
    run = Run(
        read_architecture(str(folder)),
        q_lora=True,
        dtype="bfloat16",
        lora_dropout=dropout,
        zero=None if autocast else Zero(stage=0),
        model_max_length=128,
        per_device_train_batch_size=2,
        attention="flash_attention_2",
    )
    assert activations_of(run).kept == pytest.approx(saved, rel=0.01)
