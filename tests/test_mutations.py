"""Every entry of mutations.yaml matches the code and names existing tests. Running them with tests/mutation.py takes
too long to detect changed lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutation


@pytest.fixture(scope="module")
def texts(repository: Path) -> dict[Path, str]:
    return mutation.read_package(repository)


@pytest.mark.parametrize("entry", mutation.read_mutations([]), ids=lambda entry: entry.name)
def test_a_mutation_fits_the_code_and_names_tests(
    repository: Path, texts: dict[Path, str], entry: mutation.Mutation
) -> None:
    mutation.find_line(texts, entry)
    assert mutation.arguments_of(repository, entry.tests)


@pytest.mark.parametrize("text", ["", "line = 1\nline = 1\n"])
def test_a_line_that_is_not_there_exactly_once_is_an_error(text: str) -> None:
    entry = mutation.Mutation("a name", "line = 1", "line = 2", ())
    with pytest.raises(LookupError, match="a name: 'line = 1' has to be in the package exactly once"):
        mutation.find_line({Path("module.py"): text}, entry)


def test_a_mutation_that_is_no_python_is_an_error() -> None:
    """Then every test would fail, whatever it tests."""
    with pytest.raises(SyntaxError):
        mutation.find_line({Path("module.py"): "line = 1"}, mutation.Mutation("a name", "= 1", "= (", ()))
