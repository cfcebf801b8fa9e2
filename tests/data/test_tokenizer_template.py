"""`--conv_template tokenizer`: exact spans from Jinja templates of every sort, or a clear refusal."""

import pytest
from transformers import AutoTokenizer

from fastchat.conversation import Dialogue, Turn
from fastchat.data.encoder import TextEncoder
from fastchat.data.saved_template import install_template
from fastchat.data.tokenizer_template import to_messages
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
    encoder, reason = TextEncoder.from_directory_or_class(str(directory))
    return encoder.bind(encoder.choose("tokenizer"))


def learned(bound, dialogue):
    """The supervised text of each turn."""
    segments = bound.template.render(dialogue).segments
    turns = sorted({s.turn for s in segments if s.supervised})
    return ["".join(s.text for s in segments if s.supervised and s.turn == turn) for turn in turns]


@pytest.mark.parametrize("source", [CHATML, MARKED])
def test_spans_are_answer_and_stop_with_and_without_generation_marks(tmp_path, source):
    bound = bind(tmp_path, source)
    assert learned(bound, TALK) == [t.text + "<|im_end|>" for t in TALK.turns if t.role == "assistant"]
    assert bound.stop_ids == (bound.encoder.vocabulary["<|im_end|>"],)


def test_thinking_that_becomes_history_is_not_in_the_earlier_span(tmp_path):
    bound = bind(tmp_path, THINKING)
    assert learned(bound, TALK) == ["Hello.<|im_end|>", "<think>\nlong\n</think>\n\nBye.<|im_end|>"]
    encoded = bound.encode(bound.template.render(TALK))
    think = bound.encoder.vocabulary["<think>"]
    assert encoded.input_ids.count(think) == 1


@pytest.mark.parametrize("source", [CHATML, MERGED])
def test_our_own_marks_in_a_text_are_text(tmp_path, source):
    marks = "\ue0000\ue001 and \ue0002\ue001 \ue000 \ue00199"
    said = [Turn("user", marks), Turn("assistant", "a" + marks), Turn("user", marks), Turn("assistant", "b" + marks)]
    bound = bind(tmp_path, source)
    assert learned(bound, Dialogue(tuple(said), marks)) == ["a" + marks + "<|im_end|>", "b" + marks + "<|im_end|>"]


def test_merged_system_trimmed_texts_and_a_date(tmp_path):
    bound = bind(tmp_path, MERGED)
    rendered = bound.template.render(TALK)
    assert "Be kind.\n\nHi there<|im_end|>" in rendered.text and rendered.text.startswith("Today: ")
    assert {s.role for s in rendered.segments} == {"template", "system", "user", "assistant"}
    assert learned(bound, TALK)[0].startswith("<think>")


@pytest.mark.parametrize("source", [CHATML, MARKED, THINKING, MERGED])
def test_ids_are_those_of_apply_chat_template(tmp_path, source):
    bound = bind(tmp_path, source)
    tokenizer = AutoTokenizer.from_pretrained(bound.encoder.name)
    install_template(tokenizer, bound, [TALK])
    assert tokenizer.chat_template == source
    ids = tokenizer.apply_chat_template(to_messages(TALK), tokenize=True, return_dict=False)
    assert ids == bound.encode(bound.template.render(TALK)).input_ids


@pytest.mark.parametrize(
    ("source", "property_"),
    [
        (CHATML.replace("'<|im_end|>'", "''"), "no control token ends the answer"),
        (CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ 'other' }}"), "inference prompt is not how"),
        (CHATML.replace("m['content'] +", "m['content'].upper() +"), "changes a message"),
        (
            CHATML.replace("for m in messages", "for m in messages if m['role'] != 'system'"),
            "system message is not shown",
        ),
    ],
)
def test_no_exact_span_names_record_turn_and_property(tmp_path, source, property_):
    directory = make_tokenizer("byte_nobos", tmp_path, chat_template=source)
    encoder, _ = TextEncoder.from_directory_or_class(str(directory))
    with pytest.raises(DataError, match=r"talk.json:3: .*turn \d") as error:
        encoder.choose("tokenizer").render(TALK)
    assert property_ in str(error.value)


def test_template_that_refuses_a_record_is_quoted(tmp_path):
    bound = bind(tmp_path, MERGED)
    with pytest.raises(DataError, match="x.json:1: the tokenizer's chat template refuses the record: no tools here"):
        bound.template.render(Dialogue((Turn("user", "u"), Turn("tool", "t")), None, "x.json", 1))


def test_tokenizer_without_a_template_and_broken_jinja_are_settings_errors(encoder_of, tmp_path):
    with pytest.raises(SettingsError, match="brings no chat template"):
        encoder_of("gemma").choose("tokenizer")
    with pytest.raises(SettingsError, match="no valid Jinja"):
        bind(tmp_path, "{% for %}")


@pytest.mark.parametrize("name", ["tokenizers/llama-3", "tokenizers/qwen2.5"])
def test_real_templates(encoder_of, name):
    encoder = encoder_of(name)
    bound = encoder.bind(encoder.choose("tokenizer"))
    plain = Dialogue(tuple(Turn(t.role, t.text.split("\n\n")[-1]) for t in TALK.turns), "Be kind.")
    assert [text.strip() for text in learned(bound, plain)] == [
        f"{answer}{bound.template.stop}" for answer in ("Hello.", "Bye.")
    ]
