"""In a multimodal model, the modules that text passes through are adapted and trained, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.errors import SettingsError
from fastchat.model.first_weights import FirstWeights
from fastchat.model.loading import load_base_model
from fastchat.model.lora import add_lora
from fastchat.model.multimodal import freeze_idle, idle_parts, modules_of_text
from fastchat.settings.lora_options import LoraOptions
from tests.multimodal import FAMILIES, make_multimodal

TOWERS = ("vision", "visual", "audio", "projector", "language_model.layers.1.cross_attn")


@pytest.fixture(scope="session")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_multimodal(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


def loss(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 30)[None]
    return model(input_ids=ids, labels=ids, use_cache=False).loss


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_gets_a_gradient(multimodal, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = load_base_model(str(multimodal(family)))
    assert type(base).__name__.endswith("ForConditionalGeneration")
    model = add_lora(base, dropout=0.0, gradient_checkpointing=True).train()
    loss(model).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2, "two matrices on seven layers of both decoder layers that read text"
    assert not [name for name, p in trained.items() if p.grad is None or any(tower in name for tower in TOWERS)]
    err = capsys.readouterr().err
    assert "LoRA adapts 14 layers of the language model. " in err and "are not adapted: text does not pass" in err


@pytest.mark.parametrize("asked", ["all-linear", r".*\.[qo]_proj"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_and_patterns_are_of_the_language_model(multimodal, family: str, asked: str) -> None:
    model = add_lora(load_base_model(str(multimodal(family))), dropout=0.0, target_modules=asked).train()
    loss(model).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * (7 if asked == "all-linear" else 2) * 2
    assert not [name for name, p in trained.items() if p.grad is None or any(tower in name for tower in TOWERS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning_trains_what_takes_part(multimodal, family: str) -> None:
    model = load_base_model(str(multimodal(family))).train()
    total = sum(p.numel() for p in model.parameters())
    frozen = freeze_idle(model)
    assert model.training and any(any(tower in part for tower in TOWERS) for part in frozen)
    loss(model).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert sum(frozen.values()) == total - sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_model_of_text_alone_is_left_as_it_is(tiny_model_dir) -> None:
    model = load_base_model(str(tiny_model_dir("llama")))
    assert freeze_idle(model) == {} and all(p.requires_grad for p in model.parameters())
    assert modules_of_text(model) == {name for name, _ in model.named_modules()}


def test_a_target_in_a_tower_is_refused(multimodal) -> None:
    with pytest.raises(SettingsError, match="'encoder.layers.0.mlp.fc1' matches nothing that text passes through"):
        add_lora(load_base_model(str(multimodal("gemma3"))), target_modules="encoder.layers.0.mlp.fc1")


@pytest.mark.parametrize("bias", ["none", "all"])
def test_an_adapter_of_pictures_too_is_continued_and_kept_whole(multimodal, tmp_path: Path, bias: str, capsys) -> None:
    """Made by another program, on the tower as well. The part that text cannot train is kept, also in the result."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    from fastchat.checkpoint.adapter import write_adapter
    from fastchat.checkpoint.gather import IN_PLACE, gather_trained

    base = str(multimodal("gemma3"))
    theirs = get_peft_model(load_base_model(base), LoraConfig(r=4, target_modules=["q_proj"], bias=bias))
    theirs.save_pretrained(tmp_path / "theirs")
    model = add_lora(load_base_model(base), weight_path=str(tmp_path / "theirs")).train()
    assert "Frozen, because text does not pass through it" in capsys.readouterr().err
    loss(model).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", model, gather_trained(model, IN_PLACE))
    before, after = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert before.keys() == after.keys() and any("vision_tower" in name for name in after)
    add_lora(load_base_model(base), weight_path=str(tmp_path / "ours"))


def test_the_largest_part_that_nothing_passes_through() -> None:
    busy = ["model.text.0.q", "model.text.1.q", "lm_head"]
    assert idle_parts(["model.text.10.q", "model.vision.0.q", "model.vision.1.k"], busy) == [
        "model.text.10",
        "model.vision",
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("options", "first"),
    [
        (LoraOptions(modules_to_save=("embed_tokens",), layers=(0,)), "pissa"),
        (LoraOptions(trainable_tokens=(5, 9), use_dora=True), "default"),
    ],
)
def test_every_kind_of_adapter_is_saved_and_opened(
    multimodal, family: str, options: LoraOptions, first: str, tmp_path: Path
) -> None:
    from fastchat.checkpoint.adapter import write_adapter
    from fastchat.checkpoint.gather import IN_PLACE, gather_trained
    from fastchat.model.lora import load_adapter

    base = str(multimodal(family))
    plain = load_base_model(base).eval()
    model = add_lora(load_base_model(base), dropout=0.0, options=options, first=FirstWeights(first)).train()
    assert loss(model).item() == pytest.approx(loss(plain).item(), abs=1e-4)
    loss(model).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter -= 0.1 * parameter.grad
    write_adapter(tmp_path, model, gather_trained(model, IN_PLACE))
    opened = load_adapter(load_base_model(base), str(tmp_path))
    assert loss(opened.eval()).item() == pytest.approx(loss(model.eval()).item(), abs=1e-4) != loss(plain).item()
