"""Recipes and flags of other programs: one message for all unknown settings, with their names here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.conversation import get_template
from fastchat.errors import SettingsError
from fastchat.settings.foreign import FAMILIES, NO_SETTING, TEMPLATES
from fastchat.settings.readers import plan_reader, preview_reader, training_options, training_reader

AXOLOTL = """
base_model: org/base
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: org/data
    type: alpaca
  - {path: b.jsonl, type: chat_template}
val_set_size: 0.05
adapter: qlora
sequence_len: 4096
sample_packing: true
lora_target_modules:
lora_target_linear: true
wandb_project: mine
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
bf16: auto
flash_attention: true
push_dataset_to_hub: true
special_tokens: {pad_token: "</s>"}
learning_rat: 1
"""
LLAMA_FACTORY = """
model_name_or_path: org/base
stage: sft
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
dataset: a.json,b.json
dataset_dir: data
template: llama3
cutoff_len: 2048
quantization_bit: 4
rope_scaling: {type: linear, factor: 2.0}
val_size: 0.1
flash_attn: fa2
"""
TRL = """
dataset_name: org/data
max_length: 1024
use_peft: true
attn_implementation: flash_attention_2
use_liger: true
completion_only_loss: true
dataset_num_proc: 8
lora_target_modules: all-linear
"""
ALPACA_LORA = """
base_model: org/base
cutoff_len: 256
micro_batch_size: 4
batch_size: 128
prompt_template_name: alpaca
val_file: v.json
"""


def _told(text: str, tmp_path: Path) -> dict[str, str]:
    """name -> advice of the one message about a recipe."""
    path = tmp_path / "foreign.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as found:
        training_reader(True).from_yaml(path)
    first, *lines = str(found.value).splitlines()
    assert first.startswith(f"{path}: {len(lines)} settings cannot be used")
    return {name.strip(): advice for name, _, advice in (line.partition("  ->  ") for line in lines)}


def test_axolotl(tmp_path: Path) -> None:
    told = _told(AXOLOTL, tmp_path)
    assert told["base_model"] == "model_name_or_path: org/base"
    assert told["load_in_4bit"] == "q_lora: true" and told["adapter"].startswith("q_lora: true")
    assert told["datasets"].startswith("data_path: [org/data, b.jsonl] ")
    assert told["sequence_len"] == "model_max_length: 4096" and told["sample_packing"] == "packing: true"
    assert told["lora_target_linear"] == "lora_target_modules: all-linear" and told["load_in_8bit"] == "leave it out"
    assert "WANDB_PROJECT" in told["wandb_project"] and "fastchat prepare" in told["special_tokens"]
    assert told["micro_batch_size"] == "per_device_train_batch_size: 2" and told["num_epochs"] == "num_train_epochs: 4"
    assert told["optimizer"] == "optim: paged_adamw_32bit" and told["lr_scheduler"] == "lr_scheduler_type: cosine"
    assert told["train_on_inputs"] == "train_on: assistant" and told["flash_attention"] == "flash_attn: true"
    assert "bf16 is 'auto': " in told["bf16"] and "write true" in told["bf16"]
    assert "is empty" in told["lora_target_modules"], "what is wrong in known settings is told with it"
    assert "push_to_hub: true" in told["push_dataset_to_hub"] and told["learning_rat"] == "did you mean learning_rate?"
    assert told["datasets.type"].startswith("leave it out; rows are conversations")
    assert told.keys().isdisjoint({"val_set_size", "learning_rate"}) and len(told) == 21


def test_llama_factory(tmp_path: Path) -> None:
    told = _told(LLAMA_FACTORY, tmp_path)
    assert told["lora_rank"] == "lora_r: 16" and told["lora_target"] == "lora_target_modules: q_proj,v_proj"
    assert told["dataset"].startswith("data_path: [a.json, b.json] ") and "data_path" in told["dataset_dir"]
    assert told["template"].startswith("conv_template: llama-3 ") and told["cutoff_len"] == "model_max_length: 2048"
    assert told["quantization_bit"] == "q_lora: true" and told["val_size"] == "val_set_size: 0.1"
    assert told["rope_scaling"] == "rope_scaling_type: linear, rope_scaling_factor: 2"
    assert told["stage"].startswith("leave it out") and "train_lora.py" in told["finetuning_type"]
    assert told["flash_attn"] == "flash_attn is 'fa2': write true" and "model_name_or_path" not in told


def test_trl_and_alpaca_lora(tmp_path: Path) -> None:
    told = _told(TRL, tmp_path)
    assert told["max_length"] == "model_max_length: 1024" and "attn_implementation" not in told
    assert (
        told["dataset_name"].startswith("data_path: org/data") and told["completion_only_loss"] == "train_on: assistant"
    )
    assert "train_lora.py" in told["use_peft"] and told["dataset_num_proc"] == "preprocessing_num_workers: 8"
    assert told["use_liger"] == "use_liger_kernel: true" and "lora_target_modules" not in told
    told = _told(ALPACA_LORA, tmp_path)
    assert told["val_file"].startswith("eval_data_path: v.json") and "global batch" in told["batch_size"]
    assert told["prompt_template_name"].startswith("conv_template: alpaca")


def test_a_key_without_a_value_is_to_be_left_out(tmp_path: Path) -> None:
    told = _told("lora_model_dir:\nwandb_name:\nbase_model:\nadapter:\nstage:\n", tmp_path)
    assert set(told.values()) == {"leave it out"} and len(told) == 5


def test_a_template_of_another_program_is_one_that_exists(tmp_path: Path) -> None:
    for name in ["llama3", "qwen", "tokenizer_default", "jinja", "phi_3", "no-such", *TEMPLATES]:
        told = _told(f"chat_template: {name}\nlr: 1\n", tmp_path)["chat_template"]
        chosen = told.removeprefix("conv_template: ").split(" (")[0]
        assert chosen == "tokenizer" or get_template(chosen).name == chosen, (name, told)


def test_names_that_are_not_alike_are_not_suggested(tmp_path: Path) -> None:
    told = _told("export_folder: x\ncolour_kind: x\nr: 4\nrandom_state: 1\nlearing_rate: 1\n", tmp_path)
    assert told["r"] == "lora_r: 4" and told["random_state"] == "seed: 1" and "learning_rate" in told["learing_rate"]
    assert told["export_folder"] == told["colour_kind"] == "--help lists all settings"


def test_flags_of_other_programs() -> None:
    words = ["--base_model", "m", "--lora_rank", "8", "--datasets", "a", "b", "--adapter=qlora", "--bf16", "--epochs=2"]
    for reader in (training_reader(True), plan_reader(), preview_reader()):
        with pytest.raises(SettingsError) as found:
            reader.from_words(words)
        text = " ".join(str(found.value).split())
        assert "--base_model -> --model_name_or_path m" in text and "--lora_rank -> --lora_r 8" in text
        assert "--datasets -> --data_path a b" in text and "--adapter -> --q_lora true" in text
        assert "--epochs -> --num_train_epochs 2" in text and text.startswith("5 settings cannot be used")


def test_full_fine_tuning_is_not_sent_to_an_adapter() -> None:
    with pytest.raises(SettingsError) as found:
        training_reader(False).from_words(["--lora_rank", "8", "--load_in_4bit", "--lora_alpha", "16"])
    assert str(found.value).count("it belongs to train_lora.py") == 3


@pytest.mark.parametrize("name", sorted(NO_SETTING))
def test_a_name_without_a_setting_has_a_reason(name: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting --{name}: .{{10}}"):
        training_reader(True).from_words([f"--{name}", "x"])


def test_what_an_advice_names_exists() -> None:
    """Each translated value is accepted as suggested, or the advice says in words what to do."""
    reader = training_reader(True)
    for option in training_options(True):
        for name, how in option.elsewhere.items():
            advice = how("true") if how is not None else f"{option.name}: x"
            here, colon, value = advice.split(" (")[0].partition(": ")
            if (
                colon
                and here.isidentifier()
                and here in reader.options
                and reader.options[here].is_bool
                and value in ("true", "false")
            ):
                assert reader.from_words([f"--{here}", value])[here] is (value == "true"), (name, advice)


def test_no_secret_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hf_hub_token", "token", "hub_tokens", "hf_use_auth_token"):
        with pytest.raises(SettingsError) as found:
            training_reader(True).from_words([f"--{name}", "hf_abcdefgh", "--lr", "1"])
        assert "hf_abcdefgh" not in str(found.value)


def test_a_run_refuses_them_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fastchat.data import preview
    from fastchat.plan.__main__ import main as plan

    path = tmp_path / "axolotl.yaml"
    path.write_text(AXOLOTL, encoding="utf-8")
    commands: tuple[Callable[[list[str]], int], ...] = (preview.main, plan)
    for command in commands:
        assert command([str(path)]) == 2
        err = capsys.readouterr().err
        assert "21 settings cannot be used" in err and "base_model" in err and "Traceback" not in err


def test_kinds_of_adapters_have_their_names_here(tmp_path: Path) -> None:
    lines = ["peft_use_dora: true", "peft_use_rslora: true", "pissa_init: true", "pissa_iter: 16"]
    lines += ["additional_target: lm_head", "peft_layers_to_transform: [0, 1]", "peft_init_lora_weights: olora"]
    told = _told("\n".join(lines), tmp_path)
    assert told["peft_use_dora"] == "use_dora: true" and told["peft_use_rslora"] == "use_rslora: true"
    assert told["pissa_init"] == "lora_init: pissa" and "pissa_niter_N" in told["pissa_iter"]
    assert told["additional_target"].startswith("lora_modules_to_save: lm_head")
    assert told["peft_layers_to_transform"].startswith("lora_layers_to_transform: [0, 1]")
    assert told["peft_init_lora_weights"] == "lora_init: olora"


def test_names_inside_a_value_are_told_too(tmp_path: Path) -> None:
    """axolotl describes each dataset, and LLaMA-Factory the adapter, with a mapping of its own."""
    told = _told(
        """
datasets:
  - path: json
    data_files: [a.jsonl, b.jsonl]
    type: {field_instruction: question, format: "{instruction}"}
    split: train[:5%]
    roles_to_train: [assistant]
  - {path: org/data, name: en, field_messages: dialog, message_property_mappings: {role: from, content: value}}
test_datasets: [{path: c.jsonl, split: test}]
peft_config: {name: lora, r: 16, lora_alpha: 32, target_modules: all, hub_token: hf_abcdefgh}
""",
        tmp_path,
    )
    assert (
        told["datasets"].startswith("data_path: [a.jsonl, b.jsonl, org/data] ")
        and "configuration en" in told["datasets"]
    )
    columns = "datasets.field_instruction, datasets.field_messages, datasets.message_property_mappings"
    assert told[columns] == "data_columns: {instruction: question, messages: dialog, role: from, content: value}"
    assert told["datasets.split"] == "data_split: train[:5%]" and told["test_datasets.split"] == "eval_data_split: test"
    assert told["datasets.roles_to_train"].startswith("set train_on") and "datasets.data_files" not in told
    assert told["peft_config.r"] == "lora_r: 16" and told["peft_config.lora_alpha"] == "lora_alpha: 32"
    assert told["peft_config.target_modules"] == "lora_target_modules: all-linear"
    assert told["peft_config.hub_token"] == "hub_token: ...", "a secret is not repeated"


def test_columns_of_two_datasets_that_differ(tmp_path: Path) -> None:
    text = "datasets: [{path: a, field_messages: dialog}, {path: b, field_messages: turns}]"
    told = _told(text, tmp_path)["datasets.field_messages"]
    assert "messages is dialog and turns" in told and "rename" in told


def test_several_columns_on_a_command_line_are_one_json_object() -> None:
    words = ["--field_messages", "dialog", "--message_field_role", "from", "--lr", "1"]
    with pytest.raises(SettingsError) as found:
        training_reader(True).from_words(words)
    assert """-> --data_columns '{"messages": "dialog", "role": "from"}'""" in " ".join(str(found.value).split())


@pytest.mark.parametrize("start", sorted(FAMILIES))
def test_a_family_of_names_has_one_reason(start: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting --{start}zzz: .{{10}}"):
        training_reader(True).from_words([f"--{start}zzz", "x"])


def test_no_family_hides_a_setting() -> None:
    here = [option.name for option in training_options(True) if not option.refused]
    assert len(here) > 100 and not [name for name in here if name.startswith(tuple(FAMILIES))]


def test_the_chapter_agrees_with_the_table(repository: Path) -> None:
    """Each name in the tables of docs/coming-from.md is known, and what the chapter says instead is what a run says."""
    here = {name: option.name for option in training_options(True) for name in option.elsewhere}
    rows = re.findall(
        r"^\| (`.*) \| (.*) \|$", (repository / "docs" / "coming-from.md").read_text(encoding="utf-8"), re.M
    )
    found = [(re.match(r"\w+", name)[0], says) for there, says in rows for name in re.findall("`([^`]+)`", there)]  # type: ignore[index]
    names = [(name, says) for name, says in found if name in here]
    assert len(names) > 12
    assert not [(name, says) for name, says in names if here[name] not in says and "the default" not in says]
    unknown = [name for name, _ in found if name not in {*here, *here.values(), *NO_SETTING}]
    assert set(unknown) <= {"path", "dataset_info"}, "not names of settings"
