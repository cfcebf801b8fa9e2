"""One job after the other with transformers' `generate`: for models that continuous batching cannot serve."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import torch

from fastchat.model.rope import rope_type
from fastchat.serve.engines.base import Arriving, Engine, EngineError, Job
from fastchat.serve.engines.sampling import Drawing, next_tokens


class Generating(Engine):
    """A thread that takes the jobs in their order."""

    def __init__(self, model: Any, pad_id: int, limit: int | None, why: str = ""):
        self.name = "transformers, one request at a time" + (f" ({why})" if why else "")
        self.limit = limit
        self._model, self._pad_id = model, pad_id
        self._waiting: queue.SimpleQueue[_Running | None] = queue.SimpleQueue()
        self._jobs: set[_Running] = set()
        self._thread = threading.Thread(target=self._work, name="generate", daemon=True)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def generate(self, job: Job) -> AsyncIterator[Any]:
        running = _Running(job)
        self._jobs.add(running)
        self._waiting.put(running)
        try:
            async for token in running.tokens():
                yield token
        finally:
            running.cancelled = True
            self._jobs.discard(running)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_jobs(self) -> int:
        return len(self._jobs)

    async def close(self) -> None:
        for running in self._jobs:
            running.cancelled = True
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join, 10)

    def _work(self) -> None:
        while (running := self._waiting.get()) is not None:
            if running.cancelled:
                continue
            try:
                self._answer(running)
                self._give(running, None)
            except Exception as error:  # reported by whoever waits for the tokens; the next job may work
                self._give(running, EngineError(f"{type(error).__name__}: {error}"))

    @torch.inference_mode()
    def _answer(self, running: _Running) -> None:
        from transformers import GenerationConfig

        job = running.job
        drawing = Drawing(job)

        def choose(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """A logits processor: the scores of a batch of one, with nothing left but the chosen token."""
            token = next_tokens(scores.float(), [drawing])[0]
            if token is None:
                raise EngineError("the model computed values that are not numbers")
            self._give(running, token)
            return only(scores, [token.id])

        ids = torch.tensor([list(job.prompt)], device=self._model.device)
        config = GenerationConfig(
            max_new_tokens=job.max_tokens,
            do_sample=False,
            eos_token_id=list(job.stop_ids) or None,
            pad_token_id=self._pad_id,
            # Dynamic RoPE changes the angles of earlier keys as the text grows; cached keys would be stale.
            use_cache=rope_type(self._model.config) != "dynamic",
        )
        self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=[choose],
            stopping_criteria=[lambda rows, _, **more: torch.full((1,), running.cancelled, device=rows.device)],
        )

    def _give(self, running: _Running, item: Any) -> None:
        if not running.cancelled:
            with suppress(RuntimeError):  # the event loop is closed: nobody waits
                self._loop.call_soon_threadsafe(running.put, item)


class _Running(Arriving):
    cancelled = False


def only(scores: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Scores [B, V] in which the first rows have nothing but these ids."""
    forced = scores.clone()
    rows = torch.arange(len(ids), device=scores.device)
    forced[rows] = -torch.inf
    forced[rows, torch.tensor(ids, device=scores.device)] = 0.0
    return forced
