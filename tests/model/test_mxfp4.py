"""Checkpoints of gpt-oss with experts in MXFP4, as they are published: trained from their values in 16 bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastchat.errors import SettingsError
from fastchat.model.loading import load_base_model
from fastchat.plan.model_files import read_architecture
from tests import builders

SCALE = 121  # of a block of 32 weights: 2 ** (121 - 127)
VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # of four bits; the highest bit is the sign


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """(folder, the values of the experts' weights by name)"""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("mxfp4")
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "hidden": 64, "dtype": "bfloat16"}
    builders.make_model(folder, "gpt_oss", "byte_nobos", **sizes)
    stored, values = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        codes = torch.randint(16, (experts, outputs, inputs), dtype=torch.uint8, generator=torch.Generator())
        values[name] = (VALUES[(codes % 8).long()] * (1 - 2 * (codes // 8).float()) * 2.0 ** (SCALE - 127)).mT
        pairs = codes.reshape(experts, outputs, inputs // 32, 16, 2)
        stored[f"{name}_blocks"] = pairs[..., 0] + 16 * pairs[..., 1]
        stored[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), SCALE, dtype=torch.uint8)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_values_are_loaded(packed: tuple[Path, dict[str, torch.Tensor]], dtype: torch.dtype) -> None:
    folder, values = packed
    model = load_base_model(str(folder), dtype=dtype)
    parameters = dict(model.named_parameters())
    assert {parameter.dtype for parameter in parameters.values()} == {dtype}
    assert values and all(torch.equal(parameters[name].float(), wanted) for name, wanted in values.items())
    assert "quantization_config" not in model.config.to_dict()


def test_q_lora_is_refused(packed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(SettingsError, match="MXFP4.*Leave out --q_lora"):
        load_base_model(str(packed[0]), quantization=True)


def test_it_is_planned_as_it_is_loaded(packed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    architecture = read_architecture(str(packed[0]))
    assert architecture.parameters == sum(p.numel() for p in load_base_model(str(packed[0])).parameters())
    assert "stored in mxfp4" in architecture.notes[0]
