"""One example for the eye: what is left out of it, and that its borders never are."""

import pytest

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data.rows.records import Record
from fastchat.data.view.showing import first_example, shorten


def test_short_runs_stay_as_they_are():
    texts, marks = ["a", "b", "c"], [False, True, True]
    assert shorten(texts, marks) == (texts, marks)
    assert shorten([], []) == ([], [])


def test_the_middle_of_a_long_run_is_left_out_and_its_size_said():
    texts = [f"q{i}" for i in range(100)] + [f"a{i}" for i in range(500)]
    shown, marks = shorten(texts, [False] * 100 + [True] * 500)
    question, answer = [t for t, m in zip(shown, marks, strict=True) if not m], shown[marks.index(True) :]
    assert question == [*texts[:64], " … 12 tokens … ", *texts[76:100]]
    assert answer == [*texts[100:164], " … 412 tokens … ", *texts[-24:]] and all(marks[marks.index(True) :])


def test_of_a_long_dialogue_the_first_runs_are_shown():
    shown, marks = shorten([str(i) for i in range(80)], [i % 2 == 1 for i in range(80)])
    assert shown == [*map(str, range(8)), " … 72 more tokens"] and marks[-1] is False


@pytest.mark.parametrize("colour", [False, True])
def test_the_first_record_that_is_learned_is_the_example(encoder_of, colour):
    chat_encoder = encoder_of("byte_bos").bind(get_template("llama-3"))
    silent = Dialogue((Turn("user", "a"), Turn("assistant", "b", train=False)))
    spoken = Dialogue((Turn("user", "Hi \x1b[31m"), Turn("assistant", "Yo")))
    records = [
        Record(0, None, "empty_dialogue", "x", 1),
        Record(1, silent, None, "x", 2),
        Record(2, spoken, None, "x", 3),
    ]
    text = first_example(records, chat_encoder, max_length=512, overlong="truncate", colour=colour)
    assert text.startswith("--- x:3: ") and "learned in 1 answer" in text and "\x1b[31m" not in text
    assert colour or r"Hi \x1b[31m" in text
    assert ("[[Yo<|eot_id|>]]" in text) != colour and ("\x1b[32m" in text or "\x1b[92m" in text) == colour
    assert first_example(records[:2], chat_encoder, max_length=512, overlong="truncate", colour=colour) == ""
