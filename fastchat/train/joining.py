"""How the processes of a run find each other: before there is a process group, through the launcher's key-value store.

Every process first does by itself what needs no other one: it reads and checks its settings. Only then can they meet,
and what they say first is how that went. So a mistake on one host is known on all at once, and settings that differ are
named before a collective operation is made whose number or kind depends on them.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from fastchat import errors
from fastchat.errors import PeerFailed, ResourceError, SettingsError, UserError
from fastchat.files import parse_json
from fastchat.machines import Place, are_several, here
from fastchat.train.agreement import differences
from fastchat.train.lifeline import LIFELINE

T = TypeVar("T")
_POLL_S = 0.1
_LINGER_S = 30.0  # for the others to learn why this process ends, which may hold the store
_CONNECT_S = 5.0


class Meeting:
    """The store of the launcher, and what was agreed in it. One per process: `MEETING`.

        token           of this start, by rank 0: torchrun keeps its store when it starts the processes again
        hello/RANK      {"token", "name", "place", "error" or "facts"}: what a process says, again for a new token
        TOKEN/verdict   {"names", "error", ...}: what rank 0 makes of all; valid for a process whose name is in it

    store: with the keys of this start only; None without a launcher, and before the processes have met. places: of all
    processes, by rank.
    """

    def __init__(self) -> None:
        self.store: Any = None
        self.places: list[Place] = []
        self._unread = False  # whether others may still have to read what went wrong

    def agree(self, report: dict[str, Any], patience_s: float) -> dict[str, Any]:
        """Hands in the report of this process, {"error": ... or "facts": ...}, and returns the verdict on all reports:
        {"error": None or {"kind", "message"}, "place": of that process or None, ...}.

        ResourceError if a process does not come within `patience_s`.
        """
        mine, until = here(), time.monotonic() + patience_s
        base = _connect(mine, until)
        hello = {"name": os.urandom(8).hex(), "place": mine.to_dict(), **report}
        if mine.rank == 0:
            token = os.urandom(8).hex()
            base.set("token", token)
            verdict = self._decide(base, token, hello, until, patience_s)
        else:
            token, verdict = _ask(base, hello, until, patience_s)
        import torch.distributed as dist

        self.store = dist.PrefixStore(token, base)
        self.store.add("read", 1)
        self._unread = verdict["error"] is not None
        self.places = [Place(**place) for place in verdict.get("places", [])]
        return verdict

    def _decide(self, base: Any, token: str, mine: dict[str, Any], until: float, patience_s: float) -> dict[str, Any]:
        """At rank 0: the verdict, once all have said hello; one that has an error is passed on at once."""
        hellos, failed = {0: mine}, mine if mine.get("error") else None
        while True:
            hellos |= _new_hellos(base, token, hellos)
            complete, late = len(hellos) == _size(), time.monotonic() > until
            if failed is None and (failed := next((h for h in hellos.values() if h.get("error")), None)):
                until = time.monotonic() + _LINGER_S  # for those that have yet to come
            if failed is not None:
                verdict = {"error": failed["error"], "place": failed["place"]}
            elif complete:
                verdict = _compared([hellos[rank] for rank in range(_size())])
            elif late:
                missing = ", ".join(str(rank) for rank in range(_size()) if rank not in hellos)
                raise ResourceError(
                    f"rank {missing} has not joined the run within --ddp_timeout ({patience_s:g} s): it was not "
                    f"started, has ended, or cannot reach {_address()}"
                )
            else:
                time.sleep(_POLL_S)
                continue
            names = {str(rank): hello["name"] for rank, hello in hellos.items()}
            base.set(f"{token}/verdict", json.dumps({"names": names, **verdict}))
            if complete or late:
                return verdict
            time.sleep(_POLL_S)

    def linger(self) -> None:
        """After a verdict that ends the run: until all have read it, for the store may end with this process."""
        until = time.monotonic() + _LINGER_S
        with suppress(Exception):  # it is gone already
            while self._unread and self.store.add("read", 0) < _size() and time.monotonic() < until:
                time.sleep(_POLL_S)
        self._unread = False


MEETING = Meeting()


def _new_hellos(base: Any, token: str, known: dict[int, Any]) -> dict[int, dict[str, Any]]:
    """By rank, what processes have said since."""
    found = {}
    for rank in range(_size()):
        if rank not in known and base.check([f"hello/{rank}"]):
            hello = parse_json(base.get(f"hello/{rank}"))
            if hello["token"] == token:
                found[rank] = hello
    return found


def _ask(base: Any, hello: dict[str, Any], until: float, patience_s: float) -> tuple[str, dict[str, Any]]:
    """In every process but rank 0: (token, verdict). A library that waits would hear no signal, so this one polls."""
    rank, said = here().rank, ""
    while True:
        token = base.get("token").decode() if base.check(["token"]) else ""
        if token and token != said:
            base.set(f"hello/{rank}", json.dumps({"token": token, **hello}))
            said = token
        if token and base.check([f"{token}/verdict"]):
            verdict = parse_json(base.get(f"{token}/verdict"))
            if verdict["names"].get(str(rank)) == hello["name"]:
                return token, verdict
        if time.monotonic() > until:
            raise ResourceError(
                f"rank 0, or another one, has not joined the run within --ddp_timeout ({patience_s:g} s)"
            )
        time.sleep(_POLL_S)


def _compared(hellos: list[dict[str, Any]]) -> dict[str, Any]:
    """The verdict on processes that have all checked their settings; the lifeline is open where they agree."""
    places = [Place(**hello["place"]) for hello in hellos]
    found = differences([(place, hello["facts"]) for place, hello in zip(places, hellos, strict=True)])
    if found:
        return {"error": {"kind": SettingsError.__name__, "message": found}, "place": None}
    port, secret = LIFELINE.listen(places[0])
    lifeline = {"addresses": [os.environ["MASTER_ADDR"], *_addresses()], "port": port, "secret": secret}
    return {"error": None, "lifeline": lifeline, "places": [place.to_dict() for place in places]}


def is_launched() -> bool:
    """Whether a launcher has started several processes."""
    return "RANK" in os.environ and _size() > 1


def together(work: Callable[[], T], facts: Callable[[T], dict[str, Any]], patience_s: Callable[[T], float]) -> T:
    """Runs `work` in every process of the run, and compares `facts` of the results, which are JSON values by name.

    A UserError in one process is raised in all. SettingsError where facts differ, with the name, the hosts and both
    values. `patience_s`: how long to wait for the others. After it the processes can form a group, see `MEETING`.
    """
    if not is_launched():
        return work()
    result: Any = None
    error: Exception | None = None
    report: dict[str, Any] = {}
    try:
        result = work()
        report["facts"], patience = facts(result), patience_s(result)
    except Exception as met:  # noqa: BLE001 - raised below
        error, patience = met, _LINGER_S
        report["error"] = {"kind": type(met).__name__ if isinstance(met, UserError) else "", "message": str(met)}
    try:
        verdict = MEETING.agree(report, patience)
    except Exception:
        if error is not None:
            raise error from None
        raise
    if error is not None:
        raise error
    if verdict["error"] is not None:
        raise _raised(verdict)
    _hold_on(verdict)
    return result


def _raised(verdict: dict[str, Any]) -> Exception:
    """The error of another process, as it is raised in this one."""
    kind, message = verdict["error"]["kind"], verdict["error"]["message"]
    if verdict["place"] is None:
        return SettingsError(message)
    place = Place(**verdict["place"])
    if not kind:
        return PeerFailed(f"{place}: {message}")
    where = f" (on {place.host}, rank {place.rank})" if are_several([place, here()]) else ""
    return getattr(errors, kind)(message + where)


def _hold_on(verdict: dict[str, Any]) -> None:
    """Connects this process to rank 0, see `LIFELINE`."""
    mine, line = here(), verdict["lifeline"]
    if mine.rank == 0 or LIFELINE.connect(mine, line["addresses"], line["port"], line["secret"]):
        return
    first = MEETING.places[0]
    print(
        f"WARNING: {mine} cannot reach {first.host} ({', '.join(line['addresses'])}) on port {line['port']}: that "
        "another process or host has ended is found only by what waits for it, within --ddp_timeout",
        file=sys.stderr,
        flush=True,
    )


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _addresses() -> list[str]:
    """The addresses of this host's name."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(entry[4][0]) for entry in found})


def _connect(mine: Place, until: float) -> Any:
    """The store of the launcher, which rank 0 serves unless torchrun does."""
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = mine.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while not serves:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
            break
        except OSError as error:
            if time.monotonic() > until:
                raise ResourceError(
                    f"the first process of the run cannot be reached at {_address()}: {error}"
                ) from None
            time.sleep(_POLL_S)
    try:
        return dist.TCPStore(
            host,
            port,
            _size(),
            is_master=serves,
            timeout=timedelta(seconds=max(_CONNECT_S, until - time.monotonic())),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:  # torch's own are subclasses
        line = str(error).strip().split("\n")[0]
        raise ResourceError(f"the processes of the run cannot meet at {_address()}: {line}") from None
