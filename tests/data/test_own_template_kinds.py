"""Kinds of chat templates x kinds of dialogues: what is supervised is what the model generates after the prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from fastchat.conversation import Dialogue, RefusedByTemplate, ToolCall, Turn
from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import tokenize_dialogues
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.properties import prove
from fastchat.data.encoding.saved_template import compare_template, install_template
from tests.builders import make_tokenizer
from tests.data.own_templates import KINDS, with_tokens

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "A city"}, "days": {"type": "integer"}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}}


def user(text):
    return Turn("user", text)


def answer(text, reasoning=None):
    return Turn("assistant", text, reasoning=reasoning)


def call(*arguments, reasoning=None, text="", ids=False):
    calls = [ToolCall("weather", made, f"call_{k}_abcdefgh" if ids else None) for k, made in enumerate(arguments)]
    return Turn("assistant", text, reasoning=reasoning, calls=tuple(calls))


PARIS, ROME = {"city": "Paris", "days": 3}, {"city": "Rome"}
DIALOGUES = {
    "plain": Dialogue((user("Hi"), answer("Hello."))),
    "system": Dialogue((user("Hi"), answer("Hello.")), "Be kind."),
    "turns": Dialogue(
        (user("Hi"), answer("One."), user("And?"), answer("Two."), user("Then?"), answer("Three.")), "Be kind."
    ),
    "tools": Dialogue(
        (user("Rain?"), call(PARIS), Turn("tool", "wet"), answer("It rains."), user("Thanks"), answer("Bye.")),
        tools=(WEATHER,),
    ),
    "parallel": Dialogue(
        (
            user("Rain?"),
            call(PARIS, ROME, ids=True),
            Turn("tool", "wet", call_id="call_0_abcdefgh"),
            Turn("tool", "dry", call_id="call_1_abcdefgh"),
            answer("Only in Paris."),
        ),
        tools=(WEATHER,),
    ),
    "no_arguments": Dialogue((user("Rain?"), call({}), Turn("tool", "wet"), answer("It rains.")), tools=(WEATHER,)),
    "reasoning": Dialogue(
        (
            user("Hi"),
            answer("One.", "First thought"),
            user("And?"),
            answer("Two.", "Second thought"),
            user("So?"),
            answer("Three."),
        )
    ),
    "chain": Dialogue(
        (user("Rain?"), call(PARIS), Turn("tool", "wet"), call(ROME), Turn("tool", "dry"), answer("Only in Paris.")),
        tools=(WEATHER,),
    ),
    "reasoning_tools": Dialogue(
        (
            user("Rain?"),
            call(PARIS, reasoning="I have to ask"),
            Turn("tool", "wet"),
            answer("It rains.", "So it is wet"),
            user("Thanks"),
            answer("Bye.", "They leave"),
        ),
        tools=(WEATHER,),
    ),
}
# What a kind cannot show.
TOOLS, REASONING = {"tools", "chain", "parallel", "no_arguments", "reasoning_tools"}, {"reasoning", "reasoning_tools"}
REFUSED = {
    "CHANNELS": {"parallel"},
    "PARTS": TOOLS,
    "TWICE": TOOLS,
    "WAITING": TOOLS,
}


@pytest.fixture(scope="module")
def tokenizer_of(chat_encoder_of):
    made = {}

    def loaded(kind):
        if kind not in made:
            made[kind] = AutoTokenizer.from_pretrained(chat_encoder_of(kind).encoder.name)
        return made[kind]

    return loaded


def generated(rendered):
    """Turn -> (text before, text generated) of each supervised answer."""
    made = {}
    for turn in {segment.turn for segment in rendered.segments if segment.supervised}:
        own = [k for k, segment in enumerate(rendered.segments) if segment.supervised and segment.turn == turn]
        assert own == list(range(own[0], own[-1] + 1))
        texts = [segment.text for segment in rendered.segments]
        made[turn] = "".join(texts[: own[0]]), "".join(texts[own[0] : own[-1] + 1])
    return made


def cases():
    for kind in KINDS:
        for name in DIALOGUES:
            if name not in REFUSED.get(kind, ()):
                yield pytest.param(kind, name, id=f"{kind.lower()}-{name}")


@pytest.mark.parametrize(("kind", "name"), cases())
def test_every_answer_is_what_is_generated_after_the_prompt_of_inference(kind, name, chat_encoder_of, tokenizer_of):
    chat_encoder, tokenizer, dialogue = chat_encoder_of(kind), tokenizer_of(kind), DIALOGUES[name]
    template, seen = chat_encoder.template, []
    for rendered in template.renderings(dialogue):
        encoded = chat_encoder.encode(rendered)
        shown = rendered.dialogue
        assert shown.turns == dialogue.turns[: len(shown.turns)]
        for turn, (before, text) in generated(rendered).items():
            prompt = tokenizer.apply_chat_template(
                **{**_named(template.arguments(shown.before(turn)))}, add_generation_prompt=True, return_dict=False
            )
            assert before == tokenizer.decode(prompt)
            stop = next(stop for stop in template.stops if text.endswith(stop))
            assert text.count(stop) == 1
            whole = prompt + tokenizer.encode(text, add_special_tokens=False)
            assert encoded.input_ids[: len(whole)] == whole
            assert encoded.supervised[len(prompt) : len(whole)] == [True] * (len(whole) - len(prompt))
            said = dialogue.turns[turn]
            assert said.text in text and (said.reasoning or "") in text
            assert [text.count(made.name) for made in said.calls[:1]] == [len(said.calls)] * bool(said.calls)
            seen.append(turn)
        assert sum(encoded.supervised) == sum(
            len(tokenizer.encode(text, add_special_tokens=False)) for _, text in generated(rendered).values()
        )
    assert sorted(seen) == [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant"]


def _named(arguments):
    return {("conversation" if key == "messages" else key): value for key, value in arguments.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_proofs_second_check_and_saved_template(kind, chat_encoder_of, tokenizer_of):
    chat_encoder = chat_encoder_of(kind)
    prove(chat_encoder)
    dialogues = [d for name, d in DIALOGUES.items() if name not in REFUSED.get(kind, ())]
    examples = list(tokenize_dialogues(enumerate(dialogues), chat_encoder, max_length=1 << 20))
    samples = ((dialogues[x.index], x.input_ids, x.labels, x.part) for x in examples)
    checked = LabelCrossCheck(chat_encoder).check(samples)
    assert (checked.records, checked.skipped) == (len(examples), 0)
    tokenizer = tokenizer_of(kind)
    install_template(tokenizer, chat_encoder)
    assert compare_template(tokenizer, chat_encoder, dialogues) == len(dialogues)
    assert set(chat_encoder.stop_ids) >= {tokenizer.convert_tokens_to_ids(stop) for stop in chat_encoder.template.stops}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REFUSED.items() for name in sorted(names)])
def test_what_a_template_cannot_show_is_refused_or_said_to_be_unknown(kind, name, chat_encoder_of):
    template, dialogue = chat_encoder_of(kind).template, DIALOGUES[name]
    if name in REASONING and not template.shows_reasoning or name in TOOLS and not template.shows_calls:
        return  # rows are refused before they are rendered
    with pytest.raises(RefusedByTemplate, match=r"turn \d: the call of 'weather', number 2 of this turn, is not shown"):
        template.renderings(dialogue)


STOPS = {
    "APPENDING": ("<|im_end|>",),
    "CUTTING": ("<|eos|>",),
    "CHANNELS": ("<|return|>", "<|call|>"),
    "ENDLESS": ("<|user|>", "<|observation|>"),
    "RESPONDING": ("<turn|>", "<|tool_response>"),
    "MOVING": ("<|eos|>",),
    "BOXED": ("<|turn_end|>",),
    "TWICE": ("<|end|>",),
    "WAITING": ("<|im_end|>",),
    "DOUBLED": ("<|end|>",),
    "SPACED": ("<|eom|>",),
    "LISTED": ("<|eot|>",),
    "CONTINUING": ("<|end|>", "<|run|>"),
}


@pytest.mark.parametrize("kind", STOPS)
def test_stops(kind, chat_encoder_of):
    assert chat_encoder_of(kind).template.stops == STOPS[kind]


NUMBERS = {  # examples of each dialogue
    "APPENDING": {"turns": 1, "tools": 1},
    "DROPPING": {"turns": 3, "reasoning": 3, "reasoning_tools": 2},
    "CHANNELS": {"turns": 3, "reasoning_tools": 2},
    "ENDLESS": {"turns": 1, "tools": 1, "reasoning": 3, "reasoning_tools": 2},
    "TWICE": {"turns": 1},
}


@pytest.mark.parametrize(
    ("kind", "name", "number"), [(k, n, x) for k, made in NUMBERS.items() for n, x in made.items()]
)
def test_answers_share_an_example_if_their_prompts_are_prefixes(kind, name, number, chat_encoder_of):
    assert len(chat_encoder_of(kind).template.renderings(DIALOGUES[name])) == number


def test_reasoning_that_is_put_together(chat_encoder_of):
    """Where the prompt opens it and the template cuts it; without any, it is closed at once and counted."""
    made = chat_encoder_of("CUTTING").template.renderings(DIALOGUES["reasoning"])
    assert [generated(one)[k][1] for one, k in zip(made, (1, 3, 5), strict=True)] == [
        "First thought\n</think>\n\nOne.<|eos|>",
        "Second thought\n</think>\n\nTwo.<|eos|>",
        "</think>\n\nThree.<|eos|>",
    ]
    assert [one.notes for one in made] == [(), (), ("the answer has no reasoning, so it closes <think> at once",)]
    (plain,) = chat_encoder_of("CUTTING").template.renderings(
        Dialogue((user("Hi"), answer("<think>\nHm\n</think>\n\nHello.")))
    )
    assert generated(plain)[1][1] == "Hm\n</think>\n\nHello.<|eos|>"


def test_a_switch_shows_reasoning_and_the_rows_own_arguments_win(chat_encoder_of):
    template = chat_encoder_of("SWITCHED").template
    made = template.renderings(DIALOGUES["reasoning"])
    assert [one.dialogue.template_arguments for one in made] == [{"thinking": True}, {"thinking": True}, {}]
    assert made[0].notes == ("reasoning is shown with thinking=True",)
    assert generated(made[0])[1] == ("<|user|>Hi<|assistant|><think>", "First thought</think>One.<|eos|>")
    assert generated(made[2])[5][0].endswith("So?<|assistant|></think>")
    calls = template.renderings(DIALOGUES["reasoning_tools"])
    before, text = generated(calls[0])[1]
    assert before.endswith("<|assistant|><think>") and text.startswith("I have to ask</think><|calls|>")
    with pytest.raises(RefusedByTemplate, match=r"turn 4: its reasoning is not shown \(set"):
        template.renderings(replace(DIALOGUES["reasoning"], template_arguments={"thinking": False}))


def test_forms_are_found_by_trying(chat_encoder_of):
    forms = {kind: chat_encoder_of(kind).template.form for kind in KINDS}
    assert {kind for kind, form in forms.items() if form.text_arguments} == {"CUTTING", "SWITCHED", "SPACED"}
    assert {kind for kind, form in forms.items() if form.own_ids} == {"MOVING"}
    assert {kind for kind, form in forms.items() if form.named_ids} == {"DOUBLED"}
    assert {kind for kind, form in forms.items() if form.result_parts} == {"LISTED"}
    assert {kind for kind, form in forms.items() if form.parts} == {"PARTS"}
    keys = {kind: form.reasoning or form.call_reasoning for kind, form in forms.items()}
    assert keys == dict.fromkeys(KINDS, "<text>") | {
        "DROPPING": "reasoning_content",
        "OPENING": "reasoning_content",
        "CHANNELS": "thinking",
        "ENDLESS": "reasoning_content",
        "RESPONDING": "reasoning",
        "BOXED": "tool_plan",
        "SWITCHED": "",
        "DOUBLED": "",
        "LISTED": "thinking",
        "CHAINED": "reasoning_content",
        "PARTED": "<part>",
    }


def test_a_template_that_loses_track_after_a_first_call(tmp_path):
    """As DeepSeek-V3's, which opens the list of calls only once in a dialogue."""
    once = "{% if not o.done %}\n<|calls|>{% set o.done = true %}\n{% endif %}\n"
    source = (
        KINDS["CUTTING"]
        .replace("<|calls|>", once)
        .replace("!= 'tool' %}", "!= 'tool' and not (m.tool_calls and o.done) %}", 1)
    )
    source = "{% set o = namespace(done=false) %}\n" + source
    encoder, _ = open_tokenizer(str(with_tokens(source, tmp_path)))
    template = encoder.choose("tokenizer")
    turns = DIALOGUES["tools"].turns[:4]
    made = template.renderings(Dialogue((*turns, *turns), tools=(WEATHER,)))
    texts = {turn: text for one in made for turn, (_, text) in generated(one).items()}
    assert sorted(texts) == [1, 3, 5, 7]
    assert texts[5] == texts[1] and "<|calls|><|call|>weather" in texts[1]
    assert any("as after its question alone" in note for one in made for note in one.notes)


@pytest.mark.parametrize("kind", ["RESPONDING", "BOXED", "ENDLESS"])
def test_stops_that_are_no_tokens_of_the_tokenizer_are_texts(kind, tmp_path):
    encoder, _ = open_tokenizer(str(make_tokenizer("byte_nobos", tmp_path, chat_template=KINDS[kind])))
    chat_encoder = encoder.bind(encoder.choose("tokenizer"))
    assert chat_encoder.template.stops == STOPS[kind]
    assert chat_encoder.stop_strings == STOPS[kind]
    for name in ("plain", "tools", "no_arguments"):
        texts = [
            text for one in chat_encoder.template.renderings(DIALOGUES[name]) for _, text in generated(one).values()
        ]
        assert len(texts) == len(DIALOGUES[name].turns) // 2 and all(text.endswith(STOPS[kind]) for text in texts)


def test_turns_after_the_last_trained_one_need_not_be_accepted(chat_encoder_of):
    """They are context of nothing; a template may reject them."""
    turns = [user("Hi"), answer("One."), user("So?"), replace(call(PARIS, ROME), train=False), Turn("tool", "wet")]
    (made,) = chat_encoder_of("CHANNELS").template.renderings(Dialogue(tuple(turns), tools=(WEATHER,)))
    assert list(generated(made)) == [1]
    with pytest.raises(RefusedByTemplate):
        chat_encoder_of("CHANNELS").template.renderings(Dialogue((user("Hi"), replace(call(PARIS, ROME), train=False))))
