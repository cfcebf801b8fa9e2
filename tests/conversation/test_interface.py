"""Our `Conversation` gives the same results as upstream's, for dialogues of every shape; see make_interface.py."""

import json
from types import SimpleNamespace

import pytest

from fastchat import conversation as ours
from fastchat.conversation import Conversation, Template, get_conv_template, register_conv_template
from tests.conversation.make_interface import DIGITS, GOLDEN, REFUSED, SHAPES, SYSTEMS, conversations_of, digest
from tests.conversation.make_interface import prompt as prompt_of
from tests.conversation.make_interface import rest as rest_of

golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
NAMES = list(dict.fromkeys(key.rsplit("/", 2)[0] for key in golden))
# name -> (systems, shapes) that differ, None for all; the reasons are in fastchat/conversation/README.md.
IMAGES = ("image", "image, no text")  # upstream's chatglm writes Python's form of the pair
DIFFERS = {
    **dict.fromkeys(("yuan2", "style YUAN2"), (None, None)),
    **dict.fromkeys(("deepseek-coder", "yuan"), (("You are X.",), None)),
    **dict.fromkeys(("chatglm", "chatglm2", "style CHATGLM"), (None, IMAGES)),
}


def differs(name: str, system: str | None, shape: str) -> bool:
    systems, shapes = DIFFERS.get(name, ((), ()))
    return (systems is None or system in systems) and (shapes is None or shape in shapes)


@pytest.fixture(scope="module")
def made() -> dict:
    names = [name for name in NAMES if not name.startswith("style ")]
    styles = [ours.SeparatorStyle[name.split()[1]] for name in NAMES if name.startswith("style ")]
    return conversations_of(
        SimpleNamespace(
            conv_templates=names,
            SeparatorStyle=styles,
            Conversation=Conversation,
            get_conv_template=get_conv_template,
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_and_every_method_is_upstreams(made: dict, name: str) -> None:
    for cleared in (False, True):
        for system in SYSTEMS:
            digests, rest = golden[f"{name}/{'cleared' if cleared else 'as it is'}/{system}"]
            for i, shape in enumerate(SHAPES):
                wanted = digests[i * DIGITS : (i + 1) * DIGITS]
                found = prompt_of(made[name], cleared, system, shape)
                if wanted != REFUSED and not differs(name, system, shape):
                    assert found is not None and digest(found) == wanted, (cleared, system, shape, found)
            assert digest(rest_of(made[name], cleared, system)) == rest, (cleared, system)


def test_messages_cleared_leave_nothing_of_the_examples() -> None:
    rwkv = get_conv_template("rwkv")
    rwkv.messages = []
    rwkv.append_message(rwkv.roles[0], "Hi")
    rwkv.append_message(rwkv.roles[1], None)
    assert rwkv.get_prompt() == "Bob: Hi\n\nAlice:"


def test_a_table_with_examples_shows_them_and_can_be_cleared() -> None:
    around = {"before": "Q", "after": ";", "open": "Q"}, {"before": "A ", "after": ".", "open": "A"}
    table = {"name": "mine", "user": around[0], "assistant": around[1], "examples": [["user", "1"], ["assistant", "2"]]}
    register_conv_template(Template.from_dict(table))
    mine = get_conv_template("mine")
    assert mine.get_prompt() == "Q1;A 2." and mine.offset == 2
    mine.append_message("user", "3")
    mine.append_message("assistant", None)
    assert mine.get_prompt() == "Q1;A 2.Q3;A" and mine.to_openai_api_messages() == [{"role": "user", "content": "3"}]
    mine.messages = mine.messages[2:]
    assert mine.get_prompt() == "Q3;A"
