"""`--help`: the common settings in groups; `--help all`: every supported setting."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from fastchat.settings.options import Option

_WIDTH = 100
RECIPES = """A recipe holds settings as `name: value` lines, and flags override it. `fastchat recipes`: built-in ones.
`--plan` only prints the memory that these settings need (for other machines: --gpus 8 --gpu_memory 24GiB)."""
_ORDER = ("Planner", "Preview", "Model", "Data", "LoRA", "Optimization", "Precision and memory", "Evaluation")


def asked_for_help(words: Sequence[str]) -> str | None:
    """ "all" for `--help all`, "" for `--help` or `-h`, None without either."""
    for at, word in enumerate(words):
        if word in ("-h", "--help", "--help=all"):
            return "all" if word.endswith("=all") or words[at + 1 : at + 2] == ["all"] else ""
    return None


def help_head(usage: str, about: str, examples: Sequence[str]) -> list[str]:
    """The first lines of every help text: how the command is called, what it does, and examples.

    >>> help_head("fastchat verify FOLDER", "Check a result.", ["fastchat verify out"])
    ['usage: fastchat verify FOLDER', '', 'Check a result.', '', 'Examples:', '  fastchat verify out']
    """
    shown = ["", "Examples:", *(f"  {example}" for example in examples)] if examples else []
    return [f"usage: {usage}", "", *about.splitlines(), *shown]


def entry(first: str, text: str) -> list[str]:
    """The lines of one flag: the flag with the form of its value, and below it what it does."""
    wrapped = textwrap.wrap(text, _WIDTH - 8, break_long_words=False, break_on_hyphens=False)
    return [f"  {first}", *(f"        {line}" for line in wrapped)]


def help_text(
    head: Sequence[str], options: Sequence[Option], sections: Mapping[str, Iterable[Option]], asked: str
) -> str:
    """The help text.

    Args:
        head: the usage and a description of the command.
        options: all settings of the command; refused ones are omitted.
        sections: heading -> the settings that plain `--help` shows.
        asked: the result of `asked_for_help`.
    """
    everything = asked == "all"
    lines = list(head)
    for title, members in (by_group(options) if everything else sections).items():
        lines += ["", f"{title}:"]
        for option in members:
            lines += _lines(option)
    if not everything:
        number = sum(not option.refused for option in options)
        lines += ["", f"`--help all` lists all {number} settings; docs/settings.md is a table of them."]
    return "\n".join(lines)


def by_group(options: Iterable[Option]) -> dict[str, list[Option]]:
    """Heading -> its settings, without refused ones; the most important groups first."""
    groups: dict[str, list[Option]] = {name: [] for name in _ORDER}
    for option in options:
        if not option.refused:
            groups.setdefault(option.group, []).append(option)
    return {title: members for title, members in groups.items() if members}


def common(options: Iterable[Option]) -> dict[str, list[Option]]:
    """The sections of the common settings."""
    return by_group(option for option in options if option.common)


def kind_of(option: Option) -> str:
    """The form of a value.

    >>> kind_of(Option("lora_r", int, 8)), kind_of(Option("bf16", bool, False))
    ('INTEGER', 'True|False')
    """
    if option.allowed and len(option.allowed) <= 5:
        return "|".join(option.allowed)
    if option.is_list:
        return "PATH ..." if option.path else "VALUE ..."
    if option.is_mapping:
        return "FILE|JSON" if option.path else "JSON"
    if option.is_bool:
        return "True|False"
    if int in option.parts:
        return "INTEGER"
    return "NUMBER" if float in option.parts else "PATH" if option.path else "NAME" if option.allowed else "TEXT"


def shown_default(option: Option) -> str:
    """The default as text; "" if there is none."""
    if option.default is None or option.default == "":
        return ""
    return " ".join(option.default) if isinstance(option.default, list) else str(option.default)


def _lines(option: Option) -> list[str]:
    default = shown_default(option)
    text = option.help
    if option.allowed and len(option.allowed) > 5:
        text += f": {', '.join(option.allowed)}"
    if option.range is not None:
        text += f"; {option.range.wanted}"
    if option.also:
        text += f" (also --{', --'.join(option.also)})"
    return entry(f"--{option.name} {kind_of(option)}" + (f" (default {default})" if default else ""), text)
