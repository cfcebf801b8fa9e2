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
import typing
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastchat.errors import SettingsError, say, show
from fastchat.settings.options import Option, Reader, help_text, is_flag, read_yaml, split_recipe
from fastchat.settings.recipe_files import find_recipe

if TYPE_CHECKING:
    from fastchat.settings.values import Values
    from fastchat.train.arguments import DataArguments, LoraArguments, ModelArguments, TrainingArguments

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

    @property
    def origin(self) -> dict[str, str]:
        return self.values.origin

    def derive(self, part: Any, name: str, value: Any) -> None:
        """Sets a value that only the model could decide, in the dataclass and in the record."""
        setattr(part, name, value)
        self.values.derive(name, value)

    def record(self) -> dict[str, dict[str, Any]]:
        """{name: {"value", "from": "default"|"yaml"|"command line"|"derived"}} for training.json; never a token."""
        return {
            name: {"value": _plain(self.values[name]), "from": self.origin[name]}
            for name in self.values.names()
            if name not in _NEVER_RECORDED
        }


def find_output_dir(argv: Sequence[str]) -> str | None:
    """The `--output_dir` somebody meant, even if the rest of the settings is wrong: `status.json` goes there."""
    recipe, words = split_recipe(argv)
    found: str | None = None
    if recipe is not None:
        try:
            value = read_yaml(find_recipe(recipe)).get("output_dir")
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

    Raises SettingsError (DataError for a missing data file, ResourceError for a missing compiler). Prints the help
    and ends on `--help`.
    """
    name, words = split_recipe(argv)
    recipe = find_recipe(name) if name is not None else None
    if recipe is not None:
        if recipe != Path(str(name)).expanduser():
            say(f"recipe: {recipe}")
        read_yaml(recipe)  # before the slow imports
    from fastchat.train import reporting

    reporting.quiet_libraries()
    from fastchat.settings.values import Values
    from fastchat.train import checks, hardware
    from fastchat.train.arguments import REMOVED, RENAMED, UNSUPPORTED, LoraArguments, all_arguments
    from fastchat.train.deepspeed_config import load_deepspeed

    options = options_of(all_arguments(lora))
    if any(word in ("-h", "--help") for word in words):
        show(help_text(options, "train_lora.py" if lora else "train.py"))
        sys.exit(0)
    removed = dict(REMOVED)
    if not lora:
        removed.update({f.name: "it belongs to train_lora.py, not to full fine-tuning" for f in _fields(LoraArguments)})
    reader = Reader(options, RENAMED, removed, UNSUPPORTED)
    values = Values(options, reader.from_yaml(recipe) if recipe else {}, reader.from_words(words))
    checks.check(values)
    reporting.choose_reports(values)
    hardware.fit_to_machine(values)
    config = load_deepspeed(values["deepspeed"]) if values["deepspeed"] else None
    hardware.check_compiler(config, values["use_cpu"])
    return _build(values, config, lora)


def options_of(classes: Sequence[type[Any]]) -> list[Option]:
    """The options that a list of dataclasses makes, in their order."""
    options: list[Option] = []
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field in _fields(cls):
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            options.append(Option(field.name, hints[field.name], default, str(field.metadata.get("help", ""))))
    return options


def _fields(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _build(values: Values, config: dict[str, Any] | None, lora: bool) -> Settings:
    from fastchat.processes import start_processes
    from fastchat.train import arguments

    _derive(values, config, lora)
    start_processes(
        use_cpu=values["use_cpu"],
        deepspeed=config is not None,
        backend=values["ddp_backend"],
        timeout_s=values["ddp_timeout"],
    )
    kwargs = {name: values[name] for name in _names(arguments.TrainingArguments)}
    kwargs.update(deepspeed=config, output_dir=str(Path(values["output_dir"]).expanduser()))
    if "activation_checkpointing" in kwargs:  # transformers' newer name; the older one only mirrors it
        kwargs["activation_checkpointing"] = kwargs["gradient_checkpointing"]
        kwargs["activation_checkpointing_kwargs"] = kwargs["gradient_checkpointing_kwargs"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            training = arguments.TrainingArguments(**kwargs)
    except (ValueError, ImportError) as error:
        raise SettingsError(" ".join(str(error).split())) from None
    training._n_gpu = min(
        training.n_gpu, 1
    )  # several GPUs without a launcher: transformers would copy the model to each
    settings = Settings(
        model=arguments.ModelArguments(**{n: values[n] for n in _names(arguments.ModelArguments)}),
        data=arguments.DataArguments(**{n: values[n] for n in _names(arguments.DataArguments)}),
        training=training,
        lora=arguments.LoraArguments(**{n: values[n] for n in _names(arguments.LoraArguments)}) if lora else None,
        values=values,
        deepspeed_config=config,
    )
    _check_built(settings)
    return settings


def _names(cls: type[Any]) -> list[str]:
    return [field.name for field in _fields(cls)]


def _derive(values: Values, config: dict[str, Any] | None, lora: bool) -> None:
    """What follows from other settings."""
    if values["eval_strategy"] == "no" and not values["do_eval"]:
        if values["eval_data_path"]:
            say("--eval_data_path is not used: --eval_strategy is no (epoch or steps evaluates)")
        if values["val_set_size"]:
            say("--val_set_size holds dialogues out that nothing looks at: --eval_strategy is no (epoch or steps does)")
    if values["warmup_ratio"] and values["warmup_steps"]:
        say(f"--warmup_steps {values['warmup_steps']:g} wins over --warmup_ratio {values['warmup_ratio']:g}")
    for steps, strategy in (("eval_steps", "eval_strategy"), ("save_steps", "save_strategy")):
        if values.given(steps) and values[strategy] != "steps":
            say(f"--{steps} has no effect: --{strategy} is {values[strategy]}")
    if values["gradient_checkpointing"] and values["gradient_checkpointing_kwargs"] is None:
        values.derive("gradient_checkpointing_kwargs", {"use_reentrant": False})
    if values["ddp_find_unused_parameters"] is None:
        values.derive("ddp_find_unused_parameters", False)  # every trained parameter takes part in every step
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
