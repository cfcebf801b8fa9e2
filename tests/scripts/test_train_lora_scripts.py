"""The three training scripts, run on the CPU with a tiny model, and their messages when something is missing.

One is run as it is, launcher included; of the others the words that they give to the launcher are run. Overridden are
only model, data, size and device; everything else must be the documented value, and what was really used (ZeRO stage,
offload, quantisation, attention, precision) is read from the result, so that a silent fallback fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastchat.report.reading import read_run
from tests.builders import chat_rows, make_model, write_rows
from tests.scripts.conftest import Run
from tests.train.warm import Warm

ALL_SIZES = {  # what every size shares (FACTS of the original scripts)
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "bf16": True,
    "model_max_length": 1024,
    "gradient_checkpointing": True,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 1.0,
    "conv_template": "vicuna_v1.1",
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


@dataclass(frozen=True)
class Size:
    """One script and the values that are its own."""

    script: str
    lora_r: int
    q_lora: bool
    stage: int
    batch: int
    accumulation: int
    epochs: int


SIZES = [
    Size("train_lora_7b_base.sh", 8, True, 2, 16, 2, 10),
    Size("train_lora_13b_base.sh", 16, True, 2, 4, 1, 1),
    Size("train_lora_70b_base.sh", 64, False, 3, 2, 8, 5),
]


def _script(size: Size) -> str:
    return size.script


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "tiny model", dtype="bfloat16", max_positions=1024)


def _files(size: Size, base_model: Path, folder: Path) -> dict[str, str]:
    """The variables that a script needs. Data for two optimizer steps in two processes; names that need quotes."""
    folder.mkdir()
    data = write_rows(folder / "train.json", chat_rows(2 * 2 * size.batch * size.accumulation))
    held_out = write_rows(folder / "eval.json", chat_rows(4))
    names = {"MODEL": str(base_model), "DATA": str(data), "EVAL_DATA": str(held_out), "OUTPUT_DIR": str(folder / "out")}
    return names | {"DEVICE": "cpu"}


@pytest.mark.launch
def test_it_trains_with_the_documented_values(base_model: Path, run_script: Run, tmp_path: Path) -> None:
    """As a user starts it, with the deepspeed launcher."""
    size, folder = SIZES[0], tmp_path / "it's $(odd); -x"
    variables = _files(size, base_model, folder)
    variables["EVAL_DATA"] = os.path.relpath(variables["EVAL_DATA"], tmp_path)  # relative to the current folder
    run = run_script(size.script, "--num_train_epochs", "1", **variables)
    assert run.returncode == 0, run.stdout + run.stderr
    _check_run(size, folder / "out", run.stderr)


@pytest.mark.launch
@pytest.mark.parametrize("size", SIZES[1:], ids=_script)
def test_what_it_starts_trains_with_the_documented_values(
    size: Size, base_model: Path, launched_words: Callable[..., list[str]], warm: Warm, tmp_path: Path
) -> None:
    variables = _files(size, base_model, tmp_path / "it's $(odd); -x")
    words = launched_words(size.script, "--num_train_epochs", "1", **variables)
    program = next(i for i, word in enumerate(words) if word.endswith("fastchat/train/train_lora.py"))
    assert words[program - 2 : program] == ["--num_gpus", "2"]
    more = ["--sample_prompts", "1"]  # also with 4 bits, and from weights that are offloaded
    outcome = warm.run([*words[program + 1 :], *more], Path(variables["OUTPUT_DIR"]), ANSWER_TOKENS="4")
    assert warm.codes == [0, 0], outcome.err
    _check_run(size, outcome.folder, outcome.err)
    assert [row["step"] for row in read_run(outcome.folder).answers] == [0, 2]


def _check_run(size: Size, output: Path, log: str) -> None:
    record: dict[str, Any] = json.loads((output / "training.json").read_text(encoding="utf-8"))
    settings = {name: entry["value"] for name, entry in record["settings"].items()}
    own = {
        "lora_r": size.lora_r,
        "q_lora": size.q_lora,
        "per_device_train_batch_size": size.batch,
        "gradient_accumulation_steps": size.accumulation,
        "num_train_epochs": 1.0,
    }
    expected = ALL_SIZES | own
    assert {name: settings[name] for name in expected} == expected
    assert record["metrics"]["steps"] == 2
    _check_really_used(size, record, log)
    _check_adapter(output)


def _check_really_used(size: Size, record: dict[str, Any], log: str) -> None:
    assert (record["engine"], record["world_size"], record["device"]) == (f"zero{size.stage}", 2, "cpu")
    assert (record["attention"], record["dtype"], record["compute_dtype"]) == ("sdpa", "bfloat16", "bfloat16")
    zero = record["deepspeed"]["zero_optimization"]
    assert zero["stage"] == size.stage
    assert record["deepspeed"]["bf16"]["enabled"] is True
    assert "scheduler" not in record["deepspeed"]
    offload = {"device": "cpu", "pin_memory": True}
    for block in ("offload_optimizer", "offload_param"):
        found = {key: value for key, value in (zero.get(block) or {}).items() if key in offload}
        assert found == (offload if size.stage == 3 else {}), block
    quantization = record["quantization"]
    if size.q_lora:
        assert (quantization["type"], quantization["double_quant"]) == ("nf4", True)
        assert quantization["linear4bit"] == 14  # all seven layers of both blocks
    else:
        assert quantization is None
    # Fallbacks on a CPU are logged: --flash_attn True and --tf32 True were given.
    assert "flash_attention_2" in log
    assert "tf32" in log


def _check_adapter(output: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(output / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2  # two matrices for seven layers in two blocks
    moved = [name for name, tensor in tensors.items() if "lora_B" in name and tensor.any()]
    assert len(moved) == 7 * 2
    status = json.loads((output / "status.json").read_text(encoding="utf-8"))
    assert (status["exit_code"], status["status"]) == (0, "done")
    assert (output / "chat_template.jinja").is_file()


@pytest.mark.parametrize("size", SIZES, ids=_script)
def test_the_number_of_epochs_is_the_documented_one(size: Size, repository: Path) -> None:
    # The runs above override it: ten epochs would only take longer.
    text = (repository / "scripts" / size.script).read_text(encoding="utf-8")
    assert f'EPOCHS="${{EPOCHS:-{size.epochs}}}"' in text


@pytest.mark.parametrize("size", SIZES, ids=_script)
def test_what_is_missing_is_said_in_one_line(size: Size, run_script: Run) -> None:
    run = run_script(size.script, DEVICE="cpu")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "MODEL is not set" in run.stderr
    assert "DATA is not set" in run.stderr


MISSING = [
    ({"MODEL": "/no/such model"}, "MODEL=/no/such model does not exist"),
    ({"DATA": "gone.json"}, "DATA=gone.json does not exist"),
    ({"EVAL_DATA": "gone.json"}, "EVAL_DATA=gone.json does not exist"),
    ({"MODEL": "."}, "has no config.json"),
    ({"NUM_GPUS": "two"}, "NUM_GPUS=two is not a number"),
    ({"DEVICE": "tpu"}, "DEVICE=tpu is neither gpu nor cpu"),
    ({"DEEPSPEED_CONFIG": "s9.json"}, "DEEPSPEED_CONFIG=s9.json does not exist"),
]


@pytest.mark.parametrize(("wrong", "message"), MISSING, ids=[message for _, message in MISSING])
def test_one_wrong_value_is_named(
    wrong: dict[str, str], message: str, base_model: Path, run_script: Run, tmp_path: Path
) -> None:
    write_rows(tmp_path / "train.json", chat_rows(1))
    right = {"MODEL": str(base_model), "DATA": "train.json", "DEVICE": "cpu"}
    run = run_script("train_lora_7b_base.sh", **(right | wrong))
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert message in run.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.json"]


def test_a_trailing_flag_wins_over_the_variable_before_the_check(base_model: Path, run_script: Run) -> None:
    run = run_script(
        "train_lora_7b_base.sh",
        *("--data_path=other.json", "--model_name_or_path", "/not/there"),
        MODEL=str(base_model),
        DATA="train.json",
        DEVICE="cpu",
    )
    assert run.returncode == 2
    assert "MODEL=/not/there does not exist" in run.stderr
    assert "DATA=other.json does not exist" in run.stderr


def test_missing_gpus_and_compiler_are_named(base_model: Path, run_script: Run, tmp_path: Path) -> None:
    # A PATH with the few tools the script uses, and neither a compiler nor nvidia-smi.
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "grep", "sed", "tr", "cut", "cat"):
        found = next(p for p in (Path("/bin") / name, Path("/usr/bin") / name) if p.exists())
        (tools / name).symlink_to(found)
    write_rows(tmp_path / "train.json", chat_rows(1))
    run = run_script("train_lora_70b_base.sh", MODEL=str(base_model), DATA="train.json", PATH=str(tools))
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "no NVIDIA GPU found" in run.stderr
    assert "no C++ compiler" in run.stderr


@pytest.mark.parametrize("name", ["s2", "s2_offload", "s3", "s3_no_offload"])
def test_deepspeed_configurations_have_none_of_the_known_defects(name: str, repository: Path) -> None:
    config = json.loads((repository / "playground" / f"deepspeed_config_lora_{name}.json").read_text(encoding="utf-8"))
    assert not {"scheduler", "optimizer"} & config.keys()  # they would silently replace what the command line asks for
    assert config["bf16"]["enabled"] == config["fp16"]["enabled"] == "auto"
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert {config[key] for key in sizes} == {"auto"}
    zero = config["zero_optimization"]
    assert zero["stage"] == int(name[1])
    offloads = {key for key in zero if key.startswith("offload_")}
    assert offloads == {"s2_offload": {"offload_optimizer"}, "s3": {"offload_optimizer", "offload_param"}}.get(
        name, set()
    )
    if zero["stage"] == 3:
        assert zero["stage3_gather_16bit_weights_on_model_save"] is True
