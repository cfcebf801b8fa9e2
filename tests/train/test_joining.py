"""How processes meet, what they compare, and how they learn of each other's end. Two hosts: see tests/hosts."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fastchat.errors import DataError, SettingsError, UserError
from fastchat.machines import Place, here, machine_id, named
from fastchat.settings.readers import training_options
from fastchat.settings.values import Values
from fastchat.train import lifeline
from fastchat.train.agreement import OWN, differences, settings_facts
from fastchat.train.joining import MEETING, together
from fastchat.train.lifeline import LIFELINE, Lifeline
from tests.machine import free_port, wait_for

A, B = Place(0, 0, 10, "node", "boot-1 pid:[1]"), Place(1, 0, 10, "node", "boot-1 pid:[2]")


# ---- what is compared ----


def test_what_differs_is_named_with_both_values_and_hosts() -> None:
    same = {"--seed": 1, "the tokenizer": "a" * 64}
    assert differences([(A, same), (B, dict(same))]) == ""
    other = {"--seed": 2, "the tokenizer": "b" * 64, "deepspeed": "0.19"}
    line = differences([(A, same), (replace(A, rank=1), same), (B, other)])
    assert "--seed is 1 on node (ranks 0, 1) and 2 on node (rank 1)" in line, "coinciding names are told by their ranks"
    assert (
        "the tokenizer is aaaaaaaaaaaa… on" in line and "deepspeed is not there on node (ranks 0, 1) and 0.19" in line
    )
    assert "node (ranks 0-3)" in named([replace(A, rank=rank) for rank in range(4)])


def test_every_setting_is_compared_unless_a_machine_may_have_its_own() -> None:
    options = training_options(lora=True)
    facts = settings_facts(Values(options, {}, {"hub_token": "hf_secret_value"}), {"zero_optimization": {"stage": 2}})
    left_out = {option.name for option in options if f"--{option.name}" not in facts}
    assert left_out == {*OWN, *(option.name for option in options if option.path)} - {"deepspeed"}
    assert "hf_secret_value" not in json.dumps(facts) and facts["--deepspeed, zero_optimization"] == {"stage": 2}
    assert {"torch", "transformers", "fastchat", "Python"} < set(facts)
    changed = settings_facts(Values(options, {}, {"max_steps": 9}), {"zero_optimization": {"stage": 3}})
    assert {name for name in facts if facts[name] != changed[name]} == {"--max_steps", "--deepspeed, zero_optimization"}


def test_a_machine_is_no_host_name() -> None:
    assert (
        machine_id() == here().machine and Path("/proc/sys/kernel/random/boot_id").read_text().strip() in machine_id()
    )
    assert (
        A.host == B.host and A.seen_from(A) == "rank 0 (process 10)" and A.seen_from(B) == "rank 0 on node (process 10)"
    )


# ---- how they meet ----


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """This is rank 0 of two; what is left of the meeting is forgotten."""
    number = free_port()
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(number))
    yield number
    LIFELINE.close()
    LIFELINE._forget()
    MEETING.__init__()


def _meet(works: list[Any], facts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(type, message) of what `together` raised, by rank; ("", result) where it did not. Rank 1 is forked."""

    def outcome(rank: int) -> tuple[str, str]:
        def work() -> Any:
            if isinstance(works[rank], Exception):
                raise works[rank]
            return works[rank]

        try:
            return "", str(together(work, lambda result: facts[rank], lambda result: 60.0))
        except Exception as error:  # noqa: BLE001
            return type(error).__name__, str(error)

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.environ.update(RANK="1", LOCAL_RANK="1")
            os.write(writer, json.dumps(outcome(1)).encode())
            LIFELINE.close()
        finally:
            os._exit(0)
    os.close(writer)
    first = outcome(0)
    with open(reader) as told:
        second = json.load(told)
    os.waitpid(child, 0)
    return [first, tuple(second)]


def test_processes_meet_and_an_error_of_one_is_raised_in_all(port: int) -> None:
    """Several starts with one store, as under torchrun: what the last one left there does not count."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    try:
        same: list[dict[str, Any]] = [{"--seed": 1}, {"--seed": 1}]
        missing = DataError("data.json: no such file")
        assert _meet(["here", missing], same) == [("DataError", str(missing))] * 2
        assert _meet([missing, "there"], same) == [("DataError", str(missing))] * 2
        assert _meet([ZeroDivisionError("a bug"), "there"], same)[1][0] == "PeerFailed"
        found = _meet(["here", "there"], [{"--seed": 1, "--max_steps": 2}, {"--seed": 1, "--max_steps": 3}])
        assert {kind for kind, _ in found} == {"SettingsError"} and "--max_steps is 2 on" in found[1][1], found
        assert _meet(["here", "there"], same) == [("", "here"), ("", "there")]
        assert [place.rank for place in MEETING.places] == [0, 1]
    finally:
        del os.environ["TORCHELASTIC_USE_AGENT_STORE"]
    assert store.num_keys() > 0


def test_a_process_that_does_not_come_is_named(port: int) -> None:
    with pytest.raises(UserError, match="rank 1 has not joined the run within --ddp_timeout"):
        together(lambda: 1, lambda result: {}, lambda result: 0.5)


def test_without_a_launcher_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert together(lambda: 1, lambda result: {}, lambda result: 1.0) == 1
    with pytest.raises(SettingsError, match="wrong"):
        together(lambda: _fail("wrong"), lambda result: {}, lambda result: 1.0)


def _fail(message: str) -> None:
    raise SettingsError(message)


# ---- the lifeline ----


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Lifeline]]:
    """The ends of three processes, rank 0 first."""
    monkeypatch.setattr(lifeline, "GRACE_S", 0.0)
    lines = [Lifeline(), Lifeline(), Lifeline()]
    port, secret = lines[0].listen(A)
    for rank in (1, 2):
        assert lines[rank].connect(replace(B, rank=rank), ["127.0.0.1"], port, secret)
    yield lines
    for line in lines:
        line.close()
        line._forget()


def test_the_first_end_is_known_to_all_and_stays(three: list[Lifeline]) -> None:
    reacted: list[lifeline.Ended] = []
    three[2].watch(reacted.append, lambda: None)
    three[1].tell(3, "failed", "row 7 is wrong")
    ends = [three[rank].wait(60) for rank in (0, 2)]
    assert {(end.place.rank, end.exit_code, end.message) for end in ends if end} == {(1, 3, "row 7 is wrong")}
    wait_for(lambda: bool(reacted))
    three[0].tell(6, "failed", "the connection is gone")
    assert three[2].wait(0) == ends[1] == reacted[0] and three[1].ended is None


def test_the_end_of_an_earlier_run_does_not_end_a_later_one(three: list[Lifeline]) -> None:
    """Of the same process, which went on after the error: nobody had reacted to that end yet."""
    three[1].tell(3, "failed", "row 7 is wrong")
    assert three[2].wait(60) and three[0].wait(60)
    reacted: list[lifeline.Ended] = []
    three[2]._forget()
    three[2].watch(reacted.append, lambda: None)
    three[0].watch(reacted.append, lambda: None)
    wait_for(lambda: bool(reacted))
    time.sleep(1.0)  # twice as long as those who wait for a reaction sleep
    assert [end.message for end in reacted] == ["row 7 is wrong"], "that of rank 0, which has begun nothing else"


def test_a_process_that_is_killed_is_missed_and_one_that_is_done_is_not(three: list[Lifeline]) -> None:
    three[1].close()
    for line in list(three[1]._lines):
        line.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: len(three[0]._lines) == 1)
    assert three[0].ended is None
    for line in list(three[2]._lines):
        line.shutdown(socket.SHUT_RDWR)
    ended = three[0].wait(60)
    assert ended is not None and (ended.place.rank, ended.message, ended.silent) == (2, "", False)


def test_a_child_does_not_hold_the_line_of_its_parent() -> None:
    """A data loader's worker lives on for a while when its process is killed."""
    first = Lifeline()
    port, secret = first.listen(A)
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        with suppress(BaseException):
            assert Lifeline().connect(B, ["127.0.0.1"], port, secret)
            worker = os.fork()
            os.write(writer, str(worker or "").encode())
            os.read(os.pipe()[0], 1)  # until it is killed
        os._exit(1)
    worker = int(os.read(reader, 20))
    try:
        os.kill(process, 9)
        ended = first.wait(60)
        assert ended is not None and ended.place == B and not ended.message
    finally:
        os.waitpid(process, 0)
        os.kill(worker, 9)
        first._forget()


def test_a_stranger_is_not_heard_and_a_stop_is_followed_at_once(three: list[Lifeline]) -> None:
    assert three[0]._server is not None
    port = three[0]._server.getsockname()[1]
    assert not Lifeline().connect(replace(B, rank=9), ["127.0.0.1"], port, "guessed")
    stopped: list[int] = []
    three[0].watch(lambda ended: None, lambda: stopped.append(1))
    three[1].tell(75, "preempted", "received SIGTERM")
    wait_for(lambda: bool(stopped))
    assert all(place.rank != 9 for place in three[0]._lines.values())
