"""The engine object: which one a run has, what it answers before and after training is prepared, and its seams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastchat.checkpoint.gather import WeightAccess, gather
from fastchat.errors import CheckpointError, SettingsError
from fastchat.train.engine import DDP, Engine, Plain, ZeRO, choose_engine
from fastchat.train.engine.base import find_mismatch


def zero(stage: int) -> ZeRO:
    return ZeRO({"zero_optimization": {"stage": stage}}, 2)


def test_the_configuration_and_the_number_of_processes_choose() -> None:
    chosen = [choose_engine(None, 1), choose_engine(None, 3), choose_engine({}, 1), choose_engine({}, 3)]
    assert [(engine.name, engine.world_size) for engine in chosen] == [
        ("plain", 1),
        ("ddp", 3),
        ("zero0", 1),
        ("zero0", 3),
    ]
    assert [engine.global_batch(4, 5) for engine in chosen] == [20, 60, 20, 60]
    stages = [zero(stage) for stage in range(4)]
    assert [engine.name for engine in stages] == ["zero0", "zero1", "zero2", "zero3"]
    assert [engine.partitions for engine in stages] == [False, False, False, True]
    assert [engine.loading() is not None for engine in stages] == [False, False, False, True]
    assert (Plain(1).loading(), DDP(2).loading(), Plain(1).partitions) == (None, None, False)


def test_state_of_another_engine_does_not_fit() -> None:
    path = Path("out/checkpoint-3")
    assert find_mismatch(path, "zero2", "zero2") is None
    other = find_mismatch(path, "zero2", "zero3")
    assert other and "saved under zero2 and this run is zero3" in other


@pytest.mark.parametrize(
    ("engine", "kind", "fits"),
    [
        (Plain(1), "NO", True),
        (DDP(2), "MULTI_CPU", True),
        (DDP(2), "MULTI_GPU", True),
        (DDP(2), "FSDP", False),
        (Plain(1), "DEEPSPEED", False),
        (Plain(1), "MEGATRON_LM", False),
        (zero(2), "DEEPSPEED", True),
        (zero(2), "NO", False),
    ],
)
def test_what_accelerate_was_told_by_others_is_refused(engine: Engine, kind: str, fits: bool) -> None:
    accelerator = SimpleNamespace(distributed_type=SimpleNamespace(value=kind), gradient_accumulation_steps=1)
    args = SimpleNamespace(gradient_accumulation_steps=7)
    trainer = SimpleNamespace(accelerator=accelerator, is_deepspeed_enabled=kind == "DEEPSPEED", args=args)
    if fits:
        engine.prepare(trainer)
        assert accelerator.gradient_accumulation_steps == (7 if isinstance(engine, ZeRO) else 1)
    else:
        with pytest.raises(SettingsError, match=f"configured for {kind}, but the settings ask for {engine.name}"):
            engine.prepare(trainer)


class Elsewhere(WeightAccess):
    """Holds the values of every tensor somewhere else, as an engine that partitions them does."""

    def __init__(self, values: dict[int, torch.Tensor]) -> None:
        self.values, self.written = values, []

    @contextmanager
    def whole(self, tensor: Any, *, write: bool = False) -> Iterator[Any]:
        tensor.data = self.values[id(tensor)]
        yield tensor
        self.written.append(write)
        tensor.data = torch.empty(0)


def test_gathering_and_loading_go_through_the_engine(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from fastchat.checkpoint.load import load_weights

    model = torch.nn.Linear(3, 2)
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = Elsewhere({id(p): p.detach().clone() for p in model.parameters()})
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    found = gather(model.named_parameters(), engine)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    save_file({name: tensor + 1 for name, tensor in wanted.items()}, tmp_path / "model.safetensors")
    engine.written.clear()
    load_weights(model, tmp_path, adapter=False, weights=engine)
    assert engine.written == [True, True]
    found = gather(model.named_parameters(), engine)
    assert all(torch.equal(found[name], tensor + 1) for name, tensor in wanted.items())


@pytest.mark.parametrize("stage", [2, 3])
def test_what_is_on_its_way_comes_home_first(stage: int) -> None:
    calls: list[str] = []
    engine = zero(stage)
    names = ("checkpoint_event_prologue", "checkpoint_event_epilogue")
    optimizer = SimpleNamespace(**{name: lambda name=name: calls.append(name) for name in names})
    engine.wrapped = SimpleNamespace(optimizer=optimizer)
    with engine.at_rest():
        calls.append("gather")
    assert calls == ([names[0], "gather", names[1]] if stage == 3 else ["gather"])


def test_partitioned_weights_keep_their_dtype_while_they_are_loaded() -> None:
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, deepspeed_config

    def half() -> Any:
        config: Any = deepspeed_config()
        return config.get("bf16")

    loading = zero(3).loading()
    assert loading is not None
    for given, seen in (({}, {"enabled": True}), ({"bf16": {"enabled": False}}, {"enabled": True})):
        alive = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1, **given})
        with loading(torch.bfloat16):
            assert half() == seen
        with loading(torch.float32):
            assert half() == given.get("bf16")
        assert half() == given.get("bf16")
        del alive


def test_deepspeed_shards_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no latest: DeepSpeed's optimizer state is not there"):
        zero(2).load(tmp_path, adapter=True)
