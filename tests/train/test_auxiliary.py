"""What a model adds to the cross-entropy is trained as the model itself would, logged apart, and otherwise named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.train.auxiliary import AuxiliaryLoss, find_auxiliary, loss_sums
from fastchat.train.head import ChunkedCrossEntropy
from tests.train.flags import Train, adapter, ok
from tests.train.test_head import adapted, batch, gradients, load
from tests.train.warm import Warm

Models = Callable[..., Path]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "olmoe": EXPERTS,
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 7.0},
}
ROUTERS = {"output_router_logits": True, "router_aux_loss_coef": 0.3}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_the_models_own(tiny_model_dir: Models, family: str, chunked: bool, lora: bool) -> None:
    model = load(tiny_model_dir(family, "metaspace_bos", **FAMILIES[family], **ROUTERS))
    model = adapted(model, "q_proj", "v_proj") if lora else model
    inner = model.get_base_model() if lora else model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    data = batch()
    own = model(**data, use_cache=False).loss
    wanted = gradients(model, own)
    auxiliary = AuxiliaryLoss(inner)
    if chunked:
        ChunkedCrossEntropy(inner, rows=5)
    entropy, added = loss_sums(model, data, auxiliary, chunked=chunked)
    num = int((data["labels"][:, 1:] != -100).sum())
    assert float(added.detach()) / num > 0.1
    assert float((entropy + added).detach()) / num == pytest.approx(float(own.detach()), rel=2e-6)
    for name, gradient in gradients(model, (entropy + added) / num).items():
        assert torch.allclose(gradient, wanted[name], atol=2e-6, rtol=2e-4), name
    assert model(**data, use_cache=False).loss == own, "afterwards the model is what it was"


def run_flags(base: Path, data_files: tuple[Path, Path], *more: str) -> list[str]:
    flags = ["--model_name_or_path", str(base), "--data_path", str(data_files[0]), "--max_steps", "2"]
    return [*flags, "--learning_rate", "1e-2", "--disable_tqdm", "True", *more]


def mixtral(tiny_model_dir: Models, coefficient: float = 0.3, on: bool = True) -> Path:
    more = {"output_router_logits": on, "router_aux_loss_coef": coefficient}
    return tiny_model_dir("mixtral", "metaspace_bos", num_local_experts=4, **more)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_the_coefficient_changes_what_is_trained(
    train: Train, tiny_model_dir: Models, data_files: tuple[Path, Path], packing: bool
) -> None:
    more = ["--lora_dropout", "0", *(["--packing", "True"] if packing else [])]
    with_it, without = (
        ok(train(base=run_flags(mixtral(tiny_model_dir, on=on), data_files, *more), name=str(on)))
        for on in (True, False)
    )
    assert "the model adds a loss of its own" in with_it.err and "logged as aux_loss" in with_it.err
    assert all("aux_loss" not in row for row in without.rows) and "loss of its own" not in without.err
    added = [row["aux_loss"] for row in with_it.rows if "loss" in row]
    assert len(added) == 2 and min(added) > 0.1
    assert with_it.losses[0] - added[0] == pytest.approx(without.losses[0], abs=1e-5)
    read = [one.trainer.train_dataset.dataset if packing else one.trainer.train_dataset for one in (with_it, without)]
    assert [rows.whole for rows in read] == [True, False], "its loss depends on what follows the last supervised token"
    theirs = adapter(without.folder)
    assert any(not torch.equal(tensor, theirs[name]) for name, tensor in adapter(with_it.folder).items())


@pytest.mark.slow
def test_accumulation_gives_the_mean_weighted_by_supervised_tokens(
    train: Train, tiny_model_dir: Models, data_files: tuple[Path, Path]
) -> None:
    """The first step's loss from the model's own losses of its micro-batches."""
    base = mixtral(tiny_model_dir)
    flags = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3", "--max_steps", "1"]
    done = ok(train(*flags, base=run_flags(base, data_files), full=True))
    trainer, model, total, added, num = done.trainer, load(base), 0.0, 0.0, 0
    for micro in trainer.train_batches().of_step(0):
        data = dict(trainer.data_collator([trainer.train_dataset[i] for i in micro]))
        with torch.no_grad():
            found = model(**data, use_cache=False)
        own = int((data["labels"][:, 1:] != -100).sum())
        total, added, num = total + own * float(found.loss), added + own * 0.3 * float(found.aux_loss), num + own
    (row,) = [row for row in done.rows if "loss" in row]
    assert row["num_supervised_tokens"] == num
    assert row["loss"] == pytest.approx(total / num, rel=1e-5)
    assert row["aux_loss"] == pytest.approx(added / num, rel=1e-5)


@pytest.mark.launch
def test_two_processes_have_the_mean_weighted_by_supervised_tokens(
    warm: Warm, train: Train, tiny_model_dir: Models, data_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """The micro-batches of two processes are those of one that accumulates twice."""
    base = run_flags(mixtral(tiny_model_dir), data_files, "--per_device_train_batch_size", "2")
    alone = ok(train("--gradient_accumulation_steps", "2", base=base, full=True))
    two = warm.run(base, tmp_path / "two", script="train")
    assert warm.codes == [0, 0], two.err
    for key in ("loss", "aux_loss"):
        assert two.rows[0][key] == pytest.approx(alone.rows[0][key], rel=1e-5), key


def proof(model: Any) -> AuxiliaryLoss | None:
    from contextlib import nullcontext

    data = batch(1)
    rows = [{"input_ids": data["input_ids"][0].tolist(), "labels": data["labels"][0].tolist()}]
    return find_auxiliary(model, rows, dtype=torch.float32, device=torch.device("cpu"), context=nullcontext)


def test_what_is_added_only_in_training_is_found(tiny_model_dir: Models) -> None:
    model = load(tiny_model_dir("llama", "metaspace_bos"))
    forward = model.forward

    def noisy(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        if model.training and found.loss is not None:
            found.loss = found.loss + 0.01 * torch.rand(())
        return found

    model.forward = noisy
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert proof(model) is not None and not model.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["scaled", "own cross-entropy", "no loss"])
def test_what_cannot_be_told_apart_is_named(
    tiny_model_dir: Models, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model = load(tiny_model_dir("llama", "metaspace_bos"))
    forward = model.forward

    def odd(*args: Any, labels: Any = None, **kwargs: Any) -> Any:
        if kind == "scaled":
            found = forward(*args, labels=labels, **kwargs)
            found.loss = None if found.loss is None else 1.5 * found.loss
            return found
        found = forward(*args, **kwargs)
        if kind == "own cross-entropy" and labels is not None:
            found.loss = torch.nn.functional.cross_entropy(found.logits[0, :-1], labels[0, 1:]) + 0.5
        return found

    model.forward = odd
    assert proof(model) is None
    err = capsys.readouterr().err
    assert ("does not compute a loss of its own" if kind == "no loss" else "the difference is not trained") in err


@pytest.mark.parametrize(
    ("arch", "more"),
    [
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 7.0}),
        ("phi", {}),
        ("mixtral", {"num_local_experts": 4}),
    ],
)
def test_a_model_whose_loss_is_the_cross_entropy_is_trained_without_a_word(
    tiny_model_dir: Models, capsys: pytest.CaptureFixture[str], arch: str, more: dict[str, Any]
) -> None:
    model = load(tiny_model_dir(arch, "metaspace_bos", **more))
    before = copy.copy(vars(model))
    assert proof(model) is None and capsys.readouterr().err == "" and vars(model) == before
