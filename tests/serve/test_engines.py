"""Continuous batching gives what the model alone gives; a model that it cannot serve gets the other way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fastchat.serve.chat import load_chat
from fastchat.serve.engines.base import Engine, EngineError, Job, Sampling, Token
from fastchat.serve.engines.continuous import Continuous
from fastchat.serve.engines.generating import Generating
from fastchat.serve.engines.sampling import Drawing, next_tokens
from fastchat.serve.engines.transformers import Transformers
from tests.model.adapters import save_random_adapter

GREEDY = Sampling(temperature=0.0, logprobs=3)


async def all_of(engine: Engine, jobs: list[Job]) -> list[list[Token]]:
    async def one(job: Job) -> list[Token]:
        return [token async for token in engine.generate(job)]

    return list(await asyncio.gather(*map(one, jobs)))


def run(engine: Engine, *rounds: list[Job]) -> list[list[list[Token]]]:
    async def work() -> list[list[list[Token]]]:
        await engine.start()
        try:
            made = [await all_of(engine, jobs) for jobs in rounds]
            assert engine.is_alive and engine.num_jobs == 0
            return made
        finally:
            await engine.close()

    return asyncio.run(work())


def jobs_of(sampling: Sampling, num: int = 6) -> list[Job]:
    numbers = torch.Generator().manual_seed(5)
    return [
        Job(torch.randint(3, 300, (5 + 13 * k,), generator=numbers).tolist(), 4 + k, (), sampling) for k in range(num)
    ]


def check_plain(model: Any, jobs: list[Job], made: list[list[Token]]) -> None:
    """Every token is the most likely one of a forward pass, with its log-probabilities."""
    for job, tokens in zip(jobs, made, strict=True):
        assert len(tokens) == job.max_tokens
        ids = torch.tensor([[*job.prompt, *(token.id for token in tokens[:-1])]])
        with torch.no_grad():
            wanted = model(input_ids=ids).logits[0, len(job.prompt) - 1 :].float().log_softmax(-1)
        for row, token in zip(wanted, tokens, strict=True):
            assert token.id == int(row.argmax()) == token.top[0][0] and len(token.top) == 3
            assert abs(token.logprob - float(row.max())) < 1e-4
            assert all(abs(float(row[i]) - value) < 1e-4 for i, value in token.top)


KINDS = [("llama", {}), ("qwen3", {}), ("gemma2", {}), ("mistral", {"sliding_window": 16})]


@pytest.mark.parametrize(
    ("arch", "config"), [KINDS[0], *(pytest.param(*k, marks=pytest.mark.thorough) for k in KINDS[1:])]
)
def test_jobs_together_get_what_each_gets_alone(arch: str, config: dict, tiny_model_dir: Callable[..., Path]) -> None:
    path = tiny_model_dir(arch, "byte_nobos", **config)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    jobs = jobs_of(GREEDY)
    engine = Continuous(AutoModelForCausalLM.from_pretrained(path).eval(), 512, most_jobs=4)
    (made,) = run(engine, jobs)
    check_plain(model, jobs, made)
    one_by_one = Generating(model, 0, 512)
    assert [[t.id for t in tokens] for tokens in run(one_by_one, jobs)[0]] == [[t.id for t in row] for row in made]


def test_a_model_that_soon_says_its_stop_is_batched_too(tiny_model_dir: Callable[..., Path]) -> None:
    """The check before serving compares with `generate`, which ends there."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", "byte_nobos")).eval()
    model.generation_config.eos_token_id = list(range(model.config.vocab_size))
    engine = Transformers(model, 0, 512, 4)
    jobs = jobs_of(GREEDY, 2)
    check_plain(model, jobs, run(engine, jobs)[0])
    assert "continuous batching" in engine.name


def test_seeds_are_reproducible_whatever_else_is_in_the_batch(tiny_model_dir: Callable[..., Path]) -> None:
    path = tiny_model_dir("llama", "byte_nobos")
    sampled = Sampling(temperature=1.5, top_p=0.9, seed=7)
    job = Job([5, 6, 7], 12, (), sampled)
    others = jobs_of(Sampling(temperature=1.0))
    engine = Transformers(AutoModelForCausalLM.from_pretrained(path).eval(), 0, 512, 8)
    alone, crowd, other = run(engine, [job], [*others, job], [Job([5, 6, 7], 12, (), Sampling(1.5, 0.9, 8))])
    ids = [token.id for token in alone[0]]
    assert ids == [token.id for token in crowd[-1]]
    assert ids != [token.id for token in other[0]]
    again = Generating(AutoModelForCausalLM.from_pretrained(path).eval(), 0, 512)
    assert ids == [token.id for token in run(again, [job])[0][0]]


def test_an_adapter_and_one_that_continuous_batching_cannot_serve(
    tmp_path: Path, tiny_model_dir: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_model_dir("llama", "byte_nobos", max_positions=64, hidden=64)
    for rope, name in ((None, "continuous batching"), ("dynamic", "one request at a time")):
        folder, apart = save_random_adapter(
            tmp_path / str(rope), base, template="chatml", rope_type=rope, length=200 if rope else 64
        )
        chat = load_chat(str(folder), device="cpu")
        engine = Transformers(chat.model, 0, chat.context, 4)
        jobs = [Job(job.prompt[:40], 5, (), GREEDY) for job in jobs_of(GREEDY)]
        (made,) = run(engine, jobs)
        assert name in engine.name
        check_plain(apart, jobs, made)
    assert "does not work with this model (dynamic RoPE): one request" in capsys.readouterr().err


def test_a_model_that_is_computed_otherwise_is_not_served(tiny_model_dir: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", "byte_nobos")).eval()
    engine = Continuous(model, 512, most_jobs=4)
    plainly = engine._plainly

    def other() -> Any:
        return [(job, logprobs + 0.1, ids) for job, logprobs, ids in plainly()]

    engine._plainly = other  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="differ by 0.1"):
        asyncio.run(engine.start())
    assert not engine.is_alive


def test_cancelled_jobs_leave_nothing(tiny_model_dir: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", "byte_nobos")).eval()

    async def work(engine: Engine) -> None:
        await engine.start()
        try:
            for _ in range(3):
                tokens = engine.generate(Job([5, 6, 7], 400, (), GREEDY))
                assert [await anext(tokens) for _ in range(2)]  # type: ignore[call-overload]
                await tokens.aclose()  # type: ignore[attr-defined]
            assert engine.num_jobs == 0
            assert len((await all_of(engine, [Job([5], 4, (), GREEDY)]))[0]) == 4
            if isinstance(engine, Continuous):
                scheduler = engine._manager.batch_processor.scheduler
                for _ in range(100):
                    if not scheduler.has_pending_requests():
                        break
                    await asyncio.sleep(0.05)
                assert not scheduler.active_requests and not scheduler.waiting_requests
        finally:
            await engine.close()
        assert not engine.is_alive
        with pytest.raises(EngineError):
            await all_of(engine, [Job([5], 4, (), GREEDY)])

    asyncio.run(work(Continuous(model, 512, most_jobs=4)))


def test_what_is_drawn_has_the_right_frequencies() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(4000, 4)
    probs = (logits[0] / 0.8).softmax(0)
    for top_p, kept in ((1.0, [0, 1, 2, 3]), (0.9, [1, 2]), (1e-9, [2])):
        drawings = [Drawing(Job([1], 1, (), Sampling(0.8, top_p, seed))) for seed in range(4000)]
        found = Counter(token.id for token in next_tokens(logits, drawings) if token)
        assert set(found) == set(kept)
        total = float(sum(probs[k] for k in kept))
        assert all(abs(found[k] / 4000 - float(probs[k]) / total) < 0.03 for k in kept)


def test_values_that_are_not_numbers_are_no_token() -> None:
    logits = torch.tensor([[0.0, torch.nan], [1.0, 0.0]])
    made = next_tokens(logits, [Drawing(Job([1], 1, (), GREEDY)) for _ in range(2)])
    assert made[0] is None and made[1] is not None and made[1].id == 0
