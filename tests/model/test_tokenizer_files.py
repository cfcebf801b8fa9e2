"""`tokenizer.json` determines the ids, for every family: when read, read raw, saved, and loaded by transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.saved_template import compare_template, install_template
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.errors import SettingsError
from fastchat.model.tokenizer import choose_pad, load_plain
from fastchat.model.tokenizer_files import other_class_line, probe_texts, reopened, write_tokenizer
from fastchat.security import NO_CODE
from tests import builders

SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LEGACY = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACES]}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def byte_level(**fields: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **fields}


def token(content: str, token_id: int, **flags: bool) -> dict[str, Any]:
    none = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **none, "special": True, **flags}


MORE = [token("<|one|>", 9001, rstrip=True), token("<two>", 9002, special=False), token("[3]", 9003, lstrip=True)]
LLAMA, ALWAYS = {"tokenizer_class": "LlamaTokenizer"}, {"pre_tokenizer": metaspace("always")}
# name -> (kind of tokenizer, changes of tokenizer.json, changes of tokenizer_config.json, model type)
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "llama-2": ("metaspace_bos", {}, {}, "llama"),
    "mistral-v0.1": ("metaspace_bos", ALWAYS, {"legacy": True}, "mistral"),
    "always, legacy": ("metaspace_bos", ALWAYS, {"legacy": True}, "llama"),
    "always, no legacy": ("metaspace_bos", ALWAYS, {"legacy": False}, "llama"),
    "never": ("metaspace_bos", {"pre_tokenizer": metaspace("never")}, {"legacy": True}, "llama"),
    "first, legacy": ("metaspace_bos", {}, {"legacy": True, "add_prefix_space": True}, "llama"),
    "yi": ("metaspace_bos", {"normalizer": SPACES, "pre_tokenizer": None}, {"legacy": True}, "llama"),
    "prepended": ("metaspace_bos", {"normalizer": LEGACY, "pre_tokenizer": None}, {"legacy": True}, "mistral"),
    "llama class of qwen2": ("metaspace_bos", ALWAYS, {}, "qwen2"),
    "code llama": ("metaspace_bos", ALWAYS, {"tokenizer_class": "CodeLlamaTokenizer"}, "code_llama"),
    "gemma": ("gemma", {}, {}, "gemma2"),
    "gemma, another file": ("gemma", {"normalizer": LEGACY}, {}, "gemma"),
    "llama-3": ("byte_bos", {}, {}, "llama"),
    "llama class of bytes": ("byte_bos", {}, LLAMA, "llama"),
    "qwen": ("byte_nobos", {}, {}, "qwen2"),
    "qwen, another file": ("byte_bos", {}, {"tokenizer_class": "Qwen2Tokenizer"}, "qwen2"),
    "qwen3": ("byte_bos", {}, {"tokenizer_class": "Qwen2Tokenizer"}, "qwen3"),
    "r1 distill": ("byte_bos", {}, {"tokenizer_class": "LlamaTokenizerFast"}, "qwen2"),
    "gpt2": ("byte_bos", {"pre_tokenizer": byte_level()}, {"tokenizer_class": "GPT2Tokenizer"}, "gpt2"),
    "gpt2 class": ("byte_bos", {}, {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}, "phi"),
    "neox": ("byte_bos", {}, {"tokenizer_class": "GPTNeoXTokenizer"}, "gpt_neox"),
    "cohere": ("byte_bos", {}, {"tokenizer_class": "CohereTokenizerFast"}, "cohere"),
    "spaces in front": ("byte_bos", {"pre_tokenizer": byte_level(add_prefix_space=True)}, {}, "llama"),
    "unknown class": ("byte_bos", {}, {"tokenizer_class": "NobodyKnowsThis"}, "llama"),
    "no class": ("byte_nobos", {"normalizer": None}, {"tokenizer_class": None}, "qwen2"),
    "more tokens": ("byte_nobos", {"added_tokens": MORE}, {}, "qwen2"),
    "more llama tokens": ("metaspace_bos", {**ALWAYS, "added_tokens": MORE}, {"legacy": True}, "llama"),
    "wordpiece": ("wordpiece", {}, {}, "llama"),
    "wordpiece class": ("wordpiece", {}, {"tokenizer_class": "BertTokenizer", "do_lower_case": True}, "bert"),
    "unigram": ("unigram", {}, {}, "llama"),
    "unigram class": ("unigram", {}, {"tokenizer_class": "T5Tokenizer"}, "t5"),
}


def _trained(kind: str, folder: Path) -> None:
    """A WordPiece or Unigram tokenizer, which tests/builders.py does not make."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    names = ["[UNK]", "<s>", "</s>"]
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=500, special_tokens=names, show_progress=False)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=names, unk_token="[UNK]", show_progress=False)
    made.train_from_iterator(builders.CORPUS.read_text(encoding="utf-8").splitlines(), trainer)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "[UNK]"}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Any) -> Any:
    """`made(name)`: the folder of a family, with a config.json. Read only."""
    root = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        kind, of_file, of_config, model_type = FAMILIES[name]
        folder = root / name
        if folder.is_dir():
            return folder
        if kind in builders.TOKENIZER_KINDS:
            shutil.copytree(tokenizer_dir(kind), folder)
        else:
            _trained(kind, folder)
        _edit(folder / "tokenizer_config.json", of_config)
        more = of_file.get("added_tokens", [])
        spec = json.loads((folder / "tokenizer.json").read_text())
        size = len(spec["model"]["vocab"]) + len(
            [t for t in spec["added_tokens"] if t["content"] not in spec["model"]["vocab"]]
        )
        spec["added_tokens"] += [{**entry, "id": size + k} for k, entry in enumerate(more)]
        spec |= {key: value for key, value in of_file.items() if key != "added_tokens"}
        (folder / "tokenizer.json").write_text(json.dumps(spec))
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        return folder

    return make


def _edit(path: Path, changes: dict[str, Any]) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_decides_for_every_family(made: Any, name: str, tmp_path: Path) -> None:
    """As read, as read raw, and as AutoTokenizer reads what is saved as an adapter and as a model of that type."""
    folder = made(name)
    file, tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")), load_plain(str(folder))
    texts = list(probe_texts(tokenizer))
    wanted = [file.encode(text).ids for text in texts]
    assert [tokenizer.encode(text) for text in texts] == wanted
    raw, _ = TextEncoder.from_directory(str(folder))
    if raw is not None:
        assert [raw.whole.encode(text).ids for text in texts] == wanted
        assert (raw.raw.bos_token, raw.raw.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    assert tokenizer.eos_token and set(tokenizer.model_input_names) <= {"input_ids", "attention_mask", "token_type_ids"}
    choose_pad(tokenizer)
    for saved in (tmp_path / "adapter", tmp_path / "model"):
        saved.mkdir()
        if saved.name == "model":
            shutil.copyfile(folder / "config.json", saved / "config.json")
        write_tokenizer(tokenizer, saved)
        again = reopened(saved, tokenizer)
        assert [again.encode(text) for text in texts] == wanted
        assert [load_plain(str(saved)).encode(text) for text in texts] == wanted
        assert again.model_input_names == tokenizer.model_input_names


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("wordpiece")])
@pytest.mark.parametrize("template", ["vicuna_v1.1", "llama-2", "chatml"])
def test_the_saved_template_gives_the_training_ids(made: Any, name: str, template: str, tmp_path: Path) -> None:
    tokenizer = load_plain(str(made(name)))
    chat_encoder = TextEncoder.from_tokenizer(tokenizer).bind(get_template(template))
    dialogue = Dialogue(
        (Turn("user", "a [INST] 12,345"), Turn("assistant", " b"), Turn("user", "c"), Turn("assistant", "d"))
    )
    install_template(tokenizer, chat_encoder, [dialogue])
    write_tokenizer(tokenizer, tmp_path)
    assert compare_template(reopened(tmp_path, tokenizer), chat_encoder, [dialogue]) == 1


def test_a_class_of_its_own_is_claimed_only_where_it_is_needed(made: Any, tmp_path: Path) -> None:
    claimed = set()
    for name in ("llama-2", "qwen", "qwen3", "gemma, another file", "qwen, another file", "r1 distill"):
        saved = tmp_path / name
        saved.mkdir()
        shutil.copyfile(made(name) / "config.json", saved / "config.json")
        write_tokenizer(load_plain(str(made(name))), saved)
        config = json.loads((saved / "tokenizer_config.json").read_text())
        claimed |= {name} if "auto_map" in config else set()
        assert config.get("auto_map") in (None, {"AutoTokenizer": [NO_CODE, None]})
        assert load_plain(str(saved), trust_remote_code=False).encode("12345") == load_plain(str(made(name))).encode(
            "12345"
        )
    assert claimed == {"qwen, another file", "r1 distill"}


def test_another_class_is_named_and_can_be_asked_for(made: Any) -> None:
    from transformers import AutoTokenizer

    for name, differs in (("always, no legacy", True), ("qwen, another file", True), ("qwen", False), ("gemma", False)):
        folder = str(made(name))
        tokenizer, theirs = load_plain(folder), load_plain(folder, use_class=True)
        line = other_class_line(folder, tokenizer)
        assert bool(line) is differs and ("--use_tokenizer_class True" in line) is differs
        original = AutoTokenizer.from_pretrained(folder)
        texts = list(probe_texts(tokenizer))
        assert [theirs.encode(t) for t in texts] == [original.encode(t) for t in texts]
        assert ([tokenizer.encode(t) for t in texts] != [theirs.encode(t) for t in texts]) is differs
        assert theirs.special_tokens_map == original.special_tokens_map
        encoder, note = open_tokenizer(folder, use_class=True)
        assert "--use_tokenizer_class" in note and encoder.whole.encode(texts[0]).ids == theirs.encode(texts[0])


def test_what_files_leave_to_the_class_is_taken_over(made: Any, tmp_path: Path) -> None:
    """Old folders name no special tokens; GPT-2's configuration has only a length."""
    folder = tmp_path / "old"
    shutil.copytree(made("llama-2"), folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 100, "tokenizer_class": "LlamaTokenizer"}')
    tokenizer = load_plain(str(folder))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    encoder, _ = open_tokenizer(str(folder))
    assert encoder.bos and encoder.bos.content == "<s>"
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "<unk>"}}')
    raw, _ = TextEncoder.from_directory(str(folder))
    assert raw and raw.eos and raw.eos.content == "<unk>" == load_plain(str(folder)).eos_token


def test_keys_of_other_software_survive(made: Any, tmp_path: Path) -> None:
    """Converters read add_bos_token; the written value is what the pipeline does."""
    folder = tmp_path / "m"
    shutil.copytree(made("mistral-v0.1"), folder)
    _edit(folder / "tokenizer_config.json", {"add_bos_token": False, "add_eos_token": False, "padding_side": "left"})
    tokenizer = load_plain(str(folder))
    tokenizer.padding_side = "right"
    (tmp_path / "out").mkdir()
    write_tokenizer(tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["legacy"] is True and config["padding_side"] == "left"
    assert config["add_bos_token"] is True and config["add_eos_token"] is False


def test_a_repair_on_purpose_is_kept_and_said(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tekken"
    shutil.copytree(made("llama-3"), folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]  # transformers looks at large ones only
    vocabulary |= {f"\ue000{k}": 1000 + k for k in range(100_001)}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    _edit(folder / "tokenizer_config.json", {"fix_mistral_regex": True})
    (folder / "config.json").write_text('{"model_type": "mistral", "transformers_version": "4.50.0"}')
    tokenizer = load_plain(str(folder))
    assert "transformers repairs the pre-tokenizer" in capsys.readouterr().err
    assert tokenizer.encode("12345") != Tokenizer.from_file(str(folder / "tokenizer.json")).encode("12345").ids
    assert TextEncoder.from_directory(str(folder))[0] is None
    (tmp_path / "out").mkdir()
    write_tokenizer(tokenizer, tmp_path / "out")
    reopened(tmp_path / "out", tokenizer)


def test_a_difference_in_what_is_saved_is_named(made: Any, tmp_path: Path) -> None:
    tokenizer = load_plain(str(made("always, legacy")))
    write_tokenizer(tokenizer, tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text(), (tmp_path / "tokenizer_config.json").read_text()
    for change, said in (
        ({"tokenizer_class": "LlamaTokenizer", "legacy": False}, "gives other ids than training for"),
        ({"eos_token": "<unk>"}, "has eos_token '<unk>', not '</s>'"),
        ({"chat_template": "{{ 1 }}"}, "another chat template"),
        ({"extra_special_tokens": ["<new>"]}, "another vocabulary"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(json.loads(whole[1]) | change))
        with pytest.raises(SettingsError, match=said):
            reopened(tmp_path, tokenizer)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(SettingsError, match="cannot be loaded"):
        reopened(tmp_path, tokenizer)
    with pytest.raises(SettingsError, match="cannot be loaded"):
        load_plain(str(tmp_path))


# ---- folders without tokenizer.json


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokenizer.model` as Llama-2's was made."""
    import sentencepiece

    prefix = tmp_path_factory.mktemp("sentencepiece") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        **{"input": str(builders.CORPUS), "model_prefix": str(prefix), "vocab_size": 700, "model_type": "bpe"},
        **{"byte_fallback": True, "character_coverage": 0.99, "normalization_rule_name": "identity"},
        **{"remove_extra_whitespaces": False, "split_digits": True, "minloglevel": 2},
    )
    return prefix.with_suffix(".model")


@pytest.mark.parametrize("model_type", ["llama", "gemma", "qwen2", None])
@pytest.mark.parametrize("config", [None, {"tokenizer_class": "LlamaTokenizer", "legacy": True}])
def test_a_sentencepiece_file_is_enough(
    sentencepiece_model: Path, tmp_path: Path, model_type: str | None, config: dict[str, Any] | None
) -> None:
    import sentencepiece

    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copyfile(sentencepiece_model, folder / "tokenizer.model")
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    encoder, note = open_tokenizer(str(folder))
    assert "no tokenizer.json" in note and encoder.adds_bos and encoder.eos and encoder.eos.content == "</s>"
    tokenizer: Any = load_plain(str(folder))
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    for text in ("Hello, you", "  two 12,345\n", "def f(x):\n    return x", "日本語 😀"):
        assert tokenizer.encode(text) == [processor.bos_id(), *processor.encode(text)]
    chat_encoder = encoder.bind(get_template("vicuna_v1.1"))
    install_template(tokenizer, chat_encoder)
    write_tokenizer(tokenizer, tmp_path)
    reopened(tmp_path, tokenizer)


def test_bos_of_a_sentencepiece_file_is_what_the_configuration_says(sentencepiece_model: Path, tmp_path: Path) -> None:
    shutil.copyfile(sentencepiece_model, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert load_plain(str(tmp_path)).encode("a")[0] != 1


def test_vocabulary_and_merges_are_read_by_their_class(made: Any, tmp_path: Path) -> None:
    spec = json.loads((made("qwen") / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in spec["model"]["merges"]))
    with pytest.raises(SettingsError, match="do not say how text is split into words.*tokenizer_class"):
        load_plain(str(tmp_path))
    _edit_or_make(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    assert load_plain(str(tmp_path)).encode("a 12345") == load_plain(str(made("qwen"))).encode("a 12345")


def _edit_or_make(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values))


def test_files_that_nothing_here_reads_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("YQ== 0\nYg== 1\n")
    with pytest.raises(SettingsError, match="is not a SentencePiece model.*tiktoken.*tokenizer.json"):
        load_plain(str(tmp_path))
    (tmp_path / "tokenizer.model").rename(tmp_path / "vocab.json")  # Qwen's class starts empty
    _edit_or_make(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    (tmp_path / "vocab.json").rename(tmp_path / "tiktoken.model")
    with pytest.raises(SettingsError):
        load_plain(str(tmp_path))
    (tmp_path / "tiktoken.model").rename(tmp_path / "spiece.model")
    with pytest.raises(SettingsError, match="finds no vocabulary in its files"):
        load_plain(str(tmp_path))
