"""GGUF files: what is read back and compared, whatever wrote them; and the whole way through llama.cpp's converter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.errors import CheckpointError, ResourceError, SettingsError
from fastchat.export import command, converter
from fastchat.export.gguf import export_gguf
from fastchat.export.gguf_tokenizer import GgufTokenizer, check_vocabulary, pieces_of
from fastchat.model.tokenizer import load_tokenizer
from tests.export import go_template

gguf = pytest.importorskip("gguf", reason="needs the extra gguf")


# ---- reading back, on files written here


def metadata_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """The metadata that a right conversion of a tokenizer like Llama-2's has."""
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    texts, scores, types = zip(*pieces_of(spec) or (), strict=True)
    tokenizer, _ = load_tokenizer(str(folder))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(texts),
        "tokenizer.ggml.scores": list(scores),
        "tokenizer.ggml.token_type": list(types),
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": tokenizer.chat_template,
        **changes,
    }


def tokenizer_of(folder: Path, **changes: Any) -> GgufTokenizer:
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return GgufTokenizer(metadata_of(folder, **changes), spec)


def test_the_scores_give_the_ids_of_training(exportable: Path) -> None:
    encoder = TextEncoder.from_tokenizer(load_tokenizer(str(exportable))[0])
    ours = tokenizer_of(exportable)
    for text in ("Hello, how are you?", "  two  spaces\n\nand 12345 日本語 😀", "x = [i for i in range(3)]"):
        wanted = [token for token, _, _ in encoder.plain([text], "after")[0]]
        assert ours.encode(text) == wanted
        assert ours.prompt(f"<s>{text}</s>") == [ours.bos, *wanted, ours.eos], "written once, special tokens found"


def test_equal_scores_would_give_other_ids(exportable: Path) -> None:
    # What llama.cpp's converter writes for a tokenizer.json without a tokenizer.model.
    flat = tokenizer_of(exportable, **{"tokenizer.ggml.scores": [-1000.0] * len(tokenizer_of(exportable).tokens)})
    text = "What is the capital of the country with the longest river?"
    assert flat.encode(text) != tokenizer_of(exportable).encode(text)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("tokenizer.ggml.tokens", lambda v: [*v[:300], "other", *v[301:]], "token 300 is"),
        ("tokenizer.ggml.token_type", lambda v: [1] * len(v), "would be plain text"),
        ("tokenizer.chat_template", lambda v: "other", "chat template"),
        ("tokenizer.ggml.eos_token_id", lambda v: 7, "EOS is token 7"),
        ("tokenizer.ggml.bos_token_id", lambda v: None, "BOS is token None"),
    ],
)
def test_a_changed_vocabulary_is_found(exportable: Path, key: str, change: Any, message: str) -> None:
    hf, _ = load_tokenizer(str(exportable))
    check_vocabulary(tokenizer_of(exportable), exportable, hf)
    changed = tokenizer_of(exportable, **{key: change(metadata_of(exportable)[key])})
    with pytest.raises(CheckpointError, match=message):
        check_vocabulary(changed, exportable, hf)


def write_gguf(path: Path, folder: Path, change: Any = lambda name, values: values, kind: str = "F32") -> None:
    """The tensors of a small Llama as llama.cpp stores them, written here without the permutation of q and k."""
    from safetensors.torch import load_file

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = change(name, tensor.numpy())
        if values is not None:
            as_kind = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
            stored = names.get_name(name.rpartition(".")[0]) + ".weight"
            writer.add_tensor(stored, gguf.quants.quantize(values, as_kind), raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_tensors_are_compared_within_the_error_of_their_type(tmp_path: Path, exportable: Path, kind: str) -> None:
    from fastchat.export.gguf_file import GgufFile

    write_gguf(tmp_path / "a.gguf", exportable, kind=kind)
    compared = GgufFile(tmp_path / "a.gguf").compare(exportable)
    assert not compared.unknown and set(compared.types) == {kind, "F32"}
    assert sum(count for count, _ in compared.types.values()) == 2 * 9 + 3


@pytest.mark.parametrize(
    ("changed", "change", "message"),
    [
        ("layers.1.mlp.up_proj", lambda v: v * 1.05, "differ from"),
        ("layers.0.input_layernorm", lambda v: v * 0.5, "differ from"),
        ("layers.1.self_attn.o_proj", lambda v: v[::-1] * 1.0 + 0.1, "differ from"),
        ("embed_tokens", lambda v: v[:, :32].copy(), "shape"),
        ("layers.0.self_attn.v_proj", lambda v: None, "lacks the tensor blk.0.attn_v.weight"),
    ],
)
def test_changed_tensors_are_found(tmp_path: Path, exportable: Path, changed: str, change: Any, message: str) -> None:
    from fastchat.export.gguf_file import GgufFile

    write_gguf(tmp_path / "a.gguf", exportable, lambda name, v: change(v) if changed in name else v, "Q8_0")
    with pytest.raises(CheckpointError, match=message):
        GgufFile(tmp_path / "a.gguf").compare(exportable)


def test_rows_in_another_order_are_the_same_tensor(tmp_path: Path, exportable: Path) -> None:
    from fastchat.export.gguf_file import GgufFile

    write_gguf(tmp_path / "a.gguf", exportable, lambda name, v: v[::-1].copy() if "q_proj" in name else v)
    GgufFile(tmp_path / "a.gguf").compare(exportable)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    from fastchat.export.gguf_file import GgufFile

    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        GgufFile(tmp_path / "a.gguf")


# ---- finding llama.cpp


def test_a_missing_converter_is_named_with_the_ways_to_get_it(monkeypatch, tmp_path, adapter, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(converter.VARIABLE, raising=False)
    assert command.main(["gguf", str(adapter), "--out", str(tmp_path / "x")]) == 2
    told = capsys.readouterr().err
    assert "git clone" in told and "--download" in told and told.count("\n") == 1
    assert command.main(["gguf", str(adapter), "--out", str(tmp_path / "x"), "--quant", "q4_k_m"]) == 2
    assert "llama-quantize" in capsys.readouterr().err
    assert command.main(["gguf", str(adapter), "--llama_cpp", str(tmp_path)]) == 2
    assert "no convert_hf_to_gguf.py there" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_command_line_suggests(capsys) -> None:
    assert command.main(["guff", "x"]) == 2 and "did you mean gguf?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        command.main(["gguf", "x", "--quant", "q4"])
    assert end.value.code == 2 and "q4_k_m" in capsys.readouterr().err


# ---- the whole way


def test_an_adapter_is_merged_converted_and_read_back(tmp_path: Path, adapter: Path, llama_cpp: Path) -> None:
    done = export_gguf(str(adapter), str(tmp_path / "out"), llama_cpp=str(llama_cpp))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Modelfile", "out-Q8_0.gguf"]
    assert not list(tmp_path.glob(".out*")), "staging left behind"
    told = "\n".join(done.notes)
    assert "Q8_0 (off by" in told and "add_space_prefix False" in told
    reader = gguf.GGUFReader(done.file)
    template = reader.get_field("tokenizer.chat_template").contents()
    tokenizer, _ = load_tokenizer(str(adapter))
    assert template == tokenizer.chat_template
    text = done.modelfile.read_text(encoding="utf-8")
    go = text.split('TEMPLATE """')[1].split('"""')[0]
    messages = [{"role": "user", "content": "Hi"}]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "<s>" + go_template.render(go, "", messages) == wanted
    assert 'PARAMETER stop "</s>"' in text and "num_ctx 512" in text and "SYSTEM" in text


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, exportable: Path, llama_cpp: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(exportable, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchForCausalLM"]}))
    with pytest.raises((ResourceError, SettingsError), match="NoSuchForCausalLM|cannot convert"):
        export_gguf(str(model), str(tmp_path / "out"), llama_cpp=str(llama_cpp))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_k_quants(tmp_path: Path, exportable: Path, llama_cpp: Path, monkeypatch) -> None:
    if shutil.which(converter.QUANTIZER) is None:
        pytest.skip("llama-quantize is not on PATH")
    from tests.builders import make_model
    from tests.export.conftest import close_merges

    wide = make_model(tmp_path / "wide", "llama", "metaspace_bos", hidden=256)  # blocks of K quants are 256 wide
    close_merges(wide)
    done = export_gguf(str(wide), str(tmp_path / "out"), quant="q4_k_m", llama_cpp=str(llama_cpp))
    assert done.file.name == "out-Q4_K_M.gguf" and "Q4_K" in "\n".join(done.notes)
