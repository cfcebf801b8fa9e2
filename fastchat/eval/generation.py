"""Prompts of different lengths -> generated ids, in batches, each as if its prompt were alone.

Batches are padded on the left, under an attention mask and with positions that begin at the first real token. Whether
the model at hand really keeps the rows of a batch apart is tried with two prompts; where it does not, each is a batch
of its own. Prompts are sorted by length, and results have the order of the prompts.

The tokens come from transformers' `generate`. Sampling adds Gumbel noise, of one random number generator per prompt,
and takes the most likely token, which is the same as drawing from the softmax. So an answer depends on the seed and on
its prompt alone, not on the batch, on the number of processes or on where an interrupted run continued; and the random
numbers of a training that is going on stay where they are.

Shape letters: B prompts of a batch, T tokens of the longest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fastchat.errors import SettingsError, say
from fastchat.eval.batching import halving
from fastchat.files import sha256_of_text
from fastchat.model.rope import context_length, rope_type
from fastchat.processes import gather, on_all_processes, rank, world_size

STOP, LENGTH, CONTEXT = "stop", "length", "context"  # why a generation ended
GREEDY_BELOW = 1e-5  # below this temperature, decoding is greedy
DEPENDS_ON_LENGTH = ("dynamic", "longrope")  # the angles of a row depend on the length of the whole batch
TRIAL = 3  # tokens, when a batch is tried
TOLERANCE, OF_HALF = 1e-3, 5e-2  # of the logits' norm, in float32 and in 16 bits


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: the most tokens of an answer, with its stop.
        temperature: 0 always takes the most likely token.
        top_p: only the most likely tokens with this probability together can be drawn.
        seed: of the draws; equal seeds give equal answers.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SettingsError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise SettingsError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class Generated:
    """What was generated for one prompt.

    Attributes:
        ids: without the stop.
        finish_reason: "stop" if the model ended its turn, "length" if `max_new_tokens` or the context did, "context"
            if the prompt left no room for an answer.
        stop_id: the id that ended it; None if none did, or a text.
    """

    ids: list[int]
    finish_reason: str
    stop_id: int | None = None


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    sampling: Sampling,
    batch_size: int = 16,
    keys: Sequence[object] | None = None,
    ended: Callable[[int, list[int]], bool] | None = None,
    on_done: Callable[[int, Generated], None] | None = None,
    together: bool = False,
    device: torch.device | None = None,
) -> list[Generated]:
    """The continuation of each prompt (token ids), in their order.

    Args:
        model: a causal language model, also an adapter or one that is being trained; its mode is restored.
        stop_ids: any of them ends an answer.
        batch_size: prompts of a batch. A batch that does not fit into the memory is halved, and later ones stay small.
        keys: what stands for each prompt in its random numbers, by default its place; so the answer to a prompt stays
            the same where others are left out.
        ended: called with a prompt's number and its ids so far, after every token: whether a text in them ends it.
        on_done: called with a prompt's number and its result, as soon as its batch is done.
        together: the processes hold parts of the weights (ZeRO-3) and must make every forward pass together: each of
            them has to call this, with any number of prompts. A batch that does not fit cannot be halved then.
        device: where the model takes its inputs; by default where its weights are.

    Raises ResourceError if a single prompt does not fit into the memory.
    """
    names = range(len(prompts)) if keys is None else keys
    where = model.device if device is None else device
    work = _Work(model, list(prompts), sampling, tuple(stop_ids), pad_id, names, ended, where)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _without_own_settings(model):
            batches = work.plan(batch_size, together)
            _run(work, batches, on_done or (lambda number, made: None), together)
    finally:
        model.train(was_training)
    return [work.found[i] for i in range(len(prompts))]


def generate_in_all(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    keys: Sequence[object] | None = None,
    ended: Callable[[int, list[int]], bool] | None = None,
    on_done: Callable[[int, Generated], None] | None = None,
    together: bool = False,
    **options: Any,
) -> list[Generated]:
    """Like `generate`, the work divided among the processes of a run; every process gets all results.

    Every process calls it with the same prompts. `on_done` is called in the process that did the work.
    """
    mine = range(rank(), len(prompts), world_size())
    names = range(len(prompts)) if keys is None else keys

    def work() -> list[Generated]:
        return generate(
            model,
            [prompts[number] for number in mine],
            keys=[names[number] for number in mine],
            ended=None if ended is None else partial(_at, ended, mine),
            on_done=None if on_done is None else partial(_at, on_done, mine),
            together=together,
            **options,
        )

    made = gather(work() if together else on_all_processes(work))
    return [made[number % world_size()][number // world_size()] for number in range(len(prompts))]


def _at(call: Callable[[int, Any], Any], numbers: Sequence[int], place: int, value: Any) -> Any:
    """`call` with the number of a prompt among all, instead of its place in this process's share."""
    return call(numbers[place], value)


def _run(work: _Work, batches: list[list[int]], on_done: Callable[[int, Generated], None], together: bool) -> None:
    """All batches; with `together` as many in every process, the last ones for nothing."""
    _tell(work, list(work.found), on_done)
    if together:
        most = max(gather(len(batches)))
        for batch in batches + [[]] * (most - len(batches)):
            work.batch(batch)
            _tell(work, batch, on_done)
        return

    def too_small(number: int) -> str:
        return f"to generate {work.sampling.max_new_tokens} tokens after a prompt of {len(work.prompts[number])}"

    for batch in halving(batches, work.batch, too_small):
        _tell(work, batch, on_done)


def _tell(work: _Work, batch: list[int], on_done: Callable[[int, Generated], None]) -> None:
    for number in batch:
        on_done(number, work.found[number])


@dataclass
class _Work:
    """The prompts of one call of `generate`, and `found`: the results so far, by number."""

    model: Any
    prompts: list[Sequence[int]]
    sampling: Sampling
    stop_ids: tuple[int, ...]
    pad_id: int
    keys: Sequence[object]
    ended: Callable[[int, list[int]], bool] | None
    device: torch.device

    def __post_init__(self) -> None:
        self.found: dict[int, Generated] = {}
        self.context = context_length(self.model.config)

    def room(self, number: int) -> int:
        """How many tokens can be generated after a prompt."""
        left = self.sampling.max_new_tokens
        return left if self.context is None else min(left, self.context - len(self.prompts[number]))

    def plan(self, size: int, together: bool) -> list[list[int]]:
        """The numbers of the prompts in their batches, longest first, so that what does not fit is met at once.

        A prompt that would meet the end of the context is a batch of its own: others would be cut with it, or it would
        be continued beyond the last position that the model has. For the same reason the other processes, if all work
        `together`, meanwhile have none to generate for.
        """
        for number in range(len(self.prompts)):
            if self.room(number) < 1:
                self.found[number] = Generated([], CONTEXT)
        free = [number for number in range(len(self.prompts)) if number not in self.found]
        alone = [number for number in free if self.room(number) < self.sampling.max_new_tokens]
        shared = [number for number in free if number not in set(alone)]
        shared.sort(key=lambda number: -len(self.prompts[number]))
        by_length = rope_type(self.model.config) in DEPENDS_ON_LENGTH
        if not self._can_batch(shared, by_length, size, together):
            size = 1
        groups = _by_length(shared, self.prompts) if by_length else [shared]
        chunks = [group[at : at + size] for group in groups for at in range(0, len(group), size)]
        counts = gather(len(alone)) if together else [len(alone)]
        before, after = (sum(counts[: rank()]), sum(counts[rank() + 1 :])) if together else (0, 0)
        nothing: list[int] = []
        return [nothing] * before + [[number] for number in alone] + [nothing] * after + chunks

    def _can_batch(self, numbers: list[int], by_length: bool, size: int, together: bool) -> bool:
        """Whether a prompt has the same logits in a batch, next to the longest one, as it has alone."""
        needed = size > 1 and len(numbers) > 1
        if not (any(gather(needed)) if together else needed):
            return True
        one = self.prompts[numbers[-1]] if numbers else [self.pad_id]
        other = self.prompts[numbers[0]] if numbers and not by_length else one
        alone, inside = self._trial([one]), self._trial([one, other])
        apart = float((alone - inside).norm() / alone.norm().clamp(min=1e-30))
        rounds = torch.is_autocast_enabled(self.device.type) or self.model.dtype.itemsize < torch.float32.itemsize
        same = apart <= (OF_HALF if rounds else TOLERANCE)
        if not same:
            say("generation: this model gives other answers in a batch, so prompts are answered one by one")
        return same

    def _trial(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits of the first tokens after the first prompt, [steps, V]: with its cache."""
        ids_BT, mask_BT = self._inputs(prompts)
        config = self._config(min(TRIAL, self.sampling.max_new_tokens), [])
        config.return_dict_in_generate = config.output_logits = True
        made = self.model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=config)
        return torch.stack([step_BV[0].float() for step_BV in made.logits])

    def _inputs(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, [B, T] each, padded on the left to the longest prompt."""
        width = max(map(len, prompts))
        ids = [[self.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _config(self, room: int, stop_ids: Sequence[int]) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=room,
            do_sample=False,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=self.pad_id,
            # Dynamic RoPE changes the angles of earlier keys as the text grows; cached keys would be stale.
            use_cache=rope_type(self.model.config) != "dynamic",
        )

    def batch(self, numbers: list[int]) -> None:
        """Generate for some prompts; for none of them, one forward pass that others wait for."""
        room = self.room(numbers[0]) if numbers else 1
        ids_BT, mask_BT = self._inputs([self.prompts[number] for number in numbers] or [[self.pad_id]])
        ends = _Ends(numbers, ids_BT.shape[1], self.ended)
        out_BT = self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            generation_config=self._config(room, self.stop_ids),
            logits_processor=self._draws(numbers),
            stopping_criteria=[ends] if self.ended else None,
        )
        for number, row in zip(numbers, out_BT[:, ids_BT.shape[1] :].tolist(), strict=False):
            self.found[number] = self._finished(row[: ends.at.get(number, room)], number in ends.at)

    def _finished(self, ids: list[int], ended: bool) -> Generated:
        stops = set(self.stop_ids)
        for at, token_id in enumerate(ids):
            if token_id in stops:
                return Generated(ids[:at], STOP, token_id)
        return Generated(ids, STOP if ended else LENGTH)

    def _draws(self, numbers: list[int]) -> Any:
        """What turns the most likely token into a drawn one; nothing where decoding is greedy."""
        from transformers.generation import logits_process as library

        if self.sampling.greedy or not numbers:
            return None
        warpers: list[Any] = [library.TemperatureLogitsWarper(self.sampling.temperature)]
        if self.sampling.top_p < 1:
            warpers.append(library.TopPLogitsWarper(self.sampling.top_p))
        seeds = [sha256_of_text(f"{self.sampling.seed} {self.keys[number]}") for number in numbers]
        generators = [torch.Generator(self.device).manual_seed(int(seed[:15], 16)) for seed in seeds]

        def draw(ids_BT: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
            noise = [torch.empty_like(scores_BV[0]).exponential_(generator=generator) for generator in generators]
            return scores_BV - torch.stack(noise).clamp(min=torch.finfo(scores_BV.dtype).tiny).log()

        return library.LogitsProcessorList([*warpers, draw])


class _Ends:
    """A stopping criterion: which rows have ended. `at`: a prompt's number -> how many ids it has by then."""

    def __init__(self, numbers: list[int], start: int, ended: Callable[[int, list[int]], bool] | None):
        self.numbers, self.start, self.ended = numbers, start, ended
        self.at: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for number, row in zip(self.numbers, input_ids[:, self.start :].tolist(), strict=False):
            if number not in self.at and self.ended is not None and self.ended(number, row):
                self.at[number] = len(row)
        done = [number in self.at for number in self.numbers] or [True] * len(input_ids)
        return torch.tensor(done, device=input_ids.device)


def _by_length(numbers: list[int], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(len(prompts[number]), []).append(number)
    return list(groups.values())


def _language_model(model: Any) -> Any:
    """The transformers model inside an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Within it the model's own sampling settings and stop ids do not apply; afterwards it has them again."""
    from transformers import GenerationConfig

    inner = _language_model(model)
    before = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = before
