"""Bodies with limits, streams of events, and clients that are slow or gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.strict_json import parse_strictly
from fastchat.serve.api.errors import ApiError

SILENT_SECONDS = 60.0  # until a client that takes no data is given up
_Result = TypeVar("_Result")
LINGER_SECONDS = 5


class ClientGone(Exception):
    """The client has closed the connection: nobody reads a response."""


async def read_json(request: Request, most_bytes: int, seconds: float) -> Any:
    """The JSON value of a request's body.

    Raises ClientGone, and ApiError for another content type, more than `most_bytes`, a body that is not complete after
    `seconds`, and what is not JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a page of another site can send without asking is not
        raise ApiError(415, f"The content type is {kind or 'missing'!r}; expected application/json.")
    length = request.headers.get("content-length", "0")
    too_large = ApiError(413, f"The body has more than {most_bytes:,} bytes.", code="request_too_large")
    if length.isdigit() and int(length) > most_bytes:
        raise too_large
    body = bytearray()

    async def receive() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > most_bytes:
                raise too_large

    try:
        await asyncio.wait_for(receive(), seconds)
    except ClientDisconnect:
        raise ClientGone from None
    except asyncio.TimeoutError:
        raise ApiError(408, f"The body was not complete after {seconds:g} seconds.") from None
    try:
        return await asyncio.to_thread(parse_strictly, bytes(body).decode("utf-8"))
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not UTF-8.") from None
    except BadRow as bad:
        raise ApiError(400, f"The body is not valid JSON: {bad}.") from None


async def while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work`, which is cancelled if the client closes the connection. Raises ClientGone."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _ended(task, gone)


class Lingering:
    """An application whose refusals arrive: what a client still sends is read and dropped, for at most
    LINGER_SECONDS, before its connection is closed. Closed at once, it would be reset, and the response lost."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        headers = dict(scope.get("headers", ()))
        unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

        async def received() -> Any:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drop() -> None:
            while unread:
                await received()

        async def sent(message: Any) -> None:
            if unread and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                message = {"type": "http.response.body"}
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(drop(), LINGER_SECONDS)
            await send(message)

        await self._app(scope, received, sent)


class EventStream(Response):
    """Server-sent events. The events end when the client is gone or takes none for SILENT_SECONDS; `finish` is called
    in any case."""

    def __init__(self, events: AsyncIterator[str], finish: Callable[[], None]):
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events, self._finish = events, finish

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            try:
                await _ended(sending, gone)
            finally:
                self._finish()

    async def _send(self, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in self._events:
                message = {"type": "http.response.body", "body": event.encode(), "more_body": True}
                await asyncio.wait_for(_sent(send, message), SILENT_SECONDS)
        except asyncio.TimeoutError:
            return  # the server closes the connection, since the response has no end
        finally:
            with suppress(AttributeError):
                await self._events.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _sent(send: Callable[[Any], Awaitable[None]], message: Any) -> None:
    await send(message)


def event(value: Any) -> str:
    """One event with a JSON value; a text is sent as it is."""
    return f"data: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n\n"


async def merged(streams: list[AsyncIterator[_Result]]) -> AsyncIterator[tuple[int, _Result]]:
    """What several iterators give, as it comes, each with the number of its iterator."""
    found: asyncio.Queue[tuple[int, Any, BaseException | None]] = asyncio.Queue(maxsize=len(streams))
    ended = object()

    async def pump(number: int, stream: AsyncIterator[_Result]) -> None:
        try:
            async for item in stream:
                await found.put((number, item, None))
            await found.put((number, ended, None))
        except Exception as error:
            await found.put((number, ended, error))
        finally:
            with suppress(AttributeError):
                await stream.aclose()  # type: ignore[attr-defined]

    tasks = [asyncio.ensure_future(pump(number, stream)) for number, stream in enumerate(streams)]
    left = len(tasks)
    try:
        while left:
            number, item, error = await found.get()
            if error is not None:
                raise error
            if item is ended:
                left -= 1
            else:
                yield number, item
    finally:
        await _ended(*tasks)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
