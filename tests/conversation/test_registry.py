"""Finding templates: by name, from a file, and those that fit a model."""

import subprocess
import sys

import pytest

from fastchat.conversation import (
    Conversation,
    Dialogue,
    Turn,
    choose_template,
    get_template,
    register_conv_template,
    suggest_templates,
)
from fastchat.errors import SettingsError

HELLO = Dialogue((Turn("user", "u"), Turn("assistant", "a")))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(SettingsError, match="'vicuna_v1.2'.*Nearest: vicuna_v1.1"):
        get_template("vicuna_v1.2")


def test_registering_a_taken_name_needs_override():
    mine = Conversation(name="alpaca", roles=("Q", "A"))
    with pytest.raises(SettingsError, match="already registered"):
        register_conv_template(mine)
    register_conv_template(mine, override=True)
    assert get_template("alpaca").render(HELLO).text == "\nQ: u\nA: a\n"


def test_default_is_vicuna_and_says_so(capsys):
    assert choose_template(None, vocabulary={"<s>", "</s>", "a"}).name == "vicuna_v1.1"
    assert "vicuna_v1.1 (the default" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "suggestion"),
    [
        ({"vocabulary": {"<bos>", "<start_of_turn>", "<end_of_turn>"}}, "gemma"),
        (
            {"vocabulary": {"<|im_start|>", "<|im_end|>"}, "chat_template": "{{ '<|im_start|>' + m.role }}"},
            "qwen-7b-chat",
        ),
        ({"vocabulary": {"a"}, "model_name": "/models/Llama-2-7b-chat-hf"}, "llama-2"),
        ({"vocabulary": {"a"}, "chat_template": "{{ '[INST] ' + x + ' [/INST]' }}"}, "llama-2"),
        ({"vocabulary": {"a"}, "chat_template": "{{ something_else }}"}, "fit: tokenizer (its own)."),
    ],
)
def test_known_chat_family_without_a_name_stops_and_suggests(facts, suggestion):
    with pytest.raises(SettingsError, match="--conv_template is not given") as error:
        choose_template(None, **facts)
    assert suggestion in str(error.value)
    assert choose_template("vicuna_v1.1", **facts).name == "vicuna_v1.1"


def test_the_name_of_the_tokenizers_own_template_is_not_for_others():
    with pytest.raises(SettingsError, match="'tokenizer'.*choose another name"):
        register_conv_template(Conversation(name="tokenizer", roles=("Q", "A")), override=True)


def test_suggestions_do_not_name_templates_whose_controls_are_missing():
    assert "gemma" not in suggest_templates({"<|im_start|>", "<|im_end|>"})


def test_importing_the_room_needs_only_the_standard_library():
    code = (
        "import sys; import fastchat.conversation;"
        "heavy = {'torch', 'transformers', 'numpy', 'yaml', 'tokenizers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
