"""What the API needs of an engine, and the queue through which the tokens of one request arrive."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 always takes the most likely token.
        top_p: only the most likely tokens that have this much probability together.
        seed: the same seed gives the same tokens; None for a random one.
        logprobs: the number of most likely tokens to report next to each token; None reports no probabilities at all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Job:
    """One answer to generate: ids of the prompt, at most `max_tokens` more, until one of `stop_ids`."""

    prompt: Sequence[int]
    max_tokens: int
    stop_ids: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token; `logprob` and `top` (id, log-probability; most likely first) if they were asked for.

    Log-probabilities are those of the model, before temperature and top_p.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class EngineError(Exception):
    """The engine could not answer; the message is for the log, clients are only told that it failed."""


class Engine(abc.ABC):
    """Generates for several jobs at once. All methods are called in one event loop.

    Attributes:
        name: for messages.
        limit: the largest number of tokens of prompt and answer together; None for no limit.
    """

    name: str
    limit: int | None

    @abc.abstractmethod
    async def start(self) -> None:
        """Get ready. Raises EngineError if this model cannot be served by this engine."""

    @abc.abstractmethod
    def generate(self, job: Job) -> AsyncIterator[Token]:
        """The tokens of a job, as they are generated, the stop id included. Closing the iterator cancels the job.

        Raises EngineError.
        """

    @property
    @abc.abstractmethod
    def is_alive(self) -> bool:
        """Whether it can still answer."""

    @property
    @abc.abstractmethod
    def num_jobs(self) -> int:
        """The number of jobs that are running or waiting in the engine."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop; jobs that are running fail."""


class Arriving:
    """The tokens of one job on their way from the engine's thread to the event loop."""

    def __init__(self, job: Job):
        self.job = job
        self._queue: asyncio.Queue[Token | Exception | None] = asyncio.Queue()

    def put(self, item: Token | Exception | None) -> None:
        """A token, the error that ended the job, or None at its end. Called in the event loop."""
        self._queue.put_nowait(item)

    async def tokens(self) -> AsyncIterator[Token]:
        """The tokens up to the end. Raises the error."""
        while (item := await self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
