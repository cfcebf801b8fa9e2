"""The chunked head in whole runs: it proves itself first, is recorded, and trains what all logits would train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import Outcome
from tests.train.flags import Train, adapter, covers, ok

pytestmark = pytest.mark.slow
SAME = ["--lora_dropout", "0", "--learning_rate", "1e-3", "--max_steps", "3"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks in each of these tiny batches."""
    from fastchat.train import head

    monkeypatch.setattr(head, "rows_per_chunk", lambda vocab: 7)


def model_of(outcome: Outcome) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(outcome.folder / "model.safetensors")


@covers("chunked_head")
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("full", [False, True])
def test_both_ways_train_the_same(train: Train, eval_flags: list[str], full: bool) -> None:
    more = [*(SAME[2:] if full else SAME), *eval_flags, "--eval_on_start", "True", "--label_smoothing_factor", "0.1"]
    more += ["--gradient_checkpointing", "True", "--gradient_accumulation_steps", "2", "--neftune_noise_alpha", "5"]
    # Adam divides by the gradient's own size: where that is nothing but rounding, its step is as long as any other.
    more += ["--optim", "sgd", "--learning_rate", "0.1"]
    chunked = ok(train(*more, full=full))
    plain = ok(train(*more, "--chunked_head", "False", full=full, name="plain"))
    assert (chunked.record["head"], plain.record["head"]) == ("chunked", "plain")
    assert "the head runs on learned tokens only, in chunks" in chunked.err and "chunked head" in chunked.err
    assert "chunks" not in plain.err and "plain head" in plain.err
    for key in ("loss", "eval_loss", "grad_norm"):
        theirs = [row.get(key) for row in plain.metrics]
        assert [row.get(key) for row in chunked.metrics] == pytest.approx(theirs, abs=1e-5), key
    saved = (model_of if full else lambda outcome: adapter(outcome.folder))(plain)
    for name, tensor in (model_of if full else lambda outcome: adapter(outcome.folder))(chunked).items():
        assert torch.allclose(tensor, saved[name], atol=1e-5), name


@pytest.mark.usefixtures("small_chunks")
def test_the_proof_changes_nothing(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a random number, with dropout on."""
    from fastchat.train import trainer

    proven = ok(train("--lora_dropout", "0.3"))
    monkeypatch.setattr(trainer, "prove_head", lambda *args, **kwargs: True)
    assert ok(train("--lora_dropout", "0.3", name="unproven")).losses == proven.losses


def _loading(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """The next runs' models are changed by `change` once they are loaded."""
    from fastchat.train import prepare

    real = prepare.load_base_model

    def load(*args: Any, **kwargs: Any) -> Any:
        model = real(*args, **kwargs)
        change(model)
        return model

    monkeypatch.setattr(prepare, "load_base_model", load)


def test_a_model_that_it_is_wrong_for_is_trained_on_all_logits(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that looks at all positions at once: no chunk of them can know what it makes of its logits."""
    from transformers import LlamaForCausalLM

    class Mixed(LlamaForCausalLM):
        def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = found.logits - found.logits.mean(dim=1, keepdim=True)
            if labels is not None:
                found.loss = self.loss_function(found.logits, labels, self.vocab_size)
            return found

    _loading(monkeypatch, lambda model: setattr(model, "__class__", Mixed))
    fallen = ok(train(*SAME))
    assert "WARNING: the chunked head is not right for this model (on " in fallen.err
    assert "the loss is computed from all logits" in fallen.err and fallen.record["head"] == "plain"
    plain = ok(train(*SAME, "--chunked_head", "False", name="plain"))
    assert fallen.losses == plain.losses and "WARNING" not in plain.err


def test_a_model_that_it_breaks_is_trained_on_all_logits(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that needs its decoder's output to be what it is."""
    from transformers import LlamaForCausalLM

    class Picky(LlamaForCausalLM):
        def forward(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
            return super().forward(input_ids, *args, **kwargs)

    _loading(monkeypatch, lambda model: setattr(model, "__class__", Picky))
    fallen = ok(train(*SAME))
    assert "WARNING: the chunked head is not right for this model (TypeError: " in fallen.err
    assert fallen.record["head"] == "plain" and len(fallen.losses) == 3


def test_a_model_without_a_decoder_to_be_found(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    _loading(monkeypatch, lambda model: setattr(model, "get_decoder", lambda: None))
    fallen = ok(train(*SAME))
    assert "WARNING: LlamaForCausalLM does not say what its decoder" in fallen.err and fallen.record["head"] == "plain"


def test_only_a_window_of_a_long_dialogue_is_looked_at() -> None:
    from fastchat.train.loss import LENGTH, sample

    ids = list(range(2000))
    data = [{"input_ids": ids, "labels": [-100] * 2000}, {"input_ids": ids, "labels": [-100] * 1500 + ids[1500:]}]
    found = sample(data)
    assert found is not None and found["input_ids"].shape == (1, LENGTH)
    assert 1500 in found["labels"] and (found["labels"] == -100).any()
    assert sample(data[:1]) is None
    assert sample([{"input_ids": [7, 8], "labels": [7, -100]}]) is None, "the first token is predicted by nothing"


def test_the_plan_follows_the_flag(model_dir: Path) -> None:
    from fastchat.plan.api import run_of
    from fastchat.plan.command_line import read_flags
    from fastchat.plan.run import Machine
    from fastchat.train.settings import parse

    words = [
        "--model_name_or_path",
        str(model_dir),
        "--output_dir",
        "out",
        "--data_path",
        str(model_dir / "config.json"),
    ]
    for more, wanted in (([], True), (["--chunked_head", "False"], False)):
        settings = parse([*words, *more], lora=True)
        assert settings.training.chunked_head is wanted
        assert run_of(settings.values, Machine()).chunked_head is wanted
        assert run_of(read_flags([*words, *more]), Machine()).chunked_head is wanted
