"""Two hosts on one machine: each has its own network, host name, processes and mounts, and a cable joins them.

    with TwoHosts(folder) as hosts:
        process = hosts.start("a", ["torchrun", ...], log)     # runs there; `folder`/local is another folder on each
        hosts.cut()

Needs the rights to make namespaces: `why_not()` says what is missing.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

NAMES = ("a", "b")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
_KINDS = ("--net", "--uts", "--mount", "--pid")


@functools.cache
def why_not() -> str:
    """Why two hosts cannot be made here; "" where they can."""
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    tried = ["unshare", *_KINDS, "--fork", "--mount-proc", "ip", "link", "add", "probe0", "type", "veth"]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    return f"no right to make namespaces: {done.stderr.strip()}" if done.returncode else ""


@functools.cache
def why_no_ssh() -> str:
    """Why `deepspeed --hostfile` cannot be tried between the hosts; "" where it can."""
    missing = [tool for tool in ("pdsh", "ssh", "ssh-keygen", "sshd") if shutil.which(tool, path=_PATH) is None]
    return f"{', '.join(missing)} not installed" if missing else ""


def address(host: str) -> str:
    """The IPv4 address of host "a" or "b"."""
    return f"10.77.0.{NAMES.index(host) + 1}"


class TwoHosts:
    """Hosts "a" and "b". `same_name`: both are called host-a, as containers often are."""

    def __init__(self, folder: Path, *, same_name: bool = False) -> None:
        self.folder = folder.resolve()
        self.names = {host: "host-a" if same_name else f"host-{host}" for host in NAMES}
        self._roots: dict[str, subprocess.Popen[bytes]] = {}
        self._inits: dict[str, int] = {}

    def __enter__(self) -> TwoHosts:
        (self.folder / "local").mkdir(parents=True, exist_ok=True)
        try:
            for host in NAMES:
                self._make(host)
            ends = {host: f"v{os.getpid() % 10**6}{host}" for host in NAMES}
            subprocess.run(["ip", "link", "add", ends["a"], "type", "veth", "peer", "name", ends["b"]], check=True)
            for host, end in ends.items():
                subprocess.run(["ip", "link", "set", end, "netns", str(self._inits[host]), "name", "eth0"], check=True)
                script = f"ip link set lo up && ip addr add {address(host)}/24 dev eth0 && ip link set eth0 up"
                subprocess.run(self._on(host, ["sh", "-c", script]), check=True)
        except BaseException:
            self._end()
            raise
        return self

    def _make(self, host: str) -> None:
        mine = self.folder / f"local_{host}"
        mine.mkdir(exist_ok=True)
        lines = ["127.0.0.1 localhost", f"{address(host)} {self.names[host]}"]
        lines += [f"{address(other)} {name}" for other, name in self.names.items() if name != self.names[host]]
        (self.folder / f"names_{host}").write_text("\n".join(lines) + "\n")
        script = (
            f"hostname {self.names[host]} && mount --make-rprivate / && mount --bind '{mine}' '{self.folder}/local' && "
            f"mount --bind '{self.folder}/names_{host}' /etc/hosts && touch '{mine}/.up' && exec sleep infinity"
        )
        words = ["unshare", *_KINDS, "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        root = self._roots[host] = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + 60
        while not (mine / ".up").exists():
            assert root.poll() is None and time.monotonic() < end, f"host {host} did not start"
            time.sleep(0.05)
        children = Path(f"/proc/{root.pid}/task/{root.pid}/children").read_text().split()
        self._inits[host] = int(children[0])

    def _on(self, host: str, words: Sequence[str]) -> list[str]:
        return ["nsenter", "-t", str(self._inits[host]), "-n", "-u", "-m", "-p", "--", *words]

    def start(self, host: str, words: Sequence[str], log: IO[Any], **more: Any) -> subprocess.Popen[bytes]:
        """Starts a command on a host, in the current folder. `more` is for Popen."""
        here = str(more.pop("cwd", os.getcwd()))
        command = self._on(host, ["env", "-C", here, *words])
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **more)

    def serve_ssh(self) -> None:
        """Every host lets the other one in, by name and without a password, as `deepspeed --hostfile` needs it."""
        place = self.folder / "ssh"
        place.mkdir()
        for name in ("id", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
        lines = [
            f"IdentityFile {place}/id",
            "StrictHostKeyChecking no",
            "UserKnownHostsFile /dev/null",
            "LogLevel ERROR",
        ]
        (place / "config").write_text("Host *\n" + "".join(f"  {line}\n" for line in lines))
        lines = [f"HostKey {place}/host", f"AuthorizedKeysFile {place}/id.pub", "StrictModes no", "PermitRootLogin yes"]
        (place / "sshd").write_text("\n".join([*lines, "UsePAM no", "PidFile none"]) + "\n")
        for host in NAMES:
            script = (
                f"mkdir -p ~/.ssh /run/sshd && mount --bind '{place}' ~/.ssh && chmod 600 ~/.ssh/* && "
                f"exec /usr/sbin/sshd -f '{place}/sshd'"
            )
            subprocess.run(self._on(host, ["sh", "-c", script]), check=True)

    def local(self, host: str) -> Path:
        """The folder that is `folder`/local on that host, as it is seen from outside."""
        return self.folder / f"local_{host}"

    def cut(self) -> None:
        """Takes the cable out: nothing arrives any more, and nobody is told."""
        subprocess.run(self._on("a", ["ip", "link", "set", "eth0", "down"]), check=True)

    def join(self) -> None:
        """Puts the cable back."""
        subprocess.run(self._on("a", ["ip", "link", "set", "eth0", "up"]), check=True)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        """Ends the first process of each host, and with it all that runs there."""
        for root in self._roots.values():
            root.kill()
            with suppress(subprocess.TimeoutExpired):
                root.wait(timeout=60)
