"""Cutting what is too long, dropping what cannot be learned, and counting both."""

import pytest

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data.encoding.examples import IGNORED, tokenize_dialogue, tokenize_dialogues
from fastchat.data.tokens.lost import LOUD, Lost
from fastchat.errors import DataError
from tests.builders import TOKENIZER_KINDS

LONG = Dialogue(
    (
        Turn("user", "Tell me a story."),
        Turn("assistant", "Once upon a time there was a small red house."),
        Turn("user", "And then?"),
        Turn("assistant", "It was sold."),
        Turn("user", "More!"),
        Turn("assistant", "The end."),
    ),
    "You tell stories.",
    "stories.json",
    7,
)


@pytest.fixture(params=[(k, t) for k in TOKENIZER_KINDS for t in ("vicuna_v1.1", "chatml", "gemma", "zero_shot")])
def chat_encoder(request, encoder_of):
    kind, template = request.param
    return encoder_of(kind).bind(get_template(template))


def test_cut_at_every_length_never_trains_a_prompt_and_never_invents_a_stop(chat_encoder):
    full = tokenize_dialogue(LONG, chat_encoder, max_length=10_000)
    total = len(full.input_ids)
    ends = [
        p + 1 for p in range(total) if full.labels[p] != IGNORED and (p + 1 == total or full.labels[p + 1] == IGNORED)
    ]
    assert len(ends) == 3 and full.trained_turns == 3 and full.truncated_tokens == 0
    first = next(p for p in range(total) if full.labels[p] != IGNORED)
    for length in range(1, total + 1):
        cut = tokenize_dialogue(LONG, chat_encoder, max_length=length)
        kept = len(cut.input_ids)
        if length <= first:
            assert cut.dropped == "no_answer_within_length" and kept == 0 and cut.truncated_tokens > 0
            continue
        assert cut.dropped is None and kept <= length and cut.truncated_tokens == total - kept
        assert (cut.trained_turns + cut.cut_turns, cut.untrained_turns) == (3, full.untrained_turns)
        assert cut.input_ids == full.input_ids[:kept] and cut.labels == full.labels[:kept]
        whole = [end for end in ends if end <= length]
        if length == total:
            assert kept == total
        elif whole:
            assert kept == max(whole)  # behind the last answer that fits
        else:
            assert kept == length and cut.trained_turns == 1  # inside the first answer: no stop is learned


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_what_a_limit_loses_and_what_a_longer_one_keeps_is_what_tokenising_with_it_gives(
    encoder_of, train_on, overlong
):
    chat_encoder = encoder_of("byte_bos").bind(get_template("chatml"), train_on)
    total = len(tokenize_dialogue(LONG, chat_encoder, max_length=10_000).input_ids)
    kept = [
        tokenize_dialogue(LONG, chat_encoder, max_length=n, overlong=overlong).num_supervised for n in range(total + 1)
    ]
    for length in range(1, total + 1):
        cut = tokenize_dialogue(LONG, chat_encoder, max_length=length, overlong=overlong)
        assert cut.lost == kept[-1] - kept[length] == sum(tokens for _, tokens in cut.gains)
        lost = Lost.of({"supervised_tokens": kept[length], "lossy_dialogues": 1}, cut.gains)
        expected = kept[length]
        for longer, tokens in cut.gains:
            expected += tokens
            assert longer > length and kept[longer] == expected, "exact at each length that is named"
        if lost.loud:
            enough, everything = lost.lengths[0][0], lost.lengths[-1][0]
            assert kept[everything] == kept[-1] > kept[everything - 1] and kept[enough] >= 0.95 * kept[-1]
            assert not any(kept[n] >= 0.95 * kept[-1] for n in range(length, enough - 16))
        else:
            assert lost.share <= LOUD and lost.line(length) is None


def test_drop_and_error_for_overlong(chat_encoder):
    dropped = tokenize_dialogue(LONG, chat_encoder, max_length=5, overlong="drop")
    assert (dropped.dropped, dropped.input_ids) == ("overlong", [])
    with pytest.raises(DataError, match=r"stories.json:7: the dialogue has \d+ tokens and --model_max_length is 5"):
        tokenize_dialogue(LONG, chat_encoder, max_length=5, overlong="error")


def test_dialogue_whose_answers_are_all_untrained_is_dropped(encoder_of):
    chat_encoder = encoder_of("gemma").bind(get_template("gemma"))
    example = tokenize_dialogue(
        Dialogue((Turn("user", "a"), Turn("assistant", "b", train=False))), chat_encoder, max_length=99
    )
    assert (example.dropped, example.untrained_turns, example.num_supervised) == ("no_trained_turn", 1, 0)


def test_batches_keep_order_and_agree_with_one_at_a_time(encoder_of):
    chat_encoder = encoder_of("byte_bos").bind(get_template("llama-3"))
    many = [(i, Dialogue((Turn("user", f"n {i}"), Turn("assistant", f"m {i}" * (i % 5))))) for i in range(600)]
    batched = list(tokenize_dialogues(iter(many), chat_encoder, max_length=40))
    assert [e.index for e in batched] == list(range(600))
    for k in (0, 255, 256, 599):
        assert batched[k] == tokenize_dialogue(many[k][1], chat_encoder, max_length=40, index=k)
