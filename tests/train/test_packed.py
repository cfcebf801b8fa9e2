"""--packing through the Trainer: gradients, evaluation, counts and resuming as without it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.checkpoint.manifest import read_manifest
from fastchat.train.head import ChunkedCrossEntropy
from tests import builders
from tests.train.conftest import Outcome
from tests.train.flags import Train, covers, ok
from tests.train.test_numbers import poisoned  # noqa: F401 - a fixture
from tests.train.test_resume import interrupted, same_run  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

# One step over all 20 dialogues with plain gradient descent: the weights' way is the gradient. The large rate keeps
# rounding of the stored weights below 1e-7 of it.
RATE = 1000.0
STEP = ["--max_steps", "1", "--optim", "sgd", "--learning_rate", str(RATE), "--max_grad_norm", "1e9"]
STEP += ["--conv_template", "gemma", "--lr_scheduler_type", "constant"]
PACKED = ["--packing", "True", "--model_max_length", "128"]
ROWS = ["--packing", "True", "--packing_prefix_tree", "False"]  # the template's system prompt is in every dialogue


@pytest.fixture(scope="session")
def gemma(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("gemma", "gemma", tied=True)


@pytest.fixture
def step(train: Train, gemma: Path) -> Callable[..., Outcome]:
    """`step("32", "1", "--packing", "True")`: one step of batch 32 and accumulation 1."""

    def go(batch: str, accumulation: str, *flags: str, **more: Any) -> Outcome:
        split = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
        return ok(train(*STEP, *split, "--model_name_or_path", gemma, *flags, full=True, **more))

    return go


def gradient(outcome: Outcome, base: Path) -> torch.Tensor:
    """All gradients of the one step, in one vector."""
    from safetensors.torch import load_file

    before, after = load_file(base / "model.safetensors"), load_file(outcome.folder / "model.safetensors")
    assert before.keys() == after.keys()
    return torch.cat([(before[name] - after[name]).flatten() for name in sorted(before)]).double() / RATE


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


def test_gradients_are_those_of_the_dialogues_alone_however_the_step_is_cut(step, gemma: Path, monkeypatch) -> None:
    from fastchat.train import packed

    alone = step("20", "1", "--model_max_length", "128", name="alone")
    reference = gradient(alone, gemma)
    cuts = {"rows": ("32", "1"), "one by one": ("1", "32"), "pairs": ("2", "16")}
    for name, (batch, accumulation) in cuts.items():
        outcome = step(batch, accumulation, *PACKED, name=name)
        assert distance(reference, gradient(outcome, gemma)) < 1e-5, name
        assert outcome.losses == pytest.approx(alone.losses, abs=1e-5)
        assert [outcome.metrics[0][k] for k in ("num_tokens", "num_supervised_tokens")] == [
            alone.metrics[0][k] for k in ("num_tokens", "num_supervised_tokens")
        ]
    monkeypatch.setattr(packed, "wants_one_row", lambda attention: True)  # as the kernels of a GPU get them
    flat = step("32", "1", *PACKED, name="flat")
    batch = next(iter(flat.trainer.get_train_dataloader()))
    tokens = flat.record["data"]["train"]["counts"]["tokens"]
    assert batch["input_ids"].shape == (1, tokens - 20), "the template's line break after each answer is not computed"
    assert distance(reference, gradient(flat, gemma)) < 1e-5
    other = step("2", "1", *PACKED, name="other")
    assert distance(reference, gradient(other, gemma)) > 1e-2, "the measure tells other dialogues apart"


@covers("packing")
def test_every_dialogue_is_in_one_pack_and_every_pack_in_one_step(train: Train) -> None:
    flags = ["--max_steps", "-1", "--num_train_epochs", "2", "--per_device_train_batch_size", "2", "--log_samples"]
    flags += ["--save_strategy", "steps", "--save_steps", "2", "--include_num_input_tokens_seen", "non_padding"]
    outcome = ok(train(*flags, *ROWS, "--model_max_length", "300"))
    found = outcome.record["packing"]["train"]
    tokens = outcome.record["data"]["train"]["counts"]["tokens"]
    assert (found["dialogues"], found["tokens"], found["capacity"]) == (20, tokens, 300)
    assert (
        f"train packing: 20 examples in {found['packs']} packs of up to 300 tokens, {100 * found['fill']:.2f} % filled"
        in (outcome.err)
    )
    per_epoch = -(-found["packs"] // 2)
    assert len(outcome.losses) == 2 * per_epoch > 4, "the batch size counts packs"
    rows = [json.loads(line) for line in (outcome.folder / "samples.jsonl").read_text().splitlines()]
    for epoch in range(2):
        steps = rows[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for row in steps for i in row["samples"]) == list(range(20))
        assert sum(row["num_tokens"] for row in outcome.metrics[epoch * per_epoch : (epoch + 1) * per_epoch]) == tokens
    assert outcome.metrics[-1]["num_input_tokens_seen"] == 2 * tokens, "padding is not counted"
    for saved in (2, per_epoch + 1):
        manifest = read_manifest(outcome.folder / f"checkpoint-{saved - saved % 2}")
        seen = sum(len(row["samples"]) for row in rows[: manifest.step])
        assert manifest.samples == seen, "dialogues, not packs"


def test_no_mask_and_no_lengths_reach_the_model(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastchat.train import trainer

    seen: list[set[str]] = []
    real = trainer.loss_sum

    def noting(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(set(batch))
        return real(model, batch, *args, **kwargs)

    monkeypatch.setattr(trainer, "loss_sum", noting)
    ok(train(*ROWS))
    assert len(seen) == 2 and all(names == {"input_ids", "labels", "position_ids"} for names in seen)


def test_evaluation_is_packed_and_gives_the_same_loss(train: Train, eval_flags: list[str]) -> None:
    flags = [*eval_flags, "--eval_on_start", "--per_device_eval_batch_size", "2"]
    plain = ok(train(*flags)).metrics[0]
    outcome = ok(train(*flags, *PACKED, "--model_max_length", "512", name="packed"))
    packed = outcome.metrics[0]
    assert packed["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-5)
    assert packed["eval_num_supervised_tokens"] == plain["eval_num_supervised_tokens"]
    assert outcome.record["packing"]["eval"]["dialogues"] == 7 > outcome.record["packing"]["eval"]["packs"]
    batch = next(iter(outcome.trainer.get_eval_dataloader()))
    assert "attention_mask" not in batch and int((batch["position_ids"] == 0).sum()) > len(batch["input_ids"])


RUN = ["--max_steps", "-1", "--num_train_epochs", "3", "--per_device_train_batch_size", "1", "--lora_dropout", "0.1"]
RUN += ["--gradient_accumulation_steps", "2", "--learning_rate", "1e-3", "--log_samples", "True", "--packing", "True"]
RUN += ["--model_max_length", "200", "--save_strategy", "steps", "--save_steps", "2"]


def test_resuming_is_bit_identical_and_only_with_the_same_packs(
    train: Train,
    interrupted: Callable[..., Outcome],  # noqa: F811
    eval_flags: list[str],
) -> None:
    plain = train(*RUN, *eval_flags, name="plain")
    interrupted(5, *RUN, *eval_flags, name="broken")
    refused = train(*RUN, *eval_flags, "--packing", "False", name="broken")
    assert refused.code == 2 and "belongs to another run" in refused.err and "--packing (true -> false)" in refused.err
    resumed = train(*RUN, *eval_flags, name="broken")
    assert "checkpoint-4: step 4" in resumed.err
    same_run(plain, resumed)


@covers("verify_packing")
def test_verifying_prints_one_line_and_changes_nothing(train: Train) -> None:
    plain = ok(train(*ROWS))
    verified = ok(train(*ROWS, "--verify_packing", "True", name="verified"))
    (line,) = (line for line in verified.err.splitlines() if line.startswith("packing verified"))
    assert "on 16 examples in 3 packs: loss off by" in line and "allowed: 1e-05" in line
    assert "packing verified" not in plain.err
    same_run(plain, verified)


def test_verifying_takes_the_memory_that_training_takes(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """No logits of a whole batch, and layers that forget their activations where training's do."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    from fastchat.train import packed

    rows, layers, compared = [], [0], []
    summed, attend, compare = ChunkedCrossEntropy._sum, LlamaAttention.forward, packed.compare_packing

    def watched(*args: Any, **more: Any) -> Any:
        def attention(*args: Any, **kwargs: Any) -> Any:
            layers[0] += 1
            return attend(*args, **kwargs)

        def sum_of(self: Any, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
            rows.append(len(hidden))
            return summed(self, hidden, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(LlamaAttention, "forward", attention)
            patch.setattr(ChunkedCrossEntropy, "_sum", sum_of)
            compared.append(compare(*args, **more))
        return compared[-1]

    monkeypatch.setattr(packed, "compare_packing", watched)
    outcome = ok(train(*ROWS, "--verify_packing", "True", "--gradient_checkpointing", "True"))
    assert "packing verified on 16 examples in 3 packs" in outcome.err
    batches = 16 + 1  # the dialogues one by one, and one batch of three packs
    assert len(rows) == batches and rows[-1] == sum(rows[:-1]), "supervised tokens only"
    depth = outcome.trainer.model.config.num_hidden_layers
    assert layers[0] == 2 * depth * batches, "each layer runs again in the backward pass"


def test_nothing_is_called_verified_where_nothing_shares_a_row(train: Train, tmp_path: Path) -> None:
    one = builders.write_rows(tmp_path / "one.json", builders.chat_rows(1))
    outcome = ok(train("--packing", "True", "--verify_packing", "True", "--data_path", one))
    assert "no row holds more than one dialogue" in outcome.err and "packing verified" not in outcome.err


def test_what_is_not_exact_stops_the_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """RoPE "dynamic" is refused by its name; without that rule the measurement finds it."""
    from fastchat.train import packed

    flags = [*ROWS, "--rope_scaling_type", "dynamic", "--model_max_length", "1200"]
    refused = train(*flags)
    assert refused.code == 2 and '--packing cannot be combined with RoPE scaling "dynamic"' in refused.err
    assert "Attention:" not in refused.err and "rows " not in refused.err, "before data and model are read"
    monkeypatch.setattr(packed, "check_packable", lambda *args: None)
    found = train(*flags, "--verify_packing", "True", name="b")
    assert found.code == 2 and "--verify_packing: loss off by" in found.err and "leave --packing out" in found.err


def test_a_model_that_leaks_stops_the_run_and_leaves_the_folder_as_it_was(train: Train, tiny_model_dir) -> None:
    before = ok(train("--packing", "True"))
    kept = {path.name: path.read_bytes() for path in before.folder.iterdir() if path.name != "status.json"}
    flags = ["--packing", "True", "--model_name_or_path", tiny_model_dir("opt"), "--overwrite_output_dir"]
    leaking = train(*flags, full=True)
    assert leaking.code == 2 and "lets a dialogue see the one packed before it" in leaking.err
    assert kept == {path.name: path.read_bytes() for path in before.folder.iterdir() if path.name != "status.json"}


REFUSED = [
    (["--packing", "True", "--group_by_length", "True"], "--packing and --group_by_length"),
    (["--packing", "True", "--train_sampling_strategy", "group_by_length"], "--packing and --group_by_length"),
    (["--verify_packing", "True"], "add --packing True"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=lambda x: x[-2] if isinstance(x, list) else "")
def test_pairs_that_contradict_each_other(train: Train, flags: list[str], message: str) -> None:
    outcome = train(*flags)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("error: ") == 1


def test_padding_on_the_left_means_nothing_to_packs_and_is_said(train: Train) -> None:
    left = ok(train("--packing", "True", "--padding_side", "left"))
    assert "--padding_side left: packs need no padding side" in left.err
    assert ok(train("--packing", "True", name="b")).losses == left.losses


def test_a_bad_loss_names_every_row_of_the_pack(train: Train, poisoned: Any) -> None:  # noqa: F811
    flags = ["--packing", "True", "--model_max_length", "200", "--per_device_train_batch_size", "1", "--log_samples"]
    plain = ok(train(*flags, name="plain"))
    poisoned(float("nan"), 2)
    outcome = train(*flags)
    rows = [json.loads(line) for line in (plain.folder / "samples.jsonl").read_text().splitlines()]
    ids = ", ".join(map(str, rows[1]["samples"]))
    assert len(rows[1]["samples"]) > 1 and outcome.code == 4
    assert f"step 2: the loss is not finite (rank 0, sample ids {ids})" in outcome.err
