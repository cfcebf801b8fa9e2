"""Requests that the API refuses: parameters, bodies, keys and hosts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastchat.conversation import get_template  # noqa: E402
from fastchat.data.encoding.text_encoder import TextEncoder  # noqa: E402
from fastchat.serve.api.app import Limits  # noqa: E402
from fastchat.serve.api.served import ServedModel  # noqa: E402
from tests.serve.serving import WEATHER, served  # noqa: E402
from tests.serve.test_api import ASK, HELLO, YES, client, jobs, post  # noqa: E402

DEEP = {"a": "x"}
for _ in range(200):
    DEEP = {"a": DEEP}  # type: ignore[dict-item]
REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "gpt-4"}, 404, "served: m"),
    ({"messages": []}, 400, "at least one message"),
    ({"messages": "Hello"}, 400, "expected a list"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "unknown role"),
    ({"messages": [HELLO, {"role": "system", "content": "late"}]}, 400, "system turn not first"),
    ({"messages": [HELLO, {"role": "assistant", "content": "x"}]}, 400, "must end with a user"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "only text"),
    ({"messages": [{**HELLO, "name": "Bob"}]}, 400, "'name' is not supported"),
    ({"messages": [{**HELLO, "colour": "red"}]}, 400, "'colour' is not supported"),
    ({"messages": [{"role": "user", "content": "x " * 400}]}, 400, "maximum context length is 400 tokens"),
    ({"max_tokens": 500}, 400, "and 500 in the completion"),
    ({"max_tokens": 0}, 400, "whole number from 1"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "differ"),
    ({"temperature": -1}, 400, "'temperature' is -1"),
    ({"temperature": True}, 400, "expected a number"),
    ({"top_p": 0}, 400, "above 0"),
    ({"n": 10**9}, 400, "from 1 to 32"),
    ({"n": 20}, 400, "at most 10 at once"),
    ({"stop": [""]}, 400, "not empty"),
    ({"stop": ["x"] * 100}, 400, "at most 16"),
    ({"temprature": 1}, 400, "did you mean 'temperature'"),
    ({"frequency_penalty": 1}, 400, "not supported"),
    ({"logit_bias": {"5": -100}}, 400, "not supported"),
    ({"response_format": {"type": "json_object"}}, 400, "not supported"),
    ({"tool_choice": "required", "tools": [WEATHER]}, 400, "does not constrain"),
    ({"tool_choice": "auto"}, 400, "there are no 'tools'"),
    ({"tools": [{"type": "function", "function": {}}]}, 400, "without a name"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": DEEP}}]}, 400, "too deeply"),
    ({"top_logprobs": 3}, 400, "needs 'logprobs'"),
    ({"stream_options": {"include_usage": True}}, 400, "needs 'stream'"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, 400, "does not read 'enable_thinking'"),
    ({"chat_template_kwargs": {"messages": []}}, 400, "cannot set"),
    ({"reasoning_effort": "low"}, 400, "does not read 'reasoning_effort'"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}, HELLO]},
        400,
        "arguments",
    ),
]


@pytest.fixture(scope="module")
def refusing(tokenizer_dir: Any) -> ServedModel:
    encoder, _ = TextEncoder.from_directory(str(tokenizer_dir("byte_nobos")))
    assert encoder is not None
    return served(encoder.bind(get_template("chatml")), YES)


@pytest.mark.parametrize(("more", "status", "words"), REFUSED)
def test_what_cannot_be_honoured_is_refused(more: dict, status: int, words: str, refusing: ServedModel) -> None:
    async def send() -> Any:
        async with client(refusing, Limits(answers=10)) as http:
            return await http.post("/v1/chat/completions", json={**ASK, **more})

    response = asyncio.run(send())
    error = response.json()["error"]
    assert response.status_code == status and words in error["message"], response.text
    assert set(error) == {"message", "type", "param", "code"} and not jobs(refusing)


def test_what_changes_nothing_is_accepted(refusing: ServedModel) -> None:
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "user": "me",
        "store": True,
        "n": None,
    }
    assert (
        post(served(refusing.chat_encoder, YES), {**ASK, **neutral, "response_format": {"type": "text"}}).status_code
        == 200
    )


BODIES = [
    (b"{", "application/json", 400, "not valid JSON"),
    (b"[1]", "application/json", 400, "must be a JSON object"),
    (b'{"a": NaN}', "application/json", 400, "not valid JSON"),
    (b'{"model": "m", "model": "n"}', "application/json", 400, "duplicate key"),
    (b'{"model": "\\ud800"}', "application/json", 400, "surrogate"),
    (b"\xff", "application/json", 400, "not UTF-8"),
    (b"[" * 100_000, "application/json", 400, "not valid JSON"),
    (json.dumps(ASK).encode(), "text/plain", 415, "content type"),
    (b" " * 3000, "application/json", 413, "more than 2,000 bytes"),
]


@pytest.mark.parametrize(("body", "kind", "status", "words"), BODIES)
def test_bodies_that_are_refused(body: bytes, kind: str, status: int, words: str, refusing: ServedModel) -> None:
    async def send(chunked: bool) -> Any:
        async def chunks() -> Any:
            yield body

        async with client(refusing, Limits(body=2000) if status == 413 else None) as http:
            content = chunks() if chunked else body
            return await http.post("/v1/chat/completions", content=content, headers={"content-type": kind})

    for chunked in (False, True):
        response = asyncio.run(send(chunked))
        assert response.status_code == status and words in response.json()["error"]["message"]


def test_keys_hosts_and_addresses(refusing: ServedModel) -> None:
    async def status(http: Any, path: str = "/v1/models", **headers: str | bytes) -> int:
        return (await http.get(path, headers=headers)).status_code

    async def work() -> None:
        async with client(refusing, key="secret-key") as http:
            assert await status(http) == await status(http, authorization="Bearer secret-kez") == 401
            assert (
                await status(http, authorization="Basic secret-key")
                == await status(http, authorization="Bearer \u00e9".encode("latin-1"))
                == 401
            )
            assert await status(http, authorization="Bearer secret-key", host="anywhere") == 200
            assert await status(http, "/health") == 200
            assert (await http.post("/v1/chat/completions", json=ASK)).status_code == 401
        async with client(refusing) as http:
            assert await status(http, host="evil.example:80") == 403
            for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
                assert await status(http, host=host) == 200
            assert await status(http, "/v1/models/m") == 200
            assert await status(http, "/v1/models/other") == await status(http, "/nothing") == 404
            assert await status(http, "/v1/chat/completions") == 405
            assert (
                "access-control-allow-origin"
                not in (await http.get("/v1/models", headers={"origin": "http://a"})).headers
            )

    asyncio.run(work())
