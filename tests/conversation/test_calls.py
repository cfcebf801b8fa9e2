"""Tools, calls and results in the syntax of each family, rendered and through the exported Jinja template."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat.conversation import (
    Dialogue,
    RefusedByTemplate,
    Template,
    ToolCall,
    get_template,
    load_template_file,
    templates_with_calls,
)
from fastchat.conversation.calls import looks_like_json
from fastchat.data.encoding.messages import to_openai
from fastchat.data.encoding.tokenizer_template import compile_template, failures
from fastchat.errors import SettingsError
from tests.conversation.calling import (
    ADD,
    ADDED,
    CASES,
    SUN,
    asks,
    dialogue,
    result,
    says,
    through_jinja,
)

NAMES = templates_with_calls()
LLAMAS = ("llama-3.1", "llama-3.2", "llama-3.3")
ONE_CALL = (*LLAMAS,)  # the family's template refuses several
NO_TEXT = (*LLAMAS, "mistral-v0.3", "mistral-nemo")  # it drops the text of an answer with calls, or refuses it
REFUSED = {
    **dict.fromkeys((name, case) for name in ONE_CALL for case in CASES if case.startswith("parallel")),
    **dict.fromkeys((name, "text and call") for name in NO_TEXT),
}
MATRIX = [(name, case) for name in NAMES for case in CASES if (name, case) not in REFUSED]

# --- for every template: the exported Jinja template, the prompts, and what is learned


@pytest.mark.parametrize(("name", "case"), MATRIX)
def test_the_exported_template_says_the_same(name, case):
    template, said = get_template(name), CASES[case]
    expected = template.render(said).text
    for arguments in ("object", "text", "compact", "ascii"):
        assert through_jinja(template, said, arguments=arguments) == expected, arguments
    for k, turn in enumerate(said.turns):
        if turn.role == "assistant":
            asked = said.before(k)
            assert through_jinja(template, asked, prompt=True) == template.render(asked, True).text


@pytest.mark.parametrize(("name", "case"), MATRIX)
def test_each_answer_is_learned_once_after_the_prompt_of_inference(name, case):
    template, said = get_template(name), CASES[case]
    learned = []
    for rendered in template.renderings(said):
        shown = rendered.dialogue or said
        for k in sorted({segment.turn for segment in rendered.segments if segment.supervised}):
            own = [segment for segment in rendered.segments if segment.supervised and segment.turn == k]
            text = "".join(segment.text for segment in own if not segment.virtual)
            prompt = template.render(shown.before(k), add_generation_prompt=True).text
            assert rendered.text.startswith(prompt + text) and text.endswith(template.stop)
            for call in said.turns[k].calls:
                assert call.name in text and all(json.dumps(key) in text for key in call.arguments if key == "city")
            learned.append(k)
        # Schemas and results are messages that are never learned; a call's texts can never become tokens.
        assert all(s.role == "assistant" or s.role == "template" for s in rendered.segments if s.supervised)
    assert learned == [k for k, turn in enumerate(said.turns) if turn.role == "assistant"]


@pytest.mark.parametrize(("name", "case"), REFUSED)
def test_what_the_syntax_cannot_say_is_refused_by_name(name, case):
    template, said = get_template(name), CASES[case]
    with pytest.raises(RefusedByTemplate, match=f"template '{name}' allows (one|either) .* such as chatml"):
        template.render(said)
    with pytest.raises(failures(), match="this template allows (one|either)"):
        through_jinja(template, said)


def test_a_template_without_call_syntax_refuses_calls_and_tools():
    for said in (CASES["tools only"], CASES["call without tools"]):
        with pytest.raises(RefusedByTemplate, match="template 'vicuna_v1.1' has no form for tools and their calls"):
            get_template("vicuna_v1.1").render(said)


@pytest.mark.parametrize("name", ["llama-3.1", "mistral-nemo"])
def test_tools_in_a_user_message_need_one_in_front(name):
    with pytest.raises(RefusedByTemplate, match="shows the tools in a user message, and the first turn is not one"):
        get_template(name).render(dialogue(says("Welcome"), asks("Hi"), says("Hello")))


def test_an_answer_before_the_last_question_is_an_example_of_its_own_where_that_shows_the_tools():
    template, said = get_template("mistral-nemo"), CASES["rounds"]
    made = template.renderings(said)
    assert [sorted({s.turn for s in one.segments if s.supervised}) for one in made] == [[1, 3], [5, 7, 9], [11]]
    assert [one.text.count("[AVAILABLE_TOOLS]") for one in made] == [1, 1, 1]
    assert [one.dialogue for one in made] == [said.before(4), said.before(10), said]
    only = Dialogue((*said.turns[:9], says("Two.", train=False), *said.turns[10:11]), tools=said.tools)
    assert [one.dialogue for one in template.renderings(only)] == [said.before(4), said.before(8)]
    without = Dialogue(said.turns)
    assert len(template.renderings(without)) == 1 and template.render(without).text.count("[TOOL_CALLS]") == 3


def test_the_instruction_before_an_answer_is_only_shown_for_the_one_that_is_due():
    made = get_template("command-r").renderings(CASES["rounds"])
    assert len(made) == 6 and all(one.text.count("Write 'Action:'") == 1 for one in made)


# --- ids


@pytest.mark.parametrize(
    ("case", "calls", "results"),
    [
        ("special characters", ["abcDEF123"], ["abcDEF123"]),
        ("parallel", ["call00000", "call00001"], ["call00000", "call00001"]),
        ("parallel, by id", ["call00000", "call00001"], ["call00001", "call00000"]),
        ("parallel, by name", ["call00000", "call00001"], ["call00001", "call00000"]),
        ("rounds", ["call00000", "call00001", "call00002"], ["call00000", "call00001", "call00002"]),
        ("result of an unknown call", [], ["call00000"]),
    ],
)
def test_an_id_that_mistral_would_refuse_is_replaced_in_the_call_and_in_its_result(case, calls, results):
    said = Dialogue(CASES[case].turns)
    calls_format = get_template("mistral-v0.3").calls
    assert calls_format is not None
    shown = calls_format.shown_ids(said.turns)
    pairs = list(zip(said.turns, shown, strict=True))
    assert [one for turn, ids in pairs if turn.calls for one in ids] == calls
    assert [ids[0] for turn, ids in pairs if turn.role == "tool"] == results


@pytest.mark.parametrize("given", ["k3Xb9LmQ2", "call_1", "k3Xb9LmQü", "", None, "k3Xb9LmQ2x"])
def test_only_nine_ascii_letters_and_digits_are_kept(given):
    said = dialogue(asks("Hi"), says("", ToolCall("add", {}, given)), result("1", None, given), says("One."))
    text = get_template("mistral-nemo").render(said).text
    shown = given if given == "k3Xb9LmQ2" else "call00000"
    assert f'"id": "{shown}"' in text and f'"call_id": "{shown}"' in text
    assert through_jinja(get_template("mistral-nemo"), said) == text


# --- random ones

_TEXTS = st.text(max_size=8) | st.sampled_from(
    ["<tool_call>", "</s>", "{name}", "\\u00e9", '"', "[/INST]", "{tools}", "\u2028"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, width=32) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)
_OBJECTS = st.dictionaries(_TEXTS, _VALUES, max_size=3)


_FIELDS = st.deferred(
    lambda: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["string", "array", "object", ["integer", "null"], "x", None]),
            "description": _TEXTS,
            "items": _FIELDS,
            "additionalProperties": st.booleans() | _FIELDS,
        },
    )
)


@given(
    arguments=_OBJECTS,
    schema=_OBJECTS | st.dictionaries(_TEXTS, _FIELDS, max_size=3).map(lambda fields: {"properties": fields}),
    said=_TEXTS,
    ids=st.lists(st.sampled_from([None, "a", "b", "k3Xb9LmQ2"]), min_size=4, max_size=4),
    names=st.lists(st.sampled_from([None, "f", "g"]), min_size=2, max_size=2),
    name=st.sampled_from(["qwen2.5", "mistral-nemo", "command-r", "deepseek-v3"]),
)
def test_random_calls_are_the_same_through_jinja(arguments, schema, said, ids, names, name):
    tool = {"type": "function", "function": {"name": "f", "description": said, "parameters": schema}}
    calls = ToolCall("f", arguments, ids[0]), ToolCall("g", {}, ids[1])
    results = [result(said, called, call_id) for called, call_id in zip(names, ids[2:], strict=True)]
    random = dialogue(asks("Hi"), says("", *calls), *results, says("Done"), tools=[tool], system=said)
    template = get_template(name)
    for arguments_as in ("object", "compact", "ascii"):
        assert through_jinja(template, random, arguments=arguments_as) == template.render(random).text


@given(said=st.text(alphabet='{}[]":,0123456789.eE+-_ \nnaifu', max_size=6) | _TEXTS)
def test_a_result_is_a_json_value_or_a_json_string_in_both(said):
    called = dialogue(asks("Hi"), says("", ADDED), result(said), says("Done"))
    template = get_template("mistral-nemo")
    text = template.render(called).text
    assert through_jinja(template, called) == text
    assert (f'"content": {said}, "call_id"' in text) == looks_like_json(said) or not said
    try:
        value = json.loads(said)
    except ValueError:
        return
    if isinstance(value, dict | list | str | None) and said == said.strip():
        assert looks_like_json(said)


# --- user-made templates

OWN = """
name: own
user: {before: "Q: ", after: "\\n"}
assistant: {before: "A: ", after: "</s>", open: "A:"}
tool: {before: "R{id} {name}: ", after: "\\n", separator: " | ", content: json}
tools:
  {system: "{system_message}\\nTools: {tools}\\n", no_system: "Tools: {tools}\\n", schema: function, separator: "; "}
calls: {before: " calls ", call: "{name}#{id}({arguments})", separator: " and ", after: "."}
"""


def test_a_template_file_defines_a_call_syntax(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    assert load_template_file(str(tmp_path / "own.yaml")) == ["own"] and "own" in templates_with_calls()
    template = get_template("own")
    assert Template.from_dict(json.loads(json.dumps(template.to_dict()))) == template
    said = dialogue(
        asks("u"), says("", ToolCall("add", {"a": 1}, "i"), ADDED), result("x", "add", "i"), result("y"), says("a")
    )
    schemas = "; ".join(json.dumps(tool["function"], ensure_ascii=False) for tool in (SUN, ADD))
    assert template.render(said).text == (
        f'Tools: {schemas}\nQ: u\nA: calls add#i({{"a": 1}}) and add#call00001({{"a": 1, "b": [2]}}).</s>'
        'Ri add: "x" | "y"\nA: a</s>'
    )
    for arguments in ("object", "compact"):
        assert through_jinja(template, said, arguments=arguments).replace("</s>", "") == template.render(
            said
        ).text.replace("</s>", "")


def test_a_result_without_a_name_shows_that_of_its_call(tmp_path):
    table = OWN.replace("name: own", "name: named").replace('separator: " | ", content: json', "content: json")
    (tmp_path / "named.yaml").write_text(table)
    load_template_file(str(tmp_path / "named.yaml"))
    template = get_template("named")
    calls = ToolCall("get_sun", {}, "i"), ToolCall("add", {}, "j")
    for results, names in (
        ((result("x", None, "j"), result("y", None, "i")), ["add", "get_sun"]),
        ((result("x"), result("y")), ["get_sun", "add"]),
        ((result("x", "h", "i"), result("y", None, "k")), ["h", "add"]),
    ):
        said = dialogue(asks("u"), says("", *calls), *results, says("a"))
        text = template.render(said).text
        assert re.findall(r"R\w+ (\w+): ", text) == names
        assert through_jinja(template, said).replace("</s>", "") == text.replace("</s>", "")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"calls": None}, "`tools` and `calls` belong together"),
        ({"tools": None}, "`tools` and `calls` belong together"),
        ({"window": 2}, "`tools` cannot be combined with window"),
        (
            {"after_tool": {"before": "", "after": "<eot>"}},
            "after_tool.after is '<eot>'; expected a text that begins with",
        ),
    ],
)
def test_what_does_not_fit_together_is_said(more, words):
    table = {**get_template("chatml").to_dict(), "name": "k", **more}
    with pytest.raises(SettingsError, match=words):
        Template.from_dict(table)


# --- with ../shared: the published templates

PUBLISHED = {"llama-3.1": "llama3_1", "qwen2.5": "qwen2_5", "chatml": "qwen3", "deepseek-v3": "deepseekv3"}
# What differs on purpose: see README "Which name for which model". DeepSeek's own template shows no schemas and does
# not begin a second group of calls; Qwen3's writes an empty system message.
DIFFERENT = {("chatml", "empty system"), ("deepseek-v3", "rounds"), *((n, "developer") for n in PUBLISHED)}


@pytest.mark.parametrize(("name", "case"), [pair for pair in MATRIX if pair[0] in PUBLISHED and pair not in DIFFERENT])
def test_prompts_are_those_of_the_published_template(shared, name, case):
    said, published = CASES[case], compile_template((shared / f"chat_templates/{PUBLISHED[name]}.jinja").read_text())
    if name == "deepseek-v3":
        said = Dialogue(said.turns, said.system)
    template = get_template(name)
    bos = {"llama-3.1": "<|begin_of_text|>", "deepseek-v3": "<｜begin▁of▁sentence｜>"}.get(name, "")
    for k, turn in enumerate(said.turns):
        if turn.role != "assistant" or (name == "deepseek-v3" and sum(t.role == "tool" for t in said.turns[:k]) > 1):
            continue
        messages = to_openai(said.before(k))
        for message in messages:
            for call in message.get("tool_calls", ()):
                if name == "deepseek-v3":
                    call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        theirs = published.render(
            messages=messages, tools=list(said.tools) or None, add_generation_prompt=True, bos_token=bos, eos_token=""
        )
        theirs = theirs.removesuffix("<think>\n") if name == "deepseek-v3" else theirs
        assert template.render(said.before(k), add_generation_prompt=True).text == theirs
