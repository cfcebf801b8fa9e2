"""The table of settings against transformers' own class, and against itself."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import typing
from collections import Counter
from pathlib import Path

import pytest

from fastchat.errors import SettingsError
from fastchat.settings import newer
from fastchat.settings.arguments import all_arguments
from fastchat.settings.engine_arguments import EngineArguments
from fastchat.settings.fields import FIXED, FREE, TOLD
from fastchat.settings.foreign import NO_SETTING
from fastchat.settings.help import help_text
from fastchat.settings.options import Option, options_of
from fastchat.settings.readers import plan_reader, preview_reader, training_options, training_reader
from fastchat.settings.reference import names, reference
from fastchat.settings.tool_arguments import PlanArguments, PreviewArguments
from fastchat.settings.transformers_arguments import RefusedArguments, TransformersArguments

REPOSITORY = Path(__file__).resolve().parents[2]
ALL = (*all_arguments(True), PlanArguments, PreviewArguments)
# This project's own defaults, and transformers' that depend on the machine or on torch's version.
OTHER_DEFAULTS = {"logging_steps", "save_strategy", "logging_nan_inf_filter", "gradient_checkpointing", "optim"}
WIDER = {"gradient_checkpointing"}  # only a switch there
NARROWER = {"train_sampling_strategy": "any text there", "trackio_static_space_id": "may be False there"}
NARROWER["fsdp"] = "one text there, words here"


def _kind(option: Option) -> str:
    """As the reader decides."""
    if option.is_list or option.allowed:
        return "list" if option.is_list else "choice"
    if option.is_bool:
        return "any" if str in option.parts else "switch"
    for kind in (int, float):
        if kind in option.parts:
            return kind.__name__
    return "mapping" if option.is_mapping else "text"


@pytest.fixture(scope="module")
def theirs() -> dict[str, Option]:
    import transformers

    return {option.name: option for option in options_of((transformers.TrainingArguments,))}


@pytest.fixture(scope="module")
def ours() -> dict[str, Option]:
    fsdp = {option.name: option for option in options_of((EngineArguments,)) if option.name != "engine"}
    return fsdp | {option.name: option for option in options_of((TransformersArguments, RefusedArguments))}


def test_every_argument_of_transformers_is_offered_or_refused(
    theirs: dict[str, Option], ours: dict[str, Option]
) -> None:
    """If this fails after an update of transformers, add the field to transformers_arguments.py."""
    also = {name for option in ours.values() for name in option.also}
    assert theirs.keys() - ours.keys() - also == set()
    assert ours.keys() - theirs.keys() == set()
    assert all(option.help or option.refused for option in ours.values())


def test_types_choices_and_defaults_are_those_of_transformers(
    theirs: dict[str, Option], ours: dict[str, Option]
) -> None:
    for name, option in ours.items():
        other = theirs[name]
        if name not in NARROWER.keys() | WIDER and name != "parallelism_config":
            assert (_kind(option), option.allowed) == (_kind(other), tuple(other.allowed)), name
            assert option.may_be_none == other.may_be_none, name
        if name not in OTHER_DEFAULTS:
            assert option.default == getattr(other.default, "value", other.default), name


def test_the_dataclasses_for_code_that_imports_them() -> None:
    from transformers import HfArgumentParser

    from fastchat.train.arguments import DataArguments, LoraArguments, ModelArguments, TrainingArguments

    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments, LoraArguments))  # pyright: ignore
    assert "--lora_target_modules" in parser.format_help()
    words = ["--output_dir", "x", "--model_name_or_path", "m", "--data_path", "a", "b", "--lora_r", "4", "--use_cpu"]
    words += ["--lr_scheduler_type", "cosine", "--overlong", "drop", "--gradient_checkpointing", "True"]
    model, data, training, lora = parser.parse_args_into_dataclasses(words)
    assert (model.model_name_or_path, data.data_path, data.overlong, lora.lora_r) == ("m", ["a", "b"], "drop", 4)
    assert (training.lr_scheduler_type.value, training.gradient_checkpointing) == ("cosine", True)
    assert (training.logging_steps, training.model_max_length) == (1, 512)


def test_every_name_means_one_thing() -> None:
    options = options_of(all_arguments(True))
    counted = Counter(name for option in options for name in (option.name, *option.also))
    elsewhere = Counter(n for option in options for n in option.elsewhere if n != option.name)
    assert max((counted + elsewhere + Counter(list(NO_SETTING))).values()) == 1
    assert {option.resume for option in options} == {FIXED, TOLD, FREE}


def test_adding_a_plain_setting_touches_one_file() -> None:
    """A field in a dataclass is enough: reader, help, checks and reference have it."""
    from fastchat.settings.fields import AT_LEAST_ONE, setting
    from fastchat.settings.options import Reader, check_ranges

    made = dataclasses.make_dataclass(
        "More", [("frobs", int, setting(3, "how many frobs", group="Model", range=AT_LEAST_ONE, also="num_frobs"))]
    )
    options = options_of((made,))
    assert Reader(options).from_words(["--num-frobs", "4"]) == {"frobs": 4}
    with pytest.raises(SettingsError, match="--frobs is 0; it must be at least 1"):
        check_ranges(options, {"frobs": 0})
    assert "--frobs INTEGER (default 3)\n        how many frobs" in help_text((), options, {}, "all")


def test_the_reference_is_up_to_date() -> None:
    written = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == reference(), "run `python -m fastchat.settings.reference > docs/settings.md`"
    assert all(f"`{option.name}`" in written for option in options_of(ALL))
    written = (REPOSITORY / "docs" / "names.md").read_text(encoding="utf-8")
    assert written == names(), "run `python -m fastchat.settings.reference names > docs/names.md`"


@pytest.mark.parametrize("command", ["train.train_lora", "train.train", "data.preview", "plan"])
def test_help_is_complete_and_needs_no_heavy_library(command: str, tmp_path: Path) -> None:
    """It takes 0.3 s; playground/benchmark/start.py measures that."""
    heavy = ("torch", "transformers", "datasets", "pandas", "pyarrow", "accelerate", "peft", "deepspeed", "jinja2")
    for name in heavy:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    shown = {}
    for words in (["--help"], ["--help", "all"]):
        run = subprocess.run(
            [sys.executable, "-m", f"fastchat.{command}", *words],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])},
        )
        assert run.returncode == 0, run.stderr
        shown[len(words)] = run.stdout.splitlines()
    short, everything = ({line.split()[0] for line in shown[n] if line.startswith("  --")} for n in (1, 2))
    assert short < everything
    offered = {f"--{option.name}" for option in training_options(command != "train.train") if not option.refused}
    refused = {f"--{option.name}" for option in options_of((RefusedArguments,))}
    assert offered <= everything and not refused & everything
    assert not any("…" in line for line in shown[2])
    if command.startswith("train"):
        assert 15 <= len(short) <= 26 and {"--model_name_or_path", "--learning_rate", "--output_dir"} <= short


# ---- a transformers that is newer than the table


CLASS = """
class TrainingArguments:
    brand_new: bool | None = field(default=None, metadata={"help": "x"})
    other_new: SomeEnum | str = field(default="a")
    _internal: int = field(init=False, default=0)
    plain: int = 3
"""


@pytest.fixture
def newer_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typing.Iterator[None]:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "transformers" / "training_args.py").write_text(CLASS)
    spec = importlib_spec(tmp_path / "transformers")
    monkeypatch.setattr(newer.importlib.util, "find_spec", lambda name: spec)
    newer._annotations.cache_clear()
    yield
    newer._annotations.cache_clear()


def importlib_spec(folder: Path) -> typing.Any:
    from importlib.machinery import ModuleSpec

    spec = ModuleSpec("transformers", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return spec


def test_what_only_a_newer_transformers_has_is_passed_on(newer_transformers: None) -> None:
    for reader in (training_reader(True), training_reader(False), plan_reader(), preview_reader()):
        given = reader.from_words(["--brand_new", "--other_new", "b"])
        assert given == {"brand_new": True, "other_new": "b"}
        assert reader.from_words(["--no_brand_new"]) == {"brand_new": False}
        for name in ("--plain", "--_internal", "--nowhere"):
            with pytest.raises(SettingsError, match="unknown setting"):
                reader.from_words([name, "1"])


def test_the_installed_one_is_read_without_importing_it() -> None:
    newer._annotations.cache_clear()
    assert {"output_dir", "learning_rate", "fsdp"} <= newer._annotations().keys()
    option = newer.newer_option("learning_rate")
    assert option is not None and option.type is float and newer.newer_option("nowhere") is None
