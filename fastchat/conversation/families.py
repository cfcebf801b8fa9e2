"""The model families that people train today: templates as tables, and names that mean the tokenizer's own template.

Every table renders, for dialogues without tools, what its family's published Jinja chat template renders; where that is
impossible the row says how it differs. `ROUTED` holds the families whose template no table can be: it writes dates, or
shows history otherwise than it was generated. The table in README.md beside this file lists them all.
"""

from __future__ import annotations

from fastchat.conversation.template import RoleFormat, Template

_JINJA = "the Jinja chat template that {} publish with their tokenizers"
# The date that the published template writes where it is not told one.
_LLAMA_31 = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def _turn(before: str, after: str) -> RoleFormat:
    return RoleFormat(before, after, before)


def _chatml(name: str, system_message: str, tool: RoleFormat, origin: str) -> Template:
    user, assistant = (_turn(f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("user", "assistant"))
    return Template(
        name,
        user,
        assistant,
        system="<|im_start|>system\n{system_message}<|im_end|>\n",
        system_message=system_message,
        stop_strings=("<|im_end|>",),
        tool=tool,
        origin=origin,
    )


def _llama(name: str) -> Template:
    def header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    opening = f"<|begin_of_text|>{header('system')}{_LLAMA_31}"
    return Template(
        name,
        _turn(header("user"), "<|eot_id|>"),
        _turn(header("assistant"), "<|eot_id|>"),
        system=opening + "{system_message}<|eot_id|>",
        no_system=opening + "<|eot_id|>",
        tool=_turn(header("ipython"), "<|eot_id|>"),
        content="strip_all",
        stop_strings=("<|eot_id|>",),
        stop_token_ids=(128001, 128008, 128009),
        origin=_JINJA.format("Llama-3.1, 3.2 and 3.3") + ", with the date it writes where it is not told one",
    )


def _gemma(name: str) -> Template:
    user, model = "<start_of_turn>user\n", "<start_of_turn>model\n"
    return Template(
        name,
        _turn(user, "<end_of_turn>\n"),
        _turn(model, "<end_of_turn>\n"),
        system=f"<bos>{user}" + "{system_message}\n\n",
        no_system=f"<bos>{user}",
        first_user=RoleFormat("", "<end_of_turn>\n"),
        content="strip",
        stop_strings=("<end_of_turn>",),
        origin=_JINJA.format("Gemma-2 and 3") + "; Gemma-2's refuses a system message, here it stands as in Gemma-3's",
    )


def _mistral(name: str, system: str, user: RoleFormat, answer: RoleFormat) -> Template:
    return Template(
        name,
        user,
        answer,
        system=system,
        no_system=user.before,
        first_user=RoleFormat("", user.after),
        stop_strings=("</s>",),
        origin=_JINJA.format("Mistral") + "; that puts a system message into the last user turn, this into the first",
    )


TABLES = [
    *(_llama(name) for name in ("llama-3.1", "llama-3.2", "llama-3.3")),
    *(_gemma(name) for name in ("gemma-2", "gemma-3")),
    _mistral(
        "mistral-v0.3",
        "[INST] {system_message}\n\n",
        _turn("[INST] ", "[/INST]"),
        RoleFormat(" ", "</s>"),
    ),
    _mistral("mistral-nemo", "[INST]{system_message}\n\n", _turn("[INST]", "[/INST]"), RoleFormat("", "</s>")),
    _chatml(
        "qwen2.5",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        _turn("<|im_start|>user\n<tool_response>\n", "\n</tool_response><|im_end|>\n"),
        _JINJA.format("Qwen2.5-Instruct"),
    ),
    _chatml(
        "smollm2",
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        _turn("<|im_start|>tool\n", "<|im_end|>\n"),
        _JINJA.format("SmolLM2-Instruct"),
    ),
    Template(
        "phi-3.5",
        _turn("<|user|>\n", "<|end|>\n"),
        _turn("<|assistant|>\n", "<|end|>\n"),
        system="<|system|>\n{system_message}<|end|>\n",
        stop_strings=("<|end|>",),
        origin=_JINJA.format("Phi-3.5") + ", without the EOS at the very end",
    ),
    Template(
        "phi-4",
        _turn("<|im_start|>user<|im_sep|>", "<|im_end|>"),
        _turn("<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
        system="<|im_start|>system<|im_sep|>{system_message}<|im_end|>",
        stop_strings=("<|im_end|>",),
        origin=_JINJA.format("Phi-4"),
    ),
    Template(
        "phi-4-mini",
        _turn("<|user|>", "<|end|>"),
        _turn("<|assistant|>", "<|end|>"),
        system="<|system|>{system_message}<|end|>",
        stop_strings=("<|end|>",),
        origin=_JINJA.format("Phi-4-mini") + ", without the EOS at the very end",
    ),
    Template(
        "deepseek-v3",
        _turn("<｜User｜>", ""),
        _turn("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        system="<｜begin▁of▁sentence｜>{system_message}",
        no_system="<｜begin▁of▁sentence｜>",
        stop_strings=("<｜end▁of▁sentence｜>",),
        origin=_JINJA.format("DeepSeek-V3"),
    ),
    Template(
        "command-r",
        _turn("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        _turn("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        system="<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{system_message}<|END_OF_TURN_TOKEN|>",
        no_system="<BOS_TOKEN>",
        content="strip",
        stop_strings=("<|END_OF_TURN_TOKEN|>",),
        origin=_JINJA.format("Command-R and R+"),
    ),
]

# Families -> why only the tokenizer's own template is right for them.
ROUTED = {
    "qwen3": "it drops the thinking of earlier answers",
    "deepseek-r1": "it drops the thinking of earlier answers",
    "granite": "it writes today's date",
    "olmo-2": "its answers end in the token that also begins the text",
    "smollm3": "it writes today's date, and whether the model thinks",
}
# Names that upstream registered after 0.2.36 for models behind remote APIs.
REMOTE = (
    *("api_based_default", "gpt-4-turbo-2024-04-09", "gpt-mini", "claude-3-haiku-20240307"),
    *("claude-3-sonnet-20240229", "claude-3-5-sonnet-20240620-v2", "claude-3-5-sonnet-20240620"),
    *("claude-3-opus-20240229", "meta-llama-3.1", "meta-llama-3.1-sp", "gemini-1.5-pro"),
    *("gemini-1.5-pro-002-test-sp", "yandexgpt", "grok-2", "grok-2-mini"),
)
# What a model's name says about its template, first match first: every word of a row must be in the name.
BY_NAME = (
    (("llama-2", "chat"), "llama-2"),
    (("llama2", "chat"), "llama-2"),
    (("llama-3.1", "instruct"), "llama-3.1"),
    (("llama-3.2", "instruct"), "llama-3.2"),
    (("llama-3.3", "instruct"), "llama-3.3"),
    (("llama-3", "instruct"), "llama-3"),
    (("mistral", "instruct", "v0.3"), "mistral-v0.3"),
    (("mistral-nemo",), "mistral-nemo"),
    (("mistral", "instruct"), "mistral"),
    (("mixtral", "instruct"), "mistral"),
    (("gemma-2-", "it"), "gemma-2"),
    (("gemma-3", "it"), "gemma-3"),
    (("gemma", "it"), "gemma"),
    (("zephyr",), "zephyr"),
    (("qwen3",), "qwen3"),
    (("qwen2.5", "instruct"), "qwen2.5"),
    (("qwen", "chat"), "qwen-7b-chat"),
    (("qwen", "instruct"), "qwen-7b-chat"),
    (("phi-3.5",), "phi-3.5"),
    (("phi-3",), "phi-3"),
    (("phi-4-mini",), "phi-4-mini"),
    (("phi-4",), "phi-4"),
    (("deepseek-v3",), "deepseek-v3"),
    (("deepseek-r1",), "deepseek-r1"),
    (("deepseek", "chat"), "deepseek-chat"),
    (("command-r",), "command-r"),
    (("granite", "instruct"), "granite"),
    (("olmo-2", "instruct"), "olmo-2"),
    (("smollm2", "instruct"), "smollm2"),
    (("smollm3",), "smollm3"),
)
