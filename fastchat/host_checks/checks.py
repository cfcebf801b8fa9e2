"""Comparing several hosts: each check asks all of them and yields findings that name the hosts and their values."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastchat.doctor import GOOD, NOTE, Finding
from fastchat.host_checks.connection import Host, HostFailed, answers, is_here

WRONG = "WRONG"
_CLOCK_S = 1.0  # seconds that clocks may differ
_PINGS = 5
_SEEN_S = 20  # for a file to appear on another host: NFS keeps the listing of a folder for some seconds
_FILES_S, _ALL_REDUCE_S = 1800, 180
_ALL_REDUCE = 64 << 20  # bytes
_SHOWN = 5  # files named that differ


@dataclass
class Session:
    """The hosts that answer, and what to check: the port, the folder that all have to see, the files of the run."""

    hosts: list[Host]
    port: int
    folder: str
    paths: Sequence[tuple[str, str]]  # (what it is, path)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    interfaces: dict[str, str | None] = field(default_factory=dict)
    connected: bool = False  # every host reaches every other

    @property
    def names(self) -> list[str]:
        return [host.name for host in self.hosts]

    def ask_all(self, do: str, timeout: float = 60, **values: Any) -> dict[str, dict[str, Any] | HostFailed]:
        for host in self.hosts:
            host.order(do, **values)
        return answers(self.hosts, timeout)


def values_by_host(values: Mapping[str, str]) -> str:
    """
    >>> values_by_host({"a": "2.13", "b": "2.12", "c": "2.13"})
    '2.13 on a and c; 2.12 on b'
    """
    hosts: dict[str, list[str]] = {}
    for host, value in values.items():
        hosts.setdefault(value, []).append(host)
    return "; ".join(f"{value} on {_listed(found)}" for value, found in hosts.items())


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def compared(what: str, values: Mapping[str, str], way_out: str, otherwise: str = WRONG) -> Finding:
    """GOOD where all hosts have the same value; `otherwise` names the values and who has them."""
    if len(set(values.values())) == 1:
        return Finding(GOOD, what, next(iter(values.values())))
    return Finding(otherwise, what, values_by_host(values), way_out)


def answering(session: Session) -> Iterator[Finding]:
    """Which hosts can be started; the others take no part in the checks that follow."""
    found = session.ask_all("facts")
    for host in list(session.hosts):
        known = found[host.name]
        if isinstance(known, HostFailed):
            session.hosts.remove(host)
            way_out = "this installation is broken there"
            if not is_here(host.name):
                way_out = (
                    f"`ssh {host.name} true` must work without a password, and the same folder and Python "
                    "environment must be there"
                )
            yield Finding(WRONG, "host", f"{host.name} does not answer ({known})", way_out)
        else:
            session.facts[host.name] = known
    if session.hosts:
        named = [f"{host} ({known['host']})" for host, known in session.facts.items()]
        yield Finding(GOOD, "hosts", ", ".join(named))


def versions(session: Session) -> Iterator[Finding]:
    """Of Python and of every library that changes what is computed or written."""
    for name in next(iter(session.facts.values()))["versions"]:
        found = {host: facts["versions"][name] or "not installed" for host, facts in session.facts.items()}
        yield compared(name, found, "install the same version on all hosts")


def gpus(session: Session) -> Iterator[Finding]:
    found = {host: _counted(facts["gpus"]) for host, facts in session.facts.items()}
    yield compared("GPUs", found, "every host should have the same number and kind; the slowest sets the pace", NOTE)


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def clocks(session: Session) -> Iterator[Finding]:
    """Differences of the clocks; each is known to half of the time that an answer takes."""
    off: dict[str, float] = {}
    for host in session.hosts:
        best = float("inf")
        for _ in range(_PINGS):
            sent = time.time()
            there = host.ask("clock")["seconds"]
            took = time.time() - sent
            if took < best:
                best, off[host.name] = took, there - sent - took / 2
    first = off[session.names[0]]
    apart = {host: seconds - first for host, seconds in off.items()}
    widest = max(apart.values()) - min(apart.values())
    told = ", ".join(f"{host} {seconds:+.1f} s" for host, seconds in apart.items())
    if widest <= _CLOCK_S:
        yield Finding(GOOD, "clocks", f"differ by {widest:.1f} s at most")
    else:
        yield Finding(NOTE, "clocks", told, "times in logs and files do not compare; start an NTP service")


def port(session: Session) -> Iterator[Finding]:
    """Every host listens in turn, and all others connect."""
    good = True
    for listener in session.hosts:
        greeting = secrets.token_hex(16)
        try:
            listener.ask("listen", port=session.port, greeting=greeting)
        except HostFailed as failed:
            good = False
            yield Finding(WRONG, "port", f"{listener.name} cannot listen on {session.port} ({failed})", "--port 29501")
            continue
        others = [host for host in session.hosts if host is not listener]
        for host in others:
            host.order("connect", host=listener.address, port=session.port, greeting=greeting)
        for name, found in answers(others).items():
            if isinstance(found, HostFailed):
                good = False
                what = f"{name} cannot reach {listener.name}:{session.port} ({found})"
                yield Finding(WRONG, "port", what, "open this port, and those above 1024, between the hosts")
            else:
                session.interfaces[name] = found["interface"]
        listener.ask("close_port")
    session.connected = good
    if good:
        yield Finding(GOOD, "port", f"{session.port}: every host reaches every other")
        used = {host: name for host, name in session.interfaces.items() if name}
        if used:
            hint = "for training, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name it"
            yield Finding(GOOD, "interface", values_by_host(used), hint)


def shared_folder(session: Session) -> Iterator[Finding]:
    """A new file of the first host has to be seen by all."""
    first, *others = session.hosts
    name, text = f".fastchat-doctor-{secrets.token_hex(6)}", secrets.token_hex(16)
    try:
        made = first.ask("write_note", folder=session.folder, name=name, text=text)["made"]
    except HostFailed as failed:
        yield Finding(WRONG, "shared folder", f"{first.name} cannot write in {session.folder} ({failed})", "mount it")
        return
    for host in others:
        host.order("read_note", folder=session.folder, name=name, text=text, wait=_SEEN_S)
    found = answers(others)
    first.ask("remove_note", folder=session.folder, name=name, made=made)
    blind = [host for host, seen in found.items() if isinstance(seen, HostFailed) or not seen["seen"]]
    if not blind:
        yield Finding(GOOD, "shared folder", f"{session.folder}: all hosts see the same files")
    else:
        what = (
            f"{_listed(blind)} do{'es' if len(blind) == 1 else ''} not see what {first.name} writes in {session.folder}"
        )
        yield Finding(WRONG, "shared folder", what, "checkpoints need an --output_dir on a disk that all hosts mount")


def same_files(session: Session) -> Iterator[Finding]:
    """Model, tokenizer and data of the run, by content; weights by size."""
    if not session.paths:
        yield Finding(NOTE, "files", "not compared", "name the recipe, or --model_name_or_path and --data_path")
    for what, path in session.paths:
        found = session.ask_all("files", _FILES_S, path=path)
        failed = {host: str(known) for host, known in found.items() if isinstance(known, HostFailed)}
        if failed:
            yield Finding(WRONG, what, f"{path}: {values_by_host(failed)}", "make it readable on all hosts")
            continue
        yield _same(what, path, {h: known["files"] for h, known in found.items() if not isinstance(known, HostFailed)})


def _same(what: str, path: str, files: Mapping[str, Mapping[str, str]]) -> Finding:
    if not any(files.values()):
        return Finding(NOTE, what, f"{path} is no file on any host", "a hub name is not compared; otherwise copy it")
    absent = [host for host, found in files.items() if not found]
    if absent:
        there = [host for host in files if host not in absent]
        return Finding(WRONG, what, f"{path} is on {_listed(there)} but not on {_listed(absent)}", "copy it there")
    names = sorted({name for found in files.values() for name in found})
    told = []
    for name in names:
        values = {host: found.get(name, "missing") for host, found in files.items()}
        if len(set(values.values())) > 1:
            told.append(f"{name}: {values_by_host(values)}")
    if not told:
        return Finding(GOOD, what, f"{path}: {len(names)} file{'s are' if len(names) > 1 else ' is'} the same")
    more = f", and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return Finding(WRONG, what, f"{path}: {', '.join(told[:_SHOWN])}{more}", "copy the right ones to all hosts")


def bandwidth(session: Session) -> Iterator[Finding]:
    """One all-reduce over one process per host; the result is what each host sends, and receives, per second."""
    if not session.connected:
        yield Finding(NOTE, "all-reduce", "not tried", "the port has to be reachable first")
        return
    hosts = len(session.hosts)
    gpu = all(facts["gpus"] for facts in session.facts.values())
    for rank, host in enumerate(session.hosts):
        meet = {"rank": rank, "world": hosts, "address": session.hosts[0].address, "port": session.port}
        interface = session.interfaces.get(host.name)
        host.order("all_reduce", **meet, interface=interface, size=_ALL_REDUCE, gpu=gpu)
    found = answers(session.hosts, _ALL_REDUCE_S)
    failed = {host: str(known) for host, known in found.items() if isinstance(known, HostFailed)}
    backend = "nccl" if gpu else "gloo"
    if failed:
        hint = f"NCCL_DEBUG=INFO shows more; {'NCCL' if gpu else 'GLOO'}_SOCKET_IFNAME names the interface"
        yield Finding(WRONG, "all-reduce", f"{backend}: {values_by_host(failed)}", hint)
        return
    good = [known for known in found.values() if not isinstance(known, HostFailed)]
    if not all(known["right"] for known in good):
        yield Finding(WRONG, "all-reduce", f"{backend}: the sum is wrong", "do not train on this network")
        return
    seconds = max(known["seconds"] for known in good)
    speed = 2 * (hosts - 1) / hosts * _ALL_REDUCE / seconds
    yield Finding(
        GOOD, "all-reduce", f"{backend}, {_ALL_REDUCE >> 20} MiB in {seconds:.2f} s: {_speed(speed)} per host"
    )


def _speed(bytes_per_second: float) -> str:
    """
    >>> _speed(1.25e9), _speed(5e6)
    ('1.2 GB/s (10 Gbit/s)', '5.0 MB/s (0.04 Gbit/s)')
    """
    size, unit = (bytes_per_second / 1e9, "GB") if bytes_per_second >= 1e9 else (bytes_per_second / 1e6, "MB")
    return f"{size:.1f} {unit}/s ({bytes_per_second * 8 / 1e9:.2g} Gbit/s)"


CHECKS: tuple[Callable[[Session], Iterator[Finding]], ...] = (
    *(versions, gpus, clocks, port, shared_folder, same_files, bandwidth),
)
