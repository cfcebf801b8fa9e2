"""An adapter of a tiny model and a chat with it, and a trained model that is served; a module may have others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastchat.serve.chat import Chat, load_chat
from tests.model.adapters import save_random_adapter
from tests.serve.serving import NAME, Server, train_tiny


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Callable[..., Path]) -> Path:
    base = tiny_model_dir("llama", "byte_nobos")
    return save_random_adapter(tmp_path_factory.mktemp("chat") / "a", base, template="chatml", spread=0.3)[0]


@pytest.fixture(scope="module")
def loaded(adapter: Path) -> Chat:
    return load_chat(str(adapter), device="cpu", temperature=0.0, max_new_tokens=6)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("trained") / NAME)


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For the modules of the xdist group "openai_client", which leave it as they found it."""
    made = Server(model, tmp_path_factory.mktemp("log") / "log.txt")
    yield made
    assert made.stop() == 0
    assert "Traceback" not in made.log.read_text() and "error:" not in made.log.read_text()


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0, timeout=120) as made:
        yield made
