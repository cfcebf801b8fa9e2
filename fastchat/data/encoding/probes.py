"""Harmless dialogues on which every tokenizer and template is checked before training.

They contain what real dialogues contain (several turns, code, numbers, other scripts, a system message or none) and no
control strings.
"""

from fastchat.conversation import Dialogue, Turn


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
