"""The example conversations in playground/data show every feature of the ShareGPT form, and load."""

from __future__ import annotations

from pathlib import Path

from fastchat.conversation import Turn
from fastchat.data.rows.records import load_dialogues


def test_the_example_conversations_show_what_a_record_can_hold(repository: Path) -> None:
    loaded = load_dialogues([str(repository / "playground" / "data" / "dummy_conversation.json")], calls=True)
    dialogues = {record.id: record.dialogue for record in loaded.records}
    assert all(dialogues.values())
    systems = {name: dialogue.system for name, dialogue in dialogues.items() if dialogue and dialogue.system}
    assert systems == {
        "system-key": "You answer in one short sentence.",
        "system-turn": "You are a patient teacher of arithmetic.",
    }
    tool, untrained = dialogues["tool"], dialogues["untrained-answer"]
    assert tool
    assert [turn.role for turn in tool.turns] == ["user", "assistant", "tool", "assistant"]
    assert untrained
    assert untrained.turns[1] == Turn("assistant", "color", train=False)
