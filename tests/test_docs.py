"""README.md and docs/: links lead somewhere, and every command in them is one that the programs accept."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from fastchat import cli
from fastchat.settings.options import split_recipe
from fastchat.settings.readers import plan_reader, preview_reader, training_reader
from fastchat.settings.recipe_files import find_recipe

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
READERS = {
    "fastchat.train.train_lora": lambda: training_reader(True),
    "fastchat.train.train": lambda: training_reader(False),
    "fastchat.launch": lambda: training_reader(True),
    "fastchat.data.preview": preview_reader,
    "fastchat.plan": plan_reader,
    "fastchat.plan.__main__": plan_reader,
}
OF_LAUNCH = {"launcher", "num_processes", "full_finetuning"}
LAUNCHERS = ("deepspeed", "torchrun", "python")


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def _anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    text = re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _links(path: Path) -> Iterator[str]:
    text = re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8"))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _links(page):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        file = page if not target else (page.parent / target)
        assert file.exists(), f"{_name(page)}: {link}"
        if anchor:
            assert anchor in _anchors(file), f"{_name(page)}: {link}"


def _commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every line of the bash blocks."""
    for page in PAGES:
        for block in re.findall(r"(?ms)^```bash\n(.*?)^```", page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.replace("…", ""), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield _name(page), words


COMMANDS = list(_commands())


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page}-{' '.join(words)[:60]}" for page, words in COMMANDS]
)
def test_commands_are_accepted(page: str, words: list[str]) -> None:
    if "bash" in words[0] or words[0] == "source":
        script = next(word for word in words[1:] if not word.startswith("-"))
        assert script.startswith(".venv") or (REPOSITORY / script).is_file(), f"{page}: {script}"
        return
    if words[0].startswith("--"):  # the rest of a training command
        _check_settings("fastchat.train.train_lora", words)
        return
    module, rest = _module(words)
    if module is None:
        assert words[0] in ("pip", "hf", "eval", "make", ".venv/bin/python", "sudo", "git", "export", "curl"), (
            f"{page}: {' '.join(words)}"
        )
        return
    if module in READERS:
        _check_settings(module, rest)
        return
    found = import_module(module)
    others = getattr(found, "OTHERS", {})
    if rest and rest[0] in others:  # fastchat eval math
        found, rest = import_module(others[rest[0]]), rest[1:]
    assert callable(found.main)
    if hasattr(found, "build_parser"):
        parser = found.build_parser()
        flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
        known = {option.replace("_", "-") for action in parser._actions for option in action.option_strings}
        assert all(flag.replace("_", "-") in known for flag in flags), f"{page}: {' '.join(words)}"


def _module(words: list[str]) -> tuple[str | None, list[str]]:
    """The module that a command runs, and its words; None for another program."""
    if words[0] == "fastchat":
        table, at = (cli.DATA_COMMANDS, 2) if words[1] == "data" else (cli.COMMANDS, 1)
        if words[at].startswith("--"):
            return None if words[at] == "--help" else "", []
        assert words[at] in table, f"fastchat {words[at]}"
        return table[words[at]].module, words[at + 1 :]
    if words[0] not in LAUNCHERS:
        return None, []
    for at, word in enumerate(words):
        if word == "-m":
            return words[at + 1], words[at + 2 :]
        if word.endswith(".py"):
            assert (REPOSITORY / word).is_file(), word
            return word.removesuffix(".py").replace("/", "."), words[at + 1 :]
    raise AssertionError(f"{' '.join(words)}: no module")


def _check_settings(module: str, words: list[str]) -> None:
    recipe, flags = split_recipe(words)
    if recipe is not None and not os.path.basename(recipe).startswith(("my", "mine", "recipe.yaml", "training.json")):
        find_recipe(recipe)
    flags = [word for word in flags if word.partition("=")[0] not in ("--plan",)]
    if module == "fastchat.launch":
        flags = [word for word in flags if word[2:] not in OF_LAUNCH]
    if "--help" not in flags:
        READERS[module]().from_words(flags)


def test_every_exit_code_is_explained() -> None:
    """Troubleshooting and reliability name the exit codes that the code has."""
    from fastchat import errors
    from fastchat.data.tools.command import EXIT_INTERRUPTED
    from fastchat.train.ending import EXIT_BUG

    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")} | {EXIT_INTERRUPTED, EXIT_BUG}
    assert len(codes) > 7
    for chapter in ("troubleshooting.md", "reliability.md"):
        table = (REPOSITORY / "docs" / chapter).read_text(encoding="utf-8").partition("## Exit codes\n")[2]
        rows = re.findall(r"^\| (\d+) \|", table.partition("\n## ")[0], re.M)
        assert codes == set(map(int, rows)), chapter
