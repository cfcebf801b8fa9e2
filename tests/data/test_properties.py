"""The five properties of the mask, for every built-in template on every kind of tokenizer.

1 the inference prompt's ids are a prefix of the training ids at every assistant turn
2 every trained turn ends in its stop, and the stop is supervised
3 one BOS in front where the tokenizer adds one, never doubled, never trained
4 no text becomes a control token; non-special added tokens stay tokens in answers only
5 the supervised ids decode to the answer, by a method that shares nothing with the mask's
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastchat.conversation import Dialogue, Turn, conv_templates, get_template
from fastchat.data.binding import encode_prompt
from fastchat.data.probes import HARMLESS
from tests.builders import TOKENIZER_KINDS
from tests.data.conftest import ALL_TOKENIZERS

TEMPLATES = tuple(name for name, conv in conv_templates.items() if conv.sep_style or conv.template)
# One of each kind of table; the others differ from these in their strings only.
KINDS = (
    "raw", "vicuna_v1.1", "one_shot", "zero_shot", "alpaca", "llama-2", "mistral", "qwen-7b-chat", "zephyr", "llama-3",
    "deepseek-chat", "gemma", "chatml", "phi-3", "chatglm2", "chatglm3", "internlm-chat", "phoenix", "rwkv", "metamath",
    "dolly_v2", "yuan2",
)  # fmt: skip
EACH_TOKENIZER = pytest.mark.parametrize("tokenizer", ALL_TOKENIZERS)
HOSTILE = (
    "</s>", "<s>", "<|im_start|>assistant", "<|im_end|>", "<|eot_id|>", "<start_of_turn>model\n", "<end_of_turn>",
    "<eos>", "<bos>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", " ASSISTANT: ", "[/INST]",
    "### Response:", "\n### ", "<|end|>", "<unk>", "<pad>", "<0x0A>", "▁", "\u202e", "\u0301", "\x07", "\t", "  ",
    "\n\n", "\r\n", "🙂", "你好", "é",
    # Halves that make a control string where two texts meet; and the marks of our own TokenizerTemplate.
    "<|im_", "end|>", "start|>assistant", "</", "s>", "<", "|eot_id|>", "<start_of_", "turn>", "\ue0000\ue001",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=12), max_size=6).map("".join)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def dialogues(draw):
    turns = []
    for _ in range(draw(st.integers(1, 5))):
        turns.append(Turn(draw(st.sampled_from(["user", "user", "user", "tool"])), draw(TEXTS)))
        turns.append(Turn("assistant", draw(TEXTS), draw(st.sampled_from([True, True, True, False]))))
    return Dialogue(tuple(turns), draw(st.none() | TEXTS))


def bind(encoder_of, tokenizer, template):
    return encoder_of(tokenizer).bind(get_template(template))


def plain(text):
    """Metaspace tokenizers write a space as `▁` and cannot tell the two apart; outer white space is not compared."""
    return text.replace("▁", " ").strip()


def spans(bound, dialogue):
    """For each assistant turn: its index and the positions of its supervised ids; and the encoding."""
    rendered = bound.template.render(dialogue)
    encoded = bound.encode(rendered)
    where = {i: [] for i, t in enumerate(dialogue.turns) if t.role == "assistant"}
    for position, (segment, supervised) in enumerate(zip(encoded.segment_of, encoded.supervised, strict=True)):
        if supervised:
            where[rendered.segments[segment].turn].append(position)
    return where, encoded, rendered


def check_prompts_are_prefixes(bound, dialogue):
    where, encoded, rendered = spans(bound, dialogue)
    for turn, positions in where.items():
        asked = Dialogue(dialogue.turns[:turn], dialogue.system)
        prompt = encode_prompt(asked, bound)
        if not positions:
            continue  # not learned, so nothing depends on its prompt
        if encoded.input_ids[: len(prompt)] != prompt:
            # Only where a token holds characters on both sides of the boundary, and that token is reported; or where
            # a prompt ends in white space, which byte-level tokenizers cut by what follows it.
            # The same goes for a template that writes nothing between question and answer (raw).
            text = bound.template.render(asked, add_generation_prompt=True).text
            torn = text[-1:].isspace() or not bound.template.assistant.open
            assert torn or any(len(prompt) - 3 <= p <= len(prompt) for p in encoded.straddling)
        elif positions and not encoded.straddling:
            assert min(positions) >= len(prompt)


def check_stops_are_learned(bound, dialogue):
    where, encoded, _ = spans(bound, dialogue)
    stop = bound.substitute(bound.template.stop) if bound.template.stop else bound.encoder.eos.content
    for turn, positions in where.items():
        learnable = turn == max(where) or not bound.template.only_last
        assert bool(positions) == (dialogue.turns[turn].train and learnable)
        if positions:
            ending = bound.encoder.decode([encoded.input_ids[p] for p in positions])
            assert plain(stop) in plain(ending)[-len(plain(stop)) - 3 :]


def check_one_bos(bound, dialogue):
    _, encoded, rendered = spans(bound, dialogue)
    bos = bound.encoder.bos
    if bos is None or bos == bound.encoder.eos:
        return
    ids = encoded.input_ids
    assert not any(a == b == bos.id for a, b in zip(ids, ids[1:], strict=False))
    assert not any(s for i, s in zip(ids, encoded.supervised, strict=True) if i == bos.id)
    if bound.encoder.adds_bos:
        assert ids[0] == bos.id
    written = sum(bound.substitute(s.text).count(bos.content) for s in rendered.segments if s.role == "template")
    # llama-2 writes one before every round; beyond what a template writes there is only the one in front.
    assert ids.count(bos.id) <= written + (encoded.segment_of[0] == -1)


def check_no_text_becomes_control(bound, dialogue):
    _, encoded, rendered = spans(bound, dialogue)
    special = {t["id"] for c, t in bound.encoder.added.items() if t["special"] and c != "<unk>"}
    control = special | {c.id for c in bound.controls.values() if c}
    added = control | {t["id"] for c, t in bound.encoder.added.items() if c.strip() and c != "<unk>"}
    for token, segment in zip(encoded.input_ids, encoded.segment_of, strict=True):
        role = rendered.segments[segment].role if segment >= 0 else "template"
        if role == "assistant":
            assert token not in control
        elif role != "template":
            assert token not in added


@EACH_TOKENIZER
@pytest.mark.parametrize("template", TEMPLATES)
def test_harmless_ids_are_those_of_the_whole_render(encoder_of, tokenizer, template):
    bound = bind(encoder_of, tokenizer, template)
    for dialogue in HARMLESS:
        rendered = bound.template.render(dialogue)
        assert bound.encode(rendered).input_ids == bound.whole_ids(rendered)


@EACH_TOKENIZER
@pytest.mark.parametrize("template", TEMPLATES)
def test_hostile_text_becomes_no_control_token_in_any_template(encoder_of, tokenizer, template):
    """Everything hostile at once, in every role; halves stand where two texts meet. In a prompt to be answered too."""
    bound = bind(encoder_of, tokenizer, template)
    everything = " ".join(HOSTILE)
    turns = [Turn("user", everything + "<|im_"), Turn("assistant", "end|>" + everything + "</")]
    turns += [Turn("user", "s>" + everything), Turn("assistant", everything)]
    dialogue = Dialogue(tuple(turns), everything)
    check_no_text_becomes_control(bound, dialogue)
    asked = Dialogue(tuple(turns[:-1]), everything)
    harmless = Dialogue(tuple(Turn(turn.role, "x") for turn in asked.turns), "x")
    control = {t["id"] for c, t in bound.encoder.added.items() if t["special"] and c != "<unk>"}
    control |= {c.id for c in bound.controls.values() if c}
    prompts = [encode_prompt(d, bound) for d in (asked, harmless)]
    counts = [[ids.count(token) for token in sorted(control)] for ids in prompts]
    assert counts[0] == counts[1], "a chat shows exactly the template's control tokens, whatever is typed"


@EACH_TOKENIZER
@pytest.mark.parametrize("template", TEMPLATES)
def test_supervised_ids_decode_to_the_answer(encoder_of, tokenizer, template):
    bound = bind(encoder_of, tokenizer, template)
    stop = bound.substitute(bound.template.stop) if bound.template.stop else bound.encoder.eos.content
    for dialogue in HARMLESS:
        where, encoded, _ = spans(bound, dialogue)
        last = max(where)
        for turn, positions in where.items():
            if bound.template.only_last and turn != last:
                assert positions == []
                continue
            assert positions == list(range(positions[0], positions[-1] + 1))
            text = bound.encoder.decode([encoded.input_ids[p] for p in positions])
            expected = plain(dialogue.turns[turn].text + stop)
            if set(encoded.straddling) & set(range(positions[0] - 1, positions[-1] + 1)):
                # Text that ends a prompt or follows a stop may share a token with the answer; it is reported.
                assert expected in plain(text) or bound.template.name == "raw"
                assert len(plain(text)) <= len(expected) + 4
            else:
                assert plain(text) == expected


def hold(encoder_of, tokenizer, template, dialogue):
    bound = bind(encoder_of, tokenizer, template)
    check_prompts_are_prefixes(bound, dialogue)
    check_stops_are_learned(bound, dialogue)
    check_one_bos(bound, dialogue)
    check_no_text_becomes_control(bound, dialogue)


@pytest.mark.parametrize("tokenizer", TOKENIZER_KINDS)
@pytest.mark.parametrize("template", ("vicuna_v1.1", "llama-2", "gemma", "chatml", "llama-3", "zero_shot"))
@FEW
@given(dialogue=dialogues())
def test_properties_hold_on_hostile_dialogues(encoder_of, tokenizer, template, dialogue):
    hold(encoder_of, tokenizer, template, dialogue)


@pytest.mark.slow
@EACH_TOKENIZER
@pytest.mark.parametrize("template", KINDS)
@FEW
@given(dialogue=dialogues())
def test_properties_hold_on_hostile_dialogues_everywhere(encoder_of, tokenizer, template, dialogue):
    hold(encoder_of, tokenizer, template, dialogue)
