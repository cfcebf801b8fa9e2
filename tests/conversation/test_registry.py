"""Finding templates: by name, from a file, and by what fits a model."""

import subprocess
import sys

import pytest

from fastchat.conversation import (
    Conversation,
    Dialogue,
    Turn,
    choose_template,
    conv_templates,
    get_template,
    load_template_file,
    register_conv_template,
    registry,
    suggest_templates,
)
from fastchat.errors import SettingsError

HELLO = Dialogue((Turn("user", "u"), Turn("assistant", "a")))


@pytest.fixture(autouse=True)
def leave_no_template(monkeypatch):
    """Each test registers into copies."""
    monkeypatch.setattr(registry, "_tables", dict(registry._tables))
    before = dict(conv_templates)
    yield
    conv_templates.clear()
    conv_templates.update(before)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(SettingsError, match="'vicuna_v1.2'.*Nearest: vicuna_v1.1"):
        get_template("vicuna_v1.2")


def test_registering_a_taken_name_needs_override():
    mine = Conversation(name="alpaca", roles=("Q", "A"))
    with pytest.raises(SettingsError, match="already registered"):
        register_conv_template(mine)
    register_conv_template(mine, override=True)
    assert get_template("alpaca").render(HELLO).text == "\nQ: u\nA: a\n"


def test_python_file_in_upstreams_way(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fastchat.conversation import Conversation, SeparatorStyle, register_conv_template\n"
        "register_conv_template(Conversation(name='mine', roles=('Q', 'A'), sep_style=SeparatorStyle.ADD_COLON_TWO,"
        " sep='\\n', sep2='</s>'))\n"
    )
    assert load_template_file(str(file)) == ["mine"]
    assert get_template("mine").render(HELLO).text == "\nQ: u\nA: a</s>"


def test_yaml_file_in_both_notations(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "- name: by-style\n  roles: [Q, A]\n  sep_style: CHATML\n  sep: <|im_end|>\n"
        "- name: by-table\n  user: {before: '<q>', after: '</q>'}\n"
        "  assistant: {before: '<a>', after: '</a>', open: '<a>'}\n"
    )
    assert load_template_file(str(file)) == ["by-style", "by-table"]
    assert get_template("by-style").render(HELLO).text == "Q\nu<|im_end|>\nA\na<|im_end|>\n"
    assert get_template("by-table").render(HELLO).text == "<q>u</q><a>a</a>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.py", None, "no such file"),
        ("mine.txt", "x", "expected a .py or a .yaml"),
        ("mine.py", "1/0", "fails with ZeroDivisionError"),
        ("mine.py", "x = 1", "registers no template"),
        ("mine.yaml", "name: x\nrole: [A, B]\n", "unknown field 'role'; nearest: roles"),
        ("mine.yaml", "name: x\nsep_style: CHATMLL\n", "unknown sep_style 'CHATMLL'; nearest: CHATML"),
        ("mine.yaml", "- just text", "every template needs fields"),
        ("mine.yaml", "name: [", "not valid YAML"),
        ("mine.yaml", "name: x\nuser: {before: a, after: b}\n", "'assistant' is missing"),
        (
            "mine.yaml",
            "name: x\nuser: {before: a, after: b}\nassistant: {before: a, after: b, open: z}\n",
            "open prompt",
        ),
    ],
)
def test_bad_template_file_is_one_clear_message(tmp_path, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_template_file(str(file))


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


def test_suggestions_do_not_name_templates_whose_controls_are_missing():
    assert "gemma" not in suggest_templates({"<|im_start|>", "<|im_end|>"})


def test_importing_the_room_needs_only_the_standard_library():
    code = (
        "import sys; import fastchat.conversation;"
        "heavy = {'torch', 'transformers', 'numpy', 'yaml', 'tokenizers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
