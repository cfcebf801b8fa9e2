"""What other trainers' public tests expect of tool calls and reasoning, restated for rows and their ids here."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import Example, tokenize_dialogues
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.rows.formats import parse_row
from tests.data.own_templates import KINDS, with_tokens

TOOL = {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = {"type": "function", "function": TOOL}
ARGUMENTS = {"city": "Köln", "days": [1, 2.5, None], "more": {"a": '"b"'}}


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call], **more}


def row(*answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Rain?"}, *answers]
    return copy.deepcopy({"messages": messages, "tools": [WRAPPED], **more})


RESULT = {"role": "tool", "content": "wet", "tool_call_id": "call_1"}
SAID = {"role": "assistant", "content": "It rains."}


@pytest.fixture(scope="module")
def examples_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, Any]], list[Example]]:
    encoders: dict[str, ChatEncoder] = {}

    def made(kind: str, given: dict[str, Any]) -> list[Example]:
        if kind not in encoders:
            encoder, _ = open_tokenizer(str(with_tokens(KINDS[kind], tmp_path_factory.mktemp(kind.lower()))))
            encoders[kind] = encoder.bind(encoder.choose("tokenizer"))
        thinks = encoders[kind].template.shows_reasoning
        dialogue = parse_row(copy.deepcopy(given), thinks=thinks).dialogue
        assert dialogue is not None
        examples = list(tokenize_dialogues([(0, dialogue)], encoders[kind], max_length=4096))
        return examples

    return made


def ids(examples: list[Example]) -> list[tuple[list[int], list[int]]]:
    return [(one.input_ids, one.labels) for one in examples]


CALLING = ["APPENDING", "DROPPING", "CUTTING", "CHANNELS", "ENDLESS", "RESPONDING", "SWITCHED"]


@pytest.mark.parametrize("kind", CALLING)
def test_arguments_as_text_and_as_an_object_are_the_same(kind, examples_of):
    """axolotl: JSON text, which datasets with one schema need, is parsed before it is rendered."""
    as_text = row(called(json.dumps(ARGUMENTS)), RESULT, SAID)
    assert ids(examples_of(kind, as_text)) == ids(examples_of(kind, row(called(ARGUMENTS), RESULT, SAID)))


@pytest.mark.parametrize("kind", CALLING)
def test_no_content_next_to_a_call(kind, examples_of):
    """TRL: null, empty and absent content next to calls are the same."""
    forms = ({}, {"content": ""}, {"content": None})
    made = [ids(examples_of(kind, row(called(ARGUMENTS, **content), RESULT, SAID))) for content in forms]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("kind", CALLING)
def test_sharegpt_calls_are_those_of_openai(kind, examples_of):
    """LLaMA-Factory: function_call and observation turns, with the tools as JSON text."""
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": ARGUMENTS})},
            {"from": "observation", "value": "wet"},
            {"from": "gpt", "value": "It rains."},
        ],
        "tools": json.dumps([TOOL]),
    }
    openai = row(called(ARGUMENTS), RESULT, SAID)
    del openai["messages"][1]["tool_calls"][0]["id"], openai["messages"][2]["tool_call_id"]
    assert ids(examples_of(kind, sharegpt)) == ids(examples_of(kind, openai))


@pytest.mark.parametrize("kind", ["DROPPING", "OPENING", "CUTTING", "ENDLESS", "SWITCHED"])
def test_thinking_in_the_text_is_reasoning(kind, examples_of):
    """LLaMA-Factory, axolotl: <think> in the text of an answer is the same as reasoning in a key of its own."""
    for text in ("<think>\nHm.\n</think>\n\nIt rains.", "<think>Hm.</think>It rains."):
        apart = {"role": "assistant", "content": "It rains.", "reasoning_content": "Hm."}
        within = {"role": "assistant", "content": text}
        assert ids(examples_of(kind, {"messages": row(within)["messages"]})) == ids(
            examples_of(kind, {"messages": row(apart)["messages"]})
        )


@pytest.mark.parametrize("kind", CALLING)
def test_an_answer_that_is_not_trained_changes_no_other(kind, examples_of):
    """axolotl, torchtune (masked messages): the other answers keep their ids and labels."""
    every = examples_of(kind, row(called(ARGUMENTS), RESULT, SAID))
    some = examples_of(kind, row(called(ARGUMENTS, train=False), RESULT, SAID))
    assert [one.answers for one in some] == [(3,)]
    last = next(one for one in every if 3 in one.answers)
    learned = [label for label in some[0].labels if label != -100]
    assert some[0].input_ids == last.input_ids
    assert [label for label in last.labels if label != -100][-len(learned) :] == learned


def test_results_belong_to_calls_by_id(examples_of, tmp_path):
    """mistral-common: each result has the id of its call, whatever their order is; all ids are of nine characters."""
    calls = [called({"city": city})["tool_calls"][0] | {"id": name} for city, name in (("Rome", "a"), ("Oslo", "b"))]
    results = [{"role": "tool", "content": f"result {name}", "tool_call_id": name} for name in "ba"]
    both = {"role": "assistant", "content": None, "tool_calls": calls}
    example = examples_of("MOVING", row(both, *results, SAID))[-1]
    encoder, _ = open_tokenizer(str(with_tokens(KINDS["MOVING"], tmp_path)))
    shown = encoder.decode(example.input_ids)
    made = re.findall(r'"city": "(\w+)"}, "id": "(\w{9})"', shown)
    assert [city for city, _ in made] == ["Rome", "Oslo"]
    rome, oslo = (id_ for _, id_ in made)
    assert rome != oslo
    assert f"result b {oslo}" in shown and f"result a {rome}" in shown


@pytest.mark.parametrize("kind", CALLING)
def test_a_last_result_is_context_of_nothing(kind, examples_of):
    """torchtune: a dialogue that ends with a result teaches the call before it, and nothing after it."""
    (example,) = examples_of(kind, row(called(ARGUMENTS), RESULT))
    assert example.answers == (1,) and example.dropped is None
