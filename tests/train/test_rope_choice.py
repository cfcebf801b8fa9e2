"""Without a flag the longest dialogue decides about RoPE scaling, not how long dialogues or packs may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import chat_rows, write_rows
from tests.train.flags import Train, ok

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def short_context(tiny_model_dir: Callable[..., Path]) -> Path:
    """A model of 128 tokens; the dialogues of two rounds have about 95, those of five more than 128."""
    return tiny_model_dir("llama", "metaspace_bos", max_positions=128)


def flags(base: Path, data: Path, *more: str) -> list[str]:
    words = ["--model_name_or_path", str(base), "--data_path", str(data), "--disable_tqdm", "True"]
    return [*words, "--max_steps", "1", "--per_device_train_batch_size", "2", *more]


@pytest.fixture
def data(tmp_path: Path) -> Callable[[int], Path]:
    return lambda rounds: write_rows(tmp_path / f"{rounds}.json", chat_rows(8, rounds))


@pytest.mark.parametrize("packing", ["False", "True"])
def test_short_dialogues_are_not_scaled(train: Train, short_context: Path, data, packing: str) -> None:
    done = ok(train("--packing", packing, "--model_max_length", "256", base=flags(short_context, data(2))))
    assert done.record["rope_parameters"] is None
    assert done.record["settings"]["rope_scaling_type"] == {"value": None, "from": "default"}
    assert "RoPE is not scaled: the longest dialogue has" in done.err and "context is 128" in done.err


@pytest.mark.parametrize("packing", ["False", "True"])
def test_the_longest_dialogue_gives_the_factor(train: Train, short_context: Path, data, packing: str) -> None:
    done = ok(train("--packing", packing, "--model_max_length", "1024", base=flags(short_context, data(5))))
    assert done.record["rope_parameters"]["factor"] == 2.0
    assert done.record["settings"]["rope_scaling_factor"] == {"value": 2.0, "from": "derived"}
    cut = ok(train("--model_max_length", "128", base=flags(short_context, data(5)), name="cut"))
    assert cut.record["rope_parameters"] is None and "RoPE" not in cut.err


def test_evaluated_dialogues_count(train: Train, short_context: Path, data) -> None:
    more = ["--eval_data_path", str(data(5)), "--do_eval", "True", "--eval_strategy", "epoch"]
    done = ok(train("--model_max_length", "256", *more, base=flags(short_context, data(2))))
    assert done.record["rope_parameters"]["factor"] == 2.0


def test_what_is_asked_for_wins(train: Train, short_context: Path, data) -> None:
    base = flags(short_context, data(2), "--model_max_length", "256")
    assert ok(train("--rope_scaling_type", "yarn", base=base)).record["rope_parameters"]["factor"] == 2.0
    given = ok(train("--rope_scaling_factor", "4", base=base, name="b")).record["rope_parameters"]
    assert (given["rope_type"], given["factor"]) == ("linear", 4.0)


def test_a_scaled_run_resumes_and_is_found_finished(train: Train, short_context: Path, data) -> None:
    base = flags(short_context, data(5), "--model_max_length", "1024", "--save_strategy", "steps", "--save_steps", "1")
    ok(train(base=base))
    assert "nothing to do" in ok(train(base=base)).err
    resumed = ok(train("--max_steps", "2", base=base))
    assert "checkpoint-1: step 1" in resumed.err and resumed.record["rope_parameters"]["factor"] == 2.0
    refused = train("--max_steps", "3", "--rope_scaling_factor", "4", base=base)
    assert refused.code == 2 and "--rope_scaling_factor" in refused.err


def test_an_adapter_keeps_its_scaling_on_shorter_data(train: Train, short_context: Path, data) -> None:
    first = ok(train("--model_max_length", "256", base=flags(short_context, data(5))))
    more = ["--lora_weight_path", str(first.folder)]
    again = ok(train(*more, base=flags(short_context, data(2)), name="again"))
    assert again.record["rope_parameters"] == first.record["rope_parameters"]
    assert "as the adapter was trained: context 256 tokens" in again.err


def test_learned_positions_bound_the_dialogues_and_not_the_packs(
    train: Train, tiny_model_dir: Callable[..., Path], data
) -> None:
    base = tiny_model_dir("gpt2", "metaspace_bos", n_embd=32, n_layer=2, n_head=4, max_positions=128)
    words = ["--model_max_length", "256", "--lora_target_modules", "c_attn"]
    ok(train(*words, "--packing", "True", base=flags(base, data(2))))
    refused = train(*words, base=flags(base, data(5)), name="long")
    assert refused.code == 2 and "has 128 learned positions" in refused.err
