"""From a recipe file and a command line to checked settings: `parse` is the one entrance.

    settings = parse(["recipe.yaml", "--learning_rate", "1e-4"], lora=True)
    settings.training.learning_rate            # 0.0001
    settings.origin["learning_rate"]           # "command line"

The command line overrides the recipe, the recipe overrides the defaults. Whatever cannot work is a SettingsError in
one line.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastchat.bars import BARS
from fastchat.errors import SettingsError, hide, say, show, values_without_secrets, without_secrets
from fastchat.settings.arguments import DataArguments, LoraArguments, ModelArguments, RunArguments
from fastchat.settings.engines import FsdpOptions, choose
from fastchat.settings.help import RECIPES, asked_for_help, common, help_head, help_text
from fastchat.settings.options import is_flag, split_recipe
from fastchat.settings.readers import training_options, training_reader
from fastchat.settings.recipe_files import find_recipe, read_recipe
from fastchat.settings.transformers_arguments import TransformersArguments
from fastchat.settings.values import Values
from fastchat.streams import DETAILS, quiet_libraries
from fastchat.train.imports import import_libraries

if TYPE_CHECKING:
    from fastchat.train.arguments import TrainingArguments
    from fastchat.train.engine import Engine

_NEVER_RECORDED = ("hub_token", "local_rank")


@dataclass
class Settings:
    """Everything that was decided about a run."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    lora: LoraArguments | None  # None: full fine-tuning
    values: Values  # the same values by name, as the user gave them, with their origin
    deepspeed_config: dict[str, Any] | None
    fsdp: FsdpOptions | None = None

    @property
    def origin(self) -> dict[str, str]:
        return self.values.origin

    def derive(self, part: Any, name: str, value: Any) -> None:
        """Sets a value that only the model could decide, in the dataclass and in the record."""
        setattr(part, name, value)
        self.values.derive(name, value)

    def record(self) -> dict[str, dict[str, Any]]:
        """{name: {"value", "from": "default"|"yaml"|"command line"|"derived"}} for training.json; without secrets."""
        names = [name for name in self.values.names() if name not in _NEVER_RECORDED]
        return values_without_secrets(
            {name: {"value": _plain(self.values[name]), "from": self.origin[name]} for name in names}
        )


def global_batch(settings: Settings, engine: Engine) -> int:
    """Rows of one optimizer step, over all processes."""
    training = settings.training
    return engine.global_batch(training.per_device_train_batch_size, training.gradient_accumulation_steps)


def find_output_dir(argv: Sequence[str]) -> str | None:
    """The `--output_dir` somebody meant, even if the rest of the settings is wrong."""
    recipe, words = split_recipe(argv)
    found: str | None = None
    if recipe is not None:
        try:
            value = read_recipe(find_recipe(recipe)).get("output_dir")
            found = value if isinstance(value, str) else None
        except SettingsError:
            pass
    for at, word in enumerate(words):
        name, _, glued = word.partition("=")
        if name in ("--output_dir", "--output-dir"):
            after = words[at + 1] if at + 1 < len(words) and not is_flag(words[at + 1]) else None
            found = glued or after or found
    return found


def parse(argv: Sequence[str], *, lora: bool) -> Settings:
    """Reads, checks and completes the settings; joins the launcher's processes, since transformers wants to know them.

    Raises SettingsError (DataError for a missing data file, ResourceError for a missing compiler), in every process
    what one of them meets. Prints the help and ends on `--help`.
    """
    name, words = split_recipe(argv)
    asked = asked_for_help(words)
    if asked is not None:
        options = training_options(lora)
        show(help_text(_usage(lora), options, common(options), asked))
        sys.exit(0)
    from fastchat.train.agreement import settings_facts
    from fastchat.train.joining import together

    values, config, fsdp = together(
        lambda: _read(name, words, lora),
        lambda read: settings_facts(*read),
        lambda read: float(read[0]["ddp_timeout"]),
    )
    return _build(values, config, fsdp, lora)


def _read(
    name: str | None, words: Sequence[str], lora: bool
) -> tuple[Values, dict[str, Any] | None, FsdpOptions | None]:
    """(the checked values, DeepSpeed's configuration, FSDP's options), from the recipe `name` and the flags `words`."""
    recipe = find_recipe(name) if name is not None else None
    if recipe is not None and recipe != Path(str(name)).expanduser():
        say(f"recipe: {recipe}")
    reader = training_reader(lora)
    given = (reader.from_yaml(recipe) if recipe else {}, reader.from_words(words))
    values = Values(reader.options.values(), *given)
    hide(values["hub_token"])
    from fastchat.data.tokens.early_request import start_tokenising
    from fastchat.train import checks, reporting

    checks.check(values)
    DETAILS.shown |= values["log_level"] in ("info", "debug")
    BARS.wanted = not values["disable_tqdm"]
    quiet_libraries()  # before the slow imports
    evaluates = values["eval_strategy"] != "no" or values["do_eval"] or values["eval_on_start"]
    start_tokenising(values, evaluates=bool(evaluates))
    import_libraries()
    from fastchat.train import hardware
    from fastchat.train.deepspeed_config import load_deepspeed

    reporting.choose_reports(values)
    hardware.fit_to_machine(values)
    choice = choose(values, lora=lora)
    config = load_deepspeed(choice.deepspeed) if choice.deepspeed is not None else None
    checks.check_engine(values, config, choice)
    hardware.check_compiler(config)
    return values, config, choice.fsdp


def _usage(lora: bool) -> list[str]:
    name = "fastchat.train.train_lora" if lora else "fastchat.train.train"
    about = "LoRA fine-tuning on conversations." if lora else "Full fine-tuning on conversations."
    launchers = ("python", "torchrun --nproc_per_node 8")
    examples = [f"{launcher} -m {name} my.yaml --learning_rate 1e-4" for launcher in launchers]
    return help_head(f"python -m {name} [RECIPE.yaml] [--setting value ...]", f"{about}\n{RECIPES}", examples)


def _fields(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _build(values: Values, config: dict[str, Any] | None, fsdp: FsdpOptions | None, lora: bool) -> Settings:
    from fastchat.processes import on_all_processes, start_processes
    from fastchat.train.joining import MEETING
    from fastchat.train.other_processes import keep_global_batch

    newer = _check_version(values)
    _derive(values)
    start_processes(
        use_cpu=values["use_cpu"],
        deepspeed=config is not None,
        alone=config is not None or fsdp is not None,
        backend=values["ddp_backend"],
        timeout_s=values["ddp_timeout"],
        store=MEETING.store,
        places=MEETING.places,
    )
    keep_global_batch(values)
    return on_all_processes(lambda: _assemble(values, config, fsdp, lora, newer))


def _assemble(
    values: Values, config: dict[str, Any] | None, fsdp: FsdpOptions | None, lora: bool, newer: list[str]
) -> Settings:
    """The dataclasses. `newer`: what `_check_version` gave."""
    from fastchat.train import arguments

    kwargs = {name: values[name] for name in (*_names(RunArguments), *newer)}
    kwargs.update(deepspeed=config, output_dir=str(Path(values["output_dir"]).expanduser()))
    kwargs["gradient_checkpointing"] = bool(values["gradient_checkpointing"])  # how many layers: see recipe.py
    kwargs.update(torch_compile=False, use_liger_kernel=False)  # transformers would do both in its own way: speed.py
    kwargs.update(fsdp=None, fsdp_config=None)  # the engine does it, and accelerate is not told
    kwargs.update(dict.fromkeys(("hub_model_id", "hub_private_repo", "hub_token")), push_to_hub=False)  # see pushing.py
    if "activation_checkpointing" in _names(arguments.TrainingArguments):  # the newer name; the older one mirrors it
        kwargs["activation_checkpointing"] = kwargs["gradient_checkpointing"]
        kwargs["activation_checkpointing_kwargs"] = kwargs["gradient_checkpointing_kwargs"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            training = arguments.TrainingArguments(**kwargs)
    except (ValueError, ImportError) as error:
        raise SettingsError(" ".join(str(error).split())) from None
    training._n_gpu = min(training.n_gpu, 1)  # without a launcher transformers would copy the model to each GPU
    if hasattr(training, "trackio_static_space_id"):
        training.trackio_static_space_id = False  # else a copy of the metrics goes to the hub after training
    settings = Settings(
        model=ModelArguments(**{n: values[n] for n in _names(ModelArguments)}),
        data=DataArguments(**{n: values[n] for n in _names(DataArguments)}),
        training=training,
        lora=LoraArguments(**{n: values[n] for n in _names(LoraArguments)}) if lora else None,
        values=values,
        deepspeed_config=config,
        fsdp=fsdp,
    )
    _check_built(settings)
    return settings


def _names(cls: type[Any]) -> list[str]:
    return [field.name for field in _fields(cls)]


def _check_version(values: Values) -> list[str]:
    """The given settings that only the installed transformers knows, which takes them as they are.

    SettingsError for one that only a newer transformers has.
    """
    import transformers

    theirs = set(_names(transformers.TrainingArguments))
    for name in _names(TransformersArguments):
        if values.given(name) and name not in theirs:
            raise SettingsError(f"--{name} needs a newer transformers than {transformers.__version__}")
    ours = {option.name for option in training_options(lora=True)}
    return [name for name in values.names() if name not in ours]


def _derive(values: Values) -> None:
    """What follows from other settings."""
    if values["eval_strategy"] == "no" and not values["do_eval"]:
        asked = values["sample_prompts"] not in (0, values.defaults["sample_prompts"])
        if asked and not values["eval_on_start"]:
            say("--sample_prompts has no effect: --eval_strategy is no, so there is no evaluation data")
        if values["eval_data_path"]:
            say("--eval_data_path is not used: --eval_strategy is no (epoch or steps evaluates)")
        if values["val_set_size"]:
            say("--val_set_size holds dialogues out that nothing looks at: --eval_strategy is no (epoch or steps does)")
    if values["warmup_ratio"] and values["warmup_steps"]:
        say(f"--warmup_steps {values['warmup_steps']:g} wins over --warmup_ratio {values['warmup_ratio']:g}")
    for steps, strategy in (("eval_steps", "eval_strategy"), ("save_steps", "save_strategy")):
        if values.given(steps) and values[steps] != values.defaults[steps] and values[strategy] != "steps":
            say(f"--{steps} has no effect: --{strategy} is {values[strategy]}")
    if values["gradient_checkpointing"] and values["gradient_checkpointing_kwargs"] is None:
        values.derive("gradient_checkpointing_kwargs", {"use_reentrant": False})
    if values["ddp_find_unused_parameters"] is None:
        values.derive("ddp_find_unused_parameters", False)  # every trained parameter takes part in every step
    if values["run_name"]:  # a label, which reports carry into files of their own
        values.restate("run_name", without_secrets(values["run_name"]))
    if values["data_seed"] is None:
        values.derive("data_seed", values["seed"])


def _check_built(settings: Settings) -> None:
    """What transformers can only say once it has seen all values, asked now instead of after the model has loaded."""
    training, values = settings.training, settings.values
    if settings.deepspeed_config is not None:
        mismatches = training.hf_deepspeed_config.mismatches
        if mismatches:
            lines = "; ".join(line.removeprefix("- ds ").replace(" vs hf ", " but --") for line in mismatches)
            raise SettingsError(f'the DeepSpeed configuration contradicts the settings: {lines}; write "auto" there')
    import torch
    from transformers import Trainer
    from transformers.optimization import get_scheduler

    probe = torch.nn.Linear(1, 1)
    try:
        Trainer.get_optimizer_cls_and_kwargs(training, probe)  # pyright: ignore[reportArgumentType]
    except (ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"--optim {values['optim']} cannot be used: {reason}") from None
    try:
        get_scheduler(
            training.lr_scheduler_type,
            torch.optim.AdamW(probe.parameters()),
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=training.lr_scheduler_kwargs,  # pyright: ignore[reportArgumentType]
        )
    except (ValueError, TypeError) as error:
        name = values["lr_scheduler_type"]
        raise SettingsError(
            f"--lr_scheduler_type {name} with --lr_scheduler_kwargs {training.lr_scheduler_kwargs}: {error}"
        ) from None


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
