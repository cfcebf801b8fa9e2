"""Small models to export: a Llama with a tokenizer that llama.cpp can have, and an adapter for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.export import converter
from tests.model.adapters import save_random_adapter


def close_merges(folder: Path) -> None:
    """Gives the tokenizer every merge that makes one of its pieces, in the order of the pieces, as SentencePiece has
    them: a `tokenizer.json` that was trained without SentencePiece has fewer."""
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = spec["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    made = [(p[:i], p[i:]) for p in pieces for i in range(1, len(p)) if not p.startswith("<")]
    spec["model"]["merges"] = [list(pair) for pair in made if pair[0] in vocabulary and pair[1] in vocabulary]
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="session")
def exportable(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: Llama's architecture and a tokenizer like Llama-2's."""
    folder = tmp_path_factory.mktemp("export") / "base"
    shutil.copytree(tiny_model_dir("llama", "metaspace_bos", hidden=64), folder)
    close_merges(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(exportable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for it, trained with vicuna_v1.1 as its record says."""
    return save_random_adapter(tmp_path_factory.mktemp("adapter") / "mine", exportable)[0]


@pytest.fixture(scope="session")
def llama_cpp() -> Path:
    """The folder of llama.cpp's converter: $LLAMA_CPP, or what `fastchat export gguf --download` has kept."""
    places = [Path(os.environ.get(converter.VARIABLE) or "nowhere"), converter.cached()]
    found = next((place for place in places if (place / converter.CONVERTER).is_file()), None)
    if found is None:
        pytest.skip(f"llama.cpp's {converter.CONVERTER} is not here (set ${converter.VARIABLE})")
    return found
