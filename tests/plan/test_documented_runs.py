"""The table of documented runs in docs/planner.md matches the planner."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastchat.plan.api import Machine, Plan, estimate, largest_microbatch, run_of
from fastchat.plan.command_line import read_flags
from fastchat.plan.units import GIB, human

SIZES = (24, 40, 48, 80, 141)
RUN = r"(?:(\d+b), rank (\d+), (QLoRA|LoRA), ZeRO-(\d).*, batch (\d+) )?"
ROW = re.compile(rf"^\| {RUN}\| (yes|no) \| (.*?) \| (.*?) \| (.*?) \|$")


def rows(repository: Path) -> list[tuple[str, ...]]:
    """(size, rank, method, stage, batch, checkpointing, per GPU, fits on, largest batches), blanks filled in."""
    found: list[tuple[str, ...]] = []
    for line in (repository / "docs" / "planner.md").read_text(encoding="utf-8").splitlines():
        match = ROW.match(line)
        if match:
            own = match.groups()
            found.append(own if own[0] else found[-1][:5] + own[5:])
    return found


def plan(row: tuple[str, ...], gpus: int, gib: int) -> Plan:
    size, rank, method, stage, batch, checkpointing = row[:6]
    words = f"--model_size {size} --lora_r {rank} --q_lora {method == 'QLoRA'} --per_device_train_batch_size {batch}"
    words += f" --deepspeed playground/deepspeed_config_lora_s{stage}.json --model_max_length 1024 --bf16 True"
    words += f" --gradient_checkpointing {checkpointing == 'yes'}"
    return estimate(run_of(read_flags(words.split()), Machine(gpus, 1, gib * GIB)))


@pytest.mark.parametrize("at", range(6))
def test_each_row(at: int, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    row = rows(repository)[at]
    needs, fits, largest = row[6:]
    assert human(plan(row, 4, 24).total) == needs
    smallest = int(fits.split()[0])
    assert "and more" in fits or smallest == SIZES[-1]
    for gpus in (1, 2, 4, 8):
        assert [bool(plan(row, gpus, gib).gpu_fits) for gib in SIZES] == [gib >= smallest for gib in SIZES]
    assert [largest_microbatch(plan(row, 4, gib).run) for gib in SIZES] == [int(n) for n in largest.split(", ")]


def test_the_hosts_memory(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    text = " ".join((repository / "docs" / "planner.md").read_text(encoding="utf-8").split())
    found = re.search(r"which needs (\d+) to (\d+) GiB for 1 to 8 GPUs", text)
    row = next(row for row in rows(repository) if row[0] == "70b")
    assert found and [round(plan(row, n, 80).host_total / GIB) for n in (1, 8)] == [int(n) for n in found.groups()]


def test_the_command_in_it_works(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastchat.plan.__main__ import main

    monkeypatch.chdir(repository)
    text = (repository / "docs" / "planner.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^fastchat plan (--model_size 13b .*)$", text, re.MULTILINE)
    assert main(line.split()) == 0
    assert "fits" in capsys.readouterr().out.splitlines()
