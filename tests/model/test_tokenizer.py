"""The choice of the pad token, and the errors when there is no usable tokenizer."""

from __future__ import annotations

import json
import shutil

import pytest

from fastchat.errors import SettingsError
from fastchat.model.tokenizer import choose_pad, load_tokenizer


def change_config(folder, **changes):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        ("metaspace_bos", "<unk>"),
        ("gemma", "<pad>"),
        ("byte_bos", "<|begin_of_text|>"),
        ("byte_nobos", "<|endoftext|>"),
    ],
)
def test_pad_of_the_four_kinds(tokenizer_dir, kind, token):
    tokenizer, pad = load_tokenizer(str(tokenizer_dir(kind)))
    assert pad.token == token == tokenizer.pad_token
    assert pad.id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert pad.line.startswith(f"Padding with {token} (id {pad.id}): ")


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("llama-2", "<unk>"),
        ("gemma", "<pad>"),
        ("llama-3", "<|reserved_special_token_0|>"),
        ("qwen2.5", "<|endoftext|>"),
    ],
)
def test_pad_of_real_tokenizers(shared, name, token):
    assert load_tokenizer(str(shared / "tokenizers" / name))[1].token == token


def test_a_pad_token_that_ends_a_turn_is_replaced(tokenizer_dir, tmp_path):
    folder = tmp_path / "t"
    shutil.copytree(tokenizer_dir("byte_bos"), folder)
    change_config(folder, pad_token="<|end_of_text|>")
    tokenizer, pad = load_tokenizer(str(folder))
    assert pad.token != "<|end_of_text|>" and "ends a turn" in pad.reason
    # The template's own stop is barred as well, once it is known.
    tokenizer, pad = load_tokenizer(str(tokenizer_dir("byte_nobos")))
    barred = {tokenizer.eos_token_id, pad.id}
    again = choose_pad(tokenizer, stop_ids=barred)
    assert again.id not in barred and tokenizer.pad_token_id not in barred


def test_choosing_again_gives_the_same_token_for_the_same_reason(tokenizer_dir):
    for kind in ("metaspace_bos", "gemma", "byte_bos", "byte_nobos"):
        tokenizer, pad = load_tokenizer(str(tokenizer_dir(kind)))
        assert choose_pad(tokenizer) == pad


def test_nothing_is_added_to_the_vocabulary(tokenizer_dir):
    for kind in ("metaspace_bos", "gemma", "byte_bos", "byte_nobos"):
        tokenizer, pad = load_tokenizer(str(tokenizer_dir(kind)))
        vocabulary = len(json.loads((tokenizer_dir(kind) / "tokenizer.json").read_text())["model"]["vocab"])
        assert pad.id < len(tokenizer) <= vocabulary + 20
        before = len(tokenizer)
        choose_pad(tokenizer, stop_ids=range(before - 1))
        assert len(tokenizer) == before


def test_a_pad_token_without_an_embedding_row_is_not_used(tokenizer_dir):
    tokenizer, _ = load_tokenizer(str(tokenizer_dir("metaspace_bos")))
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.init_kwargs["pad_token"] = "[PAD]"
    assert tokenizer.pad_token_id == rows
    pad = choose_pad(tokenizer, embedding_rows=rows)
    assert pad.id < rows and pad.token == "<unk>" and "has no row" in pad.reason


def test_an_id_is_borrowed_when_no_token_may_pad(tokenizer_dir):
    tokenizer, _ = load_tokenizer(str(tokenizer_dir("metaspace_bos")))
    tokenizer.pad_token = None
    pad = choose_pad(tokenizer, stop_ids=[0, 1, 2])
    assert pad.token is None and pad.id == 3 and tokenizer.pad_token is None


@pytest.mark.parametrize("token", ["[PAD]", "<|finetune_right_pad_id|>", "<|reserved_special_token_3|>", "<unused7>"])
def test_unused_tokens_are_recognised(tokenizer_dir, token):
    tokenizer, _ = load_tokenizer(str(tokenizer_dir("metaspace_bos")))
    tokenizer.pad_token = None
    tokenizer.add_tokens([token], special_tokens=True)
    assert choose_pad(tokenizer).token == token


def test_padding_side(tokenizer_dir):
    assert load_tokenizer(str(tokenizer_dir("gemma")), padding_side="left")[0].padding_side == "left"


def test_rows_are_read_from_the_model(tiny_model_dir, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny_model_dir("llama", "gemma"), folder)
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, pad_token="<mask>")
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 4}))
    assert load_tokenizer(str(folder))[1].id < 4


def test_bad_directories_are_named(tmp_path, tiny_model_dir):
    with pytest.raises(SettingsError, match="no tokenizer"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(SettingsError, match="No such model directory"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="is a file"):
        load_tokenizer(__file__)
    with pytest.raises(SettingsError, match="hf download some/model"):
        load_tokenizer("some/model")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SettingsError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_remote_code_stays_off(tokenizer_dir, tmp_path):
    folder = tmp_path / "t"
    shutil.copytree(tokenizer_dir("byte_bos"), folder)
    change_config(folder, auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    (folder / "config.json").write_text('{"model_type": "evil"}')
    with pytest.raises(SettingsError, match="--trust_remote_code"):
        load_tokenizer(str(folder))
