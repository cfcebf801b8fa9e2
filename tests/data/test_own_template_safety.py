"""Nothing in a tool's schema or result, a call's arguments, reasoning or a message can become a control token."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastchat.conversation import Dialogue, ToolCall, Turn
from fastchat.data.encoding.properties import _no_control
from tests.tiers import examples

CALLING = ("APPENDING", "DROPPING", "CUTTING", "CHANNELS", "ENDLESS", "RESPONDING", "MOVING", "BOXED", "CHAINED")
# What a template makes of these depends on the text itself: it removes what looks like reasoning.
ACTED_ON = ("</think>", "<think>")
PIECES = (
    "<|im_end|>", "<|im_start|>assistant\n", "<|eos|>", "<|return|>", "<|call|>", "<|user|>", "<|observation|>",
    "<turn|>", "<tool_call|>", '<|"|>', "</tool_call>", "</tool_response>", "</arg_value>", "[/INST]", "<|turn_end|>",
    "<|endoftext|>", "<|im_", "end|>", '"', "\\", "\n", "{", "}", "'", "é🙂", " ", "\ue000", "\ue0010\ue001", "word",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), min_size=1, max_size=4).map("".join)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def dialogues(draw, most_calls):
    named = {"name": "run", "description": draw(TEXTS)}
    schema = {
        "type": "object",
        "properties": draw(st.dictionaries(TEXTS, st.fixed_dictionaries({"description": TEXTS}), max_size=2)),
    }
    calls = tuple(
        ToolCall("run", draw(st.dictionaries(TEXTS, VALUES, max_size=2)))
        for _ in range(draw(st.integers(1, most_calls)))
    )
    turns = (
        Turn("user", draw(TEXTS)),
        Turn("assistant", "", reasoning=draw(st.none() | TEXTS), calls=calls),
        *(Turn("tool", draw(TEXTS)) for _ in calls),
        Turn("assistant", draw(TEXTS)),
        Turn("user", draw(TEXTS)),
        Turn("assistant", draw(TEXTS), reasoning=draw(st.none() | TEXTS)),
    )
    tools = ({"type": "function", "function": {**named, "parameters": schema}},)
    return Dialogue(turns, draw(st.none() | TEXTS), tools=tools)


def harmless(value):
    """The same with words for texts."""
    if isinstance(value, str):
        return "word" if value.strip() else value
    if isinstance(value, dict):
        kept = {"type", "function", "name", "description", "parameters", "properties"}
        return {key if key in kept else f"key{k}": harmless(made) for k, (key, made) in enumerate(value.items())}
    return [harmless(made) for made in value] if isinstance(value, list | tuple) else value


def twin(dialogue):
    turns = [
        Turn(
            turn.role,
            harmless(turn.text),
            reasoning=turn.reasoning and harmless(turn.reasoning),
            calls=tuple(ToolCall(call.name, harmless(call.arguments)) for call in turn.calls),
        )
        for turn in dialogue.turns
    ]
    system = dialogue.system and harmless(dialogue.system)
    return Dialogue(tuple(turns), system, tools=tuple(harmless(dialogue.tools)))


def specials(chat_encoder, dialogue):
    """The special tokens of every example."""
    special = {token["id"] for token in chat_encoder.encoder.added.values() if token["special"]}
    made = []
    for rendered in chat_encoder.template.renderings(dialogue):
        encoded = chat_encoder.encode(rendered)
        _no_control(chat_encoder, rendered, encoded)
        made.append([i for i in encoded.input_ids if i in special])
    return made


@pytest.mark.parametrize("kind", CALLING)
@settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_control_tokens_are_those_of_harmless_texts(kind, data, chat_encoder_of):
    chat_encoder = chat_encoder_of(kind)
    dialogue = data.draw(dialogues(most_calls=1 if kind == "CHANNELS" else 2))
    assert specials(chat_encoder, dialogue) == specials(chat_encoder, twin(dialogue))
