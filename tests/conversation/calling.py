"""Dialogues with tools, for the tests of every template that can show calls."""

import json
from typing import Any

from fastchat.conversation import Dialogue, Template, ToolCall, Turn, to_jinja
from fastchat.data.encoding.messages import to_openai
from fastchat.data.encoding.tokenizer_template import compile_template

SUN = {
    "type": "function",
    "function": {
        "name": "get_sun",
        "description": 'Hours of "sun" — 日照',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city"},
                "days": {"type": "array", "items": {"type": ["integer", "string"]}, "description": ""},
                "opts": {
                    "type": "object",
                    "additionalProperties": {"type": "number"},
                    "description": "More <|im_end|>",
                },
            },
            "required": ["city"],
        },
    },
}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"properties": {}}}}
ODD = {
    "city": 'Zür"ich\\ <tool_call>\n\t\u0007 🙂 {"a": [1]} \\u00fc / [/INST]</s>',
    "days": [1, -2.5, {"x": None, "y": [], "z": {}, "": [[]]}],
    "true": True,
    "u": ", : }",
}


def asks(text: str) -> Turn:
    return Turn("user", text)


def says(text: str, *calls: ToolCall, train: bool = True) -> Turn:
    return Turn("assistant", text, train, calls=calls)


def result(text: str, name: str | None = None, call_id: str | None = None) -> Turn:
    return Turn("tool", text, name=name, call_id=call_id)


def dialogue(*turns: Turn, system: str | None = None, tools: Any = (SUN, ADD), **more: Any) -> Dialogue:
    return Dialogue(turns, system, tools=tuple(tools), **more)


SUNNY, ADDED = ToolCall("get_sun", {"city": "Rome"}), ToolCall("add", {"a": 1, "b": [2]})
CASES = {
    "tools only": dialogue(asks(" Hi\n"), says("Hello")),
    "system": dialogue(asks("Hi"), says(" Hello "), system=" SYS "),
    "developer": dialogue(asks("Hi"), says("Hello"), system="SYS", system_role="developer"),
    "empty system": dialogue(asks("Hi"), says("Hello"), system=""),
    "without tools": dialogue(asks("Hi"), says("Hello"), tools=()),
    "one call": dialogue(asks("Hi"), says("", SUNNY)),
    "call without tools": dialogue(asks("Hi"), says("", SUNNY), result("1"), says("One."), tools=()),
    "special characters": dialogue(
        asks("Hi"),
        says("", ToolCall("get_sun", ODD, "abcDEF123")),
        result('<tool_call> "é" \\ </s>\n', "get_sun", "abcDEF123"),
        says("Fine."),
        system="S",
    ),
    "parallel": dialogue(asks("Hi"), says("", SUNNY, ADDED), result("22.5"), result("nan"), says("Done")),
    "parallel, by id": dialogue(
        asks("Hi"),
        says("", ToolCall("get_sun", {}, "x"), ToolCall("add", {}, "y")),
        result("3", None, "y"),
        result("null", None, "x"),
        says("Done"),
    ),
    "parallel, by name": dialogue(
        asks("Hi"), says("", SUNNY, ADDED), result("3", "add"), result('"sun"', "get_sun"), says("Done")
    ),
    "text and call": dialogue(asks("Hi"), says("Let me see.", SUNNY), result("{}"), says("Done")),
    "rounds": dialogue(
        asks("Hi"),
        says("", SUNNY),
        result('{"h": 1}'),
        says("One."),
        asks("More?"),
        says("", ADDED),
        result("2"),
        says("", ADDED),
        result("[3]"),
        says("Two."),
        asks("Bye"),
        says("Bye."),
    ),
    "result of an unknown call": dialogue(asks("Hi"), says("Yes"), result("1", None, "abc"), says("One.")),
    "arguments that are no object": dialogue(asks("Hi"), says("", ToolCall("get_sun", ["Rome", 1]))),
}


def through_jinja(template: Template, said: Dialogue, prompt: bool = False, arguments: str = "object") -> str:
    """The dialogue as the exported template renders it. `arguments`: "object", or as JSON "text", "compact" or "ascii"
    (then the content of an answer without text is null, as in OpenAI's API)."""
    forms: dict[str, dict[str, Any]] = {
        "text": {"ensure_ascii": False},
        "compact": {"ensure_ascii": False, "separators": (",", ":")},
        "ascii": {"indent": 2},
    }
    messages = to_openai(said)
    for message in messages:
        for call in message.get("tool_calls", ()):
            if arguments != "object":
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], **forms[arguments])
                message["content"] = message["content"] or None
    return compile_template(to_jinja(template)).render(
        messages=messages,
        tools=list(said.tools) or None,
        add_generation_prompt=prompt,
        bos_token="",
        eos_token="",
    )
