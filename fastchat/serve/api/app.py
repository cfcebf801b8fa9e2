"""The addresses of the API, as a FastAPI application.

GET /health   GET /v1/models   GET /v1/models/NAME   POST /v1/chat/completions   POST /v1/completions
"""

from __future__ import annotations

import asyncio
import hmac
import sys
import traceback
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fastchat.serve.api.admission import Admission
from fastchat.serve.api.answering import Answering, Piece
from fastchat.serve.api.errors import ApiError
from fastchat.serve.api.http import ClientGone, EventStream, Lingering, event, merged, read_json, while_connected
from fastchat.serve.api.parameters import MOST_ANSWERS, Common, read_chat, read_completion
from fastchat.serve.api.replies import Reply
from fastchat.serve.api.served import Prompt, ServedModel
from fastchat.serve.engines.base import EngineError

LOCAL_HOSTS = frozenset(("localhost", "127.0.0.1", "[::1]"))


@dataclass(frozen=True)
class Limits:
    """What the server accepts.

    Attributes:
        answers: how many are generated at once, over all models.
        waiting: how many requests wait for their turn; one more is answered with 429.
        body: bytes of a request.
        body_seconds: until a body must have arrived.
    """

    answers: int = MOST_ANSWERS
    waiting: int = 2 * MOST_ANSWERS
    body: int = 8 * 2**20
    body_seconds: float = 30.0


def create_app(models: Mapping[str, ServedModel], limits: Limits | None = None, api_key: str | None = None) -> FastAPI:
    """The application for models whose engines are started in the same event loop.

    Without `api_key`, only requests that are addressed to this machine (LOCAL_HOSTS) are answered: a page of another
    site could otherwise reach the server under a name of its own.
    """
    app = FastAPI(title="fastchat", docs_url=None, redoc_url=None, openapi_url=None)
    api = Api(models, limits or Limits(), api_key)
    app.state.api = api
    app.add_api_route("/health", api.health, methods=["GET"])
    app.add_api_route("/v1/models", api.list_models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", api.show_model, methods=["GET"])
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"])
    app.add_api_route("/v1/completions", api.complete, methods=["POST"])
    app.add_exception_handler(ApiError, _error)
    app.add_exception_handler(HTTPException, _error)
    app.add_exception_handler(ClientGone, _gone)
    app.add_exception_handler(EngineError, _engine_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(Lingering)
    return app


def is_local(host: str) -> bool:
    """Whether the header Host names this machine."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.lower() in LOCAL_HOSTS


class Api:
    """The handlers."""

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits, api_key: str | None):
        self.models, self.limits = models, limits
        self.admission = Admission(limits.answers, limits.waiting)
        self._key = None if api_key is None else api_key.encode()

    async def health(self) -> Response:
        """Whether the engines can answer, and how much they have to do."""
        alive = all(model.engine.is_alive for model in self.models.values())
        state = {
            "status": "ok" if alive else "the engine has stopped",
            "running": self.admission.running,
            "waiting": self.admission.waiting,
            "in_engine": sum(model.engine.num_jobs for model in self.models.values()),
        }
        return JSONResponse(state, 200 if alive else 503)

    async def list_models(self, request: Request) -> Response:
        self._check_access(request)
        return JSONResponse({"object": "list", "data": [_model_object(model) for model in self.models.values()]})

    async def show_model(self, name: str, request: Request) -> Response:
        self._check_access(request)
        return JSONResponse(_model_object(self._model(name)))

    async def chat(self, request: Request) -> Response:
        self._check_access(request)
        asked = read_chat(await self._body(request))
        model = self._model(asked.common.model)
        prompt = await asyncio.to_thread(model.chat_prompt, asked)
        return await self._answer(request, model, asked.common, [prompt], chat=True)

    async def complete(self, request: Request) -> Response:
        self._check_access(request)
        asked = read_completion(await self._body(request))
        model = self._model(asked.common.model)
        prompts = [await asyncio.to_thread(model.text_prompt, one) for one in asked.prompts]
        return await self._answer(request, model, asked.common, prompts, chat=False)

    async def _body(self, request: Request) -> Any:
        return await read_json(request, self.limits.body, self.limits.body_seconds)

    def _check_access(self, request: Request) -> None:
        """Raise ApiError for a request without the key or, if there is none, one that is not addressed to us."""
        if self._key is None:
            host = request.headers.get("host", "")
            if not is_local(host):
                raise ApiError(403, f"The host {host[:100]!r} is not this machine; --api-key allows other names.")
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
            message = "The API key is missing or wrong; expected the header 'Authorization: Bearer KEY'."
            raise ApiError(401, message, code="invalid_api_key")

    def _model(self, name: str) -> ServedModel:
        model = self.models.get(name)
        if model is None:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"The model {name[:200]!r} does not exist; served: {known}.", "model", "model_not_found"
            )
        return model

    async def _answer(
        self, request: Request, model: ServedModel, asked: Common, prompts: list[Prompt], chat: bool
    ) -> Response:
        answers = [
            Answering(model, prompt, job, asked.stops) for prompt in prompts for job in model.jobs(prompt, asked)
        ]
        if not model.engine.is_alive:
            raise ApiError(503, "The engine has stopped; the server has to be started again.")
        reports = asked.sampling.logprobs is not None
        reply = Reply(model.name, model.chat_encoder.encoder, chat, reports, asked.include_usage)
        num_prompt, num = sum(len(prompt.ids) for prompt in prompts), len(answers)
        await while_connected(request, self.admission.enter(num))
        if asked.stream:
            return EventStream(_events(reply, answers, num_prompt), lambda: self.admission.leave(num))
        try:
            pieces = await while_connected(request, _all_pieces(answers))
        finally:
            self.admission.leave(num)
        return JSONResponse(reply.whole(pieces, num_prompt, sum(answer.num_tokens for answer in answers)))


async def _all_pieces(answers: list[Answering]) -> list[list[Piece]]:
    pieces: list[list[Piece]] = [[] for _ in answers]
    async for index, piece in merged([answer.pieces() for answer in answers]):
        pieces[index].append(piece)
    return pieces


async def _events(reply: Reply, answers: list[Answering], num_prompt: int) -> AsyncIterator[str]:
    """The events of a stream. An engine that fails meanwhile is the last event."""
    for index in range(len(answers) if reply.chat else 0):
        yield event(reply.opening(index))
    parts = merged([answer.pieces() for answer in answers])
    try:
        async for index, piece in parts:
            for chunk in reply.chunk(index, piece):
                yield event(chunk)
    except EngineError as error:
        yield event(_failed(error).body)
        return
    finally:
        await parts.aclose()  # type: ignore[attr-defined]
    if reply.usage:
        yield event(reply.closing(num_prompt, sum(answer.num_tokens for answer in answers)))
    yield event("[DONE]")


def _model_object(model: ServedModel) -> dict[str, Any]:
    limit = model.engine.limit
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "fastchat"} | (
        {"max_model_len": limit} if limit else {}
    )


def _failed(error: EngineError) -> ApiError:
    print(f"error: the engine failed: {error}", file=sys.stderr, flush=True)
    return ApiError(500, "The engine failed; the server's log says why.")


async def _error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = ApiError(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}.")
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return await _error(request, _failed(error))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _unexpected(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return await _error(request, ApiError(500, "The server failed; its log says why."))
