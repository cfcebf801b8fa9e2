"""Built-in templates render, character for character, the prompts their models were trained on."""

import json

import pytest

from fastchat.conversation import (
    Conversation,
    Dialogue,
    SeparatorStyle,
    Template,
    Turn,
    conv_templates,
    get_conv_template,
    get_template,
)
from fastchat.conversation.styles import shape_of
from fastchat.errors import SettingsError
from tests.conversation.make_golden import GOLDEN
from tests.conversation.test_families import PROMPTS as FAMILIES

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
HUMAN = VICUNA.replace("user", "human")
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
# name: (two rounds with the default system message, the same with the system message "SYS")
PROMPTS = {
    "vicuna_v1.1": (
        VICUNA + " USER: u1 ASSISTANT: a1</s>USER: u2 ASSISTANT: a2</s>",
        "SYS USER: u1 ASSISTANT: a1</s>USER: u2 ASSISTANT: a2</s>",
    ),
    "llama-2": (
        "[INST] u1 [/INST] a1 </s><s>[INST] u2 [/INST] a2 </s><s>",
        "[INST] <<SYS>>\nSYS\n<</SYS>>\n\nu1 [/INST] a1 </s><s>[INST] u2 [/INST] a2 </s><s>",
    ),
    "mistral": (
        "[INST] u1 [/INST] a1</s>[INST] u2 [/INST] a2</s>",
        "[INST] SYS\nu1 [/INST] a1</s>[INST] u2 [/INST] a2</s>",
    ),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nu1<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\na1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nu2<|eot_id|><|start_header_id|>"
        "assistant<|end_header_id|>\n\na2<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nSYS<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nu1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nu2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na2"
        "<|eot_id|>",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nu1<end_of_turn>\n<start_of_turn>model\na1<end_of_turn>\n"
        "<start_of_turn>user\nu2<end_of_turn>\n<start_of_turn>model\na2<end_of_turn>\n",
        "<bos><start_of_turn>user\nSYS\n\nu1<end_of_turn>\n<start_of_turn>model\na1<end_of_turn>\n"
        "<start_of_turn>user\nu2<end_of_turn>\n<start_of_turn>model\na2<end_of_turn>\n",
    ),
    "chatml": (
        "<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n",
        "<|im_start|>system\nSYS<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n",
    ),
    "qwen-7b-chat": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n"
        "<|im_start|>assistant\na1<|im_end|>\n<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n",
        "<|im_start|>system\nSYS<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n",
    ),
    "zephyr": (
        "<|system|>\n</s>\n<|user|>\nu1</s>\n<|assistant|>\na1</s>\n<|user|>\nu2</s>\n<|assistant|>\na2</s>\n",
        "<|system|>\nSYS</s>\n<|user|>\nu1</s>\n<|assistant|>\na1</s>\n<|user|>\nu2</s>\n<|assistant|>\na2</s>\n",
    ),
    "alpaca": (
        ALPACA + "\n\n### Instruction: u1\n\n### Response: a1</s>### Instruction: u2\n\n### Response: a2</s>",
        "SYS\n\n### Instruction: u1\n\n### Response: a1</s>### Instruction: u2\n\n### Response: a2</s>",
    ),
    "zero_shot": (
        HUMAN + "\n### Human: u1\n### Assistant: a1\n### Human: u2\n### Assistant: a2\n### ",
        "SYS\n### Human: u1\n### Assistant: a1\n### Human: u2\n### Assistant: a2\n### ",
    ),
    "phi-3": (
        "<|user|>\nu1<|end|>\n<|assistant|>\na1<|end|>\n<|user|>\nu2<|end|>\n<|assistant|>\na2<|end|>\n",
        "<|system|>\nSYS<|end|>\n<|user|>\nu1<|end|>\n<|assistant|>\na1<|end|>\n"
        "<|user|>\nu2<|end|>\n<|assistant|>\na2<|end|>\n",
    ),
    "deepseek-chat": (
        "<｜begin▁of▁sentence｜>User: u1\n\nAssistant: a1<｜end▁of▁sentence｜>"
        "User: u2\n\nAssistant: a2<｜end▁of▁sentence｜>",
        "SYSUser: u1\n\nAssistant: a1<｜end▁of▁sentence｜>User: u2\n\nAssistant: a2<｜end▁of▁sentence｜>",
    ),
    "raw": ("u1a1u2a2", "SYSu1a1u2a2"),
}
OPEN = {
    "vicuna_v1.1": "ASSISTANT:",
    "llama-2": "[/INST]",
    "mistral": "[/INST]",
    "llama-3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>model\n",
    "chatml": "<|im_start|>assistant\n",
    "qwen-7b-chat": "<|im_start|>assistant\n",
    "zephyr": "<|assistant|>\n",
    "alpaca": "### Response:",
    "zero_shot": "Assistant:",
    "one_shot": "Assistant:",
    "phi-3": "<|assistant|>\n",
    "deepseek-chat": "Assistant:",
    "raw": "",
}
ROUNDS = (Turn("user", "u1"), Turn("assistant", "a1"), Turn("user", "u2"), Turn("assistant", "a2"))


def conversation(name, system=None, texts=("u1", "a1", "u2", "a2")):
    conv = get_conv_template(name)
    if system is not None:
        conv.set_system_message(system)
    for i, text in enumerate(texts):
        conv.append_message(conv.roles[i % 2], text)
    return conv


def test_every_template_beyond_upstreams_golden_file_is_pinned_here():
    upstream = set(json.loads(GOLDEN.read_text(encoding="utf-8")))
    assert set(conv_templates) - upstream <= set(PROMPTS) | set(FAMILIES)
    assert set(OPEN) == set(PROMPTS) | {"one_shot"}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_is_exact_and_the_same_through_both_interfaces(name):
    default, with_system = PROMPTS[name]
    template = get_template(name)
    assert template.render(Dialogue(ROUNDS)).text == conversation(name).get_prompt() == default
    assert template.render(Dialogue(ROUNDS, "SYS")).text == conversation(name, "SYS").get_prompt() == with_system


@pytest.mark.parametrize("name", OPEN)
def test_open_prompt_is_what_inference_sends(name):
    template = get_template(name)
    for rounds in (1, 2):
        turns = ROUNDS[: 2 * rounds - 1]
        prompt = template.render(Dialogue(turns), add_generation_prompt=True).text
        assert prompt.endswith(OPEN[name])
        texts = [t.text for t in turns] + [None]
        assert conversation(name, texts=texts).get_prompt() == prompt
        assert template.render(Dialogue(ROUNDS)).text.startswith(prompt)


@pytest.mark.parametrize("name", OPEN)
def test_supervised_text_is_the_answer_with_what_follows_the_prompt_and_its_stop(name):
    template = get_template(name)
    segments = template.render(Dialogue(ROUNDS)).segments
    for turn, answer in ((1, "a1"), (3, "a2")):
        learned = "".join(s.text for s in segments if s.supervised and s.turn == turn)
        rest = template.assistant.before[len(template.assistant.open) :]
        assert learned == rest + answer + (template.stop or "</s>")
    assert {s.turn for s in segments if s.supervised} == {1, 3}


@pytest.mark.parametrize(
    ("name", "stop"),
    [("vicuna_v1.1", "</s>"), ("llama-2", " </s>"), ("gemma", "<end_of_turn>"), ("zero_shot", "\n###"), ("raw", "")],
)
def test_stop_ends_where_the_model_has_to_stop(name, stop):
    assert get_template(name).stop == stop


def test_one_shot_example_precedes_the_dialogue_and_is_not_learned():
    rendered = get_template("one_shot").render(Dialogue(ROUNDS))
    assert rendered.text.index("10 year old") < rendered.text.index("Human: u1")
    assert not any(s.supervised for s in rendered.segments if s.turn < 0)
    assert conversation("one_shot").to_openai_api_messages()[1] == {"role": "user", "content": "u1"}


def test_record_without_system_message_does_not_inherit_the_previous_ones():
    template = get_template("vicuna_v1.1")
    template.render(Dialogue(ROUNDS, "SYS"))
    assert template.render(Dialogue(ROUNDS)).text.startswith(VICUNA)
    assert template.render(Dialogue(ROUNDS, "")).text.startswith(" USER: u1")


def test_empty_answer_is_a_finished_turn_in_training_and_an_open_one_in_upstreams_interface():
    dialogue = Dialogue((Turn("user", "u1"), Turn("assistant", "")), "S")
    assert get_template("vicuna_v1.1").render(dialogue).text == "S USER: u1 ASSISTANT: </s>"
    assert conversation("vicuna_v1.1", "S", ("u1", "")).get_prompt() == "S USER: u1 ASSISTANT:"


def test_untrained_turn_is_rendered_and_not_supervised():
    turns = (Turn("user", "u"), Turn("assistant", "a", train=False), Turn("user", "u"), Turn("assistant", "b"))
    rendered = get_template("chatml").render(Dialogue(turns))
    assert "a<|im_end|>" in rendered.text
    assert {s.turn for s in rendered.segments if s.supervised} == {3}


def test_tool_output_is_wrapped_like_a_user_turn_unless_the_template_says_otherwise():
    turns = (Turn("user", "u"), Turn("assistant", "call"), Turn("tool", "out"), Turn("assistant", "a"))
    assert "USER: out ASSISTANT: a" in get_template("vicuna_v1.1").render(Dialogue(turns)).text
    table = get_template("chatml").to_dict()
    table.update(name="with-tool", tool={"before": "<tool>", "after": "</tool>", "open": ""})
    assert "<tool>out</tool>" in Template.from_dict(table).render(Dialogue(turns)).text


@pytest.mark.parametrize("name", OPEN)
def test_table_survives_its_json_form(name):
    template = get_template(name)
    again = Template.from_dict(template.to_dict())
    assert again.render(Dialogue(ROUNDS, "S")).segments == template.render(Dialogue(ROUNDS, "S")).segments


def test_every_style_of_upstream_translates():
    for style in SeparatorStyle:
        template = Conversation(name="x", sep_style=style, sep="\n", sep2="</s>").to_template()
        assert "u2" in template.render(Dialogue(ROUNDS)).text


def test_styles_that_show_history_otherwise_learn_the_last_answer_only():
    yuan = Conversation(name="y", sep_style=SeparatorStyle.YUAN2, sep="<sep>", sep2="\n").to_template()
    rendered = yuan.render(Dialogue(ROUNDS))
    assert rendered.text == "u1<n>a1<n>u2<sep>a2<eod>"
    assert [s.text for s in rendered.segments if s.supervised] == ["a2", "<eod>"]
    assert yuan.render(Dialogue(ROUNDS[:3]), add_generation_prompt=True).text == "u1<n>a1<n>u2<sep>"
    cllm = Conversation(name="c", sep_style=SeparatorStyle.CLLM, sep=" ", sep2="</s>").to_template()
    rendered = cllm.render(Dialogue(ROUNDS))
    assert rendered.text == " USER: u2 ASSISTANT: a2</s>"
    assert cllm.render(Dialogue(ROUNDS[:3]), add_generation_prompt=True).text == " USER: u2 ASSISTANT:"


def test_style_with_two_separators_needs_both():
    with pytest.raises(SettingsError, match="needs sep2"):
        shape_of("x", SeparatorStyle.ADD_COLON_TWO, "{system_message}", ("A", "B"), "\n", None)


def test_chatglm_counts_its_rounds():
    glm = Conversation(name="glm", roles=("问", "答"), sep_style=SeparatorStyle.CHATGLM, sep="\n").to_template()
    assert glm.render(Dialogue(ROUNDS)).text == "[Round 0]\n问：u1\n答：a1\n[Round 1]\n问：u2\n答：a2\n"


def test_conversation_copy_is_independent():
    conv = conversation("vicuna_v1.1")
    other = conv.copy()
    other.append_message(other.roles[0], "more")
    other.update_last_message("changed")
    assert len(conv.messages) == 4 and other.messages[-1] == ["USER", "changed"]
    assert conv.dict()["template_name"] == "vicuna_v1.1"
    assert conv.dict()["messages"] == [("USER", "u1"), ("ASSISTANT", "a1"), ("USER", "u2"), ("ASSISTANT", "a2")]
