"""Which engine the settings ask for: one place decides, contradictions and what is not available are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import SettingsError
from fastchat.settings.engines import EngineChoice, FsdpOptions, check_fsdp, check_stage, choose, needs_deepspeed
from fastchat.settings.recipe_files import find_deepspeed_config


def asked(engine: str = "auto", deepspeed: Any = None, fsdp: Any = None, config: Any = None) -> dict[str, Any]:
    return {"engine": engine, "deepspeed": deepspeed, "fsdp": fsdp, "fsdp_config": config}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (asked(), EngineChoice()),
        (asked("ddp"), EngineChoice()),
        (asked("fsdp"), EngineChoice(fsdp=FsdpOptions())),
        (asked(deepspeed="x.json"), EngineChoice("x.json")),
        (
            asked("zero3", deepspeed={"zero_optimization": {"stage": 3}}),
            EngineChoice({"zero_optimization": {"stage": 3}}),
        ),
        *(
            (asked(fsdp=[word]), EngineChoice(fsdp=FsdpOptions()))
            for word in ("full_shard", "True", "full_shard auto_wrap")
        ),
        (asked("fsdp", fsdp=["full_shard", "auto_wrap"]), EngineChoice(fsdp=FsdpOptions())),
        (asked(fsdp=["False"]), EngineChoice()),
        (asked(fsdp=["shard_grad_op"]), EngineChoice(fsdp=FsdpOptions(reshard_after_forward=False))),
        (asked("fsdp", config={"reshard_after_forward": "false"}), EngineChoice(fsdp=FsdpOptions(False))),
        (asked(fsdp=["full_shard"], config={"reshard_after_forward": False}), EngineChoice(fsdp=FsdpOptions(False))),
        (
            asked("fsdp", config={"fsdp_version": 2, "fsdp_transformer_layer_cls_to_wrap": "ABlock, BBlock"}),
            EngineChoice(fsdp=FsdpOptions(units=("ABlock", "BBlock"))),
        ),
        (
            asked("fsdp", config={"transformer_layer_cls_to_wrap": ["ABlock"], "cpu_offload": False, "xla": None}),
            EngineChoice(fsdp=FsdpOptions(units=("ABlock",))),
        ),
    ],
)
def test_the_choice(values: dict[str, Any], wanted: EngineChoice) -> None:
    found = choose(values, lora=True)
    assert found == wanted and found.needs_group is (wanted != EngineChoice())


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("stage", [2, 3])
def test_an_engine_of_deepspeed_has_a_configuration_of_ours(stage: int, lora: bool) -> None:
    choice = choose(asked(f"zero{stage}"), lora=lora)
    assert isinstance(choice.deepspeed, str) and ("lora" in choice.deepspeed) is lora
    zero = json.loads(find_deepspeed_config(choice.deepspeed, tell=False).read_text())["zero_optimization"]
    assert zero["stage"] == stage and not any(name.startswith("offload") for name in zero)
    assert needs_deepspeed(f"zero{stage}", None) and needs_deepspeed("auto", "x") and not needs_deepspeed("fsdp", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (asked("fsdp", deepspeed="x"), "--deepspeed and --engine fsdp are two engines; keep one"),
        (asked(deepspeed="x", fsdp=["full_shard"]), "--deepspeed and --fsdp are two engines; keep one"),
        (asked("ddp", deepspeed="x"), "--deepspeed and --engine ddp are two engines; keep one"),
        (asked("zero2", fsdp=["full_shard"]), "--fsdp and --engine zero2 are two engines; keep one"),
        (asked("ddp", fsdp=["full_shard"]), "--fsdp and --engine ddp are two engines; keep one"),
        (asked(config={"version": 2}), "--fsdp_config has options of FSDP, which is not used: add --engine fsdp"),
        (asked(fsdp=["ful_shard"]), "--fsdp is 'ful_shard'.* did you mean full_shard"),
        (asked(fsdp=["full_shard", "offload"]), "--fsdp offload: fsdp has no offloading"),
        (asked(fsdp=["hybrid_shard"]), "--fsdp hybrid_shard: weights are divided among all processes"),
        (asked(fsdp=["no_shard"]), "use --engine ddp"),
        (asked(fsdp=["full_shard", "shard_grad_op"]), "contradict each other"),
        (asked(fsdp=["shard_grad_op"], config={"reshard_after_forward": True}), "but reshard_after_forward is True"),
        (asked("fsdp", config={"version": 1}), "version is 1: only FSDP2"),
        (asked("fsdp", config={"cpu_offload": "true"}), "cpu_offload is 'true': fsdp has no offloading"),
        (asked("fsdp", config={"activation_checkpointing": True}), "use --gradient_checkpointing True"),
        (asked("fsdp", config={"reshard_after_foward": True}), "did you mean reshard_after_forward"),
        (asked("fsdp", config="/nowhere.json"), "--fsdp_config /nowhere.json cannot be read: No such file"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose(values, lora=False)


def test_a_file_of_options(tmp_path: Path) -> None:
    path = tmp_path / "fsdp.json"
    path.write_text('{"fsdp_reshard_after_forward": false}')
    assert choose(asked("fsdp", config=str(path)), lora=True).fsdp == FsdpOptions(False)
    path.write_text("[1]")
    with pytest.raises(SettingsError, match=str(path)):
        choose(asked("fsdp", config=str(path)), lora=True)


def test_a_stage_of_the_file_that_contradicts_the_engine() -> None:
    check_stage("auto", 3)
    check_stage("zero3", 3)
    with pytest.raises(SettingsError, match="--engine zero2, but the configuration of --deepspeed is for ZeRO-3"):
        check_stage("zero2", 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fp16": True, "optim": "adamw_torch"}, "--fp16 has no loss scale under fsdp"),
        ({"fp16": False, "optim": "adafactor"}, "--optim adafactor does not know weights that are divided by rows"),
        ({"fp16": False, "optim": "paged_adamw_8bit"}, "under fsdp it can be adamw_torch"),
    ],
)
def test_what_cannot_train_divided_weights(values: dict[str, Any], message: str) -> None:
    check_fsdp({"fp16": False, "optim": "adamw_torch"})
    with pytest.raises(SettingsError, match=message):
        check_fsdp(values)
