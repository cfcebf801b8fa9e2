"""The example conversations in playground/data show every feature of the ShareGPT form, and load; the run that
docs/long-context.md shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastchat.conversation import Turn
from fastchat.data.rows.records import load_dialogues
from tests.machine import free_port


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


@pytest.mark.thorough
def test_what_long_context_says_of_sequence_parallelism(repository: Path) -> None:
    """Two processes: DeepSpeed's Ulysses is exact for one document, not for a pack; the exchange is for both."""
    script = repository / "playground" / "benchmark" / "sequence_parallel.py"
    command = ["torchrun", "--nproc_per_node", "2", "--master_port", str(free_port()), str(script)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    found = dict(re.findall(r"(?m)^(.* document.*): loss ([\d.]+)", done.stdout))
    assert len(found) == 6 and "NotImplementedError" in done.stdout, done.stdout + done.stderr
    losses = {name: float(loss) for name, loss in found.items()}
    one, two = losses["one document, one process"], losses["two documents, one process"]
    assert losses["one document, DeepSpeed Ulysses"] == pytest.approx(one, abs=1e-6)
    assert abs(losses["two documents, DeepSpeed Ulysses"] - two) > 1e-4
    for name, exact in (("one document", one), ("two documents", two)):
        assert losses[f"{name}, exchange with documents"] == pytest.approx(exact, abs=1e-6)
