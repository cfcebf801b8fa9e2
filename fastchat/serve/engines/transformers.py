"""The engine that transformers has: continuous batching, or one job after the other where that does not work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastchat.errors import say
from fastchat.serve.engines.base import Engine, EngineError, Job, Token
from fastchat.serve.engines.continuous import Continuous
from fastchat.serve.engines.generating import Generating


class Transformers(Engine):
    """Whichever of the two serves this model; decided, and said, by `start`."""

    def __init__(self, model: Any, pad_id: int, limit: int | None, most_jobs: int):
        self._arguments = (model, pad_id, limit)
        self._engine: Engine = Continuous(model, limit, most_jobs)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._engine.name

    @property
    def limit(self) -> int | None:  # type: ignore[override]
        return self._engine.limit

    async def start(self) -> None:
        try:
            await self._engine.start()
        except EngineError as error:
            say(f"Continuous batching does not work with this model ({error}): one request is answered at a time.")
            self._engine = Generating(*self._arguments)
            await self._engine.start()

    async def generate(self, job: Job) -> AsyncIterator[Token]:
        async with aclosing(self._engine.generate(job)) as tokens:  # type: ignore[type-var]
            async for token in tokens:
                yield token

    @property
    def is_alive(self) -> bool:
        return self._engine.is_alive

    @property
    def num_jobs(self) -> int:
        return self._engine.num_jobs

    async def close(self) -> None:
        await self._engine.close()
