"""Two hosts, as two namespaces of this machine: every fault between them ends as `SCENARIOS` says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.hosts.scenarios import HOSTFILE, SCENARIOS, Scenario, play, prepare_material
from tests.hosts.two_hosts import why_no_ssh, why_not

pytestmark = [
    pytest.mark.launch,
    pytest.mark.thorough,
    pytest.mark.skipif(bool(why_not()), reason=f"two hosts cannot be made here: {why_not()}"),
]


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_what_goes_wrong_between_hosts_is_said_on_both(scenario: Scenario, material: Path, tmp_path: Path) -> None:
    played = play(scenario, "ddp", "c10d" if scenario.restarts or scenario.code else "static", material, tmp_path)
    for host, words in scenario.says.items():
        assert words in played.logs[host], played.logs[host][-3000:]
    assert not played.codes or scenario.code in played.codes, played.codes
    if played.status:
        assert played.status["exit_code"] == scenario.code, played.status
    if scenario.code == 0:
        assert set(played.returned.values()) == {0} and len(_losses(played.output)) >= 6
    elif scenario.happens:
        assert max(played.seconds.values()) < 115 and any(played.output.glob("checkpoint-*"))
    ours = re.findall(r"^(?:\[rank \d\] )?error: .*", "\n".join(played.logs.values()), re.M)
    assert "Traceback" not in "".join(ours) and not any("a bug in the program" in line for line in ours), ours


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_a_cut_cable_under_deepspeed_engines(engine: str, material: Path, tmp_path: Path) -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.happens == "cut")
    played = play(scenario, engine, "static", material, tmp_path)
    assert all(words in played.logs[host] for host, words in scenario.says.items()), played.logs
    assert played.status["exit_code"] == 6 and max(played.seconds.values()) < 115


@pytest.mark.skipif(bool(why_no_ssh()), reason=why_no_ssh())
@pytest.mark.parametrize("scenario", HOSTFILE, ids=lambda scenario: scenario.name)
def test_a_stop_of_deepspeed_over_ssh_saves(scenario: Scenario, material: Path, tmp_path: Path) -> None:
    """pdsh and ssh die first: what the ranks print then goes nowhere, and they save all the same."""
    played = play(scenario, "zero2", "hostfile", material, tmp_path)
    assert (played.status["exit_code"], played.status["status"]) == (75, "preempted"), played.logs
    steps = [int(path.name.partition("-")[2]) for path in played.output.glob("checkpoint-*")]
    assert f"step {max(steps)} of 4000 is saved" in str(played.status["message"])


def _losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
