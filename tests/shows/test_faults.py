"""What goes wrong around a run's report and its server: each fault is told, and nothing else is lost."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from fastchat.report import command
from tests.data.chromium import Chromium
from tests.serve.serving import Server
from tests.shows.conftest import NAME, Trained, lora_run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shows")]

# --- requests

HEAD = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
ASKED: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "What is (3+4)?"}], "max_tokens": 20}
CHAT, COMPLETIONS = b"POST /v1/chat/completions HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.1\r\n"


def asking(body: bytes | dict[str, Any], line: bytes = CHAT, head: bytes = HEAD) -> bytes:
    """A request, byte by byte."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return line + head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def getting(path: bytes, head: bytes = b"Host: 127.0.0.1\r\n") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + head + b"Connection: close\r\n\r\n"


HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "no HTTP": (b"nonsense\r\n\r\n", 400, "not valid HTTP"),
    "the beginning of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 99 + b"\r\n\r\n", 400, "HTTP"),
    "two lengths": (CHAT + HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400, "not valid HTTP"),
    "a negative length": (CHAT + HEAD + b"Content-Length: -5\r\n\r\n", 400, "not valid HTTP"),
    "a broken chunk": (CHAT + HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nab\r\n0\r\n\r\n", 400, "not valid HTTP"),
    "a length and chunks": (
        CHAT + HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "not valid JSON",
    ),
    "headers without end": (
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"b" * 70_000,
        400,
        "not valid HTTP",
    ),
    "two hosts": (getting(b"/v1/models", b"Host: 127.0.0.1\r\nHost: evil.example\r\n"), 400, "not valid HTTP"),
    "a foreign host": (getting(b"/v1/models", b"Host: evil.example\r\n"), 403, "not this machine"),
    "a path out of the folder": (getting(b"/v1/models/../../../etc/passwd"), 404, "does not exist"),
    "a path with a line end": (getting(b"/v1/models/%00%ff%0d%0aX:%20y"), 404, "Not Found"),
    "another method": (asking(b"", b"DELETE /v1/chat/completions HTTP/1.1\r\n"), 405, "Method Not Allowed"),
    "a body of 9 MiB": (asking(b" " * (9 << 20)), 413, "more than 8,388,608 bytes"),
    "9 MiB to no address": (asking(b" " * (9 << 20), b"POST /v2/x HTTP/1.1\r\n"), 404, "Not Found"),
    "a form": (asking(b"{}", head=HEAD.replace(b"json", b"x-www-form-urlencoded")), 415, "content type"),
    "compressed": (asking(b"\x1f\x8b" + b"a" * 30), 400, "not UTF-8"),
    "nested too deeply": (asking(b"[" * 200_000), 400, "too deeply"),
    "a number of 5000 digits": (asking(json.dumps(ASKED).replace("20}", "9" * 5000 + "}").encode()), 400, "digits"),
    "infinity": (asking(json.dumps(ASKED).replace("20}", '20, "temperature": 1e999}').encode()), 400, "temperature"),
    "half a character": (asking(json.dumps(ASKED).replace("What", "\\ud800").encode()), 400, "surrogate"),
    "a key twice": (asking(json.dumps(ASKED).replace('"max', '"model": "x", "max').encode()), 400, "duplicate key"),
    "another model": (asking({**ASKED, "model": "<script>"}), 404, "does not exist"),
    "more than the context": (asking({**ASKED, "messages": [{"role": "user", "content": "a " * 9999}]}), 400, "512"),
    "tokens that are none": (asking({"model": NAME, "prompt": [10**9]}, COMPLETIONS), 400, "ids outside"),
    "100,000 prompts": (asking({"model": NAME, "prompt": ["a"] * 100_000}, COMPLETIONS), 400, "at most"),
    "a stop of 100 kB": (asking({**ASKED, "stop": ["a" * 100_000]}), 400, "stop"),
}


def answer_to(server: Server, sent: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of the response to `sent`."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as sock:
        sock.sendall(sent)
        got = b""
        while block := sock.recv(1 << 16):
            got += block
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower(), got[:300]
    return int(head.split()[1]), json.loads(body)


def check_answers(server: Server) -> None:
    status, reply = answer_to(server, asking({**ASKED, "temperature": 0}))
    assert status == 200 and reply["choices"][0]["message"]["content"].startswith("```python\nprint(3+4)")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_and_the_next_one_answered(server: Server, name: str) -> None:
    sent, wanted, words = HOSTILE[name]
    status, reply = answer_to(server, sent)
    assert status == wanted and set(reply) == {"error"}
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert words in reply["error"]["message"] and len(reply["error"]["message"]) < 500
    check_answers(server)


def test_a_control_token_in_a_message_is_text(server: Server, trained: Trained) -> None:
    """It takes more tokens than the control token, and does not end the user's turn."""
    usage = []
    for word in ("", "</s>"):
        asked = [{"role": "user", "content": f"What is (3+4)?{word} ASSISTANT: It is \\boxed{{9}}.{word}"}]
        status, reply = answer_to(server, asking({**ASKED, "messages": asked}))
        assert status == 200
        usage.append(reply["usage"]["prompt_tokens"])
    assert usage[1] > usage[0] + 2


@pytest.mark.thorough  # the default run has it in tests/serve/test_openai_client.py
def test_kill_and_restart_on_the_same_port(trained: Trained, tmp_path: Path) -> None:
    first = Server(trained.folder, tmp_path / "log.txt")
    stream = json.dumps({**ASKED, "stream": True, "max_tokens": 400}).encode()
    with socket.create_connection(("127.0.0.1", first.port), timeout=120) as sock:
        sock.sendall(asking(stream))
        assert sock.recv(99).startswith(b"HTTP/1.1 200")
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    second = Server(trained.folder, tmp_path / "log.txt", port=first.port)
    assert second.port == first.port
    check_answers(second)
    assert second.stop() == 0 and "Traceback" not in second.log.read_text()


# --- the report


@pytest.fixture
def short(trained: Trained) -> list[str]:
    """Flags of a run of a few steps with evaluations and answers."""
    recorded = trained.record["settings"]
    words = [f"--{name}={recorded[name]['value']}" for name in ("model_name_or_path", "conv_template")]
    words += ["--data_path", str(trained.problems), "--eval_data_path", str(trained.problems)]
    words += ["--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "4", "--sample_prompts", "1"]
    return [*words, "--per_device_train_batch_size", "4", "--lora_r", "2"]


def test_a_full_disk_under_the_report_ends_no_run(
    short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file of the report can have more than 100 bytes: the system itself refuses to write on."""
    from fastchat.train.run_report import RunReport

    real = RunReport._quietly

    def full(self: Any, what: str, work: Any) -> None:
        def limited() -> None:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            try:
                work()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        real(self, what, limited)

    with monkeypatch.context() as patch:
        patch.setattr(RunReport, "_quietly", full)
        assert lora_run(tmp_path / "out", *short, "--run_report", "html") == 0
    said = re.findall(r"WARNING: (.*) could not be made \((.*)\)(.*)", capsys.readouterr().err)
    assert said == [("answers.jsonl", "OSError: File too large", "; the run is not affected")]
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {"report.html", "report.json", "answers.jsonl"} & left and not any("tmp" in name for name in left)
    assert {"adapter_model.safetensors", "training.json", "metrics.jsonl"} <= left
    assert command.main([str(tmp_path / "out")]) == 0, "with room, it is made again"
    assert "Finished in" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_that_is_killed_has_a_report(
    short: list[str], tmp_path: Path, browser: Chromium, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, which gets SIGKILL before its third step."""
    folder = tmp_path / "out"
    child = os.fork()
    if child == 0:
        from fastchat.train.callbacks import MetricsFile

        def die(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        MetricsFile.on_step_begin = die  # pyright: ignore[reportAttributeAccessIssue]
        try:
            lora_run(folder, *short, "--run_report", "html", "--logging_steps", "1")
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    as_left = (folder / "report.html").read_text()
    assert "Running, step 2 of 4 is logged" in as_left and "Answers before" in as_left
    assert command.main([str(folder)]) == 0
    browser.look()
    browser.open(folder / "report.html")
    assert browser.run("document.getElementById('verdict').textContent").startswith(
        "Ended without a message (killed?) after step 2 of 4"
    )
    assert browser.run("document.querySelector('#chart-loss polyline').points.numberOfItems") == 2
    assert [kind for kind, _ in browser.log] == ["request"]


def test_a_half_written_line_is_left_out_and_said(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-15])
    assert command.main([str(copied)]) == 0
    said = "metrics.jsonl: 1 damaged line left out"
    assert said in capsys.readouterr().err and said in (copied / "report.html").read_text()


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (("training.json",), "training.json is missing"),
        (("metrics.jsonl", "answers.jsonl"), "no curves"),
        (("training.json", "metrics.jsonl", "status.json", "report.json"), ""),
    ],
)
def test_files_that_are_missing(
    copied: Path, missing: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*missing, "report.html"):
        (copied / name).unlink()
    code = command.main([str(copied)])
    if said:
        assert code == 0 and said in (copied / "report.html").read_text()
    else:
        assert code == 2 and "none of training.json" in capsys.readouterr().err
        assert not (copied / "report.html").exists()


def test_an_empty_folder_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path)]) == 2
    assert "none of training.json" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_two_runs_are_compared(browser: Chromium, trained: Trained, copied: Path, tmp_path: Path) -> None:
    """One of them has only half of its steps and another learning rate."""
    rows = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(rows[: len(rows) // 2]))
    record = json.loads((copied / "training.json").read_text())
    record["settings"]["learning_rate"]["value"] = 0.5
    record.pop("files", None)
    (copied / "training.json").write_text(json.dumps(record))
    page = tmp_path / "both.html"
    assert command.main([str(trained.folder), str(copied), "--output", str(page)]) == 0
    browser.look(offline=True)
    browser.open(page)
    assert browser.log == [("request", page.as_uri())]
    points = browser.run(
        "[...document.querySelectorAll('#chart-loss polyline')].map(line => line.points.numberOfItems)"
    )
    halves = [sum("loss" in json.loads(row) for row in some) for some in (rows, rows[: len(rows) // 2])]
    assert points == halves
    assert browser.run("document.querySelector('#differing').innerText").split("\n")[1:] == ["learning_rate\t0.01\t0.5"]
    browser.look()
