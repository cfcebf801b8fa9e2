"""The Go template of a Modelfile renders what the chat template does, or is left out with the reason."""

from __future__ import annotations

import pytest

from fastchat.conversation import get_template, to_jinja
from fastchat.data.encoding.jinja_environment import compile_template, failures
from fastchat.export.modelfile import GoTemplate, NotExpressible, Render, learn, modelfile
from tests.export import go_template

DIALOGUES = [
    ["Hi"],
    ["Hi", "Hello {{ you }}", "More?"],
    ["1", "2", "3", "4", 'a "quoted" <|im_end|> text'],
]


def renderer(source: str) -> Render:
    compiled = compile_template(source)

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return compiled.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        except failures() as problem:
            raise ValueError(str(problem)) from problem

    return render


def jinja_of(name: str) -> Render:
    return renderer(to_jinja(get_template(name), lead="<s>", eos="</s>"))


def messages_of(texts: list[str], system: str = "") -> list[dict[str, str]]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


@pytest.mark.parametrize(
    "name", ["vicuna_v1.1", "llama-2", "llama-3", "qwen2.5", "chatml", "gemma", "mistral", "phi-3", "zephyr", "alpaca"]
)
def test_go_renders_what_jinja_does(name: str) -> None:
    render = jinja_of(name)
    found = learn(render)
    for texts in DIALOGUES:
        for system in ("", "Be brief."):
            if system and found.system is None:
                continue
            messages = messages_of(texts, system)
            wanted = render(messages)
            assert found.render(messages) == wanted
            assert go_template.render(found.text, system, messages) == wanted, name


def test_the_bos_that_the_tokenizer_adds_is_left_out() -> None:
    render = jinja_of("llama-3")
    messages = messages_of(["Hi"], "Be brief.")
    assert "<s>" + learn(render, leading="<s>").render(messages) == render(messages)


def test_the_default_system_message_is_found() -> None:
    assert learn(jinja_of("qwen2.5")).default_system.startswith("You are Qwen")
    assert learn(jinja_of("llama-3")).default_system == ""
    text = modelfile("m.gguf", template=learn(jinja_of("qwen2.5")), notes=[], stops=["<|im_end|>"], num_ctx=512)
    assert 'SYSTEM """You are Qwen' in text and 'PARAMETER stop "<|im_end|>"' in text and "num_ctx 512" in text


def test_an_answer_that_was_begun_is_continued() -> None:
    found = learn(jinja_of("chatml"))
    messages = messages_of(["Hi", "Hello"])
    assert go_template.render(found.text, "", messages).endswith("<|im_start|>assistant\nHello")


def test_text_that_looks_like_an_action_is_text() -> None:
    source = "{% for m in messages %}{{ '{{ .System }}' ~ m['content'] }}{% endfor %}:"
    found = learn(renderer(source))
    messages = messages_of(["Hi", "Yo", "So"])
    assert go_template.render(found.text, "", messages) == renderer(source)(messages)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for m in messages %}[{{ loop.index }}]{{ m['content'] }}{% endfor %}", "depends on the number of turns"),
        ("{{ messages[-1]['content'] }}", "does not show every message"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "does not show every message"),
        ("{{ raise_exception('never') }}", "refuses a plain dialogue"),
        ('{% for m in messages %}"""{{ m["content"] }}{% endfor %}', "cannot hold"),
        ("{% for m in messages %}\u200b{{ m['content'] }}{% endfor %}", "cannot hold"),
    ],
)
def test_what_cannot_be_expressed_is_said(source: str, why: str) -> None:
    with pytest.raises(NotExpressible, match=why):
        learn(renderer(source))


def test_without_a_template_the_file_has_none() -> None:
    text = modelfile("m.gguf", template=None, notes=["why"], stops=['say "stop"'], num_ctx=None)
    assert "TEMPLATE" not in text and "# why" in text and 'PARAMETER stop """say "stop""""' not in text


def test_a_stop_that_ends_with_a_quote_is_left_out() -> None:
    template = GoTemplate("a", None, "b", "c", "d")
    assert "PARAMETER" not in modelfile("m.gguf", template=template, notes=[], stops=['"'], num_ctx=None)
