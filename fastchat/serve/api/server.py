"""The process that serves an application: its socket, its connections, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastchat.errors import SettingsError
from fastchat.serve.api.errors import ApiError
from fastchat.serve.api.http import SILENT_SECONDS
from fastchat.serve.engines.base import Engine

HEAD_SECONDS = 30  # until the next request of a connection must have begun
GRACE_SECONDS = 10  # for answers that are being generated when the server is stopped
MOST_CONNECTIONS = 1000


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; nothing is accepted yet. Raises SettingsError if that address is not to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # inherited by the connections; also for a reader that stops reading
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENT_SECONDS * 1000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.bind(address)
    except (OSError, OverflowError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise SettingsError(f"cannot listen on {host}:{port}: {why}. Choose another --port or --host.") from None
    sock.set_inheritable(False)
    return sock


def address_of(sock: socket.socket) -> str:
    """The address of a server for clients on this machine, such as http://127.0.0.1:8000."""
    host, port = sock.getsockname()[:2]
    name = str({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def run_server(app: Any, sock: socket.socket, engines: Sequence[Engine], on_ready: Callable[[], None]) -> None:
    """Start the engines and serve until SIGTERM or Ctrl-C; running answers then have some seconds to end.

    `on_ready` is called when requests are answered.
    """
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    asyncio.run(_serve(_Server(config, on_ready), sock, engines))


async def _serve(server: _Server, sock: socket.socket, engines: Sequence[Engine]) -> None:
    try:
        for engine in engines:
            await engine.start()
        await server.serve(sockets=[sock])
    finally:
        sock.close()
        for engine in engines:
            await engine.close()


class _Server(uvicorn.Server):
    """uvicorn's server; a signal ends it, and the command then ends as usual."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]):
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Connection(H11Protocol):
    """A connection whose requests must begin in time, and on which all errors have the form of the API's.

    uvicorn's own limit ends with the first byte of a head.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_SECONDS, self._close_if_silent)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._late.cancel()
        self._late = self.loop.call_later(HEAD_SECONDS, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP and closes the connection, also in the middle of a response."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(400, "The request is not valid HTTP/1.1.").body).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            parts = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(part) or b"" for part in parts))
        self.transport.close()

    def _close_if_silent(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if waits and not self.transport.is_closing():  # one that is closing still sends what it has
            self.transport.abort()
