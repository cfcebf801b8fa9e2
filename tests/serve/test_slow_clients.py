"""Clients that send or read slowly, on real connections to a server in this process: none holds anything for long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastchat.conversation import get_template  # noqa: E402
from fastchat.data.encoding.text_encoder import TextEncoder  # noqa: E402
from fastchat.serve.api import http, server  # noqa: E402
from fastchat.serve.api.app import Limits, create_app  # noqa: E402
from fastchat.serve.api.served import ServedModel  # noqa: E402
from tests.serve.serving import Repeating, served  # noqa: E402
from tests.serve.test_api import ASK, YES  # noqa: E402

BODY = json.dumps({**ASK, "stream": True}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(scope="module")
def encoder(tokenizer_dir: Callable[[str], Path]) -> Any:
    found, _ = TextEncoder.from_directory(str(tokenizer_dir("byte_nobos")))
    assert found is not None
    return found.bind(get_template("chatml"))


@asynccontextmanager
async def running(model: ServedModel, limits: Limits | None = None) -> AsyncIterator[tuple[Any, int]]:
    """(the API, the port) of a server in this event loop."""
    app, ready = create_app({"m": model}, limits), asyncio.Event()
    config = server.uvicorn.Config(app, http=server._Connection, ws="none", lifespan="off", log_level="critical")
    made = server._Server(config, ready.set)
    sock = server.listen("127.0.0.1", 0)
    task = asyncio.ensure_future(made.serve(sockets=[sock]))
    await ready.wait()
    try:
        yield app.state.api, sock.getsockname()[1]
    finally:
        made.should_exit = made.force_exit = True
        await task
        sock.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.parametrize("sent", [b"", HEAD[:20], HEALTH + HEAD[:20], HEALTH + HEALTH + b"G"])
def test_a_request_that_does_not_come_closes_the_connection(
    sent: bytes, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)

    async def work() -> None:
        async with running(served(encoder, YES)) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with suppress(ConnectionResetError):
                answers = await reader.read()  # until the server closes it
                assert answers.count(b"200 OK") == sent.count(HEALTH)
            writer.close()

    run(work())


def test_a_body_that_does_not_come_and_a_reader_that_does_not_read(
    encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SILENT_SECONDS", 0.2)
    model = served(encoder, [5] * 200_000)  # more than the buffers of a connection hold
    engine = model.engine
    assert isinstance(engine, Repeating)
    engine.limit = None  # type: ignore[misc]

    async def work() -> None:
        before = len(asyncio.all_tasks())
        async with running(model, Limits(answers=1, body_seconds=0.2)) as (api, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(WHOLE[:-5])
            assert (await reader.read(100)).startswith(b"HTTP/1.1 408")
            writer.close()
            long = json.dumps({**ASK, "stream": True, "max_tokens": 200_000, "stop": "never said"}).encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(long) + long)
            await until(lambda: engine.running == 1)
            assert api.admission.running == 1
            await until(lambda: engine.running == api.admission.running == 0)
            other, writing = await asyncio.open_connection("127.0.0.1", port)
            writing.write(HEALTH)
            assert (await other.read(50)).startswith(b"HTTP/1.1 200")
            writer.transport.abort()
            writing.close()
        await until(lambda: len(asyncio.all_tasks()) <= before)

    run(work())


def test_32_streams_at_once_that_are_cancelled(encoder: Any) -> None:
    model = served(encoder, None)  # every answer waits for ever
    engine = model.engine
    assert isinstance(engine, Repeating)

    async def work() -> None:
        before = len(asyncio.all_tasks())
        async with running(model, Limits(answers=20, waiting=12)) as (api, port):
            for _ in range(2):
                made = [await asyncio.open_connection("127.0.0.1", port) for _ in range(32)]
                for _, writer in made:
                    writer.write(WHOLE)
                await until(lambda: engine.running == 20 and api.admission.waiting == 12)
                for number, (_, writer) in enumerate(made):
                    writer.transport.abort() if number % 2 else writer.close()
                await until(lambda: engine.running == api.admission.running == api.admission.waiting == 0)
        await until(lambda: len(asyncio.all_tasks()) <= before)

    run(work())
