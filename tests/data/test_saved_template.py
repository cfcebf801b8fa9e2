"""The chat template that is saved gives, through other software, exactly the training ids and the inference prompt."""

import pytest
from transformers import AutoTokenizer

from fastchat.conversation import Conversation, Dialogue, SeparatorStyle, Turn, get_template
from fastchat.data.encoding.messages import to_messages
from fastchat.data.encoding.saved_template import install_template
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.errors import SettingsError
from tests.builders import TOKENIZER_KINDS
from tests.tiers import template_cases

REAL = [
    Dialogue((Turn("user", "Nine adults went to a play."), Turn("assistant", "```python\nx = 9\n```"))),
    Dialogue((Turn("user", "a"), Turn("assistant", "b"), Turn("tool", "{}"), Turn("assistant", "c")), "Sys"),
]


@pytest.mark.parametrize(("kind", "name"), template_cases(TOKENIZER_KINDS))
def test_reloaded_tokenizer_renders_the_training_ids(tmp_path, tokenizer_dir, kind, name):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir(kind))
    chat_encoder = TextEncoder.from_tokenizer(tokenizer).bind(get_template(name))
    install_template(tokenizer, chat_encoder, REAL)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(reloaded) == len(chat_encoder.encoder.vocabulary)
    for dialogue in REAL:
        ids = reloaded.apply_chat_template(to_messages(dialogue), tokenize=True, return_dict=False)
        assert ids == chat_encoder.encode(chat_encoder.template.render(dialogue)).input_ids
        asked = Dialogue(dialogue.turns[:1], dialogue.system)
        prompt = reloaded.apply_chat_template(
            to_messages(asked), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert prompt == chat_encoder.encode(chat_encoder.template.render(asked, add_generation_prompt=True)).input_ids


def test_a_template_that_says_something_else_is_caught(tokenizer_dir, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir("byte_nobos"))
    chat_encoder = TextEncoder.from_tokenizer(tokenizer).bind(get_template("chatml"))
    monkeypatch.setattr(
        "fastchat.data.encoding.saved_template.chat_template", lambda chat_encoder: "{{ messages[0]['content'] }}"
    )
    with pytest.raises(SettingsError, match="cannot be saved as a chat template"):
        install_template(tokenizer, chat_encoder)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_own_template_without_a_default_system_message(tokenizer_dir, kind):
    """Its first text begins with a space, and with a system message it does not."""
    own = Conversation(name="own", roles=("Q", "A"), sep_style=SeparatorStyle.ADD_COLON_TWO, sep=" ", sep2="</s>")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir(kind))
    chat_encoder = TextEncoder.from_tokenizer(tokenizer).bind(own.to_template())
    install_template(tokenizer, chat_encoder, REAL)
