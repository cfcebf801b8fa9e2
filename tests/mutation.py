"""Breaks important lines, one at a time, and checks that a test fails.

    .venv/bin/python tests/mutation.py              all of mutations.yaml (the better part of an hour on two cores)
    .venv/bin/python tests/mutation.py BOS stop     those whose name holds one of the words

Works in a temporary copy of the tree. A mutation counts as caught only by a test that passes without it. Ends with code
1 where one survived. A line that is no longer there exactly once is an error: then mend the entry.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("mutations.yaml")
COPIED = ("fastchat", "tests", "scripts", "playground", ".ci")
TIMEOUT_S = 1800
SURVIVED = "SURVIVED"
_FIRST = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - |$)", re.M)


@dataclass(frozen=True)
class Mutation:
    """`new` replaces `old`; `tests` are file names, or expressions for pytest's -k."""

    name: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_mutations(words: list[str]) -> list[Mutation]:
    """The mutations whose name contains one of the words; all if there are no words."""
    entries = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    found = [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    assert len({mutation.name for mutation in found}) == len(found), "two mutations have the same name"
    return [m for m in found if not words or any(word in m.name for word in words)]


def read_package(root: Path) -> dict[Path, str]:
    """The text of every module of the package."""
    return {path: path.read_text(encoding="utf-8") for path in sorted((root / "fastchat").rglob("*.py"))}


def find_line(texts: dict[Path, str], mutation: Mutation) -> Path:
    """The one file that has the line. LookupError unless there is exactly one such place, SyntaxError if the
    mutation leaves no valid module."""
    found = [path for path, text in texts.items() for _ in range(text.count(mutation.old))]
    if len(found) != 1:
        where = ", ".join(map(str, found)) or "nowhere"
        raise LookupError(f"{mutation.name}: {mutation.old!r} has to be in the package exactly once, and is in {where}")
    compile(texts[found[0]].replace(mutation.old, mutation.new), str(found[0]), "exec")
    return found[0]


def copy_tree(root: Path) -> None:
    """Copies what the tests need, without byte code and caches of tools."""
    ignored = shutil.ignore_patterns("__pycache__", ".*cache*", "output")
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, root)


def arguments_of(root: Path, tests: tuple[str, ...]) -> list[list[str]]:
    """One call of pytest for the files, and one for each expression."""
    files: list[str] = []
    for name in (test for test in tests if test.endswith(".py")):
        holding = [str(path.relative_to(root)) for path in sorted((root / "tests").rglob(name))]
        assert holding, f"there is no {name}"
        files += holding
    calls = [files] if files else []
    for expression in (test for test in tests if not test.endswith(".py")):
        words = expression.split(" ")[0]
        holding = [p for p in (root / "tests").rglob("test_*.py") if f"def {words}(" in p.read_text(encoding="utf-8")]
        assert holding, f"there is no test {words}"
        calls.append([*(str(path.relative_to(root)) for path in holding), "-k", expression])
    return calls


def pytest(root: Path, arguments: list[str]) -> tuple[int, str]:
    """(exit code, output) of the default tier of some tests, up to the first failure."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "CI": "true"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return done.returncode, done.stdout + done.stderr


def caught_by(root: Path, mutation: Mutation) -> str:
    """The first test that fails with the mutation and passes without it; else SURVIVED."""
    texts = read_package(root)
    path = find_line(texts, mutation)
    text = texts[path]
    for arguments in arguments_of(root, mutation.tests):
        path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        try:
            code, output = pytest(root, arguments)
        finally:
            path.write_text(text, encoding="utf-8")
        if code == 0:
            continue
        match = _FIRST.search(output)
        if code != 1 or match is None:
            raise RuntimeError(f"{mutation.name}: pytest ended with {code}:\n{output[-3000:]}")
        code, output = pytest(root, [match[1]])
        if code != 0:
            raise RuntimeError(f"{mutation.name}: {match[1]} fails without it too:\n{output[-3000:]}")
        return match[1]
    return SURVIVED


def main(words: list[str]) -> int:
    """Prints one line per mutation when it is done."""
    mutations = read_mutations(words)
    survived = 0
    with tempfile.TemporaryDirectory(prefix="fschat-mutation-") as folder:
        root = Path(folder) / "copy"
        root.mkdir()
        copy_tree(root)
        texts = read_package(root)
        for mutation in mutations:
            find_line(texts, mutation)
            arguments_of(root, mutation.tests)
        print("| mutation | caught by | s |\n|---|---|---|", flush=True)
        for mutation in mutations:
            begin = time.monotonic()
            by = caught_by(root, mutation)
            survived += by == SURVIVED
            print(f"| {mutation.name} | {by} | {time.monotonic() - begin:.0f} |", flush=True)
    print(f"\n{len(mutations)} mutations, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
