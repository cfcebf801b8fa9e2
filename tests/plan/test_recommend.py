"""--recommend: full fine-tuning, several hosts, templates, order, files of earlier calls."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.errors import SettingsError
from fastchat.plan.__main__ import main
from fastchat.plan.api import Machine, estimate, machine_of
from fastchat.plan.command_line import read_flags
from fastchat.plan.known import architecture_of_size
from fastchat.plan.recommend import recommend
from fastchat.plan.run import Run
from fastchat.plan.search import Choice, choices, neighbours, slowdown
from fastchat.plan.templates import template_line
from fastchat.plan.units import GIB
from fastchat.security import load_yaml
from fastchat.settings.recipe_files import find_deepspeed_config
from tests.train.warm import Warm

ROOMY = ("--gpus", "8", "--gpu_memory", "80GiB", "--cpu_memory", "2000GiB")
FULL = ("--recommend", "--full_finetuning", "True")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastchat.plan.api.detect_gpus", lambda: [])


def ask(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[str, str]:
    assert main([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


# ---- full fine-tuning ----


def test_full_fine_tuning_is_recommended(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Recipes that train.py reads and that fit according to the planner, with one launch line each."""
    from fastchat.settings.readers import training_reader

    text, _ = ask(capsys, *FULL, *ROOMY, "--recipes", tmp_path)
    assert "LoRA" not in text and text.count("full fine-tuning") > 6
    for part in ("ZeRO-2", "ZeRO-3", "optimizer and weights on the host", "checkpointing", "microbatch 4 x accum"):
        assert part in text
    reader = training_reader(False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["13b_full.yaml", "70b_full.yaml", "7b_full.yaml"]
    for size in ("7b", "13b", "70b"):
        path = tmp_path / f"{size}_full.yaml"
        values = reader.from_yaml(path)
        assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == 8
        assert (
            json.loads(find_deepspeed_config(values["deepspeed"]).read_text())["data_types"]["grad_accum_dtype"]
            == "fp32"
        )
        assert f"  deepspeed --num_gpus 8 --module fastchat.train.train {path} --data_path DATA.json" in text
        found = json.loads(ask(capsys, path, *ROOMY, "--json")[0])
        assert found["fits"] and found["trained_parameters"] == architecture_of_size(size).parameters


def test_a_plan_that_does_not_fit_points_to_what_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ("--gpus", "4", "--gpu_memory", "24GiB", "--cpu_memory", "256GiB")
    text, _ = ask(capsys, "--model_size", "7b", "--full_finetuning", *small)
    (words,) = re.findall(r"try (--recommend --full_finetuning True)", text)
    found, _ = ask(capsys, *words.split(), *small, "--recipes", tmp_path)
    assert "7b: full fine-tuning, ZeRO-" in found and "13b: nothing fits" in found
    nothing, _ = ask(
        capsys, *FULL, "--gpus", "1", "--gpu_memory", "8GiB", "--cpu_memory", "16GiB", "--recipes", tmp_path
    )
    assert "without --full_finetuning, LoRA and QLoRA are tried" in nothing


def test_flags_that_count_for_nothing_are_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("--lora_r", "4", "--gradient_checkpointing", "True", "--packing", "True")
    _, said = ask(capsys, *FULL, *ROOMY, *words, "--recipes", tmp_path)
    assert "ignored, because --full_finetuning trains no adapter: --lora_r" in said
    assert "ignored, because --recommend tries all values: --gradient_checkpointing" in said
    assert load_yaml(tmp_path / "7b_full.yaml", "recipe")["packing"] is True


def test_what_else_was_given_is_in_the_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Read back by the planner's own reader, which types every value as training does."""
    given = {"learning_rate": 7e-6, "warmup_steps": 5, "save_strategy": "no", "val_set_size": 0.015625, "seed": 7}
    given |= {
        "lr_scheduler_kwargs": {"num_cycles": 0.3, "min_lr": 1e-6},
        "flash_attn": False,
        "report_to": ["wandb", "tensorboard"],
        "weight_decay": 0.1,
    }
    own = {"conv_template": "mistral", "conv_template_file": "it's mine.yaml"}
    of_a_run = {"data_path": "RLHF4MATH/SFT_510K", "data_split": "train", "output_dir": "output/x"}
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps({"model_name_or_path": "mistralai/Mistral-7B-v0.3", **given, **own, **of_a_run}))
    folder = tmp_path / "recipes"
    ask(capsys, mine, "--recommend", *ROOMY, "--recipes", folder)
    found = read_flags([str(folder / "Mistral-7B-v0.3_full.yaml")])
    assert {name: found[name] for name in (given | own)} == given | own
    assert not found["given"] & {"warmup_ratio", *of_a_run}, "one warmup, and no data"
    other = read_flags([str(folder / "7b_full.yaml")])
    assert {name: other[name] for name in given} == given and other["conv_template"] == "vicuna_v1.1"
    named = ("--model_name_or_path", "meta-llama/Llama-2-7b-hf", "--conv_template", "alpaca")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 32, "target_modules": ["q_proj", "v_proj"]}))
    ask(capsys, "--recommend", *ROOMY, *named, "--lora_weight_path", tmp_path, "--recipes", folder)
    own, other = (read_flags([str(folder / f"{size}_lora.yaml")]) for size in ("7b", "13b"))
    assert (own["conv_template"], own["lora_weight_path"]) == ("alpaca", str(tmp_path)), "the same model by its name"
    assert (own["lora_r"], set(own["lora_target_modules"])) == (32, {"q_proj", "v_proj"})
    assert (other["conv_template"], other["lora_weight_path"], other["lora_r"]) == ("vicuna_v1.1", "", 16)
    ask(capsys, "--recommend", *ROOMY, "--conv_template", "alpaca", "--lora_alpha", "64", "--recipes", folder)
    for size in ("7b", "13b", "70b"):  # no model was named, so it is meant for all
        found = read_flags([str(folder / f"{size}_lora.yaml")])
        assert (found["conv_template"], found["lora_alpha"]) == ("alpaca", 64)


def test_an_optimizer_on_the_host_is_slow_when_it_steps_often() -> None:
    """Full fine-tuning with an offloaded optimizer: fewer, longer steps; and never the first choice where all fits."""
    run = Run(architecture_of_size("7b"), Machine(8), lora=False, per_device_train_batch_size=4)
    offloaded = [r for r in choices(run) if r.zero and r.zero.offload_optimizer and r.per_device_train_batch_size == 1]
    resident = [r for r in choices(run) if r.zero and not r.zero.offload_optimizer]
    assert min(map(slowdown, offloaded)) > max(
        slowdown(r) for r in resident if r.per_device_train_batch_size == 1 and not r.gradient_checkpointing
    )


# ---- several machines ----


def test_several_machines_are_launched_as_deepspeed_reads_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The line goes through deepspeed's own parser, and the hostfile through its own reader: 16 processes."""
    from deepspeed.launcher import runner

    machines = ("--hosts", "2", "--gpus", "16", "--gpu_memory", "24GiB")
    text, _ = ask(capsys, "--recommend", *machines, "--recipes", tmp_path)
    launched = [line for line in text.splitlines() if line.startswith("  deepspeed ")]
    assert len(launched) == 3 and "the memory of the host is unknown" in text
    (entry,) = set(re.findall(r"hostfile: a line `NAME (.*?)` for each of the 2 hosts", text))
    for line, size in zip(launched, ("7b", "13b", "70b"), strict=True):
        args = runner.parse_args(shlex.split(line)[1:])
        assert (args.hostfile, args.num_nodes, args.num_gpus, args.module) == ("hostfile", 2, 8, True)
        assert args.user_script == "fastchat.train.train_lora" and args.user_args[0] == str(
            tmp_path / f"{size}_lora.yaml"
        )
        pool = runner._parse_hostfile([f"{name} {entry}\n" for name in ("a", "b", "spare")])
        active = runner.parse_inclusion_exclusion(pool, args.include, args.exclude)
        active = runner.apply_num_nodes_and_gpus(active, args.num_nodes, args.num_gpus)
        assert {name: len(slots) for name, slots in active.items()} == {"a": 8, "b": 8}
        recipe = tmp_path / f"{size}_lora.yaml"
        values, header = load_yaml(recipe, "recipe"), recipe.read_text()
        micro, steps = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
        total = {"7b": 16 * 2, "13b": 8 * 1, "70b": 2 * 8}[size] * 16
        assert micro * steps * 16 == total
        assert f"# Global batch: {micro} x {steps} x 16 GPUs = {total} examples per step." in header


def test_found_gpus_are_each_host_s() -> None:
    assert machine_of(hosts=4).gpus == 4 and machine_of(gpus=8, hosts=4).gpus_per_host == 2
    with pytest.raises(SettingsError, match="give --gpus 6 or 9"):
        machine_of(gpus=8, hosts=3)


# ---- one GPU ----


def test_one_gpu_needs_no_deepspeed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one = ("--gpus", "1", "--gpu_memory", "24GiB", "--cpu_memory", "128GiB")
    text, _ = ask(capsys, "--recommend", *one, "--recipes", tmp_path)
    assert re.search(r"13b: QLoRA r16, one GPU, .* is the fastest that fits", text)
    block = text.split("13b: QLoRA")[1].split("\n\n")[0]
    assert re.search(r"ZeRO-2: fits \([\d.]+ GiB\), about 1\.\d\dx as long", block)
    assert f"  python -m fastchat.train.train_lora {tmp_path / '13b_lora.yaml'} --data_path" in text
    values = load_yaml(tmp_path / "13b_lora.yaml", "recipe")
    assert "deepspeed" not in values and values["dtype"] == "bfloat16", "or autocast keeps a copy of float16 weights"
    assert json.loads(ask(capsys, tmp_path / "13b_lora.yaml", *one, "--json")[0])["fits"]


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("lora", [True, False])
def test_the_first_is_the_fastest_of_all(gpus: int, lora: bool) -> None:
    """Every candidate that fits is at least as slow, and every neighbour was a candidate."""
    machine = Machine(gpus, 1, 80 * GIB, 512 * GIB)
    given = Run(architecture_of_size("7b"), machine, lora=lora)
    for r in recommend(machine, given):
        looked_at = list(choices(r.wanted))
        fast = [slowdown(run) for run in looked_at if estimate(run).fits]
        assert bool(fast) == bool(r.choices)
        for choice in r.choices:
            assert all(run in looked_at for _, run in neighbours(choice.run))
        if r.best:
            assert r.best.slowdown == min(fast)
            assert [c.slowdown for c in r.choices] == sorted(c.slowdown for c in r.choices)


def test_partitions_cost_something_also_on_one_gpu() -> None:
    run = Run(architecture_of_size("13b"), Machine(1), q_lora=True, per_device_train_batch_size=1)
    same = [c for c in choices(run) if c.q_lora and not c.gradient_checkpointing]
    order = [Choice(estimate(c), slowdown(c)).slowdown for c in same]
    assert order == sorted(order) and len(set(order)) == len(order) == 5


# ---- templates ----

OWN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_templates_of_hub_names() -> None:
    assert template_line("meta-llama/Llama-2-70b-hf") == "conv_template: vicuna_v1.1"
    assert template_line("google/gemma-1.1-7b-it") == "conv_template: gemma"
    assert template_line("Qwen/Qwen2.5-7B").startswith("# conv_template is left out, ")


@pytest.mark.parametrize(
    ("kind", "own", "line"),
    [
        ("metaspace_bos", None, "conv_template: vicuna_v1.1"),
        ("byte_nobos", OWN, "conv_template: tokenizer # others that fit: "),
        ("gemma", None, "conv_template: gemma"),
    ],
)
def test_a_folder_s_template_is_the_one_training_names(kind: str, own: str | None, line: str, tmp_path: Path) -> None:
    """Without a setting, training uses the default, or stops and suggests the template in the recipe."""
    from tests.builders import make_tokenizer

    folder = make_tokenizer(kind, tmp_path / "model", chat_template=own)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    found = template_line(str(folder))
    assert found.startswith(line)
    encoder, _ = open_tokenizer(str(folder))
    name = load_text(found)
    assert encoder.choose(name).name == name
    if name == "vicuna_v1.1":
        assert encoder.choose(None).name == name
    else:
        with pytest.raises(SettingsError, match=f"Templates that fit: {name}"):
            encoder.choose(None)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", b'{"chat_template": {"default": "x"}}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default", "template": 7}]}'),
        ("tokenizer_config.json", b'{"chat_template": ["x"]}'),
        ("tokenizer.json", b'{"model": null}'),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 1}}, "added_tokens": ["x"]}'),
        ("chat_template.jinja", b"\xff\xfe"),
    ],
)
def test_tokenizer_files_of_an_unknown_form_give_no_template(file: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 1}}, "added_tokens": null}')
    assert template_line(str(tmp_path)).startswith("conv_template: "), "added_tokens may be null"
    (tmp_path / file).write_bytes(content)
    assert template_line(str(tmp_path)).startswith("# conv_template is left out, ")


def test_a_model_in_another_cache_is_found_for_its_recipe_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model_dir: Any
) -> None:
    cache = tmp_path / "my hub"
    snapshot = cache / "models--foo--bar-chat" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_model_dir("llama", "metaspace_bos"), target_is_directory=True)
    words = ("--recommend", *ROOMY, "--model_name_or_path", "foo/bar-chat", "--cache_dir", cache)
    ask(capsys, *words, "--recipes", tmp_path / "r")
    values = load_yaml(tmp_path / "r" / "bar-chat_lora.yaml", "recipe")
    assert (values["model_name_or_path"], values["cache_dir"]) == ("foo/bar-chat", str(cache))
    assert values["conv_template"] == load_text(template_line(str(snapshot.resolve())))
    assert json.loads(ask(capsys, tmp_path / "r" / "bar-chat_lora.yaml", *ROOMY, "--json")[0])["fits"]


def load_text(line: str) -> str:
    return line.partition("#")[0].partition(":")[2].strip()


# ---- files of earlier calls ----


def test_what_no_longer_fits_is_removed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ("--recipes", tmp_path)
    (tmp_path / "own_lora.yaml").write_text("lora_r: 8\n")
    ask(capsys, "--recommend", *ROOMY, *where)
    ask(capsys, *FULL, *ROOMY, *where)
    edited = tmp_path / "13b_lora.yaml"
    edited.write_text(edited.read_text() + "data_path: my.json\n")
    small = ("--gpus", "1", "--gpu_memory", "6GiB", "--cpu_memory", "16GiB")
    _, said = ask(capsys, "--recommend", *small, *where)
    assert f"{tmp_path / '70b_lora.yaml'}: removed; it is from an earlier --recommend" in said
    assert f"{edited}: kept; it is from an earlier --recommend, but was changed since" in said
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"own_lora.yaml", "7b_lora.yaml", "13b_lora.yaml", "7b_full.yaml", "13b_full.yaml", "70b_full.yaml"}
    assert "data_path: my.json" in edited.read_text()


def test_nothing_of_the_user_s_is_replaced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--recommend", *ROOMY, "--recipes", str(tmp_path / "r")]
    assert main(words) == 0
    assert main(words) == 0, "its own files are replaced"
    path = tmp_path / "r" / "7b_lora.yaml"
    path.write_text(path.read_text().replace("lora_r: 8", "lora_r: 32"))
    kept = {p: p.read_bytes() for p in path.parent.iterdir()}
    capsys.readouterr()
    assert main(words) == 2
    assert f"{path} was not written by --recommend or was changed since" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == kept
    assert main([*words[:-1], str(path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


# ---- for real ----


@pytest.mark.launch
def test_a_recommended_recipe_trains(
    warm: Warm, tiny_model_dir: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The printed launch line, run on the CPU: full fine-tuning in two processes."""
    from tests.builders import chat_rows, write_rows

    model, recipes = tiny_model_dir("llama", "metaspace_bos"), tmp_path / "the recipes"
    words = ["--gpus", "2", "--gpu_memory", "2GiB", "--model_name_or_path", model, "--model_max_length", "128"]
    text, _ = ask(capsys, *FULL, *words, "--recipes", recipes)
    (line,) = (line for line in text.splitlines() if "fastchat.train.train " in line)
    launcher, _, own = line.partition("fastchat.train.train ")
    assert shlex.split(launcher) == ["deepspeed", "--num_gpus", "2", "--module"]
    data = write_rows(tmp_path / "rows.json", chat_rows(16))
    flags = [str(data) if word == "DATA.json" else word for word in shlex.split(own)]
    flags += ["--use_cpu", "True", "--max_steps", "1", "--bf16", "False"]
    outcome = warm.run(flags, tmp_path / "out", script="train")
    assert warm.codes == [0, 0], outcome.err
    record = outcome.record
    assert (record["engine"], record["world_size"], record["metrics"]["steps"]) == ("zero2", 2, 1)
    assert record["settings"]["conv_template"]["value"] == "vicuna_v1.1"
