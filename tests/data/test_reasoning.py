"""Reasoning that stands apart: shown by the tokenizer's own template and learned, or the row is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fastchat.conversation import Dialogue, Turn
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import tokenize_dialogue, tokenize_dialogues
from fastchat.data.encoding.messages import IN_TEXT
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.preview import main as preview
from fastchat.data.rows.keys import REASONING_KEYS
from fastchat.data.tokens.store import digest
from tests.builders import make_tokenizer

# As Qwen3 has it: an answer after the last question is shown with what was thought, earlier ones without.
APART = (
    "{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' -}}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last -%}"
    "{{- '<think>\n' + (m.KEY if m.KEY is string else '').strip('\n') + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- m.content.lstrip('\n') + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
PLAIN = "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endfor -%}"
PLAIN += "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
ONE = Dialogue((Turn("user", "Hi"), Turn("assistant", "Yo.", True, "\nA greeting.\n")), None, "a.jsonl", 3)
TWO = replace(ONE, turns=(Turn("user", "Say"), Turn("assistant", "It.", True, "Hm."), *ONE.turns))

Bind = Callable[[str], ChatEncoder]


@pytest.fixture(scope="module")
def bind(tmp_path_factory: pytest.TempPathFactory) -> Bind:
    folder = make_tokenizer("byte_nobos", tmp_path_factory.mktemp("tokenizer"), chat_template=PLAIN)

    def made(source: str) -> ChatEncoder:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": source}), encoding="utf-8")
        encoder, _ = open_tokenizer(str(folder))
        return encoder.bind(encoder.choose("tokenizer"))

    return made


def learned(chat_encoder: ChatEncoder, dialogue: Dialogue) -> str:
    example = tokenize_dialogue(dialogue, chat_encoder, max_length=999)
    LabelCrossCheck(chat_encoder).check([(dialogue, example.input_ids, example.labels)])
    return chat_encoder.encoder.decode([label for label in example.labels if label >= 0])


@pytest.mark.parametrize("key", REASONING_KEYS)
def test_reasoning_is_learned_before_its_answer(bind: Bind, key: str) -> None:
    chat_encoder = bind(APART.replace("KEY", key))
    assert chat_encoder.template.reasoning_key == key
    assert learned(chat_encoder, ONE) == "<think>\nA greeting.\n</think>\n\nYo.<|im_end|>"
    same = replace(ONE, turns=(ONE.turns[0], Turn("assistant", "Yo.", True, "Yo.")))
    assert learned(chat_encoder, same) == "<think>\nYo.\n</think>\n\nYo.<|im_end|>"


def test_reasoning_that_a_later_prompt_drops_is_learned_in_an_example_of_its_own(bind: Bind) -> None:
    chat_encoder = bind(APART.replace("KEY", "reasoning_content"))
    examples = list(tokenize_dialogues([(0, TWO)], chat_encoder, max_length=999))
    assert [chat_encoder.encoder.decode([x for x in one.labels if x >= 0]) for one in examples] == [
        "<think>\nHm.\n</think>\n\nIt.<|im_end|>",
        "<think>\nA greeting.\n</think>\n\nYo.<|im_end|>",
    ]
    context = replace(TWO, turns=(TWO.turns[0], replace(TWO.turns[1], train=False), *TWO.turns[2:]))
    assert learned(chat_encoder, context) == "<think>\nA greeting.\n</think>\n\nYo.<|im_end|>"
    text = chat_encoder.template.render(TWO, add_generation_prompt=True).text
    assert "Hm." not in text  # as inference has it


def test_templates_that_read_no_key_show_reasoning_in_the_text(bind: Bind) -> None:
    """If the tokenizer has the tags."""
    thinks = "{%- set thinking = enable_thinking is defined -%}{# reasoning_content #}"
    for source in (PLAIN, thinks + PLAIN):
        assert bind(source).template.reasoning_key == IN_TEXT
        assert learned(bind(source), ONE) == "<think>\nA greeting.\n</think>\n\nYo.<|im_end|>"


def test_dialogues_that_differ_in_reasoning_differ() -> None:
    bare = replace(ONE, turns=(ONE.turns[0], Turn("assistant", "Yo.")))
    assert digest(ONE) != digest(bare)
    assert digest(bare) == digest(replace(bare, turns=(Turn("user", "Hi"), Turn("assistant", "Yo.", False))))


def test_the_preview_shows_it_or_refuses_by_name(
    bind: Bind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_encoder = bind(APART.replace("KEY", "reasoning_content"))
    path = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo.", "thinking": "A greeting."}]
    path.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    words = ["--model_name_or_path", chat_encoder.encoder.name, "--data_path", str(path), "--conv_template"]
    assert preview([*words, "tokenizer"]) == 0
    assert "A greeting." in capsys.readouterr().out
    assert preview([*words, "chatml"]) == 3
    assert f"{path}:1: reasoning that the template does not show: 'A greeting.'" in capsys.readouterr().err
