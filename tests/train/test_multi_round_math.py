"""Multi-round math: Gemma architecture, tokenizer and template, packed, ZeRO-3 with two processes.

The loss falls, user turns and outputs are not learned, the saved model is the engine's, and a reload goes on writing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import builders
from tests.train.conftest import Outcome
from tests.train.flags import Train, ok
from tests.train.warm import Warm

pytestmark = pytest.mark.slow
SETTINGS = ["--optim", "adamw_torch", "--learning_rate", "1e-2", "--warmup_steps", "5", "--bf16", "False"]
SETTINGS += ["--gradient_accumulation_steps", "1", "--save_strategy", "no", "--disable_tqdm", "True"]


@pytest.fixture(scope="module")
def gemma(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("gemma", "gemma", tied=True, max_positions=8192, hidden=64)


@pytest.fixture(scope="module")
def math_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.write_rows(tmp_path_factory.mktemp("math") / "math.jsonl", builders.math_rows(24))


def test_only_what_the_assistant_writes_is_learned(train: Train, gemma: Path, math_file: Path) -> None:
    """On the labels, token by token; and on the gradient of every position behind which a user turn stands."""
    from fastchat.train.loss import loss_sum

    flags = ["gemma-2b-it", "--model_name_or_path", str(gemma), "--data_path", str(math_file), "--max_steps", "1"]
    outcome = ok(train(*SETTINGS, "--model_max_length", "1024", base=flags, full=True))
    trainer: Any = outcome.trainer
    batch = next(iter(trainer.get_train_dataloader()))
    tokenizer, rows = _tokenizer(outcome.folder), [json.loads(line) for line in math_file.read_text().splitlines()]
    supervised = batch["labels"] != -100
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
    learned = "".join(tokenizer.decode(ids[mask]) for ids, mask in zip(batch["input_ids"], supervised, strict=True))
    indices = [i for micro in trainer.rows_of(0) for i in micro]
    answers = [m["content"] for i in indices for m in rows[i]["messages"] if m["role"] == "assistant"]
    assert learned == "".join(f"{answer}<end_of_turn>" for answer in answers)
    assert "```output" not in learned and "Tickets" not in learned and "start_of_turn" not in learned

    seen: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        seen.append(output.last_hidden_state)

    handle = trainer.model.model.register_forward_hook(keep)
    loss_sum(trainer.model, {k: v for k, v in batch.items() if k != "seq_lengths"}).backward()
    handle.remove()
    moved = seen[0].grad.abs().sum(dim=-1) > 0  # [B, T]; position t is asked for token t + 1
    assert torch.equal(moved[:, :-1], supervised[:, 1:]) and not moved[:, -1].any()
    assert 0 < int(supervised.sum()) < 0.7 * supervised.numel()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def run_under_zero3(warm: Warm, data: Path, base: Path, folder: Path, *flags: str) -> Outcome:
    """The documents' flags: a recipe by its name, ZeRO-3."""
    words = ["gemma-2b-it.yml", "--deepspeed", "deepspeed_config_s3"]
    words += ["--model_name_or_path", str(base), "--data_path", str(data), *SETTINGS, *flags]
    outcome = warm.run(words, folder, script="tests.train.weights_program")
    assert warm.codes == [0, 0], outcome.err[-6000:]
    return outcome


def check_result(outcome: Outcome, data: Path) -> str:
    """Asserts what every run must show; gives what the reloaded model answers to the first question."""
    from transformers import AutoModelForCausalLM

    record = outcome.record
    assert (record["engine"], record["world_size"], record["template"]["name"]) == ("zero3", 2, "gemma")
    assert record["packing"]["train"]["packs"] < record["packing"]["train"]["dialogues"]
    assert sum(outcome.losses[-3:]) / 3 < 0.8 * outcome.losses[0], outcome.losses
    model = AutoModelForCausalLM.from_pretrained(outcome.folder)
    engine = torch.load(outcome.folder.with_name(outcome.folder.name + ".weights.pt"), weights_only=True)
    assert engine.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.to(engine[name].dtype), engine[name]), name
    tokenizer = _tokenizer(outcome.folder)
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert stop in model.generation_config.eos_token_id
    question = json.loads(data.read_text(encoding="utf-8").splitlines()[0])["messages"][0]["content"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert len(written) > 0
    return tokenizer.decode(written)


@pytest.mark.launch
def test_the_whole_run_under_zero3(warm: Warm, gemma: Path, math_file: Path, tmp_path: Path) -> None:
    outcome = run_under_zero3(
        warm, math_file, gemma, tmp_path / "out", *("--per_device_train_batch_size", "1", "--max_steps", "40"),
        *("--model_max_length", "512", "--verify_packing", "True"),
    )  # fmt: skip
    assert outcome.err.count("packing verified on") == 1
    assert check_result(outcome, math_file).startswith("We compute"), "as every first answer of the data begins"


@pytest.mark.launch
@pytest.mark.thorough
def test_the_same_on_real_data(warm: Warm, shared: Path, gemma: Path, tmp_path: Path) -> None:
    rows = (shared / "data" / "gsm8k_multiturn.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    data = tmp_path / "gsm8k.jsonl"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    flags = ["--per_device_train_batch_size", "1", "--max_steps", "40", "--model_max_length", "1536"]
    outcome = run_under_zero3(warm, data, gemma, tmp_path / "out", *flags)
    assert outcome.record["packing"]["train"]["fill"] > 0.9
    check_result(outcome, data)
