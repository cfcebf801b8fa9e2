"""Calls on tokenizers that have the template's control tokens: ids, labels, and the saved chat template."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from fastchat.conversation import Dialogue, RefusedByTemplate, ToolCall, get_template, templates_with_calls
from fastchat.conversation.template import CONTROL_PATTERN
from fastchat.data.encoding.messages import to_openai
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.properties import prove
from fastchat.data.encoding.saved_template import install_template
from fastchat.data.encoding.text_encoder import TextEncoder
from tests.builders import TOKENIZER_KINDS, make_tokenizer
from tests.conversation.calling import ADD, CASES, asks, dialogue, result, says
from tests.tiers import pairs

NAMES = templates_with_calls()
_MISTRAL = [f"[{end}{word}]" for word in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS") for end in ("", "/")]
_MISTRAL.append("[TOOL_CALLS]")
_SPOKEN = ("<tool_call>", "</tool_call>")  # not special, as in Qwen's tokenizers


@pytest.fixture(scope="module")
def with_controls(tmp_path_factory):
    """`with_controls(kind, name)`: a tokenizer of a kind that has the control strings of a template as tokens."""
    made = {}

    def make(kind, name):
        if (kind, name) not in made:
            folder = make_tokenizer(kind, tmp_path_factory.mktemp("controls"))
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            literals = "\n".join(get_template(name).literals())
            written = [c for c in CONTROL_PATTERN.findall(literals) if c[1] in "|｜" or c in _SPOKEN or c.isupper()]
            written += [c for c in _MISTRAL if c in literals]
            new = [c for c in dict.fromkeys(written) if c not in tokenizer.get_vocab()]
            tokenizer.add_tokens([AddedToken(c, normalized=False, special=c not in _SPOKEN) for c in new])
            tokenizer.save(str(folder / "tokenizer.json"))
            made[kind, name] = folder
        return made[kind, name]

    return make


@pytest.mark.parametrize(("kind", "name"), pairs(TOKENIZER_KINDS, NAMES))
def test_the_saved_tokenizer_gives_the_training_ids(with_controls, tmp_path, kind, name):
    tokenizer = AutoTokenizer.from_pretrained(with_controls(kind, name))
    chat_encoder = TextEncoder.from_tokenizer(tokenizer).bind(get_template(name))
    assert prove(chat_encoder).startswith("proven on this tokenizer")
    install_template(tokenizer, chat_encoder)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    compared = 0
    for case in ("tools only", "one call", "parallel", "parallel, by id", "text and call", "rounds"):
        said = replace(CASES[case], tools=(ADD,))  # the other tool's schema has special-token strings
        try:
            ours = chat_encoder.encode(chat_encoder.template.render(said))
        except RefusedByTemplate:
            continue
        compared += 1
        ids = reloaded.apply_chat_template(to_openai(said), tools=[ADD], tokenize=True, return_dict=False)
        assert ids == ours.input_ids and not ours.special_token_strings, case
    assert compared >= 3


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_call_and_its_stop_are_learned(with_controls, name):
    encoder, _ = open_tokenizer(str(with_controls("byte_nobos", name)))
    chat_encoder = encoder.bind(get_template(name))
    said = dialogue(asks("Hi"), says("", ToolCall("add", {"a": [1, "é"]}, "abcDEF123")), result("3"), tools=[ADD])
    encoded = chat_encoder.encode(chat_encoder.template.render(said.before(2)))
    prompt = chat_encoder.encode(chat_encoder.template.render(said.before(1), add_generation_prompt=True))
    learned = [k for k, yes in enumerate(encoded.supervised) if yes]
    assert learned == list(range(len(prompt.input_ids), learned[-1] + 1))
    assert encoded.input_ids[: learned[0]] == prompt.input_ids
    assert encoded.input_ids[learned[-1]] in chat_encoder.stop_ids
    text = chat_encoder.encoder.decode([encoded.input_ids[k] for k in learned])
    assert "".join(json.dumps({"a": [1, "é"]}, ensure_ascii=False).split()) in "".join(text.split())
    # A result after it is context.
    whole = chat_encoder.encode(chat_encoder.template.render(said))
    assert not any(whole.supervised[len(encoded.input_ids) :])


_HOSTILE = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>", "<think>", "{name}", "a", '"', " "]),
    max_size=5,
).map("".join)


@given(texts=st.lists(_HOSTILE, min_size=5, max_size=5))
def test_no_text_of_a_schema_a_call_or_a_result_becomes_a_token(with_controls, texts):
    encoder, _ = open_tokenizer(str(with_controls("byte_nobos", "qwen2.5")))
    chat_encoder = encoder.bind(get_template("qwen2.5"))

    def tokens(schema, name, key, value, said):
        tool = {"type": "function", "function": {"name": "f", "description": schema}}
        turns = asks("Hi"), says("", ToolCall(name, {key: value})), result(said), says("Done")
        encoded = chat_encoder.encode(chat_encoder.template.render(Dialogue(turns, tools=(tool,))))
        added = {token["id"] for token in encoder.added.values()}
        return [i for i in encoded.input_ids if i in added]

    assert tokens(*texts) == tokens(*"abcde")
