"""Harmless dialogues on which every tokenizer and template is checked before training.

They contain what real dialogues contain (several turns, code, numbers, other scripts, a system message or none) and no
control strings. Tables with a call syntax are also checked on dialogues with tools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastchat.conversation import Dialogue, RefusedByTemplate, Template, ToolCall, Turn

if TYPE_CHECKING:
    from fastchat.data.encoding.tokenizer_template import TokenizerTemplate


def _dialogue(*texts: str, system: str | None = None) -> Dialogue:
    roles = ("user", "assistant")
    return Dialogue(tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)), system)


HARMLESS = (
    _dialogue("Hi", "Hello. How can I help you today?"),
    _dialogue("What is 12 + 30?", "It is 42.", "And times two?", "84, of course!"),
    _dialogue("Write a loop.", "```python\nfor i in range(3):\n    print(i)\n```", "Thanks", "You're welcome."),
    _dialogue("¿Qué tal? 你好，世界", "Très bien, merci — 很好。", "🙂 ok?", "ünïcödé 🙂 works"),
    _dialogue("A question", "An answer", system="You are a careful helper."),
    _dialogue("A question", "An answer", "Another", "One more", system=""),
    Dialogue(
        (
            Turn("user", "Run it."),
            Turn("assistant", '{"name": "run", "arguments": {}}'),
            Turn("tool", "72\n"),
            Turn("assistant", "The output is 72."),
        )
    ),
)

_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather in a city, such as "Zürich".',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Its name"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"properties": {}}}},
)
_CALL = ToolCall("get_weather", {"city": "Zürich", "days": 2, "more": [1.5, None, {"a": '\n"b"'}]}, "Vq3xK9aB1")
_CALLED = (Turn("user", "Will it rain?"), Turn("assistant", "", calls=(_CALL,)), Turn("tool", '{"rain": true}'))
CALLING = (
    Dialogue((*_CALLED, Turn("assistant", "Yes.")), "Be brief.", tools=_TOOLS),
    Dialogue((*_CALLED, Turn("assistant", "Yes."), *_CALLED, Turn("assistant", "It will.")), tools=_TOOLS),
    Dialogue(
        (
            Turn("user", "Both, please."),
            Turn("assistant", "", calls=(ToolCall("now", {}), ToolCall("get_weather", {"city": "Rome"}))),
            Turn("tool", "12:30", name="now"),
            Turn("tool", "sunny", name="get_weather"),
            Turn("assistant", "One moment.", calls=(ToolCall("now", {}),)),
            Turn("tool", "12:31"),
            Turn("assistant", "Sunny at 12:31."),
        ),
        tools=_TOOLS,
    ),
    Dialogue((Turn("user", "Hi"), Turn("assistant", "Hello.")), tools=_TOOLS),
)


REASONING = (
    Dialogue((Turn("user", "What is 12 + 30?"), Turn("assistant", "It is 42.", reasoning="12 and 30 make 42."))),
    Dialogue(
        (
            *(Turn("user", "Is 7 prime?"), Turn("assistant", "Yes.", reasoning="Nothing divides it.")),
            *(Turn("user", "And 8?"), Turn("assistant", "No.", reasoning="2 divides it.")),
        )
    ),
)


def more_probes(template: Template | TokenizerTemplate) -> tuple[Dialogue, ...]:
    """Dialogues with tools and with reasoning, if a tokenizer's own template shows them."""
    if isinstance(template, Template):
        return ()
    return (*(CALLING if template.shows_calls else ()), *(REASONING if template.shows_reasoning else ()))


def probes_of(template: Template | TokenizerTemplate) -> tuple[Dialogue, ...]:
    """The harmless dialogues that a template can render."""
    if not isinstance(template, Template):
        return template.probes
    return (*HARMLESS, *(dialogue for dialogue in CALLING if _accepts(template, dialogue)))


def _accepts(template: Template, dialogue: Dialogue) -> bool:
    try:
        template.render(dialogue)
    except RefusedByTemplate:
        return False
    return True
