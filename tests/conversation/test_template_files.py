"""Template files: both notations, one clear message for every mistake, and the choice of a template in a file."""

import dataclasses

import pytest

from fastchat.conversation import (
    Conversation,
    Dialogue,
    Template,
    Turn,
    conv_templates,
    get_conv_template,
    get_template,
    load_template_file,
    register_conv_template,
    use_template_file,
)
from fastchat.errors import SettingsError

HELLO = Dialogue((Turn("user", "u"), Turn("assistant", "a")))
USER, ANSWER = 'user: {before: "Q: ", after: "\\n"}\n', 'assistant: {before: "A: ", after: "</s>", open: "A:"}\n'
TABLE = f"name: k\n{USER}{ANSWER}"
STYLE = "name: k\nroles: [Q, A]\n"
TOOLS = f"{TABLE}tools: {{system: '{{system_message}} {{tools}}', "
CALL = f"{TABLE}calls: {{call: '{{name}} {{arguments}}'"
CALLS = "calls: {call: '{name} {arguments}'}\n"


def test_python_file_in_upstreams_way(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fastchat.conversation import Conversation, SeparatorStyle, register_conv_template\n"
        "register_conv_template(Conversation(name='mine', roles=('Q', 'A'), sep_style=SeparatorStyle.ADD_COLON_TWO,"
        " sep='\\n', sep2='</s>'))\n"
    )
    assert load_template_file(str(file)) == ["mine"]
    assert get_template("mine").render(HELLO).text == "\nQ: u\nA: a</s>"


def test_yaml_file_in_both_notations(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "- name: by-style\n  roles: [Q, A]\n  sep_style: CHATML\n  sep: <|im_end|>\n"
        "- name: by-table\n  user: {before: '<q>', after: '</q>'}\n"
        "  assistant: {before: '<a>', after: '</a>', open: '<a>'}\n"
    )
    assert load_template_file(str(file)) == ["by-style", "by-table"]
    assert get_template("by-style").render(HELLO).text == "Q\nu<|im_end|>\nA\na<|im_end|>\n"
    assert get_template("by-table").render(HELLO).text == "<q>u</q><a>a</a>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.py", None, "no such file"),
        ("mine.txt", "x", "expected a .py or a .yaml"),
        ("mine.py", "1/0", "fails with ZeroDivisionError"),
        ("mine.py", "x = 1", "registers no template; call register_conv_template in it"),
        ("mine.yaml", "name: [", "not valid YAML"),
        ("mine.yaml", "name: k\nname: l\n", "name is given twice"),
    ],
)
def test_bad_template_file_is_one_clear_message(tmp_path, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_template_file(str(file))


# (YAML, words of the message after the file's name)
MISTAKES = [
    # a role's format
    (f'name: k\nuser: {{before: "Q: ", aftr: x}}\n{ANSWER}', ["'k': user.aftr (\"x\") is not a key", "nearest: after"]),
    (f'name: k\nuser: {{before: "Q: "}}\n{ANSWER}', ["user.after is missing", '{"before": "Q: "}', "expected as in"]),
    (f'name: k\nuser: "Q: "\n{ANSWER}', ['user is "Q: "; expected keys with values, such as {before:']),
    (f"name: k\nuser:\n{ANSWER}", ["user is null; expected keys with values"]),
    (f"name: k\nuser: [a, b]\n{ANSWER}", ['user is ["a", "b"]; expected keys']),
    (f'name: k\nuser: {{before: "Q: ", after: 3}}\n{ANSWER}', ["user.after is 3; expected a string, in quotes"]),
    (f'name: k\nuser: {{before: "Q: ", after: }}\n{ANSWER}', ["user.after is null; expected a string, in quotes"]),
    (f"name: k\nuser: {{before: no, after: x}}\n{ANSWER}", ["user.before is false; expected a string, in quotes"]),
    (f"name: k\nuser: {{before: [Q], after: x}}\n{ANSWER}", ['user.before is ["Q"]; expected a string.']),
    (f"name: k\nuser: {{before: Q, after: x, open: z}}\n{ANSWER}", ['user.open is "z"', "a prefix of 'Q'"]),
    (f"{TABLE}tool: {{before: x}}\n", ["tool.after is missing"]),
    (f"{TABLE}first_user: 1\n", ["first_user is 1; expected keys"]),
    # tools and calls
    (f"{TABLE}tools: yes\n", ["tools is true; expected keys with values, such as {system:"]),
    (f"{TABLE}tools: {{system: a}}\n", ["tools.no_system is missing"]),
    (f"{TABLE}tools: {{system: a, no_system: b}}\n", ['tools.system is "a"', "{system_message} exactly once"]),
    (f"{TOOLS}no_system: b}}\n{CALLS}", ['tools.no_system is "b"', "{tools} exactly once, or the tools would be lost"]),
    (f"{TOOLS}no_system: '{{tools}}', where: user}}\n{CALLS}", ['tools.where is "user"; expected last_user']),
    (f"{TOOLS}no_system: '{{tools}}', where: last_user}}\n{CALLS}", ["tools.user is null", "the last user message"]),
    (f"{TOOLS}no_system: '{{tools}}', user: {{before: a, after: b}}}}\n{CALLS}", ["tools.user", "where: system"]),
    (
        f"{TOOLS}no_system: '{{tools}}', schema: xml}}\n{CALLS}",
        ['tools.schema is "xml"; expected one of tool, function'],
    ),
    (f"{TOOLS}no_system: '{{tools}}', indent: -1}}\n{CALLS}", ["tools.indent is -1; expected a whole number"]),
    (f"{TABLE}calls: {{call: x}}\n", ['calls.call is "x"; expected a string with {name} exactly once']),
    (f"{TABLE}calls: {{call: '{{name}}'}}\n", ["expected a string with {arguments} exactly once"]),
    (f"{CALL}, parallel: maybe}}\n", ['calls.parallel is "maybe"; expected true or false']),
    (f"{CALL}, id_length: 3}}\n", ["calls.id_length is 3; expected 0 for any length, or at least 9"]),
    (
        f"{CALL}, seperator: x}}\n",
        ['calls.seperator ("x") is not a key of the format of the calls; nearest: separator'],
    ),
    (f"{CALL}}}\n", ["`tools` and `calls` belong together"]),
    (f"{TABLE}tool: {{before: a, after: b, content: xml}}\n", ['tool.content is "xml"; expected one of as_is, json']),
    (f"{TABLE}tool: {{before: a, after: b, separator: 5}}\n", ["tool.separator is 5; expected a string"]),
    # the table
    (f"name: k\n{USER}", ["'k': assistant is missing (the keys are name, user)", "expected as in {name: mine"]),
    (f"{TABLE}stopstrings: x\n", ['stopstrings ("x") is not a key', "nearest: stop_strings"]),
    (f"{TABLE}1: x\n", ['1 ("x") is not a key', "known: name, user"]),
    (f"{TABLE}roles: [Q, A]\n", ['roles (["Q", "A"]) is not a key of a template with `user` and `assistant`']),
    ("name: k\nsystem: '{system_message}'\nusr: {}\n", ["usr ({}) is not a key", "nearest: user"]),
    (f"{TABLE}system: Be brief.\n", ['system is "Be brief."', "{system_message}", "exactly once"]),
    (f"{TABLE}system_message: 5\n", ["system_message is 5; expected a string"]),
    (f"{TABLE}no_system: yes\n", ["no_system is true; expected a string"]),
    (f"{TABLE}content: stripp\n", ['content is "stripp"; expected strip']),
    (f"{TABLE}content: 5\n", ["content is 5; expected one of as_is, strip, strip_all, rwkv"]),
    (f"{TABLE}window: -1\n", ["window is -1; expected a whole number of at least 0"]),
    (f"{TABLE}round_start: 1.5\n", ["round_start is 1.5; expected a whole number"]),
    (f"{TABLE}stop_strings: [a, 2]\n", ["entry 2 of stop_strings is 2; expected a string, in quotes"]),
    (f"{TABLE}stop_strings: ''\n", ['stop_strings is ""; expected a non-empty string']),
    (f"{TABLE}stop_strings: [[a]]\n", ['entry 1 of stop_strings is ["a"]; expected a string']),
    (f"{TABLE}stop_strings:\n", ["stop_strings is null; expected a string or a list of strings"]),
    (f"{TABLE}stop_strings: {{a: b}}\n", ['stop_strings is {"a": "b"}; expected a string or a list']),
    (f"{TABLE}stop_token_ids: two\n", ['stop_token_ids is "two"; expected a whole number']),
    (f"{TABLE}stop_token_ids: [2, true]\n", ["entry 2 of stop_token_ids is true; expected a whole number"]),
    (f"{TABLE}examples: [hi]\n", ['entry 1 of examples is "hi"; expected a role and a message, as in [[user, Hi]']),
    (f"{TABLE}examples: hi\n", ['examples is "hi"; expected a list such as [[user, Hi]']),
    (f"{TABLE}examples: [[human, hi]]\n", ['entry 1 of examples is "human"; expected one of user, assistant, tool']),
    (f"{TABLE}examples: [[user, 5]]\n", ["entry 1 of examples is 5; expected a string, in quotes"]),
    (f"{TABLE}examples: [[user, hi, ho]]\n", ["entry 1 of examples", "expected a role and a message"]),
    # upstream's form
    ("name: k\nrole: [A, B]\n", ['\'k\': role (["A", "B"]) is not a key', "nearest: roles"]),
    ("name: k\nroles: Q\n", ['roles is "Q"; expected a list of two strings, such as [USER, ASSISTANT]']),
    ("name: k\nroles: [Q]\n", ['roles is ["Q"]; expected a list of two strings']),
    ("name: k\nroles: [Q, no]\n", ["entry 2 of roles is false; expected a string, in quotes"]),
    (f"{STYLE}sep: 5\n", ["sep is 5; expected a string, in quotes"]),
    (f"{STYLE}sep:\n", ["sep is null; expected a string, in quotes"]),
    (f"{STYLE}sep2: [x]\n", ['sep2 is ["x"]; expected a string']),
    (f"{STYLE}sep_style: [ADD_COLON_TWO]\n", ['sep_style is ["ADD_COLON_TWO"]; expected ADD_COLON_TWO']),
    (f"{STYLE}sep_style: CHATMLL\n", ['sep_style is "CHATMLL"; expected CHATML']),
    (f"{STYLE}sep_style: 4\n", ["sep_style is 4; expected one of ADD_COLON_SINGLE, "]),
    (f"{STYLE}sep_style: ADD_COLON_TWO\n", ["'k': sep_style ADD_COLON_TWO needs sep2"]),
    (f"{STYLE}messages: hi\n", ['messages is "hi"; expected a list such as [[USER, Hi]']),
    (f"{STYLE}messages: [[Q, hi]]\n", ["offset is 0; expected 1"]),
    (f"{STYLE}messages: [[X, hi]]\noffset: 1\n", ['entry 1 of messages is "X"; expected one of Q, A']),
    (f"{STYLE}offset: some\n", ['offset is "some"; expected a whole number']),
    (f"{STYLE}stop_str: [no]\n", ["entry 1 of stop_str is false; expected a string, in quotes"]),
    (f"{STYLE}stop_token_ids: x\n", ['stop_token_ids is "x"; expected a whole number']),
    (f"{STYLE}system_template: 7\n", ["system_template is 7; expected a string"]),
    (f"{STYLE}template: x\n", ['template ("x") is not a key of a template with `roles` and `sep_style`']),
    # the file
    ("", ["the file has no template; expected one such as {name: mine"]),
    ("[]", ["the file has no template; expected one such as"]),
    ("5", ["template 1 is 5; expected one such as {name: mine"]),
    ("- just text\n", ['template 1 is "just text"; expected one such as']),
    ("- {name: a, roles: [Q, A]}\n- name: b\n  sep: 5\n", ["template 'b': sep is 5"]),
    ("roles: [Q, A]\n", ["name is missing (the keys are roles)"]),
    (f"name: ''\n{USER}{ANSWER}", ['name is ""; expected a non-empty string']),
    (f"name: 5\n{USER}{ANSWER}", ["name is 5; expected a string, in quotes"]),
    ("name: alpaca\nroles: [Q, A]\n", ["template 'alpaca' already exists; choose another name"]),
    ("- {name: a, roles: [Q, A]}\n- {name: a, roles: [Q, A]}\n", ["two templates are named 'a'; rename one"]),
]


@pytest.mark.parametrize(("content", "words"), MISTAKES, ids=[content for content, _ in MISTAKES])
def test_a_mistake_in_a_yaml_template_is_one_message(tmp_path, content, words):
    """With the file, the template, the key, its value and what is expected; nothing is registered then."""
    (tmp_path / "k.yaml").write_text(content)
    before = set(conv_templates)
    with pytest.raises(SettingsError) as error:
        load_template_file(str(tmp_path / "k.yaml"))
    said = str(error.value)
    assert said.startswith(f"--conv_template_file {tmp_path}/k.yaml: ") and "\n" not in said and "override" not in said
    for word in words:
        assert word in said, said
    assert set(conv_templates) == before


@pytest.mark.parametrize(
    "content", [f"{TABLE}stop_strings: am\nstop_token_ids: 2\n", f"{STYLE}stop_str: am\nstop_token_ids: 2\n"]
)
def test_a_text_is_one_stop_string_and_a_number_one_id(tmp_path, content):
    (tmp_path / "k.yaml").write_text(content)
    load_template_file(str(tmp_path / "k.yaml"))
    template = get_template("k")
    assert (template.stop_strings, template.stop_token_ids) == (("am",), (2,))
    assert Template.from_dict(template.to_dict()) == template
    assert (get_conv_template("k").stop_str, get_conv_template("k").stop_token_ids) == (["am"], [2])


@pytest.mark.parametrize("stop", ["", ["", "Q:"]])
def test_an_empty_stop_string_of_upstreams_is_none(stop):
    register_conv_template(Conversation(name="k", roles=("Q", "A"), sep="\n", stop_str=stop))
    assert get_template("k").stop_strings == tuple(s for s in stop if s)
    assert Template.from_dict(get_template("k").to_dict()) == get_template("k")


@pytest.mark.parametrize("wrong", [{"stop_strings": ("",)}, {"stop_token_ids": (-1,)}, {"no_system": 3}])
def test_what_a_result_could_not_be_opened_with_is_not_registered(wrong):
    sound = get_template("chatml")
    with pytest.raises(SettingsError, match=f"'k': .*{next(iter(wrong))}"):
        register_conv_template(dataclasses.replace(sound, name="k", **wrong))
    assert "k" not in conv_templates


def test_every_registered_template_is_a_sound_table():
    for name in conv_templates:
        if conv_templates[name].sep_style is not None or conv_templates[name].template:
            assert Template.from_dict(get_template(name).to_dict()) == get_template(name)


def test_examples_of_both_notations_precede_every_dialogue(tmp_path):
    (tmp_path / "k.yaml").write_text(
        f"- name: a\n  {USER}  {ANSWER}  examples: [[user, Hi], [assistant, Yo]]\n"
        "- {name: b, roles: [Q, A], sep_style: ADD_COLON_TWO, sep: '\\n', sep2: </s>, messages: [[Q, Hi], [A, Yo]], "
        "offset: 2}\n".replace("'\\n'", '"\\n"')
    )
    load_template_file(str(tmp_path / "k.yaml"))
    assert get_template("a").render(HELLO).text == "Q: Hi\nA: Yo</s>Q: u\nA: a</s>"
    assert get_template("b").render(HELLO).text == "\nQ: Hi\nA: Yo</s>Q: u\nA: a</s>"


# --- the choice of a template in a file


def test_the_only_template_of_a_file_is_used_and_that_is_said(tmp_path, capsys):
    file = tmp_path / "k.yaml"
    file.write_text(TABLE)
    assert use_template_file(str(file), None) == "k"
    assert capsys.readouterr().err == f"template: k, the only one in {file} (--conv_template picks another)\n"


def test_of_several_templates_one_has_to_be_named(tmp_path):
    file = tmp_path / "k.yaml"
    file.write_text("- {name: a, roles: [Q, A]}\n- {name: b, roles: [Q, A]}\n")
    with pytest.raises(SettingsError, match=r"k.yaml has 2 templates; choose one: --conv_template a \| b"):
        use_template_file(str(file), None)


def test_asking_for_a_template_that_is_not_in_the_file_is_said(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("- {name: a, roles: [Q, A]}\n- {name: b, roles: [Q, A]}\n")
    assert use_template_file(str(tmp_path / "a.yaml"), "alpaca") == "alpaca"
    assert "a.yaml has a, b; --conv_template alpaca is not in it" in capsys.readouterr().err
    (tmp_path / "b.yaml").write_text(TABLE)
    assert use_template_file(str(tmp_path / "b.yaml"), "k") == "k"
    assert use_template_file(None, None) is None and use_template_file("", "alpaca") == "alpaca"
    assert capsys.readouterr().err == ""
