"""The requests of the page to the API, and the same ones as commands."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from fastchat.errors import without_secrets
from fastchat.files import parse_json
from fastchat.serve.web.conversation import Answer

CONNECT_SECONDS = 10
SHOWN_SECONDS = 0.1  # between two updates of the page
CHAT = "/v1/chat/completions"


@dataclass
class Reply:
    """An answer while it arrives.

    Attributes:
        num_tokens: of the whole answer; 0 until that is known.
        finish: why it ended, None until it did.
        error: why there is no more of it.
    """

    answer: Answer = field(default_factory=Answer)
    num_tokens: int = 0
    finish: str | None = None
    error: str = ""
    seconds: float = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether there is an answer, perhaps an empty one."""
        return bool(self.finish or self.answer.text or self.answer.reasoning)

    @property
    def has_ended(self) -> bool:
        return bool(self.finish or self.error)


class Api:
    """The API at an address, such as http://127.0.0.1:8000."""

    def __init__(self, address: str, key: str | None = None):
        self.address, self._key = address, key

    async def replies(self, bodies: Mapping[str, dict[str, Any]]) -> AsyncIterator[dict[str, Reply]]:
        """The replies to several requests at once, by their names, again and again until all have ended.

        Closing the iterator closes the connections, so that the API stops generating.
        """
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        replies = {name: Reply() for name in bodies}
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        async with httpx.AsyncClient(
            base_url=self.address, headers=headers, timeout=timeout, trust_env=False
        ) as client:
            tasks = [asyncio.ensure_future(_receive(client, body, replies[name])) for name, body in bodies.items()]
            try:
                running = set(tasks)
                while running:
                    yield replies
                    _, running = await asyncio.wait(running, timeout=SHOWN_SECONDS)
                for task in tasks:
                    task.result()
                yield replies
            finally:
                for task in tasks:
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.gather(*tasks, return_exceptions=True)


def curl(address: str, body: Mapping[str, Any], key_variable: str | None) -> str:
    """A request as a command for a shell, without the key: the shell takes it from a variable."""
    key = f'\n  -H "Authorization: Bearer ${key_variable}" \\' if key_variable else ""
    text = json.dumps(body, ensure_ascii=False, indent=2)
    head = f"curl {shlex.quote(address + CHAT)} \\\n  -H 'Content-Type: application/json' \\"
    return f"{head}{key}\n  -d {shlex.quote(text)}"


async def _receive(client: httpx.AsyncClient, body: Mapping[str, Any], reply: Reply) -> None:
    began = time.monotonic()
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", CHAT, json=streamed) as response:
            if response.status_code != 200:
                reply.error = _error(response.status_code, await response.aread())
                return
            async for event in _events(response):
                _take(event, reply)
        if not reply.has_ended:
            reply.error = "The connection ended before the answer did."
    except httpx.HTTPError as problem:
        reason = without_secrets(str(problem) or type(problem).__name__)
        reply.error = f"The API at {client.base_url} cannot be reached: {reason}."
    finally:
        reply.seconds = time.monotonic() - began


async def _events(response: httpx.Response) -> AsyncIterator[Any]:
    """The JSON values of server-sent events. (httpx's own lines also end at characters that JSON may contain.)"""
    waiting = b""
    async for block in response.aiter_bytes():
        *events, waiting = (waiting + block).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            if data != b"[DONE]":
                yield parse_json(data)


def _take(event: Any, reply: Reply) -> None:
    if "error" in event:
        reply.error = event["error"]["message"]
        return
    for choice in event["choices"]:
        delta = choice["delta"]
        reply.answer.text += delta.get("content") or ""
        reply.answer.reasoning += delta.get("reasoning_content") or ""
        reply.finish = choice["finish_reason"] or reply.finish
    if event.get("usage"):
        reply.num_tokens = event["usage"]["completion_tokens"]


def _error(status: int, body: bytes) -> str:
    try:
        return f"{parse_json(body)['error']['message']} (status {status})"
    except (ValueError, KeyError, TypeError):
        return f"The API answered with status {status}: {body[:300].decode('utf-8', 'replace')}"
