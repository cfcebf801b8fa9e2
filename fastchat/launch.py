"""`fastchat train [RECIPE.yaml] [--setting value ...]`: start a training with the launcher that fits.

    several GPUs, or processes on the CPU, and a DeepSpeed configuration   deepspeed
    several without one                                                    torchrun
    one process                                                            python

The command line that it runs is printed first, so that it can be changed and run without this command. LoRA or full
fine-tuning: a recipe without any LoRA setting is a full fine-tuning, as for the planner; `--full_finetuning` decides.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fastchat
from fastchat.errors import EXIT_DONE, ResourceError, SettingsError, UserError, say, show
from fastchat.plan.machine import detect_gpus
from fastchat.settings.engines import needs_deepspeed
from fastchat.settings.help import RECIPES, asked_for_help, common, entry, help_head, help_text
from fastchat.settings.options import split_recipe
from fastchat.settings.parsing import to_bool, to_choice, to_int
from fastchat.settings.readers import LORA_ONLY, training_options, training_reader
from fastchat.settings.recipe_files import find_recipe

LAUNCHERS = ("auto", "deepspeed", "torchrun", "python")
_QUIET = ("--log_level", "error")  # else a screenful of the launcher's own lines
OWN = {"launcher": "auto", "num_processes": None, "full_finetuning": None}
_ABOUT = f"""Fine-tune a model on conversations, with the launcher that fits the GPUs and the DeepSpeed configuration.
The command line that it runs is printed first.
{RECIPES}"""
_EXAMPLES = (
    "fastchat recipes copy qwen3-8b-lora my.yaml",
    "fastchat train my.yaml --data_path chats.json --output_dir out",
    "fastchat train my.yaml --plan --gpus 8 --gpu_memory 24GiB",
)
_FLAGS = {
    "--launcher auto|deepspeed|torchrun|python (default auto)": "auto: deepspeed for several processes with a "
    "DeepSpeed configuration, torchrun for several without, python for one",
    "--num_processes INTEGER": "number of processes, one per GPU; by default all visible GPUs, and 1 on the CPU",
    "--full_finetuning True|False": "train all weights instead of a LoRA adapter; by default as the recipe says",
}


@dataclass(frozen=True)
class Launch:
    """What to run: the words of the command, and the changes of the environment (None: unset)."""

    words: list[str]
    environment: dict[str, str | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Replace this process by the training; returns an exit code if it does not start."""
    words = list(sys.argv[1:] if argv is None else argv)
    asked = asked_for_help(words)
    if asked is not None:
        show(_help(asked))
        return EXIT_DONE
    try:
        launch = choose(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if os.environ.get("RANK", "0") == "0":  # one line for all processes of a launcher
        say(f"running: {_shown(launch)}")
    environment = dict(os.environ)
    for name, value in launch.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    sys.stdout.flush()
    os.execvpe(launch.words[0], launch.words, environment)
    return EXIT_DONE


def _help(asked: str) -> str:
    head = help_head("fastchat train [RECIPE.yaml] [--setting value ...]", _ABOUT, _EXAMPLES)
    launcher = [line for flag, text in _FLAGS.items() for line in entry(flag, text)]
    options = training_options(True)
    return help_text([*head, "", "Launcher:", *launcher], options, common(options), asked)


def choose(words: Sequence[str]) -> Launch:
    """The command for these words. Raises SettingsError, or ResourceError for a launcher that is not installed."""
    own, rest = _own(words)
    recipe, flags = split_recipe(rest)
    full, deepspeed, use_cpu = _facts(recipe, flags, own)
    module = "fastchat.train.train" if full else "fastchat.train.train_lora"
    alone = [sys.executable, "-m", module, *rest]
    if "RANK" in os.environ or any(_is(word, "plan") for word in flags):
        return Launch(alone, {})
    on_cpu = use_cpu or not (gpus := len(detect_gpus()))
    number = _number(own["num_processes"], 1 if on_cpu else gpus, on_cpu)
    launcher = to_choice(own["launcher"], "--launcher", LAUNCHERS)
    if launcher == "auto":
        launcher = "python" if number == 1 else "deepspeed" if deepspeed else "torchrun"
    if launcher == "python":
        if number > 1 and own["num_processes"] is not None:
            raise SettingsError(f"--num_processes {number} needs --launcher deepspeed or torchrun")
        return Launch(alone, {})
    _check_installed(launcher)
    if launcher == "torchrun":
        return Launch(["torchrun", "--standalone", "--nproc_per_node", str(number), "-m", module, *rest], {})
    return _deepspeed(module, rest, number, on_cpu)


def _deepspeed(module: str, rest: list[str], number: int, on_cpu: bool) -> Launch:
    script = str(Path(fastchat.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible and not on_cpu:
        # deepspeed ignores CUDA_VISIBLE_DEVICES when a number is given, so the GPUs are named.
        chosen = ",".join(visible.split(",")[:number])
        head = ["deepspeed", *_QUIET, "--include", f"localhost:{chosen}"]
        return Launch([*head, script, *rest], {"CUDA_VISIBLE_DEVICES": None})
    environment: dict[str, str | None] = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": None} if on_cpu else {}
    return Launch(["deepspeed", *_QUIET, "--num_gpus", str(number), script, *rest], environment)


def _facts(recipe: str | None, flags: list[str], own: dict[str, str | None]) -> tuple[bool, bool, bool]:
    """Whether it is a full fine-tuning, trains with DeepSpeed, and runs on the CPU."""
    in_recipe = training_reader(True).from_yaml(find_recipe(recipe)) if recipe else {}
    if own["full_finetuning"] is not None:
        full = to_bool(own["full_finetuning"], "--full_finetuning")
    else:
        full = recipe is not None and not in_recipe.keys() & LORA_ONLY and not any(_is(w, *LORA_ONLY) for w in flags)
    given = {name: in_recipe.get(name) for name in ("deepspeed", "engine", "use_cpu")}
    for name in given:
        value = _value(flags, name)
        given[name] = given[name] if value is None else value
    return full, needs_deepspeed(given["engine"], given["deepspeed"]), to_bool(given["use_cpu"] or False, "--use_cpu")


def _own(words: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """The values of this command's own flags, and the other words."""
    own: dict[str, str | None] = dict(OWN)
    rest: list[str] = []
    at = 0
    while at < len(words):
        name, equals, value = words[at].partition("=")
        key = name.removeprefix("--").replace("-", "_")
        at += 1
        if not name.startswith("--") or key not in OWN:
            rest.append(words[at - 1])
        elif equals:
            own[key] = value
        elif at < len(words) and not words[at].startswith("--"):
            own[key] = words[at]
            at += 1
        elif key == "full_finetuning":
            own[key] = "True"
        else:
            raise SettingsError(f"{name} needs a value")
    return own, rest


def _value(flags: Sequence[str], name: str) -> str | None:
    """The last value of a flag; "True" without one; None if it is not given."""
    found = None
    for at, word in enumerate(flags):
        if _is(word, name):
            _, equals, value = word.partition("=")
            follows = flags[at + 1] if at + 1 < len(flags) and not flags[at + 1].startswith("--") else "True"
            found = value if equals else follows
    return found


def _is(word: str, *names: str) -> bool:
    return word.startswith("--") and word[2:].partition("=")[0].replace("-", "_") in names


def _number(asked: str | None, default: int, on_cpu: bool) -> int:
    if asked is None:
        return default
    number = to_int(asked, "--num_processes")
    if number < 1:
        raise SettingsError(f"--num_processes {number}: it must be at least 1")
    if not on_cpu and number > default:
        raise SettingsError(f"--num_processes {number}: only {default} GPU{'s are' if default > 1 else ' is'} visible")
    return number


def _check_installed(launcher: str) -> None:
    beside = Path(sys.executable).parent / launcher
    if beside.is_file():
        os.environ["PATH"] = f"{beside.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    elif shutil.which(launcher) is None:
        raise ResourceError(f"{launcher} is not installed; pip install {launcher.replace('torchrun', 'torch')}")


def _shown(launch: Launch) -> str:
    """The command as a shell accepts it."""
    unset = [word for name, value in launch.environment.items() if value is None for word in ("-u", name)]
    values = [f"{name}={value}" for name, value in launch.environment.items() if value is not None]
    head = ["env", *unset, *values] if launch.environment else []
    return shlex.join([*head, *launch.words])


if __name__ == "__main__":
    sys.exit(main())
