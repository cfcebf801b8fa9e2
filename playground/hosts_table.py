"""The table of faults between two hosts in docs/several-machines.md, made by playing every one of them.

    python -m playground.hosts_table [out.md] [--only WORD]

Two hosts are two sets of namespaces of this machine (needs Linux, root, iproute2 and util-linux; pdsh and sshd for the
rows of `deepspeed --hostfile`). It takes about a minute per row.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.hosts.scenarios import ENGINES, HOSTFILE, SCENARIOS, Played, Scenario, play, prepare_material
from tests.hosts.two_hosts import why_no_ssh, why_not

HEAD = "| fault | engine | rendezvous | seconds until both have ended | exit code | launcher's (a, b) |"
EVERYWHERE = ("nothing", "rank 1 is killed", "the cable is cut")  # played with every engine


def rows() -> list[tuple[Scenario, str, str]]:
    """(what, engine, rendezvous) of every row."""
    found = [(scenario, "ddp", "c10d") for scenario in SCENARIOS]
    again = [scenario for scenario in SCENARIOS if scenario.name in EVERYWHERE]
    found += [(scenario, engine, "static") for engine in ENGINES[1:] for scenario in again]
    if not why_no_ssh():
        found += [(scenario, "zero3", "hostfile") for scenario in again if scenario.happens != "cut"]
        found += [(scenario, "zero2", "hostfile") for scenario in HOSTFILE]
    return found


def line(scenario: Scenario, engine: str, rendezvous: str, played: Played) -> str:
    """A row of the table. The exit code is that in status.json, or of a rank where the folder was not claimed."""
    codes = [code for code in played.codes if code > 0]
    code = played.status.get("exit_code", codes[0] if codes else None)
    launchers = ", ".join("waits on" if code is None else str(code) for code in played.returned.values())
    return f"| {scenario.name} | {engine} | {rendezvous} | {max(played.seconds.values()):.0f} | {code} | {launchers} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, help="where to write the table; by default it is printed only")
    parser.add_argument("--only", default="", help="only rows that contain this")
    given = parser.parse_args()
    if why_not():
        print(f"two hosts cannot be made here: {why_not()}", file=sys.stderr)
        return 2
    table = [HEAD, "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        material = prepare_material(Path(folder) / "material")
        for number, (scenario, engine, rendezvous) in enumerate(rows()):
            if given.only not in f"{scenario.name} {engine} {rendezvous}":
                continue
            place = Path(folder) / str(number)
            place.mkdir()
            table.append(line(scenario, engine, rendezvous, play(scenario, engine, rendezvous, material, place)))
            print(table[-1], flush=True)
            if given.output:
                given.output.write_text("\n".join(table) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
