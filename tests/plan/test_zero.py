"""DeepSpeed configurations: how they are read, and that the arithmetic is what two real processes keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import SettingsError
from fastchat.plan.architecture import Architecture
from fastchat.plan.families import LLAMA, architecture_of_size
from fastchat.plan.run import Machine, Run
from fastchat.plan.search import ENGINES
from fastchat.plan.states import states_of
from fastchat.plan.zero import Zero, read_zero


def test_reads_the_shipped_configurations(repository: Path) -> None:
    """The engines that are recommended are the files in playground/."""
    for engine in ENGINES:
        assert Path(engine.path) == repository / "playground" / engine.file
        shipped = read_zero(engine.path, 4096)
        assert replace(shipped, path="") == read_zero(engine.zero, 4096)


def test_auto_is_what_transformers_makes_of_it(repository: Path) -> None:
    zero = read_zero(str(repository / "playground/deepspeed_config_lora_s3.json"), 5120)
    assert (zero.stage, zero.offload_optimizer, zero.offload_params) == (3, True, True)
    assert (zero.reduce_bucket, zero.prefetch, zero.persistence) == (5120**2, int(0.9 * 5120**2), 51200)


def test_deepspeed_s_own_defaults() -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for stage in (0, 1, 2, 3):
        real, ours = DeepSpeedZeroConfig(stage=stage), read_zero({"zero_optimization": {"stage": stage}}, 4096)
        assert (ours.reduce_bucket, ours.live_parameters) == (real.reduce_bucket_size, real.max_live_parameters)
        assert (ours.prefetch, ours.persistence) == (real.prefetch_bucket_size, real.param_persistence_threshold)
        assert (ours.sub_group, ours.contiguous) == (real.sub_group_size, real.contiguous_gradients)
        assert ours.overlap == real.overlap_comm


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"zero_optimization": {"stage": 4}}', "stage must be 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}}', "reduce_bucket_size is 'big'"),
        (None, "cannot be read"),
    ],
)
def test_unusable_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=message):
        read_zero(str(path), 4096)


def test_precision_fixed_in_the_file_wins() -> None:
    on = read_zero({"bf16": {"enabled": True}}, 8)
    off = read_zero({"bf16": {"enabled": False}, "fp16": {"enabled": False}}, 8)
    follows = read_zero({"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}, 8)
    run = Run(architecture_of_size("7b"))
    assert [replace(run, zero=zero).weight_bytes for zero in (on, off, follows)] == [2, 4, 2]
    assert replace(run, zero=follows, bf16=False).weight_bytes == 4


def states(stage: int, gpus: int = 8, lora: bool = True, **changed: Any) -> Any:
    run = Run(architecture_of_size("7b"), Machine(gpus=gpus), lora=lora, zero=Zero(stage=stage, **changed))
    return states_of(run), run


def test_what_each_stage_divides() -> None:
    p = Run(architecture_of_size("7b"), lora=False).trained
    for stage, gradients in ((1, 2 * p), (2, p / 4)):
        s, _ = states(stage, lora=False)
        assert s.weights == 2 * p
        assert s.gradients == pytest.approx(gradients, rel=1e-6)
        assert s.optimizer == pytest.approx(12 * p / 8, rel=1e-6)
    s, _ = states(3, lora=False)
    assert (s.weights, s.gradients) == pytest.approx((2 * p / 8, 2 * p / 8), rel=1e-6)


def test_offloading_moves_bytes_to_the_host() -> None:
    p = Run(architecture_of_size("7b"), lora=False).trained
    s, _ = states(3, lora=False, offload_optimizer=True, offload_params=True)
    assert (s.weights, s.gradients, s.optimizer) == (0, 0, 0)
    assert s.host_weights == pytest.approx(2 * p / 8, rel=1e-6)
    assert s.host_optimizer == pytest.approx(12 * p / 8, rel=1e-6)
    s, _ = states(2, lora=False, offload_optimizer=True)
    assert s.weights == 2 * p
    assert s.optimizer == 0


def test_gathered_weights_stay_below_the_limit() -> None:
    s, run = states(3)
    assert s.buffers >= 2 * Zero().live_parameters
    small, _ = states(3, live_parameters=1)
    largest = 2 * max(run.architecture.embedding_elements, sum(x.elements for x in run.architecture.layer_linears))
    assert small.buffers - 2 * Zero().reduce_bucket == largest
    assert states(3, gpus=1)[0].buffers == 2 * Zero().reduce_bucket


def test_a_quantised_model_is_loaded_whole_before_zero3_divides_it() -> None:
    run = Run(architecture_of_size("7b"), Machine(gpus=8), q_lora=True, zero=Zero(stage=3))
    s = states_of(run)
    assert s.weights + s.loading == states_of(replace(run, zero=Zero(stage=2))).weights


# ---- two real processes ----


def run_probe(tmp_path: Path, repository: Path, config: dict[str, Any], how: str, hidden: int) -> dict[str, int]:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    command = [launcher, "--num_gpus", "2", "--master_port", "29731", str(repository / "tests/plan/zero_probe.py")]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [*command, str(path), how, str(hidden)], env=environment, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stdout.splitlines() if "PROBE " in line]
    assert lines, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(lines[0].partition("PROBE ")[2])


@pytest.mark.launch
@pytest.mark.parametrize(("stage", "how"), [(1, "lora"), (2, "lora"), (2, "full"), (3, "lora"), (3, "full")])
def test_two_processes(tmp_path: Path, repository: Path, stage: int, how: str) -> None:
    """Weights, gradients and optimizer states of a real engine, on CPU, within the 5 % promised."""
    hidden = 256
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1_000_000, "stage3_param_persistence_threshold": 0},
    }
    found = run_probe(tmp_path, repository, config, how, hidden)
    architecture = Architecture("test", LLAMA, hidden, 4, 4, 2, hidden // 4, 2 * hidden, 1000, False)
    run = Run(architecture, Machine(gpus=2), lora=how == "lora", zero=read_zero(config, hidden))
    ours = states_of(run)
    assert found["trained"] == run.trained
    assert ours.weights == pytest.approx(found["weights"], rel=0.05)
    assert ours.optimizer == pytest.approx(found["optimizer"], rel=0.05)
    if stage >= 2:
        assert ours.gradients == pytest.approx(found["gradients"], rel=0.05)
