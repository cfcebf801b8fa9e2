"""Tools, calls and results as each family writes them: expectations from the families' documents."""

import dataclasses
import json
import re

import pytest

from fastchat.conversation import (
    CallsFormat,
    ResultFormat,
    ToolCall,
    ToolsFormat,
    get_template,
    templates_with_calls,
)
from tests.conversation.calling import CASES, asks, dialogue, result, says

NAMES = templates_with_calls()
LLAMAS = ("llama-3.1", "llama-3.2", "llama-3.3")

# --- what each family writes, from its documents: (name, the beginning with a tool, one call to the answer after it)

TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
LINE = '{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}'
CALLED = dialogue(
    asks("u1"),
    says("", ToolCall("add", {"a": 1, "b": ["é"]}, "k3Xb9LmQ2")),
    result("3", "add", "k3Xb9LmQ2"),
    says("a2"),
    system="SYS",
    tools=[TOOL],
)
HERMES = (
    "<|im_start|>system\nSYS\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n" + LINE + "\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    '<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": '
    '["é"]}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n'
    "<|im_start|>assistant\na2<|im_end|>\n"
)
LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge Date: "
    "December 2023\nToday Date: 26 Jul 2024\n\nSYS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nGiven the "
    "following functions, please respond with a JSON for a function call with its proper arguments that best answers "
    'the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n" + json.dumps(TOOL, indent=4) + "\n\nu1<|eot_id|><|start_header_id|>assistant"
    '<|end_header_id|>\n\n{"name": "add", "parameters": {"a": 1, "b": ["é"]}}<|eot_id|><|start_header_id|>ipython'
    '<|end_header_id|>\n\n"3"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na2<|eot_id|>'
)
MISTRAL = (
    "[AVAILABLE_TOOLS]_[" + LINE + "][/AVAILABLE_TOOLS][INST]_SYS\n\nu1[/INST][TOOL_CALLS]_["
    '{"name": "add", "arguments": {"a": 1, "b": ["é"]}, "id": "k3Xb9LmQ2"}]</s>'
    '[TOOL_RESULTS]_{"content": 3, "call_id": "k3Xb9LmQ2"}[/TOOL_RESULTS]_a2</s>'
)
SMOL = (
    "\n\nYou have access to the following tools:\n<tools>[" + LINE + "]</tools>\n\nThe output MUST",
    '<|im_start|>assistant\n<tool_call>[{"name": "add", "arguments": {"a": 1, "b": ["é"]}}]</tool_call><|im_end|>\n'
    "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n",
)
WHOLE = {
    "qwen2.5": HERMES,
    "chatml": HERMES,
    **dict.fromkeys(LLAMAS, LLAMA),
    "mistral-v0.3": MISTRAL.replace("_a2", " a2").replace("]_", "] "),
    "mistral-nemo": MISTRAL.replace("_a2", "a2").replace("]_", "]"),
    "phi-4-mini": '<|system|>SYS<|tool|>[{"name": "add", "description": "Adds.", "parameters": {"type": "object"}}]'
    '<|/tool|><|end|><|user|>u1<|end|><|assistant|><|tool_call|>[{"name": "add", "arguments": {"a": 1, "b": ["é"]}}]'
    "<|/tool_call|><|end|><|tool_response|>3<|end|><|assistant|>a2<|end|>",
}
PARTS = {
    "smollm2": SMOL,
    "deepseek-v3": (
        "<｜begin▁of▁sentence｜>SYS\n\n# Tools\n\n",
        "<tools>\n" + LINE + "\n</tools>\n\n",
        "<｜User｜>u1<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
        '{"a": 1, "b": ["é"]}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>3"
        "<｜tool▁output▁end｜><｜tool▁outputs▁end｜>a2<｜end▁of▁sentence｜>",
    ),
    "command-r": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># Safety Preamble\n",
        "\n\n# User Preamble\nSYS\n\n## Available Tools\nHere is a list of tools that you have available to you:\n\n"
        '```python\ndef add() -> List[Dict]:\n    """Adds.\n    """\n    pass\n```<|END_OF_TURN_TOKEN|>'
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>u1<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>\nAction:\n"
        '```json\n[\n    {\n        "tool_name": "add",\n        "parameters": {\n            "a": 1,\n'
        '            "b": [\n                "é"\n            ]\n        }\n    }\n]```\n<|END_OF_TURN_TOKEN|>'
        "<|START_OF_TURN_TOKEN|>"
        "<|SYSTEM_TOKEN|><results>\n3</results><|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>",
        "Write 'Action:'",
        "]```<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>a2<|END_OF_TURN_TOKEN|>",
    ),
}


def test_every_template_with_calls_is_pinned():
    assert set(NAMES) == {*WHOLE, *PARTS}
    assert all(get_template(name).shows_calls for name in NAMES)
    assert not get_template("vicuna_v1.1").shows_calls


def test_the_docs_name_every_template_and_every_key(repository):
    text = (repository / "fastchat/conversation/README.md").read_text(encoding="utf-8")
    section = text[text.index("### Tools and calls") : text.index("### Where upstream's")]
    named = set(re.findall(r"`([^`]+)`", section))
    own = {f.name for f in dataclasses.fields(ResultFormat)} - {"open"}
    keys = {f"tools.{f.name}" for f in dataclasses.fields(ToolsFormat)} | {f"tool.{key}" for key in own}
    assert keys | {f"calls.{f.name}" for f in dataclasses.fields(CallsFormat)} | {"after_tool", *NAMES} <= named


@pytest.mark.parametrize("name", WHOLE)
def test_a_call_and_its_result_are_written_as_the_family_does(name):
    assert get_template(name).render(CALLED).text == WHOLE[name]


@pytest.mark.parametrize("name", PARTS)
def test_a_call_and_its_result_have_the_familys_parts_in_order(name):
    text, at = get_template(name).render(CALLED).text, 0
    for part in PARTS[name]:
        at = text.find(part, at)
        assert at >= 0, (part, text)
        at += len(part)
    assert at == len(text)


def test_results_in_a_row_share_a_turn_where_they_do():
    said = CASES["parallel"]
    shared = (
        "<|im_start|>user\n<tool_response>\n22.5\n</tool_response>\n<tool_response>\nnan\n</tool_response><|im_end|>\n"
    )
    assert shared in get_template("qwen2.5").render(said).text
    outputs = "<｜tool▁output▁begin｜>22.5<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>nan<｜tool▁output▁end｜>"
    outputs += "<｜tool▁outputs▁end｜>"
    assert outputs in get_template("deepseek-v3").render(said).text
    text = get_template("mistral-nemo").render(said).text
    assert text.count("[TOOL_RESULTS]") == 2 and '"content": 22.5,' in text and '"content": "nan",' in text


def test_a_text_before_calls():
    said = CASES["text and call"]
    assert "assistant\nLet me see.\n<tool_call>\n{" in get_template("qwen2.5").render(said).text
    assert "<｜Assistant｜>Let me see.<｜tool▁calls▁begin｜>" in get_template("deepseek-v3").render(said).text
