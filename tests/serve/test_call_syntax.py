"""Calls in an answer are read back, whatever the syntax of the template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.conversation import ToolCall, get_template, templates_with_calls
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.serve.call_syntax import CallSyntax, _Writer, learn_syntax
from tests.conversation.calling import ADD, ODD, SUN
from tests.data.own_templates import KINDS, with_tokens

# A template whose calls cannot be read back: the tags around texts end answers.
UNREADABLE = {"RESPONDING"}


def syntax_of(encoder: ChatEncoder) -> CallSyntax:
    syntax = learn_syntax(encoder)
    assert syntax is not None
    return syntax


def check(encoder: ChatEncoder) -> None:
    """Calls with difficult arguments, several calls, and text that is no call."""
    syntax, write = syntax_of(encoder), _Writer(encoder)
    tools = (SUN, ADD)
    exact = ODD if "JsonCall" in repr(syntax) or "middle='" in repr(syntax) else {"city": ODD["city"].strip()}
    for calls in (
        [ToolCall("get_sun", exact)],
        [ToolCall("get_sun", {"city": "Oslo"}), ToolCall("add", {})],
        [ToolCall("add", {"first": 1, "second": [2, "b"]})],
    ):
        written = write(calls)
        if written is None:
            continue  # one call per answer
        said, found = syntax.read(written, tools)
        assert [(c.name, c.arguments) for c in found] == [(c.name, c.arguments) for c in calls], written
        # Whoever streams the answer never shows a part of a call.
        shown = "".join(written)[: min(syntax.may_begin(written[:end]) for end in range(1, len(written) + 1))]
        assert shown.strip() in said.strip() or not shown.strip()
        cut = written[: len(written) * 2 // 3]
        assert syntax.read(cut, tools) == (cut, ())
    for text in ("Hello", "", "{", "a {} [1]", "It is 4."):
        assert syntax.read(text, tools) == (text, ())


@pytest.mark.parametrize("name", templates_with_calls())
def test_tables(name: str, tokenizer_dir: Callable[[str], Path]) -> None:
    encoder, _ = TextEncoder.from_directory(str(tokenizer_dir("byte_nobos")))
    assert encoder is not None
    check(encoder.bind(get_template(name)))


@pytest.mark.parametrize("name", sorted(KINDS))
def test_own_templates(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    encoder, _ = TextEncoder.from_directory(str(with_tokens(KINDS[name], tmp_path_factory.mktemp(name))))
    assert encoder is not None
    bound = encoder.bind(encoder.choose("tokenizer"))
    if not bound.template.shows_calls or name in UNREADABLE:
        assert learn_syntax(bound) is None
    else:
        syntax_of(bound)


def test_text_before_a_call_is_content(tokenizer_dir: Callable[[str], Path]) -> None:
    encoder, _ = TextEncoder.from_directory(str(tokenizer_dir("byte_nobos")))
    assert encoder is not None
    syntax = syntax_of(encoder.bind(get_template("chatml")))
    answer = 'Let me see. <tool>\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    assert syntax.may_begin(answer[:16]) == 12  # <too may begin a call
    assert syntax.may_begin(answer) == answer.index("<tool_call>")
    assert syntax.read(answer) == ("Let me see. <tool>", (ToolCall("add", {}),))
    for broken in (answer + " and more", answer.replace("}}", "}"), answer.replace("{}", "[]"), answer[:-3]):
        assert syntax.read(broken) == (broken, ())
