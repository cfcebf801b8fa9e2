"""transformers' continuous batching: all jobs advance together, and a new one joins at the next step.

It schedules, keeps the keys and values of all jobs in one paged cache, and runs the model. It has one temperature, one
seed and no choice of log-probabilities for all requests, so `_Sampler` takes the place of its logits processors: it
receives the logits of every job that gets a token in this step, chooses the token by the job's own settings, passes it
on, and leaves the engine nothing else to choose.

Not every model works with it (recurrent layers, attention of its own, angles that depend on the length). `start`
compares its log-probabilities with those of a plain forward pass, so a model that it computes otherwise is not served
by it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from fastchat.model.rope import rope_type
from fastchat.serve.engines.base import Arriving, Engine, EngineError, Job, Sampling, Token
from fastchat.serve.engines.generating import only
from fastchat.serve.engines.sampling import Drawing, next_tokens

GROWING = ("dynamic", "longrope")  # RoPE types whose angles depend on the longest text of the batch
PAGE = 32  # tokens
MOST_BATCH_TOKENS = 2048  # of all jobs in one step; longer prompts take several
CPU_CACHE = 2 * 2**30  # bytes of keys and values
GPU_SHARE = 0.7  # of the free memory is for keys and values
CHECKED_TOKENS = 4
# The largest difference of log-probabilities from a plain forward pass, in nats.
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
HALF_TOLERANCE = 0.5
_LOGGER = "ContinuousBatchingLogger"


class Continuous(Engine):
    """All jobs in one batch.

    `limit`: the model's context, if it has one; `most_jobs`: how many jobs run at once.
    """

    name = "transformers, continuous batching"

    def __init__(self, model: Any, limit: int | None, most_jobs: int):
        self._outer = model
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._most_jobs = most_jobs
        self._context = limit
        self.limit = limit
        self._jobs: dict[str, _Running] = {}
        self._numbers = itertools.count()
        self._manager: Any = None
        self._closing = threading.Event()

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        kind = rope_type(self._model.config)
        if kind in GROWING:
            raise EngineError(f"{kind} RoPE")
        expected = await asyncio.to_thread(self._plainly)
        try:
            self._manager = self._open()
        except Exception as error:  # its interface is new and changes; without it, models are served one by one
            raise EngineError(f"{type(error).__name__}: {error}") from error
        self._results = threading.Thread(target=self._deliver_ends, name="results", daemon=True)
        self._results.start()
        try:
            await self._check(expected)
        except BaseException:
            await self.close()
            raise

    def _open(self) -> Any:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        for name in (_LOGGER, "transformers.generation.continuous_batching"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        tokens = self._cache_tokens()
        batch = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=-(-tokens // PAGE),
            max_batch_tokens=max(self._most_jobs, min(MOST_BATCH_TOKENS, tokens)),
            max_requests_per_batch=self._most_jobs,
            use_cuda_graph=False,  # the sampler is Python code that has to run at every step
            use_async_batching=False,
            auto_switch_to_flash=False,  # it would download a kernel
        )
        with torch.inference_mode():
            manager = self._model.init_continuous_batching(
                generation_config=_greedy(1, eos_token_id=-1), continuous_batching_config=batch
            )
            # Read when the thread builds its batch, after `start`.
            manager.logit_processor = _processors(self._choose)
            manager.start()
        return manager

    def _cache_tokens(self) -> int:
        """Tokens of all jobs together whose keys and values are kept."""
        text = self._model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        each = 2 * text.num_hidden_layers * heads * size * self._model.dtype.itemsize
        device = self._model.device
        free = int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE) if device.type == "cuda" else CPU_CACHE
        most = free // each
        wanted = self._most_jobs * (self._context or most)
        # Less than one page of a job's last one is unused, and one page is spare.
        limit = min(most - 2 * PAGE, self._context or most)
        if limit < 1:
            raise EngineError("there is too little memory for keys and values")
        self.limit = limit
        return min(wanted + 2 * PAGE * self._most_jobs, most)

    async def generate(self, job: Job) -> AsyncIterator[Token]:
        name = f"job-{next(self._numbers)}"
        running = _Running(job)
        self._jobs[name] = running
        finished = False
        try:
            if not self.is_alive:
                raise EngineError("the engine has stopped")
            self._manager.add_request(
                list(job.prompt),
                request_id=name,
                max_new_tokens=job.max_tokens,
                eos_token_id=list(job.stop_ids) or -1,
            )
            async for token in running.tokens():
                yield token
            finished = True
        finally:
            del self._jobs[name]
            if not finished and self.is_alive:
                self._manager.cancel_request(name)

    @property
    def is_alive(self) -> bool:
        manager = self._manager
        return manager is not None and not self._closing.is_set() and manager.is_running()

    @property
    def num_jobs(self) -> int:
        return len(self._jobs)

    async def close(self) -> None:
        self._closing.set()
        if self._manager is not None:
            await asyncio.to_thread(self._manager.stop, block=True, timeout=10, hard_stop=True)
            await asyncio.to_thread(self._results.join, 10)

    # -- in the engine's threads

    def _choose(self, logits: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """Scores with nothing left but the chosen token of each job; [B, V], the first rows are those of `names`."""
        known = [self._jobs.get(name) for name in names]
        at = [k for k, running in enumerate(known) if running is not None]
        chosen = [0] * len(names)  # a job that is gone gets any token
        given: list[tuple[_Running, Token | Exception]] = []
        tokens = next_tokens(logits[at].float(), [known[k].drawing for k in at]) if at else []  # type: ignore[union-attr]
        for k, token in zip(at, tokens, strict=True):
            running = known[k]
            assert running is not None
            if token is None:
                given.append((running, EngineError("the model computed values that are not numbers")))
            else:
                chosen[k] = token.id
                given.append((running, token))
        self._post(given)
        return only(logits, chosen)

    def _deliver_ends(self) -> None:
        """A thread that waits for the jobs that end, well or not."""
        while not self._closing.is_set():
            result = self._manager.get_result(timeout=0.5)
            if result is None:
                if not self._manager.is_running():
                    break
                continue
            running = self._jobs.get(result.request_id)
            if running is not None and result.is_finished():
                self._post([(running, EngineError(result.error) if result.error else None)])
        self._post([(running, EngineError("the engine has stopped")) for running in list(self._jobs.values())])

    def _post(self, given: Sequence[tuple[_Running, Any]]) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits
            self._loop.call_soon_threadsafe(_put_all, given)

    # -- check

    @torch.inference_mode()
    def _plainly(self) -> list[tuple[Job, torch.Tensor, list[int]]]:
        """Short jobs of different lengths, each with the log-probabilities [T, V] and ids of `generate`."""
        size = self._model.get_input_embeddings().weight.shape[0]
        room = max(min(self._context or 64, 64) - CHECKED_TOKENS, 1)
        ids = torch.randint(size, (room,), generator=torch.Generator().manual_seed(0)).tolist()
        sampling = Sampling(temperature=0.0, logprobs=min(20, size))
        expected = []
        for prompt in (ids, ids[: room // 3 + 1], ids[:1]):
            row = torch.tensor([prompt], device=self._model.device)
            made = self._outer.generate(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                generation_config=_greedy(CHECKED_TOKENS, output_logits=True, return_dict_in_generate=True),
            )
            logprobs = torch.cat(list(made.logits)).float().log_softmax(dim=-1).cpu()
            expected.append(
                (Job(prompt, CHECKED_TOKENS, (), sampling), logprobs, made.sequences[0, len(prompt) :].tolist())
            )
        return expected

    async def _check(self, expected: Sequence[tuple[Job, torch.Tensor, list[int]]]) -> None:
        """Raise EngineError unless the jobs, all at once, get the expected log-probabilities."""
        made = await asyncio.gather(*(self._all(job) for job, _, _ in expected))
        for (_, logprobs, ids), tokens in zip(expected, made, strict=True):
            difference = _difference(logprobs, ids, tokens)
            if not difference <= TOLERANCE.get(self._model.dtype, HALF_TOLERANCE):
                raise EngineError(f"its log-probabilities differ by {difference:.3g} from those of the model")

    async def _all(self, job: Job) -> list[Token]:
        return [token async for token in self.generate(job)]


class _Running(Arriving):
    """A job of this engine, with its random numbers."""

    def __init__(self, job: Job):
        super().__init__(job)
        self.drawing = Drawing(job)


def _difference(logprobs: torch.Tensor, ids: Sequence[int], tokens: Sequence[Token]) -> float:
    """The largest difference of the reported log-probabilities from `logprobs` [T, V], as long as the ids agree: two
    tokens may be equally likely. `generate` ends `ids` after a stop of the model's own, which the engine goes past."""
    if len(tokens) < len(ids):
        return torch.inf
    largest = 0.0
    for row, expected, token in zip(logprobs, ids, tokens, strict=False):
        largest = max([largest, *(abs(float(row[i]) - value) for i, value in token.top)])
        if token.id != expected:
            break
    return largest


def _greedy(max_new_tokens: int, **more: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, **more)


def _processors(choose: Callable[[torch.Tensor, Sequence[str]], torch.Tensor]) -> Any:
    """The list of logits processors whose only one calls `choose(logits, names of the jobs)` at every step."""
    from transformers import LogitsProcessorList
    from transformers.generation.continuous_batching import cb_logits_processors as library

    class Sampler(library.ContinuousBatchingLogitsProcessor):
        supported_kwargs: dict[str, type] = {}
        ignored_kwargs: tuple[str, ...] = ()

        def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
            int32_tensor.zero_()

        def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
            self.names = [request.state.request_id for request in requests_with_new_token]
            return torch.zeros(len(self.names), dtype=torch.int32)

        def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
            return choose(scores, self.names)

    processors = library.ContinuousBatchingLogitsProcessorList(LogitsProcessorList([Sampler()]))
    processors.tensors_required = 1
    return processors


def _put_all(given: Sequence[tuple[_Running, Any]]) -> None:
    for running, item in given:
        running.put(item)
