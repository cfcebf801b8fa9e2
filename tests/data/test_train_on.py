"""`--train_on`: every trained answer, the last of them, or everything but BOS; shown, counted and checked as such."""

import json
import re

import pytest

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data import preview
from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import IGNORED, tokenize_dialogue, tokenize_dialogues
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.errors import DataError, SettingsError
from tests.builders import TOKENIZER_KINDS, make_tokenizer, write_rows
from tests.data.test_html_report import data_of
from tests.data.test_tokenizer_template import CHATML, TALK, THINKING
from tests.tiers import template_cases

ANSWERS = Dialogue(
    (
        *(Turn("user", "one?"), Turn("assistant", "first answer")),
        *(Turn("user", "two?"), Turn("assistant", "bad answer", train=False)),
        *(Turn("user", "three?"), Turn("assistant", "second answer")),
        *(Turn("user", "four?"), Turn("assistant", "worse", train=False)),
    ),
    "You help.",
    "talk.json",
    7,
)


def learned(chat_encoder, dialogue, max_length=1 << 30):
    """The runs of learned tokens, decoded; and the last example."""
    runs = []
    for example in tokenize_dialogues([(0, dialogue)], chat_encoder, max_length=max_length):  # noqa: B007
        before = IGNORED
        for token, label in zip(example.input_ids, example.labels, strict=True):
            if label != IGNORED:
                runs = [*runs, [token]] if before == IGNORED else [*runs[:-1], [*runs[-1], token]]
            before = label
    return [chat_encoder.encoder.decode(run).replace("▁", " ").strip() for run in runs], example


def check(chat_encoder, dialogue):
    """What the second derivation says of all examples of a dialogue."""
    examples = tokenize_dialogues([(0, dialogue)], chat_encoder, max_length=1 << 30)
    return LabelCrossCheck(chat_encoder).check(
        (dialogue, x.input_ids, x.labels, x.part) for x in examples if x.dropped is None
    )


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_each_choice_learns_what_it_says(encoder_of, kind):
    encoder, template = encoder_of(kind), get_template("vicuna_v1.1")
    eos = encoder.eos.content
    every, example = learned(encoder.bind(template), ANSWERS)
    assert every == [f"first answer{eos}", f"second answer{eos}"] and example.trained_turns == 2
    last, example = learned(encoder.bind(template, "last"), ANSWERS)
    assert last == [f"second answer{eos}"] and (example.trained_turns, example.untrained_turns) == (1, 3)
    all_, example = learned(encoder.bind(template, "all"), ANSWERS)
    assert all_ == [
        f"You help. USER: one? ASSISTANT: first answer{eos}USER: two? ASSISTANT:",
        f"USER: three? ASSISTANT: second answer{eos}USER: four? ASSISTANT:",
    ]
    assert (example.trained_turns, example.untrained_turns) == (2, 2)
    if encoder.adds_bos:
        assert (example.input_ids[0], example.labels[0]) == (encoder.bos.id, IGNORED)


def _left_out(*turns, system_train=True):
    said = [Turn(role, text, train) for role, text, train in turns]
    return Dialogue(tuple(said), "You help.", system_train=system_train)


@pytest.mark.parametrize("own", [False, True])
def test_all_leaves_out_what_says_so(tmp_path, own):
    """Prompts too: a user's turn, the system message; and the whole dialogue where no answer is learned."""

    path = make_tokenizer("byte_nobos", tmp_path / "t", chat_template=CHATML)
    encoder, _ = open_tokenizer(str(path))
    chat_encoder = encoder.bind(encoder.choose("tokenizer") if own else get_template("chatml"), "all")
    turns = [
        ("user", "secret question", False),
        ("assistant", "answer", True),
        ("user", "more", True),
        ("assistant", "end", True),
    ]
    runs, _ = learned(chat_encoder, _left_out(*turns, system_train=False))
    text = " ".join(runs)
    assert "secret" not in text and "You help" not in text and "more" in text and "answer" in text
    runs, _ = learned(chat_encoder, _left_out(*turns))
    assert "You help" in " ".join(runs)
    runs, example = learned(chat_encoder, _left_out(*[(role, said, False) for role, said, _ in turns]))
    assert not runs and example.dropped == "no_trained_turn"


@pytest.mark.parametrize("source", [CHATML, THINKING])
def test_each_choice_with_the_tokenizers_own_template(tmp_path, source, encoder_of):

    encoder, _ = open_tokenizer(str(make_tokenizer("byte_nobos", tmp_path / "t", chat_template=source)))
    own = encoder.choose("tokenizer")
    assert learned(encoder.bind(own, "last"), ANSWERS)[0] == ["second answer<|im_end|>"]
    all_ = learned(encoder.bind(own, "all"), ANSWERS)[0]
    assert all_[0].endswith("two?<|im_end|>\n<|im_start|>assistant") and all_[0].startswith(
        "<|im_start|>system\nYou help."
    )
    assert all_[1].endswith("four?<|im_end|>\n<|im_start|>assistant") and len(all_) == 3
    for train_on in ("assistant", "last", "all"):
        chat_encoder = encoder.bind(own, train_on)
        for dialogue in (TALK, ANSWERS):
            checked = check(chat_encoder, dialogue)
            assert checked.records >= 1 or checked.unlocated > 1, "all and several examples: only in part"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), template_cases(TOKENIZER_KINDS))
def test_the_second_check_agrees_with_every_template(encoder_of, kind, name):
    for train_on in ("assistant", "last", "all"):
        chat_encoder = encoder_of(kind).bind(get_template(name), train_on)
        checked = check(chat_encoder, ANSWERS)
        assert checked.records + checked.unlocated >= 1, train_on


@pytest.mark.parametrize(
    ("train_on", "wrong", "said"),
    [
        ("last", "first answer too", "tokens are learned but the answers account for"),
        ("last", "nothing", "do not begin after the prompt"),
        ("all", "excluded answer", "do not begin after the prompt"),
        ("all", "prompt left out", "are not learned but the answers account for"),
        ("all", "bos", "BOS is learned"),
        ("assistant", "bos", "BOS is learned"),
    ],
)
def test_planted_wrong_labels_are_caught_under_every_choice(encoder_of, train_on, wrong, said):
    chat_encoder = encoder_of("metaspace_bos").bind(get_template("vicuna_v1.1"), train_on)
    example = tokenize_dialogue(ANSWERS, chat_encoder, max_length=1 << 30)
    ids, labels = example.input_ids, list(example.labels)
    if wrong == "first answer too":
        labels = tokenize_dialogue(
            ANSWERS, encoder_of("metaspace_bos").bind(get_template("vicuna_v1.1")), max_length=999
        ).labels
    elif wrong == "nothing":
        labels = [IGNORED] * len(ids)
    elif wrong == "excluded answer":
        labels = [ids[0] if i < 0 else token for i, token in enumerate(ids)]
        labels[0] = IGNORED
    elif wrong == "prompt left out":
        labels[4:6] = [IGNORED, IGNORED]
    elif wrong == "bos":
        labels[0] = ids[0]
    with pytest.raises(DataError, match=f"talk.json:7: two ways .*{said}"):
        LabelCrossCheck(chat_encoder).check([(ANSWERS, ids, labels)])


@pytest.mark.parametrize("train_on", ["last", "all"])
def test_cut_at_every_length(encoder_of, train_on):
    chat_encoder = encoder_of("byte_bos").bind(get_template("llama-3"), train_on)
    whole = tokenize_dialogue(ANSWERS, chat_encoder, max_length=1 << 30)
    for length in range(1, len(whole.input_ids) + 1):
        cut = tokenize_dialogue(ANSWERS, chat_encoder, max_length=length)
        kept = len(cut.input_ids)
        assert kept <= length and cut.input_ids == whole.input_ids[:kept] and cut.labels == whole.labels[:kept]
        if cut.dropped is None:
            LabelCrossCheck(chat_encoder).check([(ANSWERS, cut.input_ids, cut.labels)])
    assert tokenize_dialogue(ANSWERS, chat_encoder, max_length=40).dropped == (
        "no_answer_within_length" if train_on == "last" else None
    )


def test_the_choice_is_said_and_a_wrong_one_refused(encoder_of, capsys):
    encoder, template = encoder_of("gemma"), get_template("gemma")
    encoder.bind(template, "all")
    assert "WARNING: --train_on all: prompts are learned as well" in capsys.readouterr().err
    encoder.bind(template, "last")
    assert "--train_on last: only the last trained answer of each dialogue" in capsys.readouterr().err
    encoder.bind(template)
    assert capsys.readouterr().err == ""
    with pytest.raises(SettingsError, match="--train_on some: must be one of assistant, last, all"):
        encoder.bind(template, "some")


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_the_preview_and_its_page_give_the_reasons(tokenizer_dir, tmp_path, capsys, train_on):
    turns = [{"role": t.role, "content": t.text, "train": t.train} for t in ANSWERS.turns[:6]]
    data = write_rows(tmp_path / "rows.jsonl", [{"messages": turns, "system": "You help."}])
    out, page = tmp_path / "out.jsonl", tmp_path / "page.html"
    argv = ["--model_name_or_path", str(tokenizer_dir("metaspace_bos")), "--conv_template", "vicuna_v1.1"]
    argv += ["--data_path", str(data), "--output", str(out), "--html", str(page), "--train_on", train_on]
    assert preview.main(argv) == 0
    found = data_of(page)
    reasons = {}
    for count, why in ((run[0], run[-1]) for run in _runs(found["records"][0])):
        name = found["reasons"][why][0]
        reasons[name] = reasons.get(name, 0) + count
    labels = json.loads(out.read_text())["labels"]
    assert sum(n for name, n in reasons.items() if _is_learned(found, name)) == sum(x != IGNORED for x in labels)
    assert ("context, learned" in reasons) == (train_on == "all") and ("not the last" in reasons) == (
        train_on == "last"
    )
    assert "excluded" in reasons and dict(found["about"])["--train_on"] == train_on
    turns_line = re.search(r"turns +6: (\d) answers? learned, (\d) not", capsys.readouterr().out)
    assert turns_line and turns_line.groups() == (("1", "2") if train_on == "last" else ("2", "1"))


def _runs(record):
    flat = record["r"]
    return [flat[i : i + 4] for i in range(0, len(flat), 4)]


def _is_learned(found, name):
    return next(learned for known, _, learned in found["reasons"] if known == name)
