"""`fastchat COMMAND ...`: one name for every command of the project. Each is also a module or a script of its own, with
the same flags; this file is the table of them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

import fastchat
from fastchat.errors import EXIT_DONE, EXIT_SETTINGS, nearest, show
from fastchat.one_thread import NO_LIBRARY_THREADS, environment


@dataclass(frozen=True)
class Command:
    """A command: the module whose `main(words)` runs it, one line for `fastchat --help`, and the environment that its
    libraries are imported in."""

    module: str
    help: str
    environment: Mapping[str, str] = field(default_factory=dict)


COMMANDS = {
    "train": Command("fastchat.launch", "fine-tune a model, on all GPUs of this machine"),
    "preview": Command("fastchat.data.preview", "show which tokens a run would train on", NO_LIBRARY_THREADS),
    "plan": Command("fastchat.plan.__main__", "compute the memory of a run, and what fits on a machine"),
    "recipes": Command("fastchat.settings.recipes", "list the built-in recipes, or copy one"),
    "chat": Command("fastchat.serve.cli", "chat with an adapter or a model in the terminal"),
    "serve": Command("fastchat.serve.openai_api_server", "serve an adapter or a model as an OpenAI-compatible API"),
    "report": Command("fastchat.report.command", "make the report of a run again, or compare runs"),
    "merge": Command("fastchat.model.apply_lora", "merge an adapter into its base model"),
    "export": Command("fastchat.export.command", "make a GGUF file with an Ollama Modelfile, or a vLLM command"),
    "push": Command("fastchat.export.push", "upload a result with its model card to the Hugging Face hub"),
    "eval": Command("fastchat.eval.command_line", "measure a model: loss, accuracy, generated answers"),
    "verify": Command("fastchat.checkpoint.verify", "check that a checkpoint or a result is complete"),
    "prepare": Command("fastchat.model.prepare_model", "give a model a pad token or new tokens before training"),
    "data": Command("", "tools for data files: fastchat data --help"),
    "doctor": Command("fastchat.doctor", "check the installation and this machine"),
    "completion": Command("fastchat.completion", "print the completion script of a shell"),
}
DATA_COMMANDS = {
    "stats": Command("fastchat.data.get_stats", "count dialogues, turns and tokens"),
    "split": Command("fastchat.data.split_train_test", "split a file into training and test rows"),
    "split-long": Command("fastchat.data.split_long_conversation", "split dialogues that are too long"),
    "merge": Command("fastchat.data.merge", "merge several files into one"),
    "clean": Command("fastchat.data.clean_sharegpt", "convert ShareGPT's HTML to Markdown"),
    "filter": Command("fastchat.data.filter_wrong_format", "remove rows with a wrong format"),
    "from-alpaca": Command("fastchat.data.convert_alpaca", "convert instructions to conversations"),
    "from-csv": Command("fastchat.data.convert_csv", "convert a CSV or TSV file to rows"),
    "from-math": Command("fastchat.data.convert_math", "convert math solutions with code to conversations"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fastchat`; returns the exit code of the command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["data"]:
        return _run(words[1:], DATA_COMMANDS, "fastchat data", "Tools for data files.")
    return _run(words, COMMANDS, "fastchat", "Fine-tune an open language model on your own conversations.")


def _run(words: list[str], commands: dict[str, Command], name: str, about: str) -> int:
    if words[:1] == ["help"]:  # help train, data help stats
        return main([*name.split()[1:], *words[1:], "--help"])
    if not words or words[0] in ("-h", "--help"):
        show(_help(commands, name, about))
        return EXIT_DONE
    if words[0] in ("-V", "--version"):
        show(f"fastchat {fastchat.__version__}")
        return EXIT_DONE
    if words[0] not in commands:
        names = {entry.module.rpartition(".")[2]: command for command, entry in commands.items()}  # upstream's names
        names |= {command: command for command in commands}
        close = list(dict.fromkeys(names[found] for found in nearest(words[0].replace("-", "_"), names)))
        hint = f"did you mean {' or '.join(close)}?" if close else f"the commands are {', '.join(commands)}"
        print(f"error: {name} has no command {words[0]!r}; {hint}", file=sys.stderr)
        return EXIT_SETTINGS
    # `verify` ends the process itself; the others return their exit code.
    command = commands[words[0]]
    with environment(command.environment):
        return import_module(command.module).main(words[1:])


def _help(commands: dict[str, Command], name: str, about: str) -> str:
    width = max(map(len, commands))
    lines = [f"  {command:<{width}}  {entry.help}" for command, entry in commands.items()]
    end = f"{name} COMMAND --help shows examples and flags."
    return "\n".join([f"usage: {name} COMMAND ...", "", about, "", *lines, "", end])


if __name__ == "__main__":
    sys.exit(main())
