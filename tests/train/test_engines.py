"""Whole models and adapters on the head, trained in chunks by two processes under every engine: the losses, gradients
and weights of all logits in one process; and a final model that is the engine's, complete, and generates alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import builders
from tests.tiers import thorough
from tests.train.conftest import Outcome
from tests.train.launches import REPOSITORY, STEADY_ADAM, same_weights
from tests.train.warm import Warm
from tests.train.witness import generated

pytestmark = pytest.mark.launch
# 9 dialogues in global batches of 4: in the last one of an epoch a process has nothing but a dummy.
RUN = ["--num_train_epochs", "2", "--learning_rate", "1e-3", "--disable_tqdm", "True", "--conv_template", "gemma"]
RUN += ["--eval_strategy", "epoch", "--eval_on_start", "True", *STEADY_ADAM]
ONE, TWO = ["--per_device_train_batch_size", "4"], ["--per_device_train_batch_size", "1"]
TWO += ["--gradient_accumulation_steps", "2"]
HALF = ["--bf16", "True"]
# The flags of a run, and whether it computes in bfloat16; the files are those that people are given.
ENGINES: dict[str, tuple[list[str], bool]] = {
    "plain": (["--chunked_head", "False"], False),  # one process: what the others are compared with
    "ddp": ([], False),
    "fsdp": (["--engine", "fsdp"], False),
    "fsdp bf16": (["--engine", "fsdp", *HALF], True),
    "zero1": (["--deepspeed", "zero1.json"], False),
    "zero2": (["--deepspeed", "deepspeed_config_s2.json"], False),
    "zero2 bf16": (["--deepspeed", "deepspeed_config_s2.json", *HALF], True),
    "zero2 offload": (["--deepspeed", "deepspeed_config_s2_offload.json"], False),
    "zero2 offload bf16": (["--deepspeed", "deepspeed_config_s2_offload.json", *HALF], True),
    "zero3 fp16": (["--deepspeed", "deepspeed_config_s3.json", "--fp16", "True"], False),  # falls back
    "zero3 bf16": (["--deepspeed", "deepspeed_config_s3.json", *HALF], True),
    "zero3 offload": (["--deepspeed", "deepspeed_config_s3_offload.json"], False),
    "zero3 offload bf16": (["--deepspeed", "deepspeed_config_s3_offload.json", *HALF], True),
}
# One of each way to hold the weights, and both dtypes; the others differ from these in one respect.
DEFAULT = ("plain", "ddp", "fsdp", "zero2 bf16", "zero3 offload bf16")
Runs = Callable[..., tuple[Outcome, Path]]


@pytest.fixture(scope="module")
def data_flags(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tied Gemma, whose answers end in <end_of_turn> and not in its EOS."""
    folder = tmp_path_factory.mktemp("dialogues")
    rows = builders.chat_rows(14, 2)
    model = tiny_model_dir("gemma", "gemma", tied=True)
    files = [builders.write_rows(folder / "train.json", rows[:9]), builders.write_rows(folder / "eval.json", rows[9:])]
    found = ["--model_name_or_path", model, "--data_path", files[0], "--eval_data_path", files[1]]
    return [*map(str, found), *RUN]


@pytest.fixture(scope="module")
def runs(warm: Warm, data_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """`runs("zero2", [])`: the finished run and the folder of what its engine held; each is made once."""
    root = tmp_path_factory.mktemp("engines")
    made: dict[str, tuple[Outcome, Path]] = {}
    (root / "zero1.json").write_text('{"zero_optimization": {"stage": 1}}')

    def run(engine: str, more: list[str], script: str = "train") -> tuple[Outcome, Path]:
        key, processes = " ".join([engine, *more]), 1 if engine == "plain" else 2
        if key not in made:
            flags = [*data_flags, *(ONE if processes == 1 else TWO), *more, *ENGINES[engine][0]]
            for at, word in enumerate(flags):
                if word.startswith(("deepspeed_config", "zero1")):
                    flags[at] = str((root if word.startswith("zero1") else REPOSITORY / "playground") / word)
            folder, held = root / f"run-{len(made)}", root / f"engine-{len(made)}"
            witness = {"WITNESS": str(held)} if script == "train" else {}
            outcome = warm.run(flags, folder, processes, script, HEAD_ROWS="7", MAX_SHARD="40KB", **witness)
            assert set(warm.codes) == {0}, outcome.err[-6000:]
            made[key] = (outcome, held)
        return made[key]

    return run


def same_numbers(outcome: Outcome, plain: Outcome, half: bool) -> None:
    """Losses, gradient norms and evaluations; in bfloat16 what its roundings allow."""
    assert (outcome.record["head"], plain.record["head"]) == ("chunked", "plain")
    assert outcome.log.count("the head runs on learned tokens only") == 1, "one rank speaks"
    for key in ("loss", "grad_norm", "eval_loss"):
        theirs = [row[key] for row in plain.metrics if key in row]
        found = [row[key] for row in outcome.metrics if key in row]
        assert found == pytest.approx(theirs, rel=0.05 if half else 1e-5, abs=1e-5), key


@pytest.mark.parametrize("engine", [thorough(name, in_default=name in DEFAULT) for name in ENGINES])
def test_a_whole_model(runs: Runs, engine: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = ENGINES[engine][1]
    (outcome, held), (plain, _) = runs(engine, []), runs("plain", [])
    assert outcome.record["engine"] == engine.split()[0]
    assert outcome.record["compute_dtype"] == ("bfloat16" if half else "float32")
    assert ("--fp16 needs a GPU: computing in the weights' own dtype instead" in outcome.err) is ("fp16" in engine)
    check_result(outcome.folder, held)
    chat = AutoTokenizer.from_pretrained(outcome.folder)
    assert "<start_of_turn>user" in str(chat.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False))
    if engine == "plain":
        return
    same_numbers(outcome, plain, half)
    folders = (outcome.folder, plain.folder, plain.record["base_model"])
    saved, wanted, base = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    if not half:
        return same_weights(saved, wanted, base)
    for name, tensor in saved.items():  # bfloat16 rounds a weight of 0.25 by 4.9e-4, and few go further than 1e-3
        off, way = tensor.float() - wanted[name], wanted[name] - base[name]
        assert off.norm() < 0.6 * way.norm(), f"{name}: one that stayed would be 1 off; 0.28 at most was seen"


def check_result(folder: Path, held: Path) -> None:
    """Complete, the engine's own weights bit for bit, and the same tokens out of them."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = set(os.listdir(folder))
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "training.json"} <= names
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and "model.safetensors.index.json" in names
    assert "lm_head.weight" not in {name for shard in shards for name in load_file(shard)}, "tied weights once"
    model = AutoModelForCausalLM.from_pretrained(folder)
    wanted, found = load_file(held / "engine.safetensors"), model.state_dict()
    assert set(wanted) <= set(found) <= set(wanted) | {"lm_head.weight"}
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert generated(model) == json.loads((held / "tokens.json").read_text())
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert set(model.generation_config.eos_token_id) == {vocabulary["<eos>"], vocabulary["<end_of_turn>"]}


@pytest.mark.parametrize(
    ("engine", "targets"),
    [
        ("ddp", "q_proj lm_head embed_tokens"),
        thorough("zero3 offload", "q_proj lm_head embed_tokens", in_default=False),
        thorough("zero3 offload", "lm_head", in_default=False),
    ],
)
def test_an_adapter_on_the_head(runs: Runs, engine: str, targets: str) -> None:
    """Its parts are gathered together under ZeRO-3, once, however many chunks a process has."""
    from safetensors.torch import load_file

    more = ["--lora_dropout", "0", "--lora_target_modules", *targets.split()]
    (outcome, _), (plain, _) = (runs(name, more, "train_lora") for name in (engine, "plain"))
    same_numbers(outcome, plain, half=False)
    untrained, _ = runs("plain", [*more, "--learning_rate", "1e-30"], "train_lora")
    saved = (load_file(each.folder / "adapter_model.safetensors") for each in (outcome, plain, untrained))
    same_weights(*saved)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_256k_vocabulary_at_4096_tokens_fits_into_8_gib(
    warm: Warm, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    """Two processes, full fine-tuning, nearly every position supervised. All logits at once take 12 GiB."""
    model = tiny_model_dir("gemma", "gemma", tied=True, vocab_size=256_000, max_positions=4096)
    answer = " ".join(f"{i} and {i} make {2 * i}." for i in range(1000))
    turns = [{"from": "human", "value": "Count."}, {"from": "gpt", "value": answer}]
    data = builders.write_rows(tmp_path / "data.json", [{"id": str(i), "conversations": turns} for i in range(2)])
    flags = ["--model_name_or_path", model, "--data_path", data, "--conv_template", "gemma", "--max_steps", "1"]
    flags += ["--per_device_train_batch_size", "1", "--model_max_length", "4096", "--disable_tqdm", "True"]
    outcome = warm.run(list(map(str, flags)), tmp_path / "out", script="train")
    assert warm.codes == [0, 0], outcome.err[-3000:]
    assert outcome.record["engine"] == "ddp" and outcome.record["head"] == "chunked"
    (row,) = outcome.metrics
    assert row["num_tokens"] == 2 * 4096 and row["num_supervised_tokens"] > 2 * 4000
    assert row["loss"] == pytest.approx(torch.tensor(256_000.0).log().item(), rel=0.1), "random weights know nothing"
    assert max(warm.peaks) < 8 * 2**30, [peak / 2**30 for peak in warm.peaks]
