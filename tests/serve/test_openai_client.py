"""The official client against the real server with a model that was trained here."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from fastchat.data.encoding.chat_encoder import encode_prompt  # noqa: E402
from fastchat.serve import cli  # noqa: E402
from fastchat.serve.chat import load_chat, to_dialogue  # noqa: E402
from tests.serve.serving import ASKED, NAME, SAID, WEATHER, Server  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("openai_client")]
ASK = [{"role": "user", "content": ASKED}]
LONG = [{"role": "user", "content": "Something never learned, please."}]


def ask(client: Any, messages: Any = ASK, **more: Any) -> Any:
    return client.chat.completions.create(model=NAME, messages=messages, **{"temperature": 0, **more})


def health(server: Server) -> dict[str, Any]:
    import urllib.request

    with urllib.request.urlopen(f"{server.root}/health", timeout=60) as response:
        return json.loads(response.read())


def is_idle(server: Server) -> bool:
    state = health(server)
    return state["running"] == state["waiting"] == state["in_engine"] == 0


def until(condition: Any, *arguments: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition(*arguments):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_greeting_has_a_command_that_works(server: Server, client: Any) -> None:
    assert "Engine     transformers, continuous batching" in server.printed
    assert "Template   chatml" in server.printed
    assert [one.id for one in client.models.list()] == [NAME] and client.models.retrieve(NAME).id == NAME
    command = server.printed.partition("Try it")[2].partition("\n")[0].strip()
    made = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(made.stdout)["object"] == "chat.completion"


def test_answers_equal_the_chats(
    client: Any, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [ASKED, "Count.", "Something never learned, please."]
    said = []
    for line in lines:
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        assert cli.main([str(model), "--temperature", "0", "--max-new-tokens", "30", "--message", line]) == 0
        said.append(capsys.readouterr().out)
    answers = [
        ask(client, [{"role": "user", "content": line}], max_tokens=30).choices[0].message.content for line in lines
    ]
    assert [answer + "\n" for answer in answers] == said
    assert answers[0] == SAID
    parts = ask(client, stream=True, max_tokens=30)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == SAID


def test_logprobs_are_those_of_a_forward_pass(client: Any, model: Path) -> None:
    chat = load_chat(str(model), device="cpu")
    prompt = encode_prompt(to_dialogue(LONG), chat.chat_encoder)
    for temperature in (0.0, 1.3):
        made = ask(client, LONG, logprobs=True, top_logprobs=4, max_tokens=6, temperature=temperature, seed=3)
        rows = made.choices[0].logprobs.content
        whole = client.completions.create(model=NAME, prompt=prompt, max_tokens=6, temperature=temperature, seed=3)
        assert whole.usage.prompt_tokens == made.usage.prompt_tokens == len(prompt)
        ids = list(prompt)
        names = {chat.chat_encoder.encoder.decode([i]): i for i in range(chat.model.config.vocab_size)}
        with torch.no_grad():
            for row in rows:
                wanted = chat.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                assert [round(one.logprob, 3) for one in row.top_logprobs] == [
                    round(float(value), 3) for value in wanted.topk(4).values
                ]
                ids.append(names[row.token])
                assert abs(float(wanted[ids[-1]]) - row.logprob) < 1e-3
                if temperature == 0:
                    assert row.logprob == row.top_logprobs[0].logprob


def test_seeds_and_several_answers(client: Any) -> None:
    def texts(**more: Any) -> list[str]:
        made = ask(client, LONG, temperature=5, max_tokens=12, **more)
        return [choice.message.content for choice in made.choices]

    first = texts(seed=11, n=3)
    assert first == texts(seed=11, n=3) and len(set(first)) == 3
    assert texts(seed=11)[0] == first[0] and texts(seed=12)[0] not in first
    assert len({texts()[0] for _ in range(4)}) > 1


def test_a_tool_is_called(client: Any) -> None:
    asked = [{"role": "user", "content": "Weather in Oslo?"}]
    message = ask(client, asked, tools=[WEATHER], max_tokens=60).choices[0].message
    [call] = message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Oslo"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "wet"}
    assert ask(client, [*asked, message, result], tools=[WEATHER], max_tokens=5).choices[0].finish_reason


@pytest.mark.parametrize("num", [24, pytest.param(100, marks=pytest.mark.thorough)])
def test_many_at_once_and_some_cancelled(num: int, client: Any, server: Server) -> None:
    expected = ask(client, LONG, max_tokens=20).choices[0].message.content

    def one(number: int) -> str:
        if number % 10 == 3:
            with ask(client, LONG, stream=True, max_tokens=900) as stream:
                next(iter(stream))
                return "cancelled"
        if number % 10 == 7:
            with contextlib.suppress(openai.APITimeoutError):
                ask(client, LONG, max_tokens=900, timeout=0.2)
            return "given up"
        if number % 3 == 0:
            parts = ask(client, stream=True, max_tokens=40)
            return "".join(part.choices[0].delta.content or "" for part in parts)
        return ask(client, LONG if number % 2 else ASK, max_tokens=20 if number % 2 else 40).choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(one, range(num)))
    for number, text in enumerate(made):
        learned = number % 3 == 0 or number % 2 == 0
        assert text in ("cancelled", "given up", SAID if learned else expected)
    until(is_idle, server)
    assert ask(client, max_tokens=40).choices[0].message.content == SAID


def _resources(server: Server) -> tuple[int, int]:
    folder = Path(f"/proc/{server.process.pid}")
    return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))


def test_connections_that_break_leave_nothing(client: Any, server: Server) -> None:
    body = json.dumps({"model": NAME, "messages": LONG, "max_tokens": 900, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    ask(client, max_tokens=1)
    before = _resources(server)
    for sent in (
        b"",
        head,
        whole[:-10],
        whole,
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
    ):
        for reset in (False, True):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
                with contextlib.suppress(OSError):
                    sock.sendall(sent)
                if sent == whole:
                    assert sock.recv(200).startswith(b"HTTP/1.1 200")
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(is_idle, server)
    until(lambda: _resources(server)[0] <= before[0] + 1)
    # A pool of threads for encoding grows to a fixed size.
    assert _resources(server)[1] <= before[1] + 32
    assert ask(client, max_tokens=40).choices[0].message.content == SAID


def test_kill_and_restart(model: Path, tmp_path: Path) -> None:
    server = Server(model, tmp_path / "log.txt", "--api-key", "a-secret-key", "--max-requests", "2")
    wanted = f"http://127.0.0.1:{server.port}/v1"
    assert server.address == wanted and "a-secret-key" not in server.printed + server.log.read_text()
    other = openai.OpenAI(base_url=server.address, api_key="wrong-key", max_retries=0)
    with other, pytest.raises(openai.AuthenticationError):
        ask(other)
    with openai.OpenAI(base_url=server.address, api_key="a-secret-key", max_retries=0) as client:
        assert ask(client, max_tokens=40).choices[0].message.content == SAID
        with pytest.raises(openai.BadRequestError, match="at most 2 at once"):
            ask(client, n=3)
        stream = iter(ask(client, LONG, stream=True, max_tokens=900))
        next(stream)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            list(stream)
    # On the same port at once. A stream is given some time when the server is stopped.
    server = Server(model, tmp_path / "log.txt", "--compare", "--base-model-path", str(model), port=server.port)
    assert server.address == wanted
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0) as client:
        assert [one.id for one in client.models.list()] == [NAME, "base"]
        stream = iter(ask(client, stream=True, max_tokens=40))
        said = next(stream).choices[0].delta.content or ""
        base = client.chat.completions.create(model="base", messages=ASK, temperature=0, max_tokens=40)
        assert base.choices[0].message.content == SAID
        server.process.send_signal(signal.SIGINT)
        said += "".join(part.choices[0].delta.content or "" for part in stream)
        assert said == SAID
    assert server.stop(signal.SIGTERM) == 0
    assert "Traceback" not in server.log.read_text()
