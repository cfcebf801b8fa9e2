"""Encoders of every kind of tokenizer: the tests' own four, and the real ones of ../shared where it exists."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.text_encoder import TextEncoder
from tests.builders import TOKENIZER_KINDS
from tests.data.pages import browser, plain, write_page

__all__ = ["browser", "plain", "write_page"]  # fixtures


@pytest.fixture(scope="session")
def encoder_of(tokenizer_dir: Callable[[str], Path], request: pytest.FixtureRequest) -> Callable[[str], TextEncoder]:
    """`encoder_of(name)`: of `tiers.ALL_TOKENIZERS`, read once; skips where it needs ../shared and that is absent."""
    made: dict[str, TextEncoder] = {}

    def make(name: str) -> TextEncoder:
        if name not in made:
            path = tokenizer_dir(name) if name in TOKENIZER_KINDS else request.getfixturevalue("shared") / name
            made[name], _ = open_tokenizer(str(path))
        return made[name]

    return make
