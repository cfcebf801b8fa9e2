"""--packing with two processes under DDP, ZeRO-2 and ZeRO-3: the gradients of one, verified, resumed bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.checkpoint.manifest import read_manifest
from tests.tiers import thorough
from tests.train.conftest import Outcome
from tests.train.flags import Train, ok
from tests.train.test_packed import PACKED, RUN, STEP, distance, gradient
from tests.train.test_resume import same_run
from tests.train.warm import Warm

pytestmark = pytest.mark.launch
ENGINES = ("ddp", "zero2", "zero3")


@pytest.fixture(scope="module")
def gemma(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("gemma", "gemma", tied=True)


def engine_flags(engine: str, folder: Path) -> list[str]:
    if engine == "ddp":
        return []
    content = {
        "zero_optimization": {"stage": int(engine[-1]), "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    path = folder / f"{engine}.json"
    path.write_text(json.dumps(content))
    return ["--deepspeed", str(path)]


@pytest.mark.parametrize("engine", [thorough(name, in_default=name == "zero3") for name in ENGINES])
def test_two_processes_give_the_gradients_of_the_dialogues_alone(
    warm: Warm, train: Train, gemma: Path, data_files: tuple[Path, Path], tmp_path: Path, engine: str
) -> None:
    """Nine packs, two at a time: in the last micro-step one process has nothing to do and still takes part."""
    base = ["--model_name_or_path", str(gemma), "--data_path", str(data_files[0]), *STEP, "--disable_tqdm", "True"]
    alone = ok(train("--per_device_train_batch_size", "20", "--model_max_length", "128", base=base, full=True))
    flags = [*base, *PACKED, "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "8"]
    flags += ["--verify_packing", "True", "--log_samples", "True", *engine_flags(engine, tmp_path)]
    outcome = warm.run(flags, tmp_path / "two", script="train")
    assert warm.codes == [0, 0], outcome.err
    assert (outcome.record["engine"], outcome.record["packing"]["train"]["packs"] % 2) == (engine, 1)
    assert distance(gradient(alone, gemma), gradient(outcome, gemma)) < 1e-5
    assert outcome.losses == pytest.approx(alone.losses, abs=1e-5)
    assert outcome.metrics[0]["num_tokens"] == alone.metrics[0]["num_tokens"]
    assert outcome.err.count("packing verified on 16 examples") == 1, outcome.err
    rows = [json.loads(line) for line in (outcome.folder / "samples.jsonl").read_text().splitlines()]
    assert sorted(i for row in rows for i in row["samples"]) == list(range(20)) and len(rows) == 2


@pytest.mark.parametrize("engine", ["ddp", thorough("zero3", in_default=False)])
def test_two_processes_resume_bit_for_bit(
    warm: Warm, model_dir: Path, data_files: tuple[Path, Path], tmp_path: Path, engine: str
) -> None:
    flags = ["--model_name_or_path", str(model_dir), "--data_path", str(data_files[0]), *RUN]
    flags += ["--gradient_accumulation_steps", "1", "--disable_tqdm", "True", *engine_flags(engine, tmp_path)]
    plain: Outcome = warm.run(flags, tmp_path / "plain")
    assert warm.codes == [0, 0], plain.err
    stopped = warm.run(flags, tmp_path / "out", TROUBLE="term:1:3")
    assert warm.codes == [75, 75], stopped.err
    manifest = read_manifest(stopped.folder / "checkpoint-4")
    rows = [json.loads(line) for line in (stopped.folder / "samples.jsonl").read_text().splitlines()]
    assert manifest.samples == sum(len(row["samples"]) for row in rows) and "packs" in manifest.fingerprints
    resumed = warm.run(flags, tmp_path / "out")
    assert "checkpoint-4: step 4" in resumed.err
    same_run(plain, resumed)


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_two_processes_share_prefixes_like_one(
    warm: Warm, train: Train, model_dir: Path, data_files: tuple[Path, Path], tmp_path: Path, engine: str
) -> None:
    """The system prompt of the default template is in every dialogue."""
    base = ["--model_name_or_path", str(model_dir), "--data_path", str(data_files[0]), "--disable_tqdm", "True"]
    base += ["--packing", "True", "--model_max_length", "200", "--max_steps", "2", "--lora_dropout", "0"]
    one = ok(train("--per_device_train_batch_size", "4", base=base))
    assert "common prefixes computed once" in one.err
    flags = [*base, "--per_device_train_batch_size", "2", "--verify_packing", "True", *engine_flags(engine, tmp_path)]
    two = warm.run(flags, tmp_path / "two")
    assert warm.codes == [0, 0], two.err
    assert two.losses == pytest.approx(one.losses, abs=1e-5) and "packing verified on" in two.err
    for name in ("num_tokens", "num_supervised_tokens"):
        assert [row[name] for row in two.metrics if "loss" in row] == [
            row[name] for row in one.metrics if "loss" in row
        ]
