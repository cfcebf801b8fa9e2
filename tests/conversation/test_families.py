"""Current model families: their prompts, the names that mean the tokenizer's own template, and suggestions."""

import re

import pytest

from fastchat.conversation import (
    Dialogue,
    Template,
    Turn,
    choose_template,
    conv_templates,
    get_template,
    suggest_templates,
)
from fastchat.conversation.builtin import builtin
from fastchat.errors import SettingsError

# Templates that are neither upstream's nor tested in test_templates.py.
FAMILIES = {row.name for row in builtin().templates if isinstance(row, Template)} - {"chatml", "phi-3"}
ROUNDS = (Turn("user", "u1"), Turn("assistant", "a1"), Turn("user", "u2"), Turn("assistant", "a2"))
_LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n%s<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nu1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\na1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nu2"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na2<|eot_id|>"
)
_GEMMA = (
    "<bos><start_of_turn>user\n%su1<end_of_turn>\n<start_of_turn>model\na1<end_of_turn>\n"
    "<start_of_turn>user\nu2<end_of_turn>\n<start_of_turn>model\na2<end_of_turn>\n"
)
_CHATML = (
    "<|im_start|>system\n%s<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
    "<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n"
)
_PHI_3 = "<|user|>\nu1<|end|>\n<|assistant|>\na1<|end|>\n<|user|>\nu2<|end|>\n<|assistant|>\na2<|end|>\n"
_PHI_4 = (
    "<|im_start|>user<|im_sep|>u1<|im_end|><|im_start|>assistant<|im_sep|>a1<|im_end|>"
    "<|im_start|>user<|im_sep|>u2<|im_end|><|im_start|>assistant<|im_sep|>a2<|im_end|>"
)
_MINI = "<|user|>u1<|end|><|assistant|>a1<|end|><|user|>u2<|end|><|assistant|>a2<|end|>"
_DEEPSEEK = "<｜User｜>u1<｜Assistant｜>a1<｜end▁of▁sentence｜><｜User｜>u2<｜Assistant｜>a2<｜end▁of▁sentence｜>"
_ASK, _ANSWER = "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
_COMMAND = f"{_ASK}u1<|END_OF_TURN_TOKEN|>{_ANSWER}a1<|END_OF_TURN_TOKEN|>"
_COMMAND += _COMMAND.replace("1", "2")
_TODAY = {
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
}
# name: the prompt without and with the system message "SYS"
PROMPTS = {
    **dict.fromkeys(("llama-3.1", "llama-3.2", "llama-3.3"), (_LLAMA % "", _LLAMA % "SYS")),
    **dict.fromkeys(("gemma-2", "gemma-3"), (_GEMMA % "", _GEMMA % "SYS\n\n")),
    **{name: (_CHATML % default, _CHATML % "SYS") for name, default in _TODAY.items()},
    "mistral-v0.3": (
        "[INST] u1[/INST] a1</s>[INST] u2[/INST] a2</s>",
        "[INST] SYS\n\nu1[/INST] a1</s>[INST] u2[/INST] a2</s>",
    ),
    "mistral-nemo": ("[INST]u1[/INST]a1</s>[INST]u2[/INST]a2</s>", "[INST]SYS\n\nu1[/INST]a1</s>[INST]u2[/INST]a2</s>"),
    "phi-3.5": (_PHI_3, "<|system|>\nSYS<|end|>\n" + _PHI_3),
    "phi-4": (_PHI_4, "<|im_start|>system<|im_sep|>SYS<|im_end|>" + _PHI_4),
    "phi-4-mini": (_MINI, "<|system|>SYS<|end|>" + _MINI),
    "deepseek-v3": ("<｜begin▁of▁sentence｜>" + _DEEPSEEK, "<｜begin▁of▁sentence｜>SYS" + _DEEPSEEK),
    "command-r": (
        "<BOS_TOKEN>" + _COMMAND,
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>SYS<|END_OF_TURN_TOKEN|>" + _COMMAND,
    ),
}


def test_every_family_is_pinned_and_has_an_origin():
    assert FAMILIES == set(PROMPTS) <= set(conv_templates)
    assert all(builtin().origins[name].strip() for name in conv_templates if name in builtin().origins)
    assert set(builtin().origins) == {row.name for row in builtin().templates}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_is_exact_and_inference_sends_how_it_begins(name):
    template, (default, with_system) = get_template(name), PROMPTS[name]
    assert template.render(Dialogue(ROUNDS)).text == default
    assert template.render(Dialogue(ROUNDS, "SYS")).text == with_system
    for answers in (1, 3):
        prompt = template.render(Dialogue(ROUNDS[:answers]), add_generation_prompt=True).text
        assert default.startswith(prompt) and default[len(prompt) :].lstrip().startswith(f"a{(answers + 1) // 2}")


@pytest.mark.parametrize("name", ["llama-3.1", "gemma-3", "command-r"])
def test_messages_are_trimmed_where_the_family_trims_them(name):
    spaced = tuple(Turn(turn.role, f"\n {turn.text} ") for turn in ROUNDS)
    assert get_template(name).render(Dialogue(spaced)).text == PROMPTS[name][0]


@pytest.mark.parametrize(("name", "trims"), [("llama-3.1", True), ("gemma-3", False), ("command-r", False)])
def test_a_system_message_is_trimmed_where_the_family_trims_it(name, trims):
    template, spaced = get_template(name), "\n SYS "
    text = template.render(Dialogue(ROUNDS, spaced)).text
    assert (text == PROMPTS[name][1]) is trims and (spaced in text) is not trims


def test_tool_outputs_have_their_place():
    turns = (*ROUNDS[:2], Turn("tool", "42"), Turn("assistant", "a2"))
    assert 'ipython<|end_header_id|>\n\n"42"<|eot_id|>' in get_template("llama-3.1").render(Dialogue(turns)).text
    assert "user\n<tool_response>\n42\n</tool_response>" in get_template("qwen2.5").render(Dialogue(turns)).text


@pytest.mark.parametrize("name", builtin().tokenizer)
def test_families_without_a_table_point_to_the_tokenizers_template(name):
    with pytest.raises(SettingsError, match=f"use --conv_template tokenizer. The tokenizer's own template is {name}'s"):
        get_template(name)


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.3"),
        ("google/gemma-1.1-7b-it", "gemma"),
        ("google/gemma-2-9b-it", "gemma-2"),
        ("google/gemma-2b-it", "gemma"),
        ("google/gemma-3-4b-it", "gemma-3"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-v0.3"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo"),
        ("Qwen/Qwen2-7B-Instruct", "qwen-7b-chat"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5"),
        ("Qwen/Qwen3-8B", "tokenizer"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3"),
        ("microsoft/Phi-3.5-mini-instruct", "phi-3.5"),
        ("microsoft/phi-4", "phi-4"),
        ("microsoft/Phi-4-mini-instruct", "phi-4-mini"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "tokenizer"),
        ("CohereForAI/c4ai-command-r-v01", "command-r"),
        ("ibm-granite/granite-3.3-8b-instruct", "tokenizer"),
        ("allenai/OLMo-2-1124-7B-Instruct", "tokenizer"),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "smollm2"),
        ("HuggingFaceTB/SmolLM3-3B", "tokenizer"),
    ],
)
def test_a_known_family_is_suggested_its_own_template(model, first):
    assert suggest_templates({"a"}, None, model)[0] == first
    with pytest.raises(SettingsError, match="--conv_template is not given") as error:
        choose_template(None, vocabulary={"a"}, model_name=model)
    assert f"Templates that fit: {first}" in str(error.value)
    with pytest.raises(SettingsError, match=r"fit: tokenizer \(its own\)") as error:
        choose_template(None, vocabulary={"a"}, chat_template="{{ x }}", model_name=model)
    assert first == "tokenizer" or f"(its own), {first}" in str(error.value)


def test_a_default_system_message_tells_families_with_the_same_turns_apart():
    chatml = "'<|im_start|>user\\n' + text + '<|im_end|>\\n<|im_start|>assistant\\n'"
    qwen = get_template("qwen2.5").system_message
    assert suggest_templates({"<|im_start|>", "<|im_end|>"}, f"{{{{ '{qwen}' + {chatml} }}}}")[0] == "qwen2.5"
    assert suggest_templates({"<|im_start|>", "<|im_end|>"}, chatml)[0] != "qwen2.5"


def test_suggestions_name_only_what_exists_and_the_docs_name_every_family(repository):
    assert {name for _, name in builtin().by_name} <= {*conv_templates, *builtin().tokenizer}
    text = (repository / "fastchat/conversation/README.md").read_text(encoding="utf-8")
    families = text[text.index("## Which name") :]
    named = set(re.findall(r"`([^`]+)`", families))
    assert FAMILIES | set(builtin().tokenizer) <= named
