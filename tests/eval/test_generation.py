"""Batches generate what each prompt alone would, whatever the model does with padding, and leave nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastchat.errors import ResourceError, SettingsError
from fastchat.eval import generation
from fastchat.eval.generation import CONTEXT, LENGTH, STOP, Generated, Sampling, generate
from tests.model.architectures import SIZES, tiny

LENGTHS = (5, 11, 3, 8, 11, 2, 7)
COMMON = ("llama", "gpt2", "bloom", "mamba", "rwkv")
GREEDY = Sampling(max_new_tokens=6)


def prompts_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in lengths]


def livelier(model: Any) -> Any:
    """Random weights are so small that a model repeats one token; larger ones let every token before count."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def made(model: Any, prompts: list[list[int]], sampling: Sampling = GREEDY, **more: Any) -> list[Generated]:
    return generate(model, prompts, **{"stop_ids": [2], "pad_id": 0, "sampling": sampling} | more)


def by_hand(model: Any, prompt: list[int], num: int = 6) -> list[int]:
    """Greedy, with neither batches nor a cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "arch", [pytest.param(name, marks=[] if name in COMMON else pytest.mark.thorough) for name in SIZES]
)
def test_a_batch_is_what_each_prompt_alone_is(arch: str) -> None:
    model, prompts = livelier(tiny(arch)).eval(), prompts_of()
    together = made(model, prompts, batch_size=3)
    assert together == [made(model, [prompt])[0] for prompt in prompts]
    assert len({tuple(one.ids) for one in together}) > 1, "different prompts have different answers"


@pytest.mark.parametrize("rope_type", ["default", "dynamic"])
def test_greedy_decoding_is_that_of_a_loop_without_a_cache(rope_type: str) -> None:
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **({"factor": 2.0} if rope_type == "dynamic" else {})}
    model = livelier(tiny("llama", rope_parameters=rope, max_position_embeddings=8)).eval()
    prompts = prompts_of((4, 7, 4, 9) if rope_type == "dynamic" else (2, 1, 2))
    expected = [by_hand(model, prompt) for prompt in prompts]
    assert [one.ids for one in made(model, prompts, stop_ids=[])] == expected


def test_where_an_answer_ends() -> None:
    model = livelier(tiny("llama", max_position_embeddings=16)).eval()
    prompts = prompts_of((4, 5, 12, 16, 20))
    free = made(model, prompts, stop_ids=[])
    assert [(len(one.ids), one.finish_reason) for one in free] == [
        (6, LENGTH),
        (6, LENGTH),
        (4, LENGTH),
        (0, CONTEXT),
        (0, CONTEXT),
    ]
    stop = free[0].ids[2]
    stopped = made(model, prompts, stop_ids=[95, stop])[0]
    first = free[0].ids.index(stop)
    assert stopped == Generated(free[0].ids[:first], STOP, stop)
    seen = []

    def ended(number: int, ids: list[int]) -> bool:
        seen.append((number, list(ids)))
        return number == 1 and len(ids) == 3

    both = made(model, prompts[:2], stop_ids=[], ended=ended)
    assert both == [free[0], Generated(free[1].ids[:3], STOP)]
    assert (0, free[0].ids[:5]) in seen and (1, free[1].ids[:4]) not in seen


def test_drawn_answers_depend_on_the_seed_and_the_key_alone() -> None:
    model, prompts = tiny("llama").eval(), prompts_of()
    sampling = Sampling(max_new_tokens=6, temperature=1.0, top_p=0.95, seed=7)
    before = torch.random.get_rng_state()
    names = [f"row {number}" for number in range(len(prompts))]
    drawn = made(model, prompts, sampling, keys=names, batch_size=3)
    assert torch.equal(torch.random.get_rng_state(), before), "no random number of the run is taken"
    assert made(model, prompts[4:], sampling, keys=names[4:], batch_size=2) == drawn[4:]
    assert drawn != made(model, prompts, Sampling(max_new_tokens=6, temperature=1.0, top_p=0.95, seed=8), keys=names)
    assert drawn != made(model, prompts)


def test_draws_have_the_softmax_probabilities() -> None:
    model, prompt = tiny("llama", vocab_size=8).eval(), [3, 4, 5]
    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / 0.5).softmax(-1)
    num = 4000
    sampling = Sampling(max_new_tokens=1, temperature=0.5, seed=3)
    drawn = made(model, [prompt] * num, sampling, stop_ids=[], batch_size=num)
    counts = torch.bincount(torch.tensor([one.ids[0] for one in drawn]), minlength=8)
    deviations = (counts / num - expected).abs() / (expected * (1 - expected) / num).sqrt()
    assert float(deviations.max()) < 4.5, "standard deviations"


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    model, prompts = livelier(tiny("llama")).eval(), prompts_of()
    expected = made(model, prompts)
    sizes: list[int] = []
    plain = type(model).generate

    def small(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        if options["generation_config"].output_logits:  # the trial of a batch
            return plain(self, input_ids=input_ids, **options)
        sizes.append(len(input_ids))
        if len(input_ids) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "generate", small)
    fits = 2
    done: list[int] = []
    assert made(model, prompts, on_done=lambda number, one: done.append(number)) == expected
    assert sizes == [7, 4, 2, 2, 2, 1] and sorted(done) == list(range(7))
    assert "4 rows at once do not fit into the memory: continuing with 2" in capsys.readouterr().err
    fits = 0
    with pytest.raises(ResourceError, match="too small to generate 6 tokens after a prompt of 11"):
        made(model, prompts)


def test_another_error_is_not_taken_for_one_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")

    def broken(self: Any, **options: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(type(model), "generate", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        made(model, prompts_of())


def test_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = livelier(tiny("llama"))
    expected = made(model.eval(), prompts_of())
    model.train()
    own = model.generation_config
    own.update(do_sample=True, temperature=0.6, top_p=0.1, repetition_penalty=3.0, eos_token_id=list(range(50)))
    kept = own.to_dict()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    assert made(model, prompts_of()) == expected, "neither dropout nor the model's own settings"
    assert model.training and model.generation_config is own and own.to_dict() == kept


def test_nothing_to_generate() -> None:
    assert made(tiny("llama"), []) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [({"max_new_tokens": 0}, "at least 1"), ({"temperature": -1.0}, "0 or more"), ({"top_p": 0.0}, "above 0")],
)
def test_settings_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Sampling(**values)


def test_a_model_whose_rows_are_not_apart_is_found_out(capsys: Any) -> None:
    made(livelier(tiny("llama")), prompts_of())
    assert "one by one" not in capsys.readouterr().err
    made(livelier(tiny("rwkv")), prompts_of())
    assert "gives other answers in a batch, so prompts are answered one by one" in capsys.readouterr().err


def test_each_process_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = livelier(tiny("llama")), prompts_of()[:6]
    expected = made(model, prompts)
    shares: list[Any] = []
    monkeypatch.setattr(generation, "world_size", lambda: 3)
    monkeypatch.setattr(generation, "on_all_processes", lambda work: work())
    collect: Callable[[Any], Any] = lambda mine: shares.append(mine) or [mine] * 3  # noqa: E731
    monkeypatch.setattr(generation, "gather", collect)
    for number in range(3):
        monkeypatch.setattr(generation, "rank", lambda number=number: number)
        generation.generate_in_all(model, prompts, stop_ids=[2], pad_id=0, sampling=GREEDY)
    assert [shares[number % 3][number // 3] for number in range(len(prompts))] == expected
