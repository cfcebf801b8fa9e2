"""Makes golden_interface.json: what the methods of upstream's own `Conversation` give, for dialogues of every shape.

    pip download --no-deps fschat==0.2.36
    python tests/conversation/make_interface.py fschat-0.2.36-py3-none-any.whl

For every template that the wheel registers and for every separator style, with and without the template's own examples
and for three system messages: eight hexadecimal digits of the SHA-256 of each prompt, in the order of `SHAPES`, and one
digest of everything else. `golden_prompts.json` holds prompts in full, for looking at.
"""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden_interface.json")
DIGITS = 8
REFUSED = "-" * DIGITS
SYSTEMS = (None, "", "You are X.")
ODD = "  two\r\n\r\nparagraphs \n\n and <s>[INST] {round} {sep} "
# Messages as (number of the role, message); a role that is a string is used unchanged.
SHAPES = {
    "nothing": [],
    "question": [(0, "q0")],
    "open": [(0, "q0"), (1, None)],
    "closed": [(0, "q0"), (1, "a0")],
    "second open": [(0, "q0"), (1, "a0"), (0, "q1"), (1, None)],
    "second closed": [(0, "q0"), (1, "a0"), (0, "q1"), (1, "a1")],
    "open question": [(0, "q0"), (1, "a0"), (0, None)],
    "only open": [(1, None)],
    "open from the start": [(0, None)],
    "third open": [(0, "q0"), (1, "a0"), (0, "q1"), (1, "a1"), (0, "q2"), (1, None)],
    "empty answer": [(0, "q0"), (1, "")],
    "empty question": [(0, ""), (1, "a0")],
    "empty in between": [(0, "q0"), (1, ""), (0, "q1"), (1, None)],
    "odd white space": [(0, ODD), (1, ODD), (0, "q1"), (1, None)],
    "assistant first": [(1, "a0"), (0, "q0"), (1, None)],
    "two questions": [(0, "q0"), (0, "q1"), (1, None)],
    "somebody else": [("narrator", "n0"), (0, "q0"), (1, None)],
    "image": [(0, ("look", ["i0", "i1"])), (1, None)],
    "image, no text": [(0, ("", ["i0"])), (1, "a0")],
}


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:DIGITS]


def filled(make, cleared: bool, system: str | None, shape: str):
    """A conversation with the messages of a shape; `make()` returns a new one."""
    conversation = make()
    if cleared:
        conversation.messages = []
    if system is not None:
        conversation.set_system_message(system)
    for role, message in SHAPES[shape]:
        name = role if isinstance(role, str) else conversation.roles[role]
        conversation.append_message(name, message)
    return conversation


def prompt(make, cleared: bool, system: str | None, shape: str) -> str | None:
    """The prompt; None if it is refused, as upstream refuses images in most styles."""
    try:
        return filled(make, cleared, system, shape).get_prompt()
    except (ValueError, TypeError, AttributeError):
        return None


def rest(make, cleared: bool, system: str | None) -> list:
    """The results of all other methods, for every shape."""
    found = []
    for shape in SHAPES:
        conversation = filled(make, cleared, system, shape)
        before = conversation.copy()
        if conversation.messages and shape != "image":
            conversation.update_last_message("said now")
        try:
            pairs = conversation.to_gradio_chatbot()
        except IndexError:
            pairs = None
        fields = ("name", "system_template", "system_message", "roles", "messages", "offset", "sep", "sep2")
        found.append([before.dict(), conversation.dict(), [getattr(before, field) for field in fields]])
        found.append([before.stop_str, before.stop_token_ids, before.sep_style and before.sep_style.name])
        found.append([conversation.to_openai_api_messages(), pairs, conversation.get_images()])
    return found


def conversations_of(module) -> dict:
    """Every template and every style of a module: name -> what makes a fresh conversation."""
    made = {name: lambda name=name: module.get_conv_template(name) for name in sorted(module.conv_templates)}
    for style in module.SeparatorStyle:
        values = {"roles": ("Q", "A", "third"), "sep_style": style, "sep": "<1>", "sep2": "<2>"}
        template = "[{system_message}]"
        made[f"style {style.name}"] = lambda values=values, template=template: module.Conversation(
            name="x", system_template=template, system_message="S", messages=[], **values
        )
    return made


def main(wheel: str) -> None:
    from tests.conversation.make_golden import loaded

    upstream = loaded(zipfile.ZipFile(wheel).read("fastchat/conversation.py").decode(), "upstream_released")
    golden = {}
    for name, make in conversations_of(upstream).items():
        for cleared in (False, True):
            for system in SYSTEMS:
                prompts = [prompt(make, cleared, system, shape) for shape in SHAPES]
                digests = "".join(REFUSED if text is None else digest(text) for text in prompts)
                key = f"{name}/{'cleared' if cleared else 'as it is'}/{system}"
                golden[key] = [digests, digest(rest(make, cleared, system))]
    GOLDEN.write_text(json.dumps(golden, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(golden)} rows -> {GOLDEN}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(sys.argv[1])
