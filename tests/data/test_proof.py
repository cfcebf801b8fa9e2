"""The second opinion agrees with right labels and catches every wrong one that is planted."""

import pytest

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import IGNORED, tokenize_dialogue, tokenize_dialogues
from fastchat.data.encoding.probes import HARMLESS
from fastchat.data.rows.records import load_dialogues
from fastchat.errors import DataError
from tests.builders import TOKENIZER_KINDS
from tests.tiers import template_cases

TALK = Dialogue(
    (Turn("user", "What is 2 + 2?"), Turn("assistant", "It is 4."), Turn("user", "Thanks"), Turn("assistant", "Sure!")),
    "You count.",
    "talk.json",
    9,
)


def sample(chat_encoder, dialogue, max_length=10_000):
    example = tokenize_dialogue(dialogue, chat_encoder, max_length=max_length)
    return dialogue, example.input_ids, example.labels


@pytest.mark.parametrize(("tokenizer", "template"), template_cases(TOKENIZER_KINDS))
def test_right_labels_agree(encoder_of, tokenizer, template):
    chat_encoder = encoder_of(tokenizer).bind(get_template(template))
    dialogues = [*HARMLESS, TALK]
    examples = list(tokenize_dialogues(enumerate(dialogues), chat_encoder, max_length=10_000))
    checked = LabelCrossCheck(chat_encoder).check(
        (dialogues[x.index], x.input_ids, x.labels, x.part) for x in examples if x.dropped is None
    )
    assert checked.records + checked.skipped == len(examples) >= len(dialogues)
    answers = sum(turn.role == "assistant" for dialogue in dialogues for turn in dialogue.turns)
    assert checked.turns == answers or checked.skipped


def plant(kind, ids, labels):
    labels = list(labels)
    supervised = [i for i, label in enumerate(labels) if label != IGNORED]
    first, last = supervised[0], supervised[-1]
    if kind == "prompt token trained":
        labels[first - 1] = ids[first - 1]
    elif kind == "first token untrained":
        labels[first] = IGNORED
    elif kind == "stop untrained":
        labels[last] = IGNORED
    elif kind == "question trained":
        labels[first - 6 : first] = ids[first - 6 : first]
    elif kind == "answer untrained":
        labels = [IGNORED] * last + labels[last:]
    elif kind == "wrong id":
        labels[first] = ids[first] + 1
    elif kind == "shifted":
        labels = [IGNORED, *[i if label != IGNORED else IGNORED for i, label in zip(ids[1:], labels[:-1], strict=True)]]
    elif kind == "newline behind a stop trained":
        end = next(i for i in supervised if labels[i + 1] == IGNORED)
        labels[end + 1] = ids[end + 1]
    elif kind == "everything trained":
        labels = list(ids)
    return labels


@pytest.mark.parametrize("tokenizer", ("metaspace_bos", "byte_nobos"))
@pytest.mark.parametrize(
    "kind",
    [
        "prompt token trained",
        "first token untrained",
        "stop untrained",
        "question trained",
        "answer untrained",
        "wrong id",
        "shifted",
        "everything trained",
    ],
)
def test_planted_wrong_label_is_caught_with_the_tokens_around_it(encoder_of, tokenizer, kind):
    chat_encoder = encoder_of(tokenizer).bind(get_template("vicuna_v1.1"))
    dialogue, ids, labels = sample(chat_encoder, TALK)
    with pytest.raises(DataError, match=r"talk.json:9: two ways .* disagree at token \d+") as error:
        LabelCrossCheck(chat_encoder).check([(dialogue, ids, plant(kind, ids, labels))])
    assert "learned tokens in brackets" in str(error.value)


@pytest.mark.parametrize("tokenizer", TOKENIZER_KINDS)
@pytest.mark.parametrize("template", ("chatml", "gemma", "llama-2", "zero_shot", "phi-4"))
@pytest.mark.parametrize("kind", ["newline behind a stop trained", "stop untrained", "shifted", "question trained"])
def test_planted_wrong_label_is_caught_with_other_templates(encoder_of, tokenizer, template, kind):
    chat_encoder = encoder_of(tokenizer).bind(get_template(template))
    dialogue, ids, labels = sample(chat_encoder, TALK)
    with pytest.raises(DataError, match=r"disagree at token \d+"):
        LabelCrossCheck(chat_encoder).check([(dialogue, ids, plant(kind, ids, labels))])


def test_cut_dialogues_agree_at_every_length(encoder_of):
    chat_encoder = encoder_of("byte_bos").bind(get_template("llama-3"))
    opinion = LabelCrossCheck(chat_encoder)
    for length in range(1, len(sample(chat_encoder, TALK)[1]) + 1):
        opinion.check([sample(chat_encoder, TALK, length)])


def test_records_with_look_alikes_are_left_out_and_counted(encoder_of):
    chat_encoder = encoder_of("byte_nobos").bind(get_template("chatml"))
    hostile = Dialogue((Turn("user", "<|im_end|>"), Turn("assistant", "no")))
    checked = LabelCrossCheck(chat_encoder).check([sample(chat_encoder, hostile), sample(chat_encoder, TALK)])
    assert (checked.records, checked.skipped, checked.turns) == (1, 1, 2)
    assert "1 skipped: special-token strings, or too long" in checked.line


@pytest.mark.parametrize("tokenizer", ("llama-2", "gemma", "llama-3", "qwen2.5"))
@pytest.mark.parametrize("file", ("gsm8k_multiturn.jsonl", "dummy_conversation.json", "alpaca_en_demo.json"))
def test_real_data_agrees(shared, encoder_of, tokenizer, file):
    chat_encoder = encoder_of(f"tokenizers/{tokenizer}").bind(get_template("vicuna_v1.1"))
    records = load_dialogues([str(shared / "data" / file)], on_bad_row="stop").records[:300]
    samples = [sample(chat_encoder, record.dialogue, 1024) for record in records]
    kept = [(dialogue, ids, labels) for dialogue, ids, labels in samples if ids]
    checked = LabelCrossCheck(chat_encoder).check(kept)
    assert checked.records + checked.skipped == len(kept) > 200 and checked.turns >= checked.records
