"""Runs on tokenizers that a class of transformers would rebuild: trained, saved, merged and asked with the same ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat.checkpoint.merge import merge_adapter
from fastchat.serve.chat import load_chat
from tests import builders
from tests.train.flags import Train, covers, ok

pytestmark = pytest.mark.slow
ALWAYS = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
NAMED = ["--conv_template", "vicuna_v1.1"]
ASKED = [{"role": "user", "content": "What is 12345 plus 6?"}]


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def base(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """`base(kind)`: a model whose class rebuilds its tokenizer."""

    def make(kind: str) -> Path:
        folder = tmp_path / kind
        if kind == "legacy":  # published Mistral-7B-v0.1, Yi
            shutil.copytree(tiny_model_dir("llama", "metaspace_bos"), folder)
            _edit(folder / "tokenizer.json", pre_tokenizer=ALWAYS)
            _edit(folder / "tokenizer_config.json", legacy=True)
        else:  # a qwen2 model with another byte-level file, published R1 distillations
            shutil.copytree(tiny_model_dir("qwen2", "byte_bos"), folder)
            _edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
        return folder

    return make


def _ids(folder: Path) -> list[int]:
    """The prompt as a server encodes it, from the saved files alone."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(ASKED, tokenize=True, add_generation_prompt=True, return_dict=False)


def _wanted(base: Path, folder: Path) -> list[int]:
    """The same with the base's `tokenizer.json`, and the saved template."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    return Tokenizer.from_file(str(base / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["legacy", "qwen"])
@pytest.mark.parametrize("full", [False, True], ids=["adapter", "model"])
def test_ids_are_the_same_everywhere(
    train: Train, base: Callable[[str], Path], tmp_path: Path, kind: str, full: bool
) -> None:
    folder = base(kind)
    saving = ["--save_strategy", "steps", "--save_steps", "1"]
    outcome = ok(train("--model_name_or_path", str(folder), *NAMED, *saving, full=full))
    wanted = _wanted(folder, outcome.folder)
    results = [outcome.folder, outcome.folder / "checkpoint-1"]
    if not full:
        merge_adapter(str(outcome.folder), str(tmp_path / "merged"))
        results.append(tmp_path / "merged")
    for result in results:
        assert _ids(result) == wanted, result
        chat_encoder = load_chat(str(result), device="cpu").chat_encoder
        assert chat_encoder.encoder.whole.encode("<s>[INST] 12345").ids == _file(folder).encode("<s>[INST] 12345").ids
    for result in results[full - 1 :]:  # full models, which have a config.json
        _ids_agree(result)
    again = "--model_name_or_path", str(results[-1]), "--max_steps", "1", *NAMED
    assert _wanted(folder, ok(train(*again, full=True, name="again")).folder) == wanted


def _file(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _ids_agree(folder: Path) -> None:
    """Tokenizer, config.json and generation_config.json name the same ids."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    files = [json.loads((folder / name).read_text()) for name in ("config.json", "generation_config.json")]
    assert tokenizer.pad_token_id is not None
    for file in files:
        assert file["pad_token_id"] == tokenizer.pad_token_id and file["bos_token_id"] == tokenizer.bos_token_id
        eos = file["eos_token_id"]
        assert tokenizer.eos_token_id in (eos if isinstance(eos, list) else [eos])
    assert files[0]["eos_token_id"] == files[1]["eos_token_id"]


@covers("use_tokenizer_class")
def test_the_class_can_be_asked_for(train: Train, base: Callable[[str], Path]) -> None:
    folder = base("qwen")
    flags = ["--model_name_or_path", str(folder), *NAMED]
    plain = ok(train(*flags))
    assert "the class Qwen2Tokenizer that transformers picks for this folder gives others" in plain.err
    other = ok(train(*flags, "--use_tokenizer_class", "True", name="b"))
    assert "gives others" not in other.err
    assert _ids(other.folder) != _wanted(folder, plain.folder) == _ids(plain.folder)
    changed = train(*flags, "--use_tokenizer_class", "True", "--max_steps", "3")
    assert changed.code == 2 and "already holds a result" in changed.err


def test_a_folder_with_a_sentencepiece_file_trains_saves_and_chats(
    train: Train, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    import sentencepiece

    folder = tmp_path / "old"
    shutil.copytree(tiny_model_dir("llama", "metaspace_bos"), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    sentencepiece.SentencePieceTrainer.train(
        **{"input": str(builders.CORPUS), "model_prefix": str(folder / "tokenizer"), "vocab_size": 600},
        **{"model_type": "bpe", "byte_fallback": True, "character_coverage": 0.99, "minloglevel": 2},
    )
    outcome = ok(train("--model_name_or_path", str(folder)))
    assert "converted from tokenizer.model, with BOS in front" in outcome.err
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = _ids(outcome.folder)
    assert ids[0] == processor.bos_id() and processor.decode(ids).endswith("12345 plus 6? ASSISTANT:")
    assert isinstance(load_chat(str(outcome.folder), device="cpu", max_new_tokens=3).reply(ASKED), str)
    merge_adapter(str(outcome.folder), str(tmp_path / "merged"))
    assert _ids(tmp_path / "merged") == ids
