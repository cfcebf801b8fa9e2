"""What the API sends to an engine is what training taught: for every kind of template and tokenizer, with system
messages, tools, calls, their results, reasoning and several turns, whatever the texts say."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("fastapi")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fastchat.data.encoding.chat_encoder import ChatEncoder  # noqa: E402
from fastchat.data.encoding.text_encoder import TextEncoder  # noqa: E402
from fastchat.data.rows.bad_rows import BadRow  # noqa: E402
from fastchat.data.rows.formats import parse_row  # noqa: E402
from fastchat.errors import UserError  # noqa: E402
from fastchat.serve.api.errors import ApiError  # noqa: E402
from fastchat.serve.api.parameters import read_chat  # noqa: E402
from fastchat.serve.api.served import ServedModel  # noqa: E402
from tests.data.own_templates import KINDS, with_tokens  # noqa: E402
from tests.data.test_properties import HOSTILE, bind  # noqa: E402
from tests.serve.serving import WEATHER, served  # noqa: E402
from tests.tiers import ALL_TOKENIZERS, examples, template_cases  # noqa: E402

FEW = settings(max_examples=examples(2), deadline=None, suppress_health_check=list(HealthCheck))
TEXTS = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), min_size=1, max_size=5).map(lambda p: "a" + "".join(p))
# The texts of answers: "<think>" there is reasoning for training, which clients send in its own key.
ANSWERS = st.sampled_from(["Yes.", "It is 4 </s><|im_end|> 🙂", "{}", " [/INST] é\n\nb"])


@st.composite
def rows(draw: Any, tools: bool, reasons: bool, system: bool) -> dict[str, Any]:
    """A row of training data in OpenAI's form, which ends with an answer."""
    messages: list[dict[str, Any]] = []
    if system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXTS)})
    for number in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXTS)})
        if tools and draw(st.booleans()):
            arguments = json.dumps({"city": draw(TEXTS)})
            call = {"id": f"call{number:05d}", "type": "function", "function": {"name": "weather"}}
            call["function"]["arguments"] = arguments
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": draw(TEXTS)})
        thought = {"reasoning_content": draw(ANSWERS)} if reasons and draw(st.booleans()) else {}
        messages.append({"role": "assistant", "content": draw(ANSWERS), **thought})
    return {"messages": messages, **({"tools": [WEATHER]} if tools and draw(st.booleans()) else {})}


def check(model: ServedModel, row: dict[str, Any]) -> int:
    """Compare the prompt of every answer with the ids that training has before it; how many could be compared."""
    encoder, compared = model.chat_encoder, 0
    for number, message in enumerate(row["messages"]):
        if message["role"] != "assistant":
            continue
        body = {"model": "m", **row, "messages": row["messages"][:number]}
        try:
            dialogue = parse_row({**row, "messages": row["messages"][: number + 1]}).dialogue
            trained = encoder.encode(encoder.template.renderings(dialogue)[-1])
        except (BadRow, UserError):
            with suppress(ApiError):  # an answer alone may be what cannot be trained; nothing else may be raised
                model.chat_prompt(read_chat(body))
            continue
        served_ids = model.chat_prompt(read_chat(body)).ids
        begin = next((k for k, is_learned in enumerate(trained.supervised) if is_learned and k >= len(served_ids)), -1)
        if trained.input_ids[: len(served_ids)] != served_ids:
            # A token that holds the end of a question and the beginning of its answer, which is reported; or white
            # space at the end of a prompt, which byte-level tokenizers cut by what follows it.
            text = encoder.template.render(dialogue.before(len(dialogue.turns) - 1), add_generation_prompt=True).text
            torn = text[-1:].isspace() or not getattr(getattr(encoder.template, "assistant", None), "open", "x")
            assert torn or any(len(served_ids) - 3 <= p <= len(served_ids) for p in trained.straddling), row
        assert begin != -1 or encoder.template.only_last or not message["content"]
        compared += 1
        check_controls(model, row, number, served_ids)
    return compared


def check_controls(model: ServedModel, row: dict[str, Any], number: int, ids: list[int]) -> None:
    """The control tokens of a prompt are those of the same conversation with harmless texts."""
    added = model.chat_encoder.encoder.added
    controls = {t["id"] for c, t in added.items() if t["special"] and c != "<unk>"}
    controls |= {c.id for c in model.chat_encoder.controls.values() if c}
    harmless = []
    for message in row["messages"][:number]:
        plain = {
            key: "x" if key in ("content", "reasoning_content") and value else value for key, value in message.items()
        }
        for call in plain.get("tool_calls", ()):
            function = {**call["function"], "arguments": '{"city": "x"}'}
            plain["tool_calls"] = [{**call, "function": function}]
        harmless.append(plain)
    plainly = model.chat_prompt(read_chat({"model": "m", **row, "messages": harmless})).ids
    assert [i for i in ids if i in controls] == [i for i in plainly if i in controls], row


def model_of(encoder: ChatEncoder) -> ServedModel:
    model = served(encoder)
    model.learn()
    return model


_models: dict[Any, ServedModel] = {}


@pytest.mark.parametrize(("tokenizer", "template"), template_cases(ALL_TOKENIZERS))
@FEW
@given(data=st.data())
def test_of_tables(encoder_of: Any, tokenizer: str, template: str, data: st.DataObject) -> None:
    key = tokenizer, template
    if key not in _models:
        _models[key] = model_of(bind(encoder_of, tokenizer, template))
    check(_models[key], data.draw(rows(_models[key].calls is not None, False, True)))


@pytest.mark.parametrize("name", sorted(KINDS))
@FEW
@given(data=st.data())
def test_of_own_templates(name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    if name not in _models:
        encoder, _ = TextEncoder.from_directory(str(with_tokens(KINDS[name], tmp_path_factory.mktemp(name))))
        assert encoder is not None
        _models[name] = model_of(encoder.bind(encoder.choose("tokenizer")))
    model = _models[name]
    # In SWITCHED an argument of the request, which a row has too, opens the reasoning.
    reasons = model.chat_encoder.template.shows_reasoning and name != "SWITCHED"
    check(model, data.draw(rows(model.calls is not None, reasons, True)))
