"""Each run's proof of the five properties: it holds everywhere, and each property that is broken is named."""

import pytest

from fastchat.conversation import get_template
from fastchat.data.encoding import properties
from fastchat.data.encoding.probes import probes_of
from fastchat.data.encoding.properties import prove
from fastchat.errors import SettingsError
from tests.builders import TOKENIZER_KINDS
from tests.tiers import KINDS, SHARED


@pytest.mark.slow
def shares():
    """(tokenizer, templates): all kinds of templates with each tokenizer; by default each has its share of them."""
    names = (*TOKENIZER_KINDS, *SHARED)
    for i, name in enumerate(names):
        yield pytest.param(name, KINDS[i % len(TOKENIZER_KINDS) :: len(TOKENIZER_KINDS)], id=name)
        yield pytest.param(name, KINDS, id=f"{name} all", marks=pytest.mark.thorough)


@pytest.mark.parametrize(("tokenizer", "templates"), list(shares()))
def test_it_holds_for_every_kind_of_template(encoder_of, tokenizer, templates):
    for name in templates:
        for train_on in ("assistant", "all"):
            line = prove(encoder_of(tokenizer).bind(get_template(name), train_on))
            with_calls = get_template(name).shows_calls
            num_dialogues = len(probes_of(get_template(name))) + (3 if with_calls else 2)
            assert line.startswith(f"proven on this tokenizer with template {name}, on {num_dialogues} dialogues")
            assert with_calls == (num_dialogues > 9)


def broken(chat_encoder, how):
    """`chat_encoder` with an encode that does one thing wrong."""
    encode = chat_encoder.encode

    def wrong(rendered):
        encoded = encode(rendered)
        learned = [i for i, s in enumerate(encoded.supervised) if s]
        bos, special = chat_encoder.encoder.bos.id, chat_encoder.controls["<|eot_id|>"].id
        if how == "a stop is not learned" and learned:
            encoded.supervised[learned[-1]] = False
        elif how == "BOS is learned":
            encoded.supervised[0] = True
        elif how == "BOS twice":
            encoded.input_ids[1] = bos
        elif how == "text becomes control":
            roles = [rendered.segments[s].role if s >= 0 else "" for s in encoded.segment_of]
            encoded.input_ids[roles.index("user")] = special
        elif how == "another prompt" and not learned:
            encoded.input_ids[4] = special
        return encoded

    chat_encoder.encode = wrong
    return chat_encoder


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("another prompt", 1),
        ("a stop is not learned", 2),
        ("BOS is learned", 3),
        ("BOS twice", 3),
        ("text becomes control", 4),
    ],
)
def test_a_broken_property_is_named_with_the_tokens_around_it(encoder_of, how, number):
    chat_encoder = broken(encoder_of("byte_bos").bind(get_template("llama-3")), how)
    with pytest.raises(SettingsError, match=rf"property {number} of the labels does not hold .*, at token \d+: '"):
        prove(chat_encoder)


def test_labels_that_disagree_are_property_five(encoder_of, monkeypatch):
    tokenize = properties.tokenize_dialogues

    def shifted(*args, **more):
        for example in tokenize(*args, **more):
            first = next(i for i, label in enumerate(example.labels) if label >= 0)
            example.labels[first] = -100
            yield example

    monkeypatch.setattr(properties, "tokenize_dialogues", shifted)
    with pytest.raises(SettingsError, match="property 5 of the labels does not hold .*: two ways of deriving"):
        prove(encoder_of("byte_bos").bind(get_template("llama-3")))
