"""FSDP: a process holds its rows only, the losses are DDP's, and a checkpoint resumes on any number of processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastchat.errors import counted
from fastchat.train.engine import choose_engine
from fastchat.train.engine.base import find_mismatch
from fastchat.train.engine.shards import rows_of
from tests.tiers import thorough
from tests.train.conftest import Outcome
from tests.train.flags import covers
from tests.train.launches import launch
from tests.train.warm import Warm

pytestmark = pytest.mark.launch
FLAGS = ["--max_steps", "4", "--learning_rate", "1e-3", "--disable_tqdm", "True", "--lora_dropout", "0.1"]
FLAGS += ["--conv_template", "vicuna_v1.1", "--log_samples", "True"]
SAVES = ["--save_strategy", "steps", "--save_steps", "2"]
TWO = ["--per_device_train_batch_size", "2"]
FULL = {"full", "full bf16"}
HALF = ["--bf16", "True", "--dtype", "bfloat16"]
KINDS: dict[str, list[str]] = {
    "lora": [],
    "qlora": ["--q_lora", "True"],
    "qdora bf16": ["--q_lora", "True", "--use_dora", "True", *HALF],
    "full": ["--fsdp", "shard_grad_op auto_wrap", "--gradient_checkpointing", "True"],
    "full bf16": HALF,
    "whole modules": ["--lora_modules_to_save", "embed_tokens", "lm_head", "--lora_init", "pissa"],
    "packed": ["--packing", "True", "--verify_packing", "True", "--model_max_length", "200"],
}
Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def run(warm: Warm, model_dir: Path, data_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run("lora", 2, "--engine", "fsdp")`: the finished run of a kind; each is made once, but those that resume."""
    root, made = tmp_path_factory.mktemp("fsdp"), dict[str, Outcome]()
    data = ["--model_name_or_path", str(model_dir), "--data_path", str(data_files[0])]
    data += ["--eval_data_path", str(data_files[1]), "--eval_strategy", "steps", "--eval_steps", "2"]

    def go(kind: str, processes: int, *flags: str, again: bool = False) -> Outcome:
        own = KINDS[kind] if "--engine" not in flags else _without(KINDS[kind], "--fsdp")
        words = [*data, *FLAGS, *own, *flags]
        if kind in FULL:
            words = _without(words, "--lora_dropout")
        key = " ".join([kind, str(processes), *flags])
        if again or key not in made:
            script = "train" if kind in FULL else "train_lora"
            made[key] = warm.run(words, root / f"run-{len(made)}", processes, script)
            assert set(warm.codes) == {0}, made[key].err[-6000:]
        return made[key]

    return go


def _without(words: list[str], flag: str) -> list[str]:
    at = words.index(flag) if flag in words else len(words)
    return [*words[:at], *words[at + 2 :]]


def engine_flags(kind: str) -> list[str]:
    if "--fsdp" in KINDS[kind]:
        return []
    units = ["--fsdp_config", '{"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}']
    return ["--engine", "fsdp", *(units if kind == "lora" else [])]


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    (file,) = outcome.folder.glob("*.safetensors")
    return load_file(file)


@covers("engine", "fsdp", "fsdp_config")
@pytest.mark.parametrize("kind", [thorough(kind, in_default=kind == "lora") for kind in KINDS])
def test_the_losses_are_those_of_ddp(run: Run, kind: str) -> None:
    """Dropout included: each process draws the same random numbers under both."""
    found, wanted = run(kind, 2, *TWO, *SAVES, *engine_flags(kind)), run(kind, 2, *TWO, "--engine", "ddp")
    assert (found.record["engine"], wanted.record["engine"]) == ("fsdp", "ddp")
    used = found.record["fsdp"]
    assert used["share_of_rank_0"] == pytest.approx(0.5, abs=0.01) and found.record["deepspeed"] is None
    assert used["gathered_together"] == 3 and used["reshard_after_forward"] is (kind != "full")
    assert used["units"] == (["LlamaDecoderLayer"] if kind == "lora" else [])
    assert "engine     fsdp: each process holds 50." in found.err and "engine     ddp" in wanted.err
    half = "bf16" in kind
    for key in ("loss", "eval_loss", "grad_norm"):
        numbers = [[row[key] for row in outcome.rows if key in row] for outcome in (found, wanted)]
        # Under DDP a whole model in bfloat16 has no float32 copy of its weights, and another norm
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-2 if half else 1e-6, abs=1e-6), key
    saved, theirs = weights(found), weights(wanted)
    assert {n: (t.shape, t.dtype) for n, t in saved.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    if not half:
        assert all(torch.allclose(tensor, theirs[name], rtol=0, atol=1e-6) for name, tensor in saved.items())
    names = {file.name for file in (found.folder / "checkpoint-2").iterdir()}
    assert {"fsdp_0.pt", "fsdp_1.pt", "rank_0.pt", "rank_1.pt", "scheduler.pt", "MANIFEST.json"} <= names
    assert {"optimizer.pt", "latest"} & names == set()


@pytest.mark.parametrize(
    ("kind", "processes"),
    [
        ("lora", 2),
        *(thorough(kind, 2, in_default=False) for kind in ("qlora", "full", "full bf16")),
        *(thorough(kind, n, in_default=False) for kind in ("full", "full bf16", "qlora") for n in (1, 4)),
    ],
)
def test_a_checkpoint_resumes_on_any_number_of_processes(run: Run, kind: str, processes: int) -> None:
    """Bit for bit on as many; on others with the same batches in the same order, and the losses to 1e-6."""
    no_dropout = [] if kind in FULL or processes == 2 else ["--lora_dropout", "0"]
    plain = run(kind, 2, *TWO, *SAVES, *engine_flags(kind), *no_dropout)
    start = ["--resume_from_checkpoint", str(plain.folder / "checkpoint-2")]
    micro = ["--per_device_train_batch_size", "1"] if processes == 4 else TWO
    resumed = run(kind, processes, *micro, *engine_flags(kind), *no_dropout, *start, again=True)
    samples = [(outcome.folder / "samples.jsonl").read_text().splitlines() for outcome in (plain, resumed)]
    if processes == 2:
        assert resumed.losses == plain.losses[2:] and samples[1] == samples[0][4:]
        assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(resumed).items())
        return
    assert f"saved by 2 processes and resumed by {counted(processes, 'process')}" in resumed.err
    assert ("--gradient_accumulation_steps is 2 on 1 process" in resumed.err) is (processes == 1)
    half = "bf16" in kind
    assert resumed.losses == pytest.approx(plain.losses[2:], rel=1e-4 if half else 1e-6, abs=0 if half else 1e-6)
    assert rows_by_step(samples[1]) == {step: rows for step, rows in rows_by_step(samples[0]).items() if step > 2}


def rows_by_step(lines: list[str]) -> dict[int, list[int]]:
    """The input rows that all processes trained in each step."""
    found: dict[int, list[int]] = {}
    for row in map(json.loads, lines):
        found.setdefault(row["step"], []).extend(row["samples"])
    return {step: sorted(rows) for step, rows in found.items()}


@pytest.mark.parametrize(
    ("saved", "processes"), [(2, 1), thorough(1, 2, in_default=False), thorough(2, 4, in_default=False)]
)
def test_so_does_one_of_ddp_or_of_one_process(run: Run, saved: int, processes: int) -> None:
    def batch(size: int) -> list[str]:
        return ["--per_device_train_batch_size", "1" if size == 4 else "2", "--lora_dropout", "0"]

    whole = ["--gradient_accumulation_steps", "2"] if saved == 1 else []
    plain = run("lora", saved, *batch(saved), *SAVES, *whole)
    start = ["--resume_from_checkpoint", str(plain.folder / "checkpoint-2")]
    resumed = run("lora", processes, *batch(processes), *start, again=True)
    engines = ["plain" if number == 1 else "ddp" for number in (saved, processes)]
    assert [plain.record["engine"], resumed.record["engine"]] == engines
    assert resumed.losses == pytest.approx(plain.losses[2:], rel=0, abs=1e-6)
    samples = [(outcome.folder / "samples.jsonl").read_text().splitlines() for outcome in (plain, resumed)]
    assert rows_by_step(samples[1]) == {step: rows for step, rows in rows_by_step(samples[0]).items() if step > 2}


@pytest.mark.thorough
def test_what_the_launchers_start(model_dir: Path, data_files: tuple[Path, Path], tmp_path: Path) -> None:
    """torchrun, killed by nothing, resumed by one process without a launcher, in the same folder."""
    flags = ["--model_name_or_path", str(model_dir), "--data_path", str(data_files[0]), *FLAGS, *SAVES, *TWO]
    flags += ["--engine", "fsdp"]
    first = launch("torchrun", "train_lora", flags, tmp_path / "out")
    assert first.code == 0 and first.record["engine"] == "fsdp", first.err[-5000:]
    for name in ("adapter_model.safetensors", "training.json", "status.json", "checkpoint-4"):
        path = first.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = launch("python", "train_lora", flags, tmp_path / "out", processes=1)
    assert again.code == 0 and "checkpoint-2: step 2" in again.err, again.err[-5000:]
    assert again.record["engine"] == "fsdp" and again.record["world_size"] == 1


def test_rows_are_divided_as_torch_does() -> None:
    for rows in (1, 3, 5, 8, 17):
        for processes in (1, 2, 4, 7):
            shares = [rows_of(rows, processes, process) for process in range(processes)]
            parts = torch.arange(rows).chunk(processes)
            assert [list(range(*share)) for share in shares if share[0] < share[1]] == [p.tolist() for p in parts]


def test_what_is_not_divided_is_no_fsdp() -> None:
    from fastchat.settings.engines import FsdpOptions

    engine: Any = choose_engine(None, 2, FsdpOptions())
    with pytest.raises(AssertionError, match="weight is not divided among the processes"):
        engine._check_divided(torch.nn.Linear(2, 2))


def test_which_state_fits_which_engine() -> None:
    path = Path("out/checkpoint-3")
    for saved, now in (("ddp", "plain"), ("plain", "ddp"), ("fsdp", "fsdp"), ("zero2", "zero2")):
        assert find_mismatch(path, saved, now) is None
    other = find_mismatch(path, "ddp", "fsdp")
    assert other and "saved under ddp and this run is fsdp" in other
