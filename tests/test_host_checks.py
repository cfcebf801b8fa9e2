"""`fastchat doctor --hosts`: real processes on this machine; two hosts with ssh between them in the thorough tier."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastchat import doctor
from fastchat.errors import EXIT_RESOURCE
from fastchat.host_checks import checks, command, connection, member
from tests.hosts.two_hosts import TwoHosts, why_no_ssh, why_not
from tests.machine import free_port

# Another host of which more is different than one can look after: a fake distribution and a clock.
CLOCK = "import time\nnow = time.time\ntime.time = lambda: now() + 30\n"


def _folders(here: Path, there: Path) -> None:
    """What one host has and another one has in another form."""
    for folder, version, text in ((here, "5.1", "{}"), (there, "5.2", "{ }")):
        found = folder / "site" / f"transformers-{version}.dist-info"
        found.mkdir(parents=True)
        (found / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
        (folder / "M").mkdir()
        (folder / "M" / "tokenizer.json").write_text(text)
        (folder / "M" / "model.safetensors").write_bytes(bytes(8))
        (folder / "chats.jsonl").write_text("the same")
    (there / "site" / "sitecustomize.py").write_text(CLOCK)
    (here / "only.jsonl").write_text("")


def _lines(text: str) -> dict[str, list[str]]:
    """What was checked -> state and the rest of the line, for every line."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        state, what, rest = line[:8].strip(), line[9:25].strip(), line[26:]
        found.setdefault(what, []).append(f"{state} {rest}")
    return found


DIFFERENT = {
    "transformers": r"WRONG 5.1 on \S+; 5.2 on \S+: install the same",
    "clocks": r"note \S+ \+0.0 s, \S+ \+30.0 s: .*NTP",
    "model": r"WRONG M: tokenizer.json: sha256 44136fa355b3 on \S+; sha256 \w{12} on \S+: copy",
    "data": r"WRONG only.jsonl is on \S+ but not on \S+: copy",
    "shared folder": r"WRONG \S+ does not see what \S+ writes in out: .*--output_dir",
}
ASKED = ["--model_name_or_path", "M", "--data_path", "only.jsonl", "--output_dir", "out"]


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a "host" that is reached by a program `ssh`, and has another current folder."""
    here, there, tools = tmp_path / "here", tmp_path / "there", tmp_path / "tools"
    _folders(here, there)
    tools.mkdir()
    (tools / "ssh").write_text(
        f'#!/bin/sh\nfor last; do :; done\nexec sh -c "$(echo "$last" | sed "s#{here}#{there}#g")"\n'
    )
    (tools / "ssh").chmod(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{here / 'site'}{os.pathsep}{Path(doctor.__file__).parents[1]}")
    monkeypatch.setattr(checks, "_SEEN_S", 1)
    return "no-such-host.invalid"


def test_what_differs_is_named_with_host_and_both_values(
    other: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--hosts", f"{socket.gethostname()},{other}", "--port", str(free_port()), *ASKED]
    assert doctor.main(words) == EXIT_RESOURCE
    found = _lines(capfd.readouterr().out)
    for what, pattern in DIFFERENT.items():
        assert re.fullmatch(f"{pattern}.*", found[what][0]), f"{what}: {found[what]}"
    assert found["python"][0].startswith("ok ")
    # Only a name that resolves can be reached; so nothing is measured.
    assert any(re.match(rf"WRONG \S+ cannot reach {other}:\d+ \(", line) for line in found["port"])
    assert found["all-reduce"] == ["note not tried: the port has to be reachable first"]
    assert not Path("out").exists()


def test_equal_hosts_are_good(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CHECKS", checks.CHECKS[:-1])  # the last one imports torch: in the thorough tier
    (tmp_path / "chats.jsonl").write_text("")
    recipe = tmp_path / "my.yaml"
    recipe.write_text(
        f"data_path: {tmp_path / 'chats.jsonl'}\nmodel_name_or_path: org/model\noutput_dir: {tmp_path / 'o' / 'p'}\n"
    )
    assert doctor.main([str(recipe), "--hosts=localhost,127.0.0.1", f"--port={free_port()}"]) == 0
    found = _lines(capfd.readouterr().out)
    assert "WRONG" not in str(found) and len(found["port"]) == 1
    assert found["data"] == [f"ok {tmp_path / 'chats.jsonl'}: 1 file is the same"]
    assert found["model"][0].startswith("note org/model is no file on any host")
    assert found["interface"][0].startswith("ok lo on ")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hosts", "a"], "two or more host names"),
        (["--hosts", "a,,b"], "two or more host names"),
        (["--hosts"], "--hosts needs a value"),
        (["--hosts", "a,-oProxyCommand=x"], "two or more host names"),
        (["--hosts", "a.invalid,a.invalid"], "a.invalid is in it twice"),
        (["--hosts", "localhost,a.invalid"], "localhost is another machine for each host"),
        (["--hosts", "a,b", "--port", "70000"], "--port 70000: it must be between"),
        (["--hosts", "a,b", "--port", "x"], "--port is 'x'"),
        (["--hosts", "a,b", "--data_pth", "x"], "did you mean --data_path"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(words) == 2
    assert message in capfd.readouterr().err


def test_the_command_for_a_host_keeps_what_training_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    variables = {"PYTHONPATH": "/a b", "NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "eth0", "HF_TOKEN": "hf_secret"}
    *ssh, name, script = connection.command_for("h.invalid", variables)
    assert ssh[0] == "ssh" and "BatchMode=yes" in ssh and name == "h.invalid" and "secret" not in script
    done = subprocess.run(
        ["sh", "-c", script.replace(f"{sys.executable} -m fastchat.host_checks.member", "sh -c 'pwd; env'")],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == str(folder) and {"PYTHONPATH=/a b", "NCCL_DEBUG=INFO", "GLOO_SOCKET_IFNAME=eth0"} <= set(lines)


def test_another_program_on_the_port_is_not_taken_for_the_host() -> None:
    port = free_port()
    assert member.answer(json.dumps({"do": "listen", "port": port, "greeting": "other"})) == {}
    try:
        order = {"do": "connect", "host": "127.0.0.1", "port": port, "greeting": "mine"}
        assert member.answer(json.dumps(order)) == {"error": f"another program answers on port {port}"}
        assert "in use" in member.answer(json.dumps({"do": "listen", "port": port, "greeting": "b"}))["error"]
    finally:
        member.close_port()
    assert "refused" in member.answer(json.dumps(order))["error"]


def test_a_host_that_ends_meanwhile_is_named(
    other: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(session: checks.Session) -> Iterator[doctor.Finding]:
        host = next(host for host in session.hosts if host.name == other)
        host._process.kill()
        host.ask("clock")
        yield doctor.Finding("ok", "", "")

    monkeypatch.setattr(command, "CHECKS", (end, checks.versions))
    assert doctor.main(["--hosts", f"{socket.gethostname()},{other}"]) == EXIT_RESOURCE
    found = _lines(capfd.readouterr().out)
    assert found["end"][0].startswith(f"WRONG {other} stopped answering (") and "transformers" not in found


def test_ctrl_c_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    running: list[subprocess.Popen[str]] = []

    def interrupted(session: checks.Session) -> Iterator[doctor.Finding]:
        running.extend(host._process for host in session.hosts)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(command, "CHECKS", (interrupted,))
    assert doctor.main(["--hosts", "localhost,127.0.0.1"]) == 130
    assert len(running) == 2 and all(process.poll() is not None for process in running)
    assert "interrupted" in capfd.readouterr().err


# --- two hosts


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    missing = why_not() or why_no_ssh()
    if missing:
        pytest.skip(missing)
    with TwoHosts(tmp_path / "hosts") as two:
        yield two


@pytest.mark.thorough
def test_two_hosts(hosts: TwoHosts, tmp_path: Path, repository: Path) -> None:
    """The good case with a measured all-reduce; all differs, and another program has the port; the cable is cut."""
    hosts.serve_ssh()
    local = hosts.folder / "local"
    _folders(hosts.local("a"), hosts.local("b"))
    (hosts.folder / "chats.jsonl").write_text("x")

    def run(*words: str, cwd: Path, **variables: str) -> tuple[int, dict[str, list[str]]]:
        command = [sys.executable, "-m", "fastchat.doctor", "--hosts", "host-a,host-b", *words]
        with (tmp_path / "out.txt").open("w") as log:
            process = hosts.start("a", command, log, cwd=cwd, env=os.environ | variables)
            code = process.wait(timeout=600)
        return code, _lines((tmp_path / "out.txt").read_text())

    code, found = run("--data_path", "chats.jsonl", cwd=hosts.folder, PYTHONPATH=str(repository))
    assert code == 0, found
    assert found["hosts"] == ["ok host-a (host-a), host-b (host-b)"]
    assert found["interface"][0].startswith("ok eth0 on host-")
    assert re.fullmatch(r"ok gloo, 64 MiB in .* s: .*/s \(.* Gbit/s\) per host", found["all-reduce"][0])

    with (tmp_path / "server.txt").open("w") as log:
        hosts.start("b", [sys.executable, "-m", "http.server", "29500"], log)
    site = f"{local / 'site'}{os.pathsep}{repository}"
    code, found = run(*ASKED, "--port", "29500", cwd=local, PYTHONPATH=site)
    assert code == EXIT_RESOURCE
    for what, pattern in DIFFERENT.items():
        assert re.fullmatch(f"{pattern}.*", found[what][0]), f"{what}: {found[what]}"
    assert any(line.startswith("WRONG host-b cannot listen on 29500 (") for line in found["port"])

    hosts.cut()
    code, found = run(cwd=hosts.folder, PYTHONPATH=str(repository))
    assert code == EXIT_RESOURCE and "host-b does not answer (ssh: connect to host host-b" in found["host"][0]
