"""Every template that fschat 0.2.36 registers renders upstream's prompt, with the exceptions that docs list by name."""

import json

import pytest

from fastchat.conversation import conv_templates, get_conv_template
from tests.conversation.make_golden import GOLDEN, digest, prompts_of

REMOTE = {"chatgpt", "pplxai", "bard", "gemini", "steerlm"}  # refused upstream too: remote APIs
# name -> which prompts differ, and why. The same rows stand in fastchat/conversation/README.md.
EXCEPTIONS = {
    "deepseek-coder": lambda key: not key.startswith("None/"),  # upstream loses a record's own system message
    "yuan": lambda key: key.startswith("You are X."),  # likewise
    "yuan2": lambda key: True,  # upstream eats letters of the last message, and closes no answer with its stop
}
golden = json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_all_83_names_are_registered():
    assert len(golden) == 83 and set(golden) <= set(conv_templates)


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
    assert len(EXCEPTIONS) <= 4
