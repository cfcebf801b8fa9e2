"""`--conv_template tokenizer`: exact spans from Jinja templates of every sort, or a clear refusal."""

import pytest
from transformers import AutoTokenizer

from fastchat.conversation import Dialogue, Turn
from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import tokenize_dialogues
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.properties import prove
from fastchat.data.encoding.saved_template import compare_template, install_template
from fastchat.data.encoding.tokenizer_template import to_messages
from fastchat.errors import DataError, SettingsError
from tests.builders import make_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As reasoning models have it: thinking is dropped from answers that have become history.
THINKING = (
    "{% for m in messages %}{% set text = m['content'] %}{% if m['role'] == 'assistant' and not loop.last %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Gemma's way: no system role, texts trimmed; and a date in front.
MERGED = (
    "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m['role'] == 'tool' %}"
    "{{ raise_exception('no tools here') }}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ (first if loop.first else '') + (m['content'] | trim) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = Dialogue(
    (
        Turn("user", " Hi there "),
        Turn("assistant", "<think>\nshort\n</think>\n\nHello."),
        Turn("user", "And?"),
        Turn("assistant", "<think>\nlong\n</think>\n\nBye."),
    ),
    "Be kind.",
    "talk.json",
    3,
)


def bind(tmp_path, source):
    directory = make_tokenizer("byte_nobos", tmp_path / "tokenizer", chat_template=source)
    encoder, reason = open_tokenizer(str(directory))
    return encoder.bind(encoder.choose("tokenizer"))


def learned(chat_encoder, dialogue):
    """The supervised text of each turn."""
    said = {}
    for rendered in chat_encoder.template.renderings(dialogue):
        for segment in rendered.segments:
            if segment.supervised:
                said[segment.turn] = said.get(segment.turn, "") + segment.text
    return [said[turn] for turn in sorted(said)]


@pytest.mark.parametrize("source", [CHATML, MARKED])
def test_spans_are_answer_and_stop_with_and_without_generation_marks(tmp_path, source):
    chat_encoder = bind(tmp_path, source)
    assert learned(chat_encoder, TALK) == [t.text + "<|im_end|>" for t in TALK.turns if t.role == "assistant"]
    assert chat_encoder.stop_ids == (chat_encoder.encoder.vocabulary["<|im_end|>"],)


def test_a_template_that_always_opens_the_next_answer_is_told(tmp_path, capsys):
    """As Llama 3's does. What it writes there is in the ids that `apply_chat_template` gives, and no answer."""
    assert bind(tmp_path, CHATML).template.ending == "" and "after the last answer" not in capsys.readouterr().err
    chat_encoder = bind(tmp_path / "open", CHATML.partition("{% if add_g")[0] + "{{ '<|im_start|>assistant\n' }}")
    assert "'<|im_start|>assistant' after the last answer" in capsys.readouterr().err
    assert learned(chat_encoder, TALK) == [t.text + "<|im_end|>" for t in TALK.turns if t.role == "assistant"]


def test_thinking_that_becomes_history_makes_an_example_of_each_answer(tmp_path):
    chat_encoder = bind(tmp_path, THINKING)
    assert learned(chat_encoder, TALK) == [t.text + "<|im_end|>" for t in TALK.turns if t.role == "assistant"]
    think = chat_encoder.encoder.vocabulary["<think>"]
    made = chat_encoder.template.renderings(TALK)
    assert [chat_encoder.encode(rendered).input_ids.count(think) for rendered in made] == [1, 1]
    assert [len(rendered.dialogue.turns) for rendered in made] == [2, 4]
    assert chat_encoder.template.render(TALK) == made[-1]


@pytest.mark.parametrize("source", [CHATML, MERGED])
def test_our_own_marks_in_a_text_are_text(tmp_path, source):
    marks = "\ue0000\ue001 and \ue0002\ue001 \ue000 \ue00199"
    said = [Turn("user", marks), Turn("assistant", "a" + marks), Turn("user", marks), Turn("assistant", "b" + marks)]
    chat_encoder = bind(tmp_path, source)
    assert learned(chat_encoder, Dialogue(tuple(said), marks)) == [
        "a" + marks + "<|im_end|>",
        "b" + marks + "<|im_end|>",
    ]


def test_merged_system_trimmed_texts_and_a_date(tmp_path):
    chat_encoder = bind(tmp_path, MERGED)
    rendered = chat_encoder.template.render(TALK)
    assert "Be kind.\n\nHi there<|im_end|>" in rendered.text and rendered.text.startswith("Today: ")
    assert {s.role for s in rendered.segments} == {"template", "system", "user", "assistant"}
    assert learned(chat_encoder, TALK)[0].startswith("<think>")


@pytest.mark.parametrize("source", [CHATML, MARKED, THINKING, MERGED])
def test_ids_are_those_of_apply_chat_template(tmp_path, source):
    chat_encoder = bind(tmp_path, source)
    tokenizer = AutoTokenizer.from_pretrained(chat_encoder.encoder.name)
    install_template(tokenizer, chat_encoder, [TALK])
    assert tokenizer.chat_template == source
    ids = tokenizer.apply_chat_template(to_messages(TALK), tokenize=True, return_dict=False)
    assert ids == chat_encoder.encode(chat_encoder.template.render(TALK)).input_ids


@pytest.mark.parametrize(
    ("source", "property_"),
    [
        (CHATML.replace("'<|im_end|>'", "''"), "no control token ends the answer"),
        (CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ 'other' }}"), "inference prompt is not a prefix"),
        (CHATML.replace("m['content'] +", "m['content'].upper() +"), "changes a message"),
        (
            CHATML.replace("for m in messages", "for m in messages if m['role'] not in ('system', 'developer')"),
            "system message is not shown",
        ),
    ],
)
def test_no_exact_span_names_record_turn_and_property(tmp_path, source, property_):
    directory = make_tokenizer("byte_nobos", tmp_path, chat_template=source)
    encoder, _ = open_tokenizer(str(directory))
    with pytest.raises(DataError, match=r"talk.json:3: .*turn \d") as error:
        encoder.choose("tokenizer").render(TALK)
    assert property_ in str(error.value)


def test_template_that_refuses_a_record_is_quoted(tmp_path):
    chat_encoder = bind(tmp_path, MERGED)
    with pytest.raises(DataError, match="x.json:1: the tokenizer's chat template rejects turn 2: no tools here"):
        chat_encoder.template.render(Dialogue((Turn("user", "u"), Turn("tool", "t")), None, "x.json", 1))


def test_tokenizer_without_a_template_and_broken_jinja_are_settings_errors(encoder_of, tmp_path):
    with pytest.raises(SettingsError, match="has no chat template"):
        encoder_of("gemma").choose("tokenizer")
    with pytest.raises(SettingsError, match="not valid Jinja"):
        bind(tmp_path, "{% for %}")


# As Qwen3 does: thinking is dropped before the last question, and the last answer always has a place for it.
REASONING = (
    "{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}{%- set text = m.content -%}{%- set thought = '' -%}"
    "{%- if '</think>' in text -%}{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') -%}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) -%}{{- '<think>\n' + thought + '\n</think>\n\n' -}}"
    "{%- endif -%}{{- text + '<|im_end|>\n' -}}{%- elif m.role == 'tool' -%}"
    "{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' -}}{%- else -%}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
# As Llama-3.1 does: a system turn with dates that is always there, tools only where they are given, texts trimmed.
DATED = (
    "{%- if not date_string is defined -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}"
    "{%- if not tools is defined -%}{%- set tools = none -%}{%- endif -%}"
    "{%- if messages[0].role == 'system' -%}{%- set said = messages[0].content | trim -%}"
    "{%- set messages = messages[1:] -%}{%- else -%}{%- set said = '' -%}{%- endif -%}"
    "{{- '<|im_start|>system\nCutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' -}}"
    "{%- if tools is not none -%}{{- tools | tojson -}}{%- endif -%}{{- said + '<|im_end|>' -}}"
    "{%- for m in messages -%}{{- '<|im_start|>' + (m.role if m.role != 'tool' else 'ipython') + '\n' -}}"
    "{{- m.content | trim + '<|im_end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
# As Mistral does: the system message stands in the last user turn, wherever that is.
LAST_USER = (
    "{%- if messages[0].role == 'system' -%}{%- set said = messages[0].content + '\n\n' -%}"
    "{%- set messages = messages[1:] -%}{%- else -%}{%- set said = '' -%}{%- endif -%}"
    "{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{- m.content + '<|im_end|>' -}}{%- else -%}"
    "{{- '<|im_start|>' + (said if loop.index0 == ns.last else '') + m.content + '<tool_call>' -}}{%- endif -%}"
    "{%- endfor -%}"
)
NO_MARKS = Dialogue(tuple(Turn(t.role, t.text.split("\n\n")[-1]) for t in TALK.turns), "Be kind.", "talk.json", 3)
CALL = Dialogue(
    (
        *NO_MARKS.turns[:2],
        Turn("user", "Run it"),
        Turn("assistant", "call()"),
        Turn("tool", "42"),
        Turn("assistant", "It is 42"),
    )
)


@pytest.mark.parametrize("source", [CHATML, MARKED, THINKING, MERGED, REASONING, DATED])
@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_properties_second_check_and_saved_template_hold(tmp_path, source, train_on):
    directory = make_tokenizer("byte_nobos", tmp_path / "tokenizer", chat_template=source)
    encoder, _ = open_tokenizer(str(directory))
    chat_encoder = encoder.bind(encoder.choose("tokenizer"), train_on)
    assert "proven on this tokenizer with template tokenizer" in prove(chat_encoder)
    dialogues = [NO_MARKS, TALK, Dialogue(NO_MARKS.turns, None, "x", 1), *([] if source == MERGED else [CALL])]
    made = list(tokenize_dialogues(enumerate(dialogues), chat_encoder, max_length=1 << 30))
    samples = ((dialogues[x.index], x.input_ids, x.labels, x.part) for x in made)
    checked = LabelCrossCheck(chat_encoder).check(samples)
    assert checked.records + checked.unlocated == len(made) >= len(dialogues) and not checked.skipped
    assert not checked.unlocated or train_on == "all"
    assert compare_template(AutoTokenizer.from_pretrained(directory), install(chat_encoder), dialogues) == len(
        dialogues
    )


def install(chat_encoder):
    install_template(AutoTokenizer.from_pretrained(chat_encoder.encoder.name), chat_encoder)
    return chat_encoder


def test_thinking_of_the_last_answer_is_learned_and_of_earlier_ones_it_is_gone(tmp_path):
    chat_encoder = bind(tmp_path, REASONING)
    assert learned(chat_encoder, TALK) == [t.text + "<|im_end|>" for t in TALK.turns if t.role == "assistant"]
    # Without a thought the template still writes the place for it, and the model has to write it too.
    assert learned(chat_encoder, NO_MARKS)[-1] == "<think>\n\n</think>\n\nBye.<|im_end|>"
    # What a tool returned does not make an answer history: both keep their thoughts.
    thought = Dialogue((*TALK.turns[:2], Turn("tool", "42"), TALK.turns[3]))
    assert [text.startswith("<think>") for text in learned(chat_encoder, thought)] == [True, True]


def test_a_date_and_a_header_that_is_always_there(tmp_path):
    chat_encoder = bind(tmp_path, DATED)
    text = chat_encoder.template.render(Dialogue(NO_MARKS.turns)).text
    assert text.startswith(
        "<|im_start|>system\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|im_end|>"
    )
    assert learned(chat_encoder, NO_MARKS) == ["Hello.<|im_end|>", "Bye.<|im_end|>"]


def test_a_system_message_that_moves_makes_an_example_of_each_answer(tmp_path):
    chat_encoder = bind(tmp_path, LAST_USER)
    assert [rendered.text for rendered in chat_encoder.template.renderings(NO_MARKS)] == [
        "<|im_start|>Be kind.\n\n Hi there <tool_call>Hello.<|im_end|>",
        "<|im_start|> Hi there <tool_call>Hello.<|im_end|><|im_start|>Be kind.\n\nAnd?<tool_call>Bye.<|im_end|>",
    ]
    assert learned(chat_encoder, NO_MARKS) == ["Hello.<|im_end|>", "Bye.<|im_end|>"]
    assert len(chat_encoder.template.renderings(Dialogue(NO_MARKS.turns))) == 1


@pytest.mark.parametrize("name", ["tokenizers/llama-3", "tokenizers/qwen2.5"])
def test_real_templates(encoder_of, name):
    encoder = encoder_of(name)
    chat_encoder = encoder.bind(encoder.choose("tokenizer"))
    plain = Dialogue(tuple(Turn(t.role, t.text.split("\n\n")[-1]) for t in TALK.turns), "Be kind.")
    assert [text.strip() for text in learned(chat_encoder, plain)] == [
        f"{answer}{chat_encoder.template.stop}" for answer in ("Hello.", "Bye.")
    ]
