"""Detection of GPUs and memory from the tools of the machine, without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastchat.plan import machine
from fastchat.plan.api import Machine, estimate, largest_microbatch, machine_asked, machine_of, run_of
from fastchat.plan.command_line import read_flags
from fastchat.plan.estimate import PROCESS
from fastchat.plan.machine import Gpu, detect_cpu_memory, detect_gpus, visible_gpus
from fastchat.plan.units import GIB, MIB

LISTING = "NVIDIA RTX 3090, 24576, GPU-aaaa\nNVIDIA H100 80GB HBM3, 81559, GPU-bbbb\n"
SMALL, LARGE = Gpu("NVIDIA RTX 3090", 24576 * MIB), Gpu("NVIDIA H100 80GB HBM3", 81559 * MIB)


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        (None, [SMALL, LARGE]),
        ("1", [LARGE]),
        ("1,0", [LARGE, SMALL]),
        ("GPU-bb", [LARGE]),
        ("0,7,1", [SMALL]),
        ("", []),
        ("-1", []),
    ],
)
def test_visible_gpus(visible: str | None, gpus: list[Gpu]) -> None:
    assert visible_gpus(LISTING, visible) == gpus


@pytest.mark.parametrize("listing", ["", "No devices were found\n", "NVIDIA, [N/A], GPU-x\n"])
def test_odd_answers_of_nvidia_smi(listing: str) -> None:
    assert visible_gpus(listing, None) == []


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_gpus() == []


def test_asks_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{LISTING}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert detect_gpus() == [SMALL, LARGE]
    found = machine_of(cpu_memory=64 * GIB)
    assert (found.gpus, found.gpu_memory, found.cpu_memory) == (2, SMALL.memory, 64 * GIB)  # the smallest counts
    assert machine_of(gpus=1).cpu_memory == detect_cpu_memory()


def test_cpu_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16384000 kB\nMemFree: 1 kB\n")
    monkeypatch.setattr(machine, "_limit", lambda path: None)
    assert detect_cpu_memory(str(meminfo)) == 16384000 * 1024
    monkeypatch.setattr(machine, "_limit", lambda path: 4 * GIB)
    assert detect_cpu_memory(str(meminfo)) == 4 * GIB
    assert detect_cpu_memory(str(tmp_path / "none")) is None


def test_another_machine_has_not_this_one_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastchat.plan.api.detect_gpus", lambda: [])
    assert machine_of(gpus=8, gpu_memory=24 * GIB).cpu_memory is None
    assert machine_of().cpu_memory == detect_cpu_memory()


def test_hosts_share_the_gpus() -> None:
    assert machine_of(gpus=16, hosts=2, gpu_memory=GIB, cpu_memory=GIB).gpus_per_host == 8


def test_only_the_gpus_that_are_used_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastchat.plan.api.detect_gpus", lambda: [LARGE, SMALL])
    assert machine_of(gpus=1).gpu_memory == LARGE.memory
    assert machine_of(gpus=2).gpu_memory == SMALL.memory


def test_on_a_cpu_the_processes_share_the_host() -> None:
    """On a CPU the host's memory is the limit, and CUDA needs nothing."""
    words = ["--model_size", "7b", "--use_cpu", "True", "--gpus", "2", "--cpu_memory", "64GiB", "--lora_dropout", "0"]
    one = estimate(run_of(read_flags(words), machine_asked(read_flags(words))))
    assert one.gpu_fits is None and one.host_total == 2 * (one.total + PROCESS)
    assert one.fits is (one.host_total <= 64 * GIB) is False
    batch = largest_microbatch(one.run)
    assert batch and estimate(replace(one.run, per_device_train_batch_size=batch)).fits
    assert not estimate(replace(one.run, per_device_train_batch_size=batch + 1)).fits
    gpu = estimate(replace(one.run, machine=Machine(2, 1, 24 * GIB)))
    assert one.reserve < gpu.reserve


def test_flash_attention_counts_here_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = read_flags(["--model_size", "7b", "--flash_attn", "True"])
    kernels = []
    for installed, machine_here in ((True, True), (False, True), (False, False)):
        monkeypatch.setattr("fastchat.plan.api.flash_attention_installed", lambda answer=installed: answer)
        name = "NVIDIA H100" if machine_here else ""
        kernels.append(run_of(flags, Machine(1, 1, 80 * GIB, gpu_name=name)).attention)
    assert kernels == ["flash_attention_2", "sdpa", "flash_attention_2"]
