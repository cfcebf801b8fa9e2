"""Tying a tokenizer to a template: aliases, controls in the vocabulary, look-alikes, refusals, the raw file."""

import json
import shutil
from dataclasses import replace

import pytest

from fastchat.conversation import Conversation, Dialogue, RoleFormat, SeparatorStyle, Template, Turn, get_template
from fastchat.data.encoding.chat_encoder import encode_prompt
from fastchat.data.encoding.probes import HARMLESS
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.errors import SettingsError
from tests.builders import TOKENIZER_KINDS
from tests.tiers import ALL_TOKENIZERS, thorough

HI = Dialogue((Turn("user", "Hi"), Turn("assistant", "Yo")), "S")


def labelled(chat_encoder, dialogue):
    """[(token text, supervised)] of a dialogue, for literals in tests."""
    encoded = chat_encoder.encode(chat_encoder.template.render(dialogue))
    pairs = zip(encoded.input_ids, encoded.supervised, strict=True)
    return [(chat_encoder.encoder.whole.id_to_token(i), s) for i, s in pairs]


def supervised(chat_encoder, dialogue):
    encoded = chat_encoder.encode(chat_encoder.template.render(dialogue))
    return [i for i, s in zip(encoded.input_ids, encoded.supervised, strict=True) if s]


def test_gemma_learns_end_of_turn_and_not_the_newline_after_it(encoder_of):
    pairs = labelled(encoder_of("gemma").bind(get_template("gemma")), HI)
    assert [t for t, s in pairs if s][-1] == "<end_of_turn>"
    assert pairs[-1] == ("\n", False)
    assert [t for t, _ in pairs].count("<bos>") == 1
    assert ("<start_of_turn>", False) in pairs


def test_vicuna_learns_the_space_after_the_prompt_and_the_eos(encoder_of):
    chat_encoder = encoder_of("metaspace_bos").bind(get_template("vicuna_v1.1"))
    pairs = labelled(chat_encoder, HI)
    learned = [t for t, s in pairs if s]
    assert learned[0].startswith("▁") and learned[-1] == "</s>"
    assert pairs[0] == ("<s>", False)
    assert (
        encode_prompt(Dialogue(HI.turns[:1], "S"), chat_encoder)
        == chat_encoder.encode(chat_encoder.template.render(HI)).input_ids[: -len(learned)]
    )


@pytest.mark.parametrize(
    ("tokenizer", "eos"),
    [("gemma", "<eos>"), ("byte_bos", "<|end_of_text|>"), ("byte_nobos", "<|im_end|>"), ("metaspace_bos", "</s>")],
)
def test_turn_ending_s_tag_is_the_models_eos_and_that_is_said_once(encoder_of, tokenizer, eos, capsys):
    chat_encoder = encoder_of(tokenizer).bind(get_template("vicuna_v1.1"))
    said = capsys.readouterr().err
    assert labelled(chat_encoder, HI)[-1] == (eos, True)
    assert said.count("means this tokenizer's") == (eos != "</s>")
    assert chat_encoder.stop_ids == (chat_encoder.encoder.eos.id,)


def test_bos_in_a_template_is_left_out_where_the_tokenizer_has_none(encoder_of, capsys):
    chat_encoder = encoder_of("byte_nobos").bind(get_template("llama-2"))
    assert "no BOS" in capsys.readouterr().err
    assert "<s>" not in chat_encoder.encoder.decode(chat_encoder.encode(chat_encoder.template.render(HI)).input_ids)


def test_missing_control_strings_are_text_with_a_warning_that_names_what_fits(encoder_of, capsys):
    chat_encoder = encoder_of("gemma").bind(get_template("chatml"))
    said = capsys.readouterr().err
    assert "<|im_start|>, <|im_end|>" in said and "Suitable templates: gemma" in said
    assert chat_encoder.stop_strings == ("<|im_end|>",)
    assert "<|im_end|>" in chat_encoder.encoder.decode(supervised(chat_encoder, HI))


def test_answer_keeps_added_tokens_that_a_model_writes_and_a_question_does_not(encoder_of):
    chat_encoder = encoder_of("byte_nobos").bind(get_template("chatml"))
    think = chat_encoder.encoder.vocabulary["<think>"]
    spoken = Dialogue((Turn("user", "<think>"), Turn("assistant", "<think>hm</think>done <|im_end|> more")))
    encoded = chat_encoder.encode(chat_encoder.template.render(spoken))
    assert [s for i, s in zip(encoded.input_ids, encoded.supervised, strict=True) if i == think] == [True]
    stop = chat_encoder.encoder.vocabulary["<|im_end|>"]
    assert supervised(chat_encoder, spoken).count(stop) == 1


def test_look_alike_that_merges_into_a_control_token_is_split(tmp_path, tokenizer_dir):
    """A vocabulary whose merges build the control string from text: only an extra split keeps it text."""
    source = json.loads((tokenizer_dir("gemma") / "tokenizer.json").read_text())
    vocabulary, merges = source["model"]["vocab"], source["model"]["merges"]
    merges[:0] = [["<", "x"], ["<x", ">"]]
    for token in ("<x", "<x>"):
        vocabulary.setdefault(token, len(vocabulary))
    shutil.copytree(tokenizer_dir("gemma"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    encoder, reason = TextEncoder.from_directory(str(tmp_path))
    assert encoder is not None, reason
    wrap = RoleFormat("<x>", "<x>", "<x>")
    chat_encoder = encoder.bind(Template(name="x", user=wrap, assistant=wrap))
    hostile = Dialogue((Turn("user", "a<x>b<x>"), Turn("assistant", "c<x>d")))
    encoded = chat_encoder.encode(chat_encoder.template.render(hostile))
    assert encoded.input_ids.count(vocabulary["<x>"]) == 4
    assert encoded.escaped == 3
    assert chat_encoder.encoder.decode(encoded.input_ids).endswith("<x>a<x>b<x><x><x>c<x>d<x>")


def test_tokens_that_swallow_white_space_do_so_here_too(tmp_path, tokenizer_dir):
    """phi-3 declares its control tokens with rstrip: the line end behind them vanishes from the ids."""
    shutil.copytree(tokenizer_dir("metaspace_bos"), tmp_path, dirs_exist_ok=True)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    size = len(spec["model"]["vocab"])
    for k, content in enumerate(("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")):
        flags = {"single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}
        spec["added_tokens"].append({"id": size + k, "content": content, **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    encoder, reason = TextEncoder.from_directory(str(tmp_path))
    assert encoder is not None, reason
    chat_encoder = encoder.bind(get_template("phi-3"))  # the proof compares with the tokenizer's own ids
    tokens = [t for t, _ in labelled(chat_encoder, HI)]
    assert "<0x0A>" not in tokens and tokens[-1] == "<|end|>"


def test_template_without_a_stop_of_its_own_learns_eos(encoder_of):
    chat_encoder = encoder_of("metaspace_bos").bind(get_template("raw"))
    two = Dialogue((*HI.turns, Turn("user", "More"), Turn("assistant", "Yes")))
    assert [t for t, s in labelled(chat_encoder, two) if s].count("</s>") == 2
    assert "</s>" not in chat_encoder.template.render(two).text


def test_template_that_needs_eos_on_a_tokenizer_without_one_is_refused(tmp_path, tokenizer_dir):
    shutil.copytree(tokenizer_dir("byte_nobos"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    encoder, _ = TextEncoder.from_directory(str(tmp_path))
    with pytest.raises(SettingsError, match="has none; choose a template with its own stop"):
        encoder.bind(get_template("raw"))


def test_token_with_characters_of_prompt_and_answer_is_reported_and_learned(encoder_of):
    """A prompt that ends inside a word: one token holds its last letters and the answer's first."""
    wrap = RoleFormat("\nQ:", "\n", "\nQ:")
    template = Template(name="torn", user=wrap, assistant=RoleFormat(" th", "</s>", " th"))
    chat_encoder = encoder_of("byte_bos").bind(template)
    torn = chat_encoder.encode(template.render(Dialogue((Turn("user", "Hi"), Turn("assistant", "e house")))))
    assert len(torn.straddling) == 1 and torn.supervised[torn.straddling[0]]
    assert chat_encoder.encoder.decode(torn.input_ids[torn.straddling[0] :]).startswith(" the")
    assert (
        chat_encoder.encode(template.render(Dialogue((Turn("user", "Hi"), Turn("assistant", ", ok"))))).straddling == []
    )


def test_token_with_characters_of_a_question_is_never_learned(encoder_of):
    chat_encoder = encoder_of("byte_bos").bind(get_template("raw"))
    torn = chat_encoder.encode(
        chat_encoder.template.render(Dialogue((Turn("user", "a th"), Turn("assistant", "e house"))))
    )
    assert len(torn.straddling) == 1 and not torn.supervised[torn.straddling[0]]


@pytest.mark.parametrize("tokenizer", ALL_TOKENIZERS)
def test_raw_file_gives_the_ids_of_the_real_class(encoder_of, tokenizer):
    from transformers import AutoTokenizer

    raw = encoder_of(tokenizer)
    real = TextEncoder.from_tokenizer(AutoTokenizer.from_pretrained(raw.name))
    assert (raw.bos, raw.eos, raw.adds_bos) == (real.bos, real.eos, real.adds_bos)
    for name in ("vicuna_v1.1", "chatml", "gemma", "llama-3"):
        template = get_template(name)
        for dialogue in (*HARMLESS, HI):
            rendered = template.render(dialogue)
            assert raw.bind(template).encode(rendered) == real.bind(template).encode(rendered)


@pytest.mark.parametrize("tokenizer", [thorough(t, in_default=t in TOKENIZER_KINDS) for t in ALL_TOKENIZERS])
def test_a_loaded_tokenizer_is_not_parsed_again_and_not_changed_with_it(encoder_of, tokenizer):
    from fastchat.data.encoding.raw_tokenizer import from_class
    from fastchat.model.tokenizer import load_plain
    from fastchat.model.tokenizer_files import PROBES

    loaded = load_plain(encoder_of(tokenizer).name)
    raw = from_class(loaded)
    parsed = TextEncoder(replace(raw, parsed=None))
    shared = TextEncoder(replace(raw, text="no JSON"))
    assert shared.whole.to_str() == parsed.whole.to_str() == raw.text
    assert shared.vocabulary == shared.whole.get_vocab(with_added_tokens=True)
    for text in PROBES:
        assert shared.whole.encode(text).ids == parsed.whole.encode(text).ids
        assert all(shared.plain([text], at) == parsed.plain([text], at) for at in ("first", "after", "inside"))
    loaded.add_tokens(["<one more>"])
    loaded.backend_tokenizer.enable_truncation(3)
    assert shared.whole.to_str() == raw.text


def _with_config(folder, source, **changes):
    shutil.copytree(source, folder, dirs_exist_ok=True)
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "LEFT OUT"}))
    return str(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"eos_token": "LEFT OUT"}, "BOS or EOS to its class"),
        ({"fix_mistral_regex": True}, "fix_mistral_regex"),
        ({"additional_special_tokens": ["<new>"]}, "<new>"),
        ({"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "its own code"),
    ],
)
def test_raw_file_is_not_trusted_where_something_else_changes_it(tmp_path, tokenizer_dir, change, reason):
    encoder, why = TextEncoder.from_directory(_with_config(tmp_path, tokenizer_dir("metaspace_bos"), **change))
    assert encoder is None and reason in why


@pytest.mark.parametrize(
    "change",
    [{"tokenizer_class": "SomethingElse"}, {"add_bos_token": False}, {"legacy": True}, {"add_prefix_space": False}],
)
def test_what_only_a_class_reads_changes_nothing(tmp_path, tokenizer_dir, change):
    """`tokenizer.json` decides, read raw or with transformers."""
    from fastchat.model.tokenizer import load_plain

    folder = _with_config(tmp_path, tokenizer_dir("metaspace_bos"), **change)
    raw, _ = TextEncoder.from_directory(folder)
    assert raw is not None
    loaded = load_plain(folder)
    original = load_plain(str(tokenizer_dir("metaspace_bos")))
    for text in ("<s>[INST] Hi", "<s> a </s>b", "  two 12,345\n"):
        assert raw.whole.encode(text).ids == loaded.encode(text) == original.encode(text)


def test_style_with_a_text_stop_learns_up_to_it(encoder_of):
    chat_encoder = encoder_of("byte_bos").bind(get_template("zero_shot"))
    assert chat_encoder.encoder.decode(supervised(chat_encoder, HI)) == " Yo\n###"
    assert chat_encoder.stop_strings == ("###",)


def test_own_template_binds_like_a_built_in(encoder_of):
    own = Conversation(name="own", roles=("Q", "A"), sep_style=SeparatorStyle.ADD_COLON_TWO, sep="\n", sep2="</s>")
    chat_encoder = encoder_of("metaspace_bos").bind(own.to_template())
    assert labelled(chat_encoder, HI)[-1] == ("</s>", True)


def test_bos_is_never_written_twice_in_a_row(encoder_of):
    """An empty message brings together what the template writes on both sides of it."""
    template = Template("meeting", RoleFormat("", "", ""), RoleFormat("<s>A: ", "</s>", "<s>A:"), no_system="<s>")
    chat_encoder = encoder_of("metaspace_bos").bind(template)
    for text, expected in (("", 1), ("Hi", 2)):
        encoded = chat_encoder.encode(template.render(Dialogue((Turn("user", text), Turn("assistant", "Yo")))))
        assert encoded.input_ids.count(chat_encoder.encoder.bos.id) == expected


def test_of_several_chat_templates_the_default_is_the_tokenizers_own(tmp_path, tokenizer_dir):
    """By name, in a list in the configuration; read raw and by transformers."""
    from fastchat.model.tokenizer import load_plain

    folder = shutil.copytree(tokenizer_dir("byte_nobos"), tmp_path / "tokenizer")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for encoder in (TextEncoder.from_directory(str(folder))[0], TextEncoder.from_tokenizer(load_plain(str(folder)))):
        assert encoder.raw.chat_template == "D"
