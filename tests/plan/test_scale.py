"""Bytes per step and link, and operations, against numbers computed by hand; docs/scale.md is up to date."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastchat.plan.families import architecture_from_config
from fastchat.plan.run import Machine, Run
from fastchat.plan.scale import TABLES, main, with_tables
from fastchat.plan.traffic import (
    Hardware,
    Sent,
    Transfer,
    hiding_tokens,
    operations_per_token,
    plan_with,
    sent,
    sent_per_step,
    step_seconds,
)
from fastchat.settings.engines import FsdpOptions

# Two layers of q, k, v, o 4x4 and gate, up, down 4x8 (160) and two norms of 4; embedding and head 10x4; last norm 4.
TINY = {
    **{"model_type": "llama", "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "intermediate_size": 8, "vocab_size": 10, "max_position_embeddings": 16},
}
ALL = 2 * (160 + 8) + 2 * 40 + 4
ADAPTER = 2 * (4 * (4 + 4) + 3 * (4 + 8))  # rank 1 on the seven matrices of each layer


def _run(gpus: int = 4, hosts: int = 2, **settings: object) -> Run:
    values = {"lora_r": 1, "model_max_length": 16, "per_device_train_batch_size": 1, **settings}
    return Run(architecture_from_config(TINY, "tiny"), Machine(gpus, hosts), **values)  # pyright: ignore[reportArgumentType]


def test_a_collective_over_all_sends_one_of_its_hops_over_the_network() -> None:
    run = _run(gpus=4, hosts=2)
    assert sent(Transfer(800), run) == Sent(300, 300)  # 3/4 of it; one of two hops of a ring is between hosts
    assert sent(Transfer(800, 2), run) == Sent(600, 600)
    assert sent(Transfer(800, among="host"), run) == Sent(400, 0)
    assert sent(Transfer(800, 2, "hosts"), run) == Sent(0, 800)
    assert sent(Transfer(800), _run(gpus=4, hosts=1)) == Sent(600, 0)
    assert sent(Transfer(800), _run(gpus=1, hosts=1)) == Sent(0, 0)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_bytes_of_full_fine_tuning(accumulation: int) -> None:
    run = _run(gpus=4, hosts=1, lora=False, gradient_accumulation_steps=accumulation)
    part, again = 3 / 4 * 2 * ALL, accumulation  # 16-bit numbers
    assert sent_per_step(run, "ddp").inside == 2 * part
    assert sent_per_step(run, "zero1").inside == 3 * part
    assert sent_per_step(run, "zero2").inside == pytest.approx((2 * again + 1) * part)
    assert sent_per_step(run, "zero3").inside == pytest.approx(3 * again * part)
    assert sent_per_step(run, "fsdp").inside == pytest.approx(4 * again * part)  # gradients are summed in float32


def test_an_adapter_sends_little_but_its_base_is_still_gathered() -> None:
    run = _run(gpus=4, hosts=1)
    assert run.trained == ADAPTER
    assert sent_per_step(run, "ddp").inside == 3 / 4 * 2 * 4 * ADAPTER  # float32
    assert sent_per_step(run, "zero2").inside == 3 / 4 * 3 * 2 * ADAPTER
    # The adapter's matrices are below `stage3_param_persistence_threshold`; the embedding is not gathered twice.
    assert sent_per_step(run, "zero3").inside == 3 / 4 * (2 * 2 * ALL - 2 * 40 + 2 * ADAPTER)
    checkpointing = sent_per_step(replace(run, gradient_checkpointing=True), "zero3").inside
    assert checkpointing == 3 / 4 * (2 * 2 * ALL + 2 * ADAPTER)
    quantized = sent_per_step(replace(run, q_lora=True), "zero3").inside
    assert quantized == 3 / 4 * (2 * (320 // 2 + 2 * (ALL - 320)) - 2 * 40 + 2 * ADAPTER)
    large = replace(run, lora_r=100)
    assert large.trained == 100 * ADAPTER
    assert sent_per_step(large, "zero3").inside == 3 / 4 * (2 * 2 * (ALL + 100 * ADAPTER) - 2 * 40 + 200 * ADAPTER)
    assert sent_per_step(run, "fsdp").inside == 3 / 4 * (2 * 2 * (ALL + ADAPTER) + 4 * ADAPTER)


def test_hybrid_sharding_gathers_inside_the_host() -> None:
    run = _run(gpus=4, hosts=2, lora=False)
    inside = 1 / 2 * (2 * 2 * ALL + 4 * ALL)  # two gathers in 16 bits and float32 gradients, between two GPUs
    between = 1 / 2 * 2 * 4 * ALL / 2  # an all-reduce of the half that each GPU has, between two hosts
    assert sent_per_step(run, "hybrid") == Sent(inside, between)
    alone = _run(gpus=4, hosts=1, lora=False)
    assert sent_per_step(alone, "hybrid") == sent_per_step(alone, "fsdp")


def test_operations_of_a_token() -> None:
    attention = 2 * 2 * 4 * 16  # two layers, width 4, 16 positions, causal
    full = 6 * 320 + 6 * 40 + 3 * attention
    assert operations_per_token(_run(lora=False)) == full
    assert operations_per_token(_run(lora=False, gradient_checkpointing=True)) == full + 2 * 320 + attention
    assert operations_per_token(_run()) == 4 * 320 + 4 * 40 + 3 * attention + 6 * ADAPTER


def test_a_step_takes_the_longer_of_computation_and_hidden_communication() -> None:
    run = _run(gpus=4, hosts=2, lora=False)
    hardware = Hardware(inside=1e9, network=100.0, peak=1e6, usable=0.5, busy=0.5)
    compute = 16 * operations_per_token(run) / 5e5
    all_gather = 3 / 4 / 2 * 2 * ALL / 50
    assert 3 * all_gather > compute
    assert step_seconds(run, "zero3", hardware) == pytest.approx(3 * all_gather)
    assert hiding_tokens(run, "zero3", hardware) == pytest.approx(16 * 3 * all_gather / compute)
    # ZeRO-1 sends its gradients once, so accumulation hides them; the all-gather after the step is never hidden.
    longer = replace(run, gradient_accumulation_steps=1000)
    assert step_seconds(longer, "zero1", hardware) == pytest.approx(1000 * compute + all_gather)
    assert step_seconds(longer, "zero3", hardware) == pytest.approx(3000 * all_gather)


def test_hybrid_sharding_needs_the_memory_of_one_host() -> None:
    two, one = _run(gpus=4, hosts=2, lora=False), _run(gpus=2, hosts=1, lora=False)
    assert plan_with(two, "hybrid").total == plan_with(one, "fsdp").total > plan_with(two, "fsdp").total
    assert plan_with(two, "hybrid").weights == 4 * ALL / 2  # in float32


def test_fsdp_that_keeps_weights_gathers_them_once() -> None:
    run = _run(gpus=4, hosts=1, lora=False, fsdp=FsdpOptions(reshard_after_forward=False))
    assert sent_per_step(run, "fsdp").inside == 3 / 4 * (2 * ALL + 4 * ALL)


def test_the_page_has_the_tables_that_the_code_computes(repository: Path) -> None:
    page = (repository / "docs" / "scale.md").read_text(encoding="utf-8")
    assert page == with_tables(page), "run `python -m fastchat.plan.scale docs/scale.md`"
    assert all(page.count(f"<!-- table {name} -->") == 1 for name in TABLES)


def test_tables_are_computed_in_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- table published -->\n| old |\n\nafter\n\n<!-- table published -->\n\n## B\n")
    assert main([str(page)]) == 0
    table = "\n".join(["<!-- table published -->", *TABLES["published"]()])
    assert page.read_text() == f"# A\n\n{table}\n\nafter\n\n{table}\n\n## B\n"
    assert with_tables(page.read_text()) == page.read_text()
    assert main([]) == 2
