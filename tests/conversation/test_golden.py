"""Every template of fschat 0.2.36, and those added later, render upstream's prompt; the exceptions are in the docs."""

import json
import re

import pytest

from fastchat.conversation import conv_templates, get_conv_template, get_template
from fastchat.conversation.builtin import builtin
from fastchat.errors import SettingsError
from tests.conversation.make_golden import GOLDEN, LATER, digest, prompts_of

REMOTE = {"chatgpt", "pplxai", "bard", "gemini", "steerlm"}  # refused upstream too: remote APIs
# name -> the prompts that differ, and why. The same rows are in fastchat/conversation/README.md.
EXCEPTIONS = {
    "deepseek-coder": lambda key: key.startswith("You are X."),  # upstream loses a row's own system message
    "yuan": lambda key: key.startswith("You are X."),  # likewise
    # Upstream loses a system message, and opens no user turn if there are no messages.
    "gemma": lambda key: key.startswith("You are X.") or "/0/" in key,
    # Upstream's separators are swapped if the rendered window begins with the assistant.
    "cllm": lambda key: int(key.split("/")[1]) > 1 and (int(key.split("/")[1]) % 2 == 1) == key.endswith("closed"),
    "yuan2": lambda key: True,  # upstream strips letters of the last message, and ends no answer with its stop
}
golden = json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_all_83_names_and_the_later_ones_are_registered():
    assert len(golden) == 83 + len(LATER) and set(golden) <= set(conv_templates)


def test_later_names_of_remote_apis_are_refused_as_such():
    for name in builtin().remote:
        with pytest.raises(SettingsError, match=f"'{re.escape(name)}' belongs to a remote API"):
            get_template(name)


def test_the_exceptions_are_rows_in_the_docs(repository):
    text = (repository / "fastchat/conversation/README.md").read_text(encoding="utf-8").split("## Which name")[0]
    assert set(re.findall(r"^\| `([^`]+)` \| [a-z]", text, re.M)) == set(EXCEPTIONS)


def test_differences_from_the_official_formats_are_in_the_docs(repository):
    text = (repository / "fastchat/conversation/README.md").read_text(encoding="utf-8")
    section = text[text.index("### Where upstream's template is not the official format") :]
    rows = section.split("\n\n")[2].splitlines()[2:]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    assert "mistral" in named and named <= set(golden)
    instead = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[-1])}
    assert instead <= {*conv_templates, "tokenizer"}


@pytest.mark.parametrize("name", golden)
def test_prompts_are_upstreams(name):
    ours = prompts_of(get_conv_template, name)
    differs = EXCEPTIONS.get(name, lambda key: False)
    if name in REMOTE:
        assert set(ours.values()) == {"<refused>"}
    if not differs("None/3/open"):
        assert ours["None/3/open"] == golden[name]["example"]
    for key, expected in golden[name]["digests"].items():
        if not differs(key):
            assert digest(ours[key]) == expected, (key, ours[key])


def test_the_exceptions_differ_in_what_they_mend():
    assert "You are X." in prompts_of(get_conv_template, "deepseek-coder")["You are X./1/open"]
    assert "You are X." in prompts_of(get_conv_template, "yuan")["You are X./1/open"]
    assert prompts_of(get_conv_template, "yuan2")["None/1/open"] == "message number 0<sep>"
    assert len(set(EXCEPTIONS) - set(LATER)) <= 4
