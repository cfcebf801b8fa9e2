"""A prepared model has the new tokens, rows near the mean for them, and every other bit of the old one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastchat.checkpoint.prepare import prepare_model
from fastchat.errors import CheckpointError, SettingsError
from fastchat.model import prepare_model as command
from fastchat.model.tokenizer import load_tokenizer
from tests.builders import CORPUS, TOKENIZER_KINDS


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def reload(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def near_the_mean(rows: torch.Tensor, used: torch.Tensor) -> bool:
    """Close to the mean of the used rows (off by 2 to 10 % of their spread), but not equal unless the spread is 0."""
    off, spread = (part.double() - used.double().mean(dim=0) for part in (rows, used))
    return bool(0.02 * spread.std() < off.std() < 0.1 * spread.std() or not spread.any())


def changed_keys(before: Path, after: Path) -> set[str]:
    old, new = (json.loads(path.read_text()) for path in (before, after))
    return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}


@pytest.mark.parametrize(
    ("arch", "kind", "dtype", "tied"),
    [
        ("llama", "metaspace_bos", "float32", False),
        ("gemma", "gemma", "bfloat16", True),
        ("mistral", "byte_bos", "bfloat16", False),
        ("qwen2", "byte_nobos", "float16", True),
        ("gpt_neox", "byte_bos", "float32", False),  # its head is called embed_out in the file
        ("phi", "byte_bos", "float32", False),  # its head has a bias
    ],
)
def test_rows_are_added_near_the_mean_and_nothing_else_changes(tmp_path, tiny_model_dir, arch, kind, dtype, tied):
    base = tiny_model_dir(arch, kind, dtype=dtype, tied=tied)
    made = prepare_model(str(base), str(tmp_path / "out"), pad_token="[NEW]", special_tokens=["<tool>", "<tool>"])
    old, new = tensors(base), tensors(tmp_path / "out")
    rows = made.rows_before
    assert made.rows_after == rows + 2 and made.ids == {"[NEW]": rows, "<tool>": rows + 1}
    assert old.keys() == new.keys()
    grown = {name for name in old if old[name].shape != new[name].shape}
    assert len(grown) == (1 if tied else 3 if arch == "phi" else 2)
    for name in old:
        assert same_bits(old[name], new[name][: len(old[name])]), name
    for name in grown:
        assert near_the_mean(new[name][rows:], old[name]), name
        assert not torch.equal(new[name][rows], new[name][rows + 1]) or old[name].dim() == 1

    model, tokenizer = reload(tmp_path / "out")
    assert model.dtype == getattr(torch, dtype) and tokenizer.pad_token == "[NEW]"
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == rows + 2
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    before, _ = reload(base)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        difference = (model(ids).logits[..., :rows] - before(ids).logits).abs().max()
    assert difference <= 1e-5 if dtype == "float32" else difference < 0.05


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_the_tokenizer_knows_the_token_and_no_other_text_changes(tmp_path, tiny_model_dir, kind):
    base = tiny_model_dir("llama", kind)
    made = prepare_model(str(base), str(tmp_path / "out"), pad_token="[NEW]", special_tokens=["<|tool|>", "<x y>"])
    _, tokenizer = reload(tmp_path / "out")
    _, before = reload(base)
    for text in CORPUS.read_text(encoding="utf-8").splitlines():
        assert tokenizer.encode(text) == before.encode(text)
    assert tokenizer.convert_ids_to_tokens(list(made.ids.values())) == ["[NEW]", "<|tool|>", "<x y>"]
    ids = tokenizer.encode("Say [NEW]<|tool|> and <x y>!", add_special_tokens=False)
    assert [i for i in ids if i in made.ids.values()] == list(made.ids.values())
    assert tokenizer.decode(ids, skip_special_tokens=True).count("[NEW]") == 0
    assert set(made.ids) <= set(tokenizer.all_special_tokens)
    chosen, pad = load_tokenizer(str(tmp_path / "out"))
    assert pad.token == "[NEW]" and "own pad token" in pad.reason and chosen.eos_token == before.eos_token


def test_files_change_only_where_the_token_is(tmp_path, tiny_model_dir):
    base = tiny_model_dir("llama", "byte_nobos", chat_template="{{ messages }}")
    made = prepare_model(str(base), str(tmp_path / "out"), pad_token="[NEW]", special_tokens=["<tool>"])
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in base.iterdir())
    assert changed_keys(base / "config.json", out / "config.json") == {"vocab_size", "pad_token_id"}
    assert changed_keys(base / "generation_config.json", out / "generation_config.json") == {"pad_token_id"}
    assert changed_keys(base / "tokenizer.json", out / "tokenizer.json") == {"added_tokens"}
    assert changed_keys(base / "tokenizer_config.json", out / "tokenizer_config.json") == {
        "pad_token",
        "additional_special_tokens",
    }
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == made.ids["[NEW]"]
    assert {p.stat().st_mode & 0o777 for p in out.iterdir()} == {(base / "tokenizer.json").stat().st_mode & 0o777}
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "staging left behind"


def test_older_tokenizer_files_get_the_token_too(tmp_path, tiny_model_dir):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir("llama"), base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config["added_tokens_decoder"] = {str(i): {"content": t, **flags} for i, t in enumerate(("<unk>", "<s>", "</s>"))}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    names = {"bos_token": "<s>", "pad_token": {"content": "<unk>", **flags}}
    (base / "special_tokens_map.json").write_text(json.dumps(names))
    made = prepare_model(str(base), str(tmp_path / "out"), pad_token="[NEW]")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"][str(made.ids["[NEW]"])]["content"] == "[NEW]"
    names = json.loads((tmp_path / "out" / "special_tokens_map.json").read_text())
    assert names == {"bos_token": "<s>", "pad_token": {"content": "[NEW]", **flags}}


def test_shards_and_mixed_dtypes_stay(tmp_path, tiny_model_dir):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir("llama", dtype="bfloat16"), base)
    weights = tensors(base)
    weights["model.norm.weight"] = weights["model.norm.weight"].float() + 1e-4
    (base / "model.safetensors").unlink()
    (base / "original").mkdir()
    for name in ("consolidated.safetensors", "pytorch_model.bin", "original/consolidated.00.pth"):
        (base / name).write_bytes(b"the same weights in another form")
    (base / "LICENSE").write_text("mine")
    head = {name: weights.pop(name) for name in ("lm_head.weight",)}
    shards = {"model-00001-of-00002.safetensors": weights, "model-00002-of-00002.safetensors": head}
    for name, part in shards.items():
        save_file(part, base / name, metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for part in shards.values() for t in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": {t: n for n, part in shards.items() for t in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))

    prepare_model(str(base), str(tmp_path / "out"), pad_token="[NEW]")
    out = tmp_path / "out"
    assert sorted(p.name for p in out.glob("*.safetensors")) == sorted(shards)
    new = tensors(out)
    assert new["model.norm.weight"].dtype == torch.float32 and new["lm_head.weight"].dtype == torch.bfloat16
    new_index = json.loads((out / "model.safetensors.index.json").read_text())
    assert new_index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in new.values())
    assert new_index["weight_map"] == index["weight_map"]
    assert not (out / "original").exists() and not (out / "pytorch_model.bin").exists()
    assert (out / "LICENSE").read_text() == "mine"


def test_spare_rows_are_used_and_never_cut(tmp_path, tiny_model_dir, capsys):
    base = tiny_model_dir("llama", vocab_size=1024)
    made = prepare_model(str(base), str(tmp_path / "out"), pad_token="[NEW]")
    assert made.rows_before == made.rows_after == 1024 and made.ids["[NEW]"] < 1024
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert changed_keys(base / "config.json", tmp_path / "out" / "config.json") == {"pad_token_id"}
    assert "1024 rows are enough" in capsys.readouterr().err


def test_unused_rows_do_not_count_towards_the_mean(tmp_path, tiny_model_dir):
    base = tiny_model_dir("llama", vocab_size=810)  # the tokenizer uses 809
    made = prepare_model(str(base), str(tmp_path / "out"), special_tokens=["<a>", "<b>"])
    old, new = tensors(base)["model.embed_tokens.weight"], tensors(tmp_path / "out")["model.embed_tokens.weight"]
    assert made.ids == {"<a>": 809, "<b>": 810} and len(new) == 811
    assert torch.equal(new[809], old[809]) and near_the_mean(new[810:], old[:809])


def test_covariance_of_new_rows_is_that_of_the_used_ones():
    from fastchat.checkpoint.prepare import _NOISE, _with_new_rows

    torch.manual_seed(0)
    used = torch.randn(300, 4) @ torch.randn(4, 4) + 3
    rows = _with_new_rows(used, 20300, 300)[300:]
    assert torch.allclose(rows.T.cov() / _NOISE**2, used.T.cov(), atol=0.1 * float(used.T.cov().abs().max()))
    assert torch.equal(rows, _with_new_rows(used, 20300, 300)[300:]), "the same every time"


def test_a_token_that_exists_is_said_to(tmp_path, tiny_model_dir, capsys):
    base = tiny_model_dir("llama", "metaspace_bos")
    made = prepare_model(str(base), str(tmp_path / "a"), pad_token="<unk>")
    assert made.added == () and made.ids == {"<unk>": 0}
    assert "'<unk>' is already a special token (id 0): it is not added" in capsys.readouterr().err
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert reload(tmp_path / "a")[1].pad_token_id == 0
    made = prepare_model(str(tiny_model_dir("llama", "gemma")), str(tmp_path / "b"), special_tokens=["<start_of_turn>"])
    assert made.added == () and "is already in the vocabulary" in capsys.readouterr().err
    model, tokenizer = reload(tmp_path / "b")
    assert tokenizer.pad_token == "<pad>" and "<start_of_turn>" in tokenizer.all_special_tokens


def test_twice_gives_the_same(tmp_path, tiny_model_dir):
    prepare_model(str(tiny_model_dir("llama")), str(tmp_path / "a"), pad_token="[NEW]")
    made = prepare_model(str(tmp_path / "a"), str(tmp_path / "b"), pad_token="[NEW]")
    assert made.added == ()
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to add"),
        ({"pad_token": ""}, "cannot be a token"),
        ({"special_tokens": [" <a>"]}, "cannot be a token"),
        ({"pad_token": "</s>"}, "ends this model's answers"),
    ],
)
def test_what_cannot_be_added(tmp_path, tiny_model_dir, arguments, message):
    with pytest.raises(SettingsError, match=message):
        prepare_model(str(tiny_model_dir("llama")), str(tmp_path / "out"), **arguments)
    assert not list(tmp_path.iterdir())


def test_a_pad_token_that_is_ordinary_text_is_refused(tmp_path, tiny_model_dir):
    with pytest.raises(SettingsError, match="with are in the vocabulary, .Hello, how are you"):
        prepare_model(str(tiny_model_dir("llama")), str(tmp_path / "out"), pad_token="are")
    assert not list(tmp_path.iterdir())


def test_a_result_that_reads_back_wrong_is_not_put_in_place(tmp_path, tiny_model_dir, monkeypatch):
    from fastchat.checkpoint import prepare

    def flipped(tensors, path, **more):
        save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * -1}, path, **more)

    monkeypatch.setattr(prepare, "save_file", flipped)
    with pytest.raises(CheckpointError, match="model.norm.weight differs from the original"):
        prepare_model(str(tiny_model_dir("llama")), str(tmp_path / "out"), pad_token="[NEW]")
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, tiny_model_dir, capsys):
    base, out = tiny_model_dir("llama"), tmp_path / "out"
    words = ["--model-path", str(base), "--output-path", str(out)]
    assert command.main([*words, "--pad-token", "[PAD]"]) == 0
    assert "'[PAD]' (id 809) added, embedding rows 809 -> 810" in capsys.readouterr().err
    assert command.main([*words, "--pad-token", "[PAD]"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert command.main(["--model-path", str(tmp_path), "--output-path", str(out / "x"), "--pad-token", "[PAD]"]) == 2
    assert "no config.json" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    under_a_file = str(tmp_path / "file" / "out")
    assert command.main(["--model-path", str(base), "--output-path", under_a_file, "--pad-token", "[PAD]"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_stories260k(tmp_path, shared):
    base = shared / "models" / "stories260K"
    made = prepare_model(str(base), str(tmp_path / "out"), pad_token="[PAD]")
    assert made.ids == {"[PAD]": 512} and made.rows_after == 513
    model, tokenizer = reload(tmp_path / "out")
    assert model.config.pad_token_id == tokenizer.pad_token_id == 512


def test_the_prepared_tokenizer_is_that_of_the_file_and_the_configurations_name_its_pad_token(tmp_path, tiny_model_dir):
    """A qwen2 model with another byte-level file, whose class would rebuild it."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir("qwen2", "byte_bos"), base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    named = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|start_header_id|>"}
    (base / "tokenizer_config.json").write_text(json.dumps(config | named))
    assert json.loads((base / "config.json").read_text())["pad_token_id"] is None
    made = prepare_model(str(base), str(tmp_path / "out"), special_tokens=["<tool>"])
    tokenizer, wanted = reload(tmp_path / "out")[1], load_tokenizer(str(base))[0]
    assert tokenizer.encode("12345 <|eot_id|> a") == wanted.encode("12345 <|eot_id|> a")
    assert tokenizer.convert_tokens_to_ids("<tool>") == made.ids["<tool>"]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["pad_token_id"] == tokenizer.pad_token_id == wanted.pad_token_id


def test_spare_rows_that_are_all_alike_are_made_new(tmp_path, tiny_model_dir, capsys):
    """A vocabulary padded with zeros: training could never tell two tokens with equal rows apart."""
    base = Path(shutil.copytree(tiny_model_dir("llama", vocab_size=900), tmp_path / "base"))
    used = len(load_tokenizer(str(base))[0])
    before = load_file(base / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        before[name][used:] = 0
    save_file(before, base / "model.safetensors", metadata={"format": "pt"})
    made = prepare_model(str(base), str(tmp_path / "new"), special_tokens=["<|a|>", "<|b|>"])
    after = load_file(tmp_path / "new" / "model.safetensors")
    ids = list(made.ids.values())
    for name, old in before.items():
        kept = [
            i for i in range(len(old)) if name not in ("model.embed_tokens.weight", "lm_head.weight") or i not in ids
        ]
        assert torch.equal(after[name][kept], old[kept])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        first, second = after[name][ids].bfloat16()
        assert first.any() and not torch.equal(first, second)
    assert capsys.readouterr().err.count("2 spare rows were zero or identical") == 2
