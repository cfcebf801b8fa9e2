"""What a machine has is read from its own tools, without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastchat.plan import machine
from fastchat.plan.api import machine_of
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
