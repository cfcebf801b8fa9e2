"""Of a dialogue that is far too long only the beginning is encoded; what is kept of it is the same to the last id."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from fastchat.conversation import Dialogue, Turn
from fastchat.data.encoding import beginning
from fastchat.data.encoding.examples import tokenize_dialogue, tokenize_dialogues
from fastchat.data.encoding.fast_path import FastPath
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.tokens.counts import count_example, table
from fastchat.errors import DataError
from tests.builders import TOKENIZER_KINDS
from tests.tiers import pairs

WORDS = [
    "the",
    "quick",
    "brown fox",
    "1234567",
    "é\u0301",
    "漢字漢字",
    "🙂🙂",
    "</s>",
    "<|im_end|>",
    "\n\n",
    "   ",
    "\t",
    "don't",
]
SIZE = 9_000


def texts() -> dict[str, str]:
    random.seed(3)
    prose = " ".join(random.choice(WORDS) for _ in range(SIZE // 5))
    return {
        "prose": prose,
        "no space": "".join(random.choice("abcdefgh12345_") for _ in range(SIZE)),
        "one letter": "a" * SIZE,
        "digits": "".join(random.choice("0123456789") for _ in range(SIZE)),
        "spaces": "hi" + " " * SIZE + "yo",
        "spaces to the end": "hi there " * 9 + " " * SIZE,
        "marks": "e" + "\u0301" * SIZE,
        "emoji": "🙂" * SIZE,
        "controls": "</s><|im_end|>" * (SIZE // 14),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "template"), pairs(TOKENIZER_KINDS, ["vicuna_v1.1", "chatml"]))
def test_what_is_kept_is_the_same(
    encoder_of: Callable[[str], TextEncoder], kind: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(kind)
    dialogues = []
    for text in texts().values():
        short = [Turn("user", "Hi"), Turn("assistant", "Yo, friend.")]
        dialogues += [
            Dialogue((Turn("user", text), Turn("assistant", "Yes."))),
            Dialogue((*short, Turn("user", "And?"), Turn("assistant", text))),
            Dialogue((*short, Turn("user", text), Turn("assistant", "a", False), *short), "Be brief."),
            Dialogue((Turn("user", "Q"), Turn("assistant", text), *short), text[:50]),
        ]
    for train_on in ("assistant", "last", "all"):
        chat_encoder = encoder.bind(encoder.choose(template), train_on)
        for overlong in ("truncate", "drop") if train_on == "assistant" else ("truncate",):
            made = []
            for at_least in (1 << 30, 1 << 8):
                monkeypatch.setattr(beginning, "_AT_LEAST", at_least)
                numbered = enumerate(dialogues)
                made.append(
                    [asdict(x) for x in tokenize_dialogues(numbered, chat_encoder, max_length=20, overlong=overlong)]
                )
            num_cut = 0
            for whole, part in zip(*made, strict=True):
                assert not whole.pop("at_least")
                num_cut += (cut := part.pop("at_least"))
                outcomes = whole.pop("outcome"), part.pop("outcome")
                for key in ("at_least", "loses", "escaped") if cut else ():
                    assert [outcome.pop(key) for outcome in outcomes]
                assert outcomes[0] == outcomes[1]
                if cut:
                    for key in ("truncated_tokens", "escaped", "lost"):
                        assert part.pop(key) <= whole.pop(key)
                    del part["gains"], whole["gains"]  # what longer limits would keep is known of the beginning only
                assert part == whole
            assert num_cut > len(dialogues) // 2


def test_far_from_everything_is_encoded(
    encoder_of: Callable[[str], TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of("byte_nobos")
    chat_encoder = encoder.bind(encoder.choose("chatml"))
    sizes: list[int] = []
    tokens = FastPath.tokens

    def watched(self: FastPath, given: Any, position: str) -> Any:
        sizes.append(sum(map(len, given)))
        return tokens(self, given, position)

    monkeypatch.setattr(FastPath, "tokens", watched)
    text = "a word and another " * 200_000
    dialogue = Dialogue((Turn("user", "Hi"), Turn("assistant", text)), None, "a.jsonl", 7)
    example = tokenize_dialogue(dialogue, chat_encoder, max_length=512)
    assert len(example.input_ids) == 512 and example.at_least and sum(sizes) < 100_000
    counts: Any = __import__("collections").Counter()
    count_example(counts, example)
    assert f"at least {example.truncated_tokens:,} tokens of any kind, from 1 dialogue" in table(counts)
    with pytest.raises(DataError, match="a.jsonl:7: the dialogue has at least [0-9]+ tokens and --model_max_length"):
        tokenize_dialogue(dialogue, chat_encoder, max_length=512, overlong="error")
    sizes.clear()
    many = [(i, Dialogue((Turn("user", "Hi"), Turn("assistant", "word " * 18_000)))) for i in range(30)]
    assert not any(x.at_least for x in tokenize_dialogues(many, chat_encoder, max_length=512))
    assert max(sizes) <= beginning._MOST_AT_ONCE


def test_a_tokenizer_that_looks_to_the_end_of_a_number_is_encoded_whole(
    encoder_of: Callable[[str], TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits grouped from the right: every id of a long number depends on where it ends."""
    encoder = encoder_of("byte_nobos")
    chat_encoder = encoder.bind(encoder.choose("chatml"))
    plain = TextEncoder.plain_tokens

    def from_the_right(self: TextEncoder, given: Any, position: str) -> Any:
        found = plain(self, given, position)
        return [([i + len(text) % 3 for i in ids], at) for text, (ids, at) in zip(given, found, strict=True)]

    monkeypatch.setattr(TextEncoder, "plain_tokens", from_the_right)
    monkeypatch.setattr(encoder, "fast", FastPath(encoder))  # one that has not been prepared
    monkeypatch.setattr(chat_encoder, "_forbidden", set())
    monkeypatch.setattr(beginning, "_AT_LEAST", 1 << 8)
    dialogue = Dialogue((Turn("user", "Hi"), Turn("assistant", "7" * 20_000)))
    assert not tokenize_dialogue(dialogue, chat_encoder, max_length=60).at_least
