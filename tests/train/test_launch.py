"""One process and two, three launchers, plain, DDP, ZeRO-2, ZeRO-3: the same losses, and what was asked was used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastchat.report.reading import read_run
from tests.train.conftest import Outcome
from tests.train.launches import REPOSITORY, STEADY_ADAM, launch, same_weights
from tests.train.warm import Warm

pytestmark = pytest.mark.launch
COMMON = ["--lora_dropout", "0", "--num_train_epochs", "2", "--learning_rate", "1e-3", "--disable_tqdm", "True"]
COMMON += ["--eval_strategy", "epoch", "--eval_on_start", "True", "--model_max_length", "100", *STEADY_ADAM]
COMMON += ["--run_report", "html", "--sample_prompts", "2"]
# The same global batch of 8, cut in different ways; the last one of an epoch has 4 dialogues.
SPLITS = {
    "plain": ["--per_device_train_batch_size", "8"],
    "untrained": ["--per_device_train_batch_size", "8", "--learning_rate", "1e-30", "--max_steps", "1"],
    "plain, accumulating": ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"],
    "ddp": ["--per_device_train_batch_size", "4", "--sample_prompts", "0"],
    "zero2": ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"],
    "zero3": ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"],
}


def config(folder: Path, stage: int) -> list[str]:
    """A DeepSpeed configuration with what upstream's had wrong: a scheduler block, no precision blocks, no clipping."""
    content = {
        # No parameter is kept whole, so that ZeRO-3 really fetches and gathers all of these tiny ones.
        "zero_optimization": {"stage": stage, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"}},
    }
    (folder / f"zero{stage}.json").write_text(json.dumps(content))
    return ["--deepspeed", str(folder / f"zero{stage}.json")]


@pytest.fixture(scope="session")
def flags(model_dir: Path, data_files: tuple[Path, Path]) -> list[str]:
    files = ["--data_path", str(data_files[0]), "--eval_data_path", str(data_files[1])]
    return ["--model_name_or_path", str(model_dir), *files, *COMMON]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, flags: list[str], warm: Warm) -> Callable[[str], Outcome]:
    """`runs("zero2")`: the finished run of that split; each is made once. DDP's is started by torchrun; runs
    that start with deepspeed are in tests/scripts."""
    folder = tmp_path_factory.mktemp("launches")
    made: dict[str, Outcome] = {}

    def run(name: str) -> Outcome:
        if name not in made:
            more = config(folder, int(name[-1])) if name.startswith("zero") else []
            words = [*flags, *SPLITS[name], *more]
            if name == "ddp":
                made[name] = launch("torchrun", "train_lora", words, folder / name)
            else:
                made[name] = warm.run(words, folder / name, processes=2 if more else 1, ANSWER_TOKENS="12")
            assert made[name].code == 0, made[name].err[-6000:]
        return made[name]

    return run


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", ["plain, accumulating", "ddp", "zero2", "zero3"])
def test_the_split_does_not_change_the_numbers(runs: Callable[[str], Outcome], name: str) -> None:
    plain, other = runs("plain"), runs(name)
    assert len(other.losses) == 6
    assert other.losses == pytest.approx(plain.losses, abs=1e-5)
    for key in ("grad_norm", "num_tokens", "num_supervised_tokens", "learning_rate", "eval_loss"):
        theirs = [row.get(key) for row in other.metrics]
        assert theirs == pytest.approx([row.get(key) for row in plain.metrics], abs=1e-5), key
    same_weights(_adapter(other.folder), _adapter(plain.folder), _adapter(runs("untrained").folder))


@pytest.mark.parametrize(
    ("name", "engine", "processes"),
    [("plain", "plain", 1), ("ddp", "ddp", 2), ("zero2", "zero2", 2), ("zero3", "zero3", 2)],
)
def test_what_was_really_used(runs: Callable[[str], Outcome], name: str, engine: str, processes: int) -> None:
    record = runs(name).record
    assert (record["engine"], record["world_size"], record["attention"]) == (engine, processes, "sdpa")
    assert (record["dtype"], record["compute_dtype"], record["quantization"]) == ("float32", "float32", None)
    assert record["optimizer"] == "AdamW"
    if engine.startswith("zero"):
        assert record["deepspeed"]["zero_optimization"]["stage"] == int(engine[-1])
        assert record["deepspeed"]["gradient_clipping"] == 1.0
        assert "has a scheduler block (WarmupDecayLR): ignored, --lr_scheduler_type decides" in runs(name).err
    assert runs(name).log.count("actually used: ") == 1, "one rank speaks"
    assert "mismatch" not in runs(name).err, "a library warns of what is right"


@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_memory_is_measured_beside_the_plan(runs: Callable[[str], Outcome], name: str) -> None:
    outcome = runs(name)
    memory = outcome.record["memory"]
    assert memory["measured_as"] == "growth of the resident memory"
    assert memory["memory_measured"] > 0 and memory["memory_predicted"] > 0
    batch, length = memory["largest_batch"]
    assert batch == int(SPLITS[name][1]) and 50 < length <= 100, "the prediction is for what was really seen"
    rows = [row for row in outcome.rows if "loss" in row]
    assert rows[-1]["memory_predicted"] == memory["memory_predicted"]
    peaks = [row["memory_measured"] for row in rows]
    assert peaks == sorted(peaks) and peaks[-1] <= memory["memory_measured"]
    assert "peak memory: a process grew by" in outcome.log and "warning: peak" not in outcome.err


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_the_answers_before_and_after_do_not_depend_on_the_split(runs: Callable[[str], Outcome], name: str) -> None:
    plain, other = (read_run(runs(split).folder).answers for split in ("plain", name))
    assert [(row["step"], row["row"]) for row in plain] == [(0, 0), (0, 3), (6, 0), (6, 3)]
    assert all(0 < row["num_tokens"] <= 12 and row["answer"] for row in plain)
    assert other == plain


@pytest.mark.parametrize("name", ["plain", "ddp", "zero2", "zero3"])
def test_what_comes_out(runs: Callable[[str], Outcome], name: str) -> None:
    folder = runs(name).folder
    assert sorted(os.listdir(folder)) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        *(["answers.jsonl"] if name != "ddp" else []),
        "chat_template.jinja",
        "log.txt",
        "metrics.jsonl",
        "report.html",
        "report.json",
        "status.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    ]
    assert runs(name).status["exit_code"] == 0
    probe = folder.parent / "mode"
    probe.touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {probe.stat().st_mode}, "modes follow the umask"
    record = runs(name).record
    assert record["metrics"]["eval_loss"] < record["metrics"]["eval_loss_before"]
    assert record["data"]["train"]["counts"]["dialogues"] == 20 and len(record["data"]["train"]["fingerprint"]) == 64
    assert record["settings"]["learning_rate"] == {"value": 1e-3, "from": "command line"}


@pytest.mark.thorough  # tests/plan/test_launched.py runs one by default
def test_a_quantised_base_under_zero3(warm: Warm, flags: list[str], tmp_path: Path) -> None:
    more = ["--q_lora", "True", "--per_device_train_batch_size", "4", *config(tmp_path, 3)]
    outcome = warm.run([*flags, *more], tmp_path / "out")
    assert warm.codes == [0, 0], outcome.err[-6000:]
    assert outcome.record["engine"] == "zero3"
    assert outcome.record["quantization"]["type"] == "nf4" and outcome.record["quantization"]["double_quant"]
    assert outcome.record["metrics"]["eval_loss"] < outcome.record["metrics"]["eval_loss_before"]


def test_full_fine_tuning_under_zero3(
    warm: Warm, train: Callable[..., Outcome], flags: list[str], tmp_path: Path, model_dir: Path
) -> None:
    """From a recipe under ZeRO-3 with two processes; the same in one plain process; the weights agree."""
    from transformers import AutoModelForCausalLM

    full = [flag for flag in flags if flag not in ("--lora_dropout", "0")]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\nlearning_rate: 1\n")
    more = [*config(tmp_path, 3), "--save_strategy", "epoch", "--save_only_model", "True"]
    outcome = warm.run([str(recipe), *full, *more], tmp_path / "zero3", script="train")
    assert warm.codes == [0, 0], outcome.err[-6000:]
    assert outcome.record["engine"] == "zero3"
    assert outcome.record["settings"]["per_device_train_batch_size"]["from"] == "yaml"
    assert outcome.record["settings"]["learning_rate"] == {"value": 1e-3, "from": "command line"}
    plain = train("--per_device_train_batch_size", "8", base=full, full=True)
    assert plain.code == 0, plain.err
    assert outcome.losses == pytest.approx(plain.losses, abs=1e-5)
    assert (outcome.folder / "checkpoint-3" / "model.safetensors").is_file(), "saved right after an evaluation"
    saved, reference = (AutoModelForCausalLM.from_pretrained(o.folder).state_dict() for o in (outcome, plain))
    base = AutoModelForCausalLM.from_pretrained(model_dir).state_dict()
    same_weights(saved, reference, base)


def test_bad_data_ends_every_process(warm: Warm, flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"turns": 1}\n')
    outcome = warm.run([*flags, "--data_path", str(tmp_path / "bad.jsonl"), *config(tmp_path, 3)], tmp_path / "out")
    assert warm.codes == [3, 3] and not outcome.folder.exists()
    assert outcome.err.count("error: ") == 1, "it is said once for each machine"
    assert "bad.jsonl:1" in outcome.err and "Traceback" not in outcome.err


def test_an_error_of_one_rank_ends_all(warm: Warm, flags: list[str], tmp_path: Path) -> None:
    """The other rank is waiting for this one."""
    (tmp_path / "mine.py").write_text(
        "import os\nfrom fastchat.errors import SettingsError\n"
        "from fastchat.conversation import Conversation, register_conv_template\n"
        "if os.environ['RANK'] == '1':\n    raise SettingsError('only rank 1 minds')\n"
        "register_conv_template(Conversation(name='mine', roles=('Q', 'A'), sep=' '))\n"
    )
    more = ["--conv_template_file", str(tmp_path / "mine.py"), "--conv_template", "alpaca"]
    outcome = warm.run([*flags, *more], tmp_path / "out")
    assert warm.codes == [2, 2] and not outcome.folder.exists()
    assert "[rank 1] error: " in outcome.err and "only rank 1 minds" in outcome.err


def test_help_whose_reader_leaves(repository: Path) -> None:
    script = '"$0" -m fastchat.train.train_lora --help | head -c 10; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(["bash", "-c", script, sys.executable], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0 and done.stdout == "usage: pyt" and done.stderr == "", done.stderr


def test_help_needs_no_model(tmp_path: Path) -> None:
    outcome = launch("python", "train_lora", ["--help"], tmp_path / "out")
    assert outcome.code == 0 and "--lora_target_modules" in outcome.err and not outcome.folder.exists()


def test_the_folder_of_the_script_shadows_nothing() -> None:
    names = {path.stem for path in (REPOSITORY / "fastchat" / "train").glob("*.py")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)
