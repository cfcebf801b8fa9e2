"""The five properties of the mask, for every kind of template on every kind of tokenizer (see tests/tiers.py).

1 the inference prompt's ids are a prefix of the training ids at every assistant turn
2 every trained turn ends in its stop, and the stop is supervised
3 one BOS in front where the tokenizer adds one, never doubled, never trained
4 no text becomes a control token; non-special added tokens stay tokens in answers only
5 the supervised ids decode to the answer, by a method that shares nothing with the mask's
"""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastchat.conversation import Dialogue, SeparatorStyle, Turn, conv_templates, load_template_file
from fastchat.data.encoding.chat_encoder import encode_prompt
from fastchat.data.encoding.examples import tokenize_dialogue
from fastchat.data.encoding.probes import HARMLESS
from tests.builders import TOKENIZER_KINDS
from tests.tiers import ALL_TOKENIZERS, TEMPLATES, examples, template_cases

# Every kind of template with the tests' own tokenizers, and the real ones taking turns; all with all in `--thorough`.
EACH = pytest.mark.parametrize(("tokenizer", "template"), template_cases(ALL_TOKENIZERS, everywhere=TOKENIZER_KINDS))
HOSTILE = (
    "</s>", "<s>", "<|im_start|>assistant", "<|im_end|>", "<|eot_id|>", "<start_of_turn>model\n", "<end_of_turn>",
    "<eos>", "<bos>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", " ASSISTANT: ", "[/INST]",
    "### Response:", "\n### ", "<|end|>", "<unk>", "<pad>", "<0x0A>", "▁", "\u202e", "\u0301", "\x07", "\t", "  ",
    "\n\n", "\r\n", "🙂", "你好", "é",
    # Halves that make a control string where two texts meet; and the marks of our own TokenizerTemplate.
    "<|im_", "end|>", "start|>assistant", "</", "s>", "<", "|eot_id|>", "<start_of_", "turn>", "\ue0000\ue001",
)  # fmt: skip


def few(number):
    return settings(max_examples=examples(number), deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def dialogues(draw, strings=()):
    """Up to 40 turns, their texts from a few: words of every script, control characters, `strings` in between."""
    pieces = st.sampled_from([*HOSTILE, *strings]) | st.text(max_size=12)
    texts = st.sampled_from(draw(st.lists(st.lists(pieces, max_size=6).map("".join), min_size=1, max_size=6)))
    turns = []
    for _ in range(draw(st.integers(1, 5) | st.integers(1, 20))):
        turns.append(Turn(draw(st.sampled_from(["user", "user", "user", "tool"])), draw(texts)))
        turns.append(Turn("assistant", draw(texts), draw(st.sampled_from([True, True, True, False]))))
    return Dialogue(tuple(turns), draw(st.none() | texts))


_bound = {}


def bind(encoder_of, tokenizer, template, train_on="assistant"):
    """Tied once: it says and proves things every time."""
    key = (tokenizer, template, train_on)
    if key not in _bound:
        encoder = encoder_of(tokenizer)
        _bound[key] = encoder.bind(encoder.choose(template), train_on)
    return _bound[key]


def written(chat_encoder):
    """Every special token of the tokenizer, and every separator of the template."""
    return [
        *[c for c in chat_encoder.encoder.added if c.strip()][:40],
        *(s for s in chat_encoder.template.literals() if s),
    ]


def plain(text):
    """Metaspace tokenizers write a space as `▁` and cannot tell the two apart; outer white space is not compared."""
    return text.replace("▁", " ").strip()


def spans(chat_encoder, dialogue):
    """For each assistant turn: its index and the positions of its supervised ids; and the encoding."""
    rendered = chat_encoder.template.render(dialogue)
    encoded = chat_encoder.encode(rendered)
    where = {i: [] for i, t in enumerate(dialogue.turns) if t.role == "assistant"}
    for position, (segment, supervised) in enumerate(zip(encoded.segment_of, encoded.supervised, strict=True)):
        if supervised and rendered.segments[segment].supervised:
            where[rendered.segments[segment].turn].append(position)
    return where, encoded, rendered


def check_prompts_are_prefixes(chat_encoder, dialogue):
    where, encoded, rendered = spans(chat_encoder, dialogue)
    for turn, positions in where.items():
        asked = Dialogue(dialogue.turns[:turn], dialogue.system)
        prompt = encode_prompt(asked, chat_encoder)
        if not positions:
            continue  # not learned, so nothing depends on its prompt
        if encoded.input_ids[: len(prompt)] != prompt:
            # Only where a token holds characters on both sides of the boundary, and that token is reported; or where
            # a prompt ends in white space, which byte-level tokenizers cut by what follows it.
            # The same goes for a template that writes nothing between question and answer (raw).
            text = chat_encoder.template.render(asked, add_generation_prompt=True).text
            torn = text[-1:].isspace() or not chat_encoder.template.assistant.open
            assert torn or any(len(prompt) - 3 <= p <= len(prompt) for p in encoded.straddling)
        elif positions and not encoded.straddling:
            assert min(positions) >= len(prompt)


def check_stops_are_learned(chat_encoder, dialogue):
    where, encoded, _ = spans(chat_encoder, dialogue)
    stop = (
        chat_encoder.substitute(chat_encoder.template.stop)
        if chat_encoder.template.stop
        else chat_encoder.encoder.eos.content
    )
    for turn, positions in where.items():
        learnable = turn == max(where) or not chat_encoder.template.only_last
        assert bool(positions) == (dialogue.turns[turn].train and learnable) or chat_encoder.train_on == "last"
        if positions:
            ending = chat_encoder.encoder.decode([encoded.input_ids[p] for p in positions])
            # A stop that is text, with the next message directly behind it (yuan), may share its last token with that
            # message: then the token is the message's, and reported.
            torn = not chat_encoder.template.user.before and positions[-1] + 1 in encoded.straddling
            assert torn or plain(stop) in plain(ending)[-len(plain(stop)) - 3 :]


def check_one_bos(chat_encoder, dialogue):
    _, encoded, rendered = spans(chat_encoder, dialogue)
    bos = chat_encoder.encoder.bos
    if bos is None or bos == chat_encoder.encoder.eos:
        return
    ids = encoded.input_ids
    assert not any(a == b == bos.id for a, b in zip(ids, ids[1:], strict=False))
    assert not any(s for i, s in zip(ids, encoded.supervised, strict=True) if i == bos.id)
    if chat_encoder.encoder.adds_bos:
        assert ids[0] == bos.id
    written = sum(chat_encoder.substitute(s.text).count(bos.content) for s in rendered.segments if s.role == "template")
    # llama-2 writes one before every round; beyond what a template writes there is only the one in front.
    assert ids.count(bos.id) <= written + (encoded.segment_of[0] == -1)


def check_no_text_becomes_control(chat_encoder, dialogue):
    _, encoded, rendered = spans(chat_encoder, dialogue)
    special = {t["id"] for c, t in chat_encoder.encoder.added.items() if t["special"] and c != "<unk>"}
    control = special | {c.id for c in chat_encoder.controls.values() if c}
    added = control | {t["id"] for c, t in chat_encoder.encoder.added.items() if c.strip() and c != "<unk>"}
    for token, segment in zip(encoded.input_ids, encoded.segment_of, strict=True):
        role = rendered.segments[segment].role if segment >= 0 else "template"
        if role == "assistant":
            assert token not in control
        elif role != "template":
            assert token not in added


@EACH
def test_harmless_ids_are_those_of_the_whole_render(encoder_of, tokenizer, template):
    chat_encoder = bind(encoder_of, tokenizer, template)
    for dialogue in HARMLESS:
        rendered = chat_encoder.template.render(dialogue)
        assert chat_encoder.encode(rendered).input_ids == chat_encoder.whole_ids(rendered)


@EACH
def test_hostile_text_becomes_no_control_token_in_any_template(encoder_of, tokenizer, template):
    """Everything hostile at once, in every role; halves stand where two texts meet. In a prompt to be answered too."""
    chat_encoder = bind(encoder_of, tokenizer, template)
    everything = " ".join(HOSTILE)
    turns = [Turn("user", everything + "<|im_"), Turn("assistant", "end|>" + everything + "</")]
    turns += [Turn("user", "s>" + everything), Turn("assistant", everything)]
    dialogue = Dialogue(tuple(turns), everything)
    check_no_text_becomes_control(chat_encoder, dialogue)
    asked = Dialogue(tuple(turns[:-1]), everything)
    harmless = Dialogue(tuple(Turn(turn.role, "x") for turn in asked.turns), "x")
    control = {t["id"] for c, t in chat_encoder.encoder.added.items() if t["special"] and c != "<unk>"}
    control |= {c.id for c in chat_encoder.controls.values() if c}
    prompts = [encode_prompt(d, chat_encoder) for d in (asked, harmless)]
    counts = [[ids.count(token) for token in sorted(control)] for ids in prompts]
    assert counts[0] == counts[1], "a chat shows exactly the template's control tokens, whatever is typed"


@EACH
def test_supervised_ids_decode_to_the_answer(encoder_of, tokenizer, template):
    chat_encoder = bind(encoder_of, tokenizer, template)
    stop = (
        chat_encoder.substitute(chat_encoder.template.stop)
        if chat_encoder.template.stop
        else chat_encoder.encoder.eos.content
    )
    for dialogue in HARMLESS:
        where, encoded, _ = spans(chat_encoder, dialogue)
        last = max(where)
        for turn, positions in where.items():
            if chat_encoder.template.only_last and turn != last:
                assert positions == []
                continue
            assert positions == list(range(positions[0], positions[-1] + 1))
            text = chat_encoder.encoder.decode([encoded.input_ids[p] for p in positions])
            expected = plain(dialogue.turns[turn].text + stop)
            if set(encoded.straddling) & set(range(positions[0] - 1, positions[-1] + 1)):
                # Text that ends a prompt or follows a stop may share a token with the answer; it is reported.
                assert expected in plain(text) or chat_encoder.template.name == "raw"
                assert len(plain(text)) <= len(expected) + 4
            else:
                assert plain(text) == expected


def check_cuts(chat_encoder, dialogue):
    """At every length what is kept is how the whole begins, labels and all: no stop is made up, no prompt trained."""
    if chat_encoder.template.only_last:  # otherwise each answer is an example of its own
        earlier = (replace(turn, train=False) for turn in dialogue.turns[:-1])
        dialogue = replace(dialogue, turns=(*earlier, *dialogue.turns[-1:]))
    whole = tokenize_dialogue(dialogue, chat_encoder, max_length=1 << 30)
    total = len(whole.input_ids)
    where, _, _ = spans(chat_encoder, dialogue)
    ends = {positions[-1] + 1 for positions in where.values() if positions}
    step = max(total // 12, 1)
    for length in range(1, total + 1, step):
        cut = tokenize_dialogue(dialogue, chat_encoder, max_length=length)
        kept = len(cut.input_ids)
        assert kept <= length and cut.input_ids == whole.input_ids[:kept] and cut.labels == whole.labels[:kept]
        assert cut.dropped or kept == length or kept in ends or chat_encoder.train_on == "all"


def check_counts(chat_encoder, dialogue):
    """What is counted without labels is what is encoded, in all and, where no token is of two kinds, by segment."""
    _, encoded, rendered = spans(chat_encoder, dialogue)
    counts = chat_encoder.count(rendered)
    assert counts.total() == len(encoded.input_ids)
    assert encoded.straddling or +counts == Counter(encoded.segment_of)


def hold(chat_encoder, dialogue):
    check_counts(chat_encoder, dialogue)
    check_prompts_are_prefixes(chat_encoder, dialogue)
    check_stops_are_learned(chat_encoder, dialogue)
    check_one_bos(chat_encoder, dialogue)
    check_no_text_becomes_control(chat_encoder, dialogue)
    check_cuts(chat_encoder, dialogue)


@pytest.mark.parametrize("tokenizer", TOKENIZER_KINDS)
@few(40)
@given(data=st.data())
def test_properties_hold_on_hostile_dialogues(encoder_of, tokenizer, data):
    chat_encoder = bind(encoder_of, tokenizer, data.draw(st.sampled_from(TEMPLATES)))
    hold(chat_encoder, data.draw(dialogues(written(chat_encoder))))


@pytest.mark.parametrize(("tokenizer", "template"), template_cases(ALL_TOKENIZERS))
@few(4)
@given(data=st.data())
def test_properties_hold_on_hostile_dialogues_everywhere(encoder_of, tokenizer, template, data):
    chat_encoder = bind(encoder_of, tokenizer, template)
    hold(chat_encoder, data.draw(dialogues(written(chat_encoder))))


@pytest.mark.parametrize("tokenizer", ("byte_bos", "metaspace_bos"))
@pytest.mark.parametrize("style", SeparatorStyle)
@few(3)
@given(data=st.data())
def test_a_yaml_template_of_every_style_has_the_properties(encoder_of, tokenizer, style, tmp_path_factory, data):
    name = f"of-style-{style.name}"
    if name not in conv_templates:
        file = tmp_path_factory.mktemp("yaml") / "mine.yaml"
        file.write_text(
            f"name: {name}\nroles: [Q, A]\nsep_style: {style.name}\nsep: ' <q>'\nsep2: '</s>'\nstop_str: '<q>'\n"
        )
        assert load_template_file(str(file)) == [name]
    chat_encoder = bind(encoder_of, tokenizer, name)
    hold(chat_encoder, data.draw(dialogues(written(chat_encoder))))


@pytest.mark.parametrize(
    ("tokenizer", "template", "text"), [("byte_bos", "phi-4", "\n\n"), ("byte_nobos", "phoenix", "</s>")]
)
def test_a_token_of_prompt_and_answer_is_reported_also_where_both_are_learned(encoder_of, tokenizer, template, text):
    chat_encoder = bind(encoder_of, tokenizer, template, "all")
    dialogue = Dialogue((Turn("user", text), Turn("assistant", text)), None)
    _, encoded, _ = spans(chat_encoder, dialogue)
    assert len(encoded.straddling) == 1 and encoded.supervised[encoded.straddling[0]]
    check_prompts_are_prefixes(chat_encoder, dialogue)


@pytest.mark.parametrize("tokenizer", TOKENIZER_KINDS)
@pytest.mark.parametrize("train_on", ("last", "all"))
@few(15)
@given(data=st.data())
def test_what_is_learned_follows_from_the_answers(encoder_of, tokenizer, train_on, data):
    """`last` learns the last turn of what `assistant` learns; `all` everything but BOS and answers
    left out, and nothing where all answers are."""
    template = data.draw(st.sampled_from(TEMPLATES))
    plain_bound, chat_encoder = bind(encoder_of, tokenizer, template), bind(encoder_of, tokenizer, template, train_on)
    dialogue = data.draw(dialogues(written(chat_encoder)))
    where, encoded, rendered = spans(plain_bound, dialogue)
    chosen = chat_encoder.encode(rendered)
    assert chosen.input_ids == encoded.input_ids
    learned = {i for i, s in enumerate(chosen.supervised) if s}
    bos = chat_encoder.encoder.bos
    if train_on == "last":
        last = [turn for turn, positions in where.items() if positions][-1:]
        assert learned == {i for turn in last for i in where[turn]}
    elif any(s.excluded for s in rendered.segments) and not any(s.supervised for s in rendered.segments):
        assert not learned  # a dialogue whose answers are all left out
    else:
        left_out = {k for k, turn in enumerate(dialogue.turns) if not turn.train and turn.text.strip()}
        for i, (token, segment) in enumerate(zip(encoded.input_ids, encoded.segment_of, strict=True)):
            owner = rendered.segments[segment] if segment >= 0 else None
            if bos and bos != chat_encoder.encoder.eos and token == bos.id:
                assert i not in learned
            elif owner and owner.role == "assistant" and owner.turn in left_out:
                assert i not in learned or i in chosen.straddling
            elif i not in chosen.straddling:
                assert i in learned or (owner and owner.turn in left_out)
    hold(chat_encoder, dialogue)
