"""Reasons and roles where an answer is more than its text: the markup of calls and reasoning is not a stop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastchat.conversation import Dialogue, RefusedByTemplate, get_template
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import tokenize_dialogues
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.renderings import renderings_of
from fastchat.data.view.reasons import ROLES, Why, explain
from fastchat.data.view.token_text import TokenTexts
from tests.data.own_templates import KINDS, with_tokens
from tests.data.test_own_template_kinds import DIALOGUES

TABLES = ("chatml", "qwen2.5")
OWN = ("APPENDING", "DROPPING", "CHAINED")


@pytest.fixture(scope="module", params=[*OWN, *TABLES])
def chat_encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    kind = request.param
    source = KINDS[kind if kind in OWN else "APPENDING"]
    encoder, _ = open_tokenizer(str(with_tokens(source, tmp_path_factory.mktemp(kind.lower().replace(".", "")))))
    return encoder.bind(encoder.choose("tokenizer") if kind in OWN else get_template(kind))


def _told(dialogue: Dialogue, chat_encoder: ChatEncoder) -> Iterator[list[tuple[str, int, str, Why]]]:
    """Of each example: (text, turn, role, reason) of its runs."""
    for example in tokenize_dialogues([(0, dialogue)], chat_encoder, max_length=4096):
        rendered = renderings_of(dialogue, chat_encoder)[example.part]
        encoded = chat_encoder.encode(rendered)
        texts = TokenTexts(chat_encoder.encoder).of(encoded.input_ids)
        said, start = [], 0
        for run in explain(rendered.dialogue or dialogue, rendered, encoded, example, chat_encoder, texts):
            said.append(("".join(texts[start : start + run.count]), run.turn, ROLES[run.role], run.why))
            start += run.count
        yield said


def test_only_the_stop_is_called_stop_and_markup_belongs_to_its_call(chat_encoder: ChatEncoder) -> None:
    template, seen = chat_encoder.template, set()
    stops = getattr(template, "stops", (template.stop,))
    for dialogue in DIALOGUES.values():
        try:
            examples = list(_told(dialogue, chat_encoder))
        except RefusedByTemplate:
            continue
        for said in examples:
            prompts = [(text, role) for text, _, role, why in said if why is Why.TEMPLATE]
            assert not [text for text, role in prompts if "<|im_start|>" in text and role != "template"]
            learned = [(text, turn, role, why) for text, turn, role, why in said if why.learned]
            for turn in {turn for _, turn, *_ in learned}:
                own = [(text, role, why) for text, t, role, why in learned if t == turn]
                stop = "".join(text for text, _, why in own if why is Why.STOP)
                assert stop in stops and own[-1][2] is Why.STOP and own[-1][1] == "assistant"
                answer = [(text, role) for text, role, why in own if why is not Why.STOP]
                calls = "".join(text for text, role in answer if role == "tool call")
                wanted = dialogue.turns[turn].calls
                assert bool(calls) == bool(wanted)
                assert all(call.name in calls for call in wanted)
                if wanted and chat_encoder.template.shows_calls and "<tool_call>" in calls:
                    assert calls.count("<tool_call>") == calls.count("</tool_call>") == len(wanted)
                seen |= {role for _, role in answer}
    assert "assistant" in seen and ("tool call" in seen) == template.shows_calls
    assert ("reasoning" in seen) == template.shows_reasoning
