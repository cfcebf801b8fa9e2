"""An adapter of a tiny model, and a chat with it; a test module may have others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.serve.chat import Chat, load_chat
from tests.model.adapters import save_random_adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Callable[..., Path]) -> Path:
    base = tiny_model_dir("llama", "byte_nobos")
    return save_random_adapter(tmp_path_factory.mktemp("chat") / "a", base, template="chatml", spread=0.3)[0]


@pytest.fixture(scope="module")
def loaded(adapter: Path) -> Chat:
    return load_chat(str(adapter), device="cpu", temperature=0.0, max_new_tokens=6)
