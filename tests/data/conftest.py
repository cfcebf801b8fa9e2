"""Encoders of every kind of tokenizer: the tests' own four, and the real ones of ../shared where it exists."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.text_encoder import TextEncoder
from tests.builders import TOKENIZER_KINDS
from tests.data.own_templates import KINDS, with_tokens
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


@pytest.fixture(scope="session")
def chat_encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ChatEncoder]:
    """`chat_encoder_of(kind)`: with the chat template `own_templates.KINDS[kind]`, made once."""
    made: dict[str, ChatEncoder] = {}

    def bound(kind: str) -> ChatEncoder:
        if kind not in made:
            encoder, _ = open_tokenizer(str(with_tokens(KINDS[kind], tmp_path_factory.mktemp(kind.lower()))))
            made[kind] = encoder.bind(encoder.choose("tokenizer"))
        return made[kind]

    return bound
