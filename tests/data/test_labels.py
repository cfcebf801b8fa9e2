"""The labels of a batch, made in one pass over arrays, are those of the rule applied to every token by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastchat.conversation import Segment
from fastchat.data.encoding.chat_encoder import Control
from fastchat.data.encoding.labels import count, label
from fastchat.data.encoding.supervision import IGNORED, Piece

OPENS, STOP = Control(1, "<s>"), Control(2, "</s>")
FIRST_ID = 10  # an id is FIRST_ID + the bytes of its text
LENGTHS = np.maximum(np.arange(64) - FIRST_ID, 0).astype(np.int32)

SEGMENTS = st.lists(
    st.builds(
        Segment,
        text=st.text("ab ü🙂", min_size=1, max_size=5),
        role=st.sampled_from(("template", "user", "assistant")),
        supervised=st.booleans(),
        excluded=st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@st.composite
def piece(draw: Any, indexes: Sequence[int], segments: Sequence[Segment]) -> Piece:
    """The text of some segments with tokens of random lengths, known by offsets or by their bytes."""
    parts = [(segments[i].text, i) for i in indexes]
    text = "".join(part for part, _ in parts)
    edges = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=8))})
    spans = list(zip(edges, edges[1:], strict=False))
    made = Piece(parts=parts, ids=[FIRST_ID + len(text[a:b].encode()) for a, b in spans])
    if draw(st.booleans()):
        made.offsets = spans
    elif draw(st.booleans()):
        made.added, made.ids[0] = 1, made.ids[0] + 1
    return made


@st.composite
def dialogue(draw: Any) -> tuple[list[Segment], list[Piece], list[bool]]:
    segments = draw(SEGMENTS)
    pieces, at = [Piece(OPENS)] if draw(st.booleans()) else [], 0
    while at < len(segments):
        end = draw(st.integers(at + 1, len(segments)))
        pieces.append(draw(piece(range(at, end), segments)))
        pieces += [Piece(STOP, end - 1)] if draw(st.booleans()) else []
        at = end
    learned = [segment.supervised and draw(st.booleans()) for segment in segments]
    return segments, pieces, learned


def one_by_one(segments: list[Segment], pieces: list[Piece], learned: list[bool]) -> tuple[list[Any], Counter[int]]:
    """(id, supervised, segment, straddling) of every token, and the number that begin in each segment."""
    found: list[Any] = []
    counts: Counter[int] = Counter()
    for one in pieces:
        if one.control is not None:
            found.append((one.control.id, one.control != OPENS and learned[one.segment], one.segment, False))
            counts[one.segment] += 1
            continue
        owners = [index for text, index in one.parts for _ in text.encode()]
        text, at = "".join(text for text, _ in one.parts), 0
        for number, token in enumerate(one.ids):
            size = token - FIRST_ID - (one.added if number == 0 else 0)
            held = list(dict.fromkeys(owners[at : at + size])) or [owners[at]]
            at += size
            wanted = [i for i in held if learned[i]]
            straddling = bool(wanted) and (len(wanted) < len(held) or len({segments[i].supervised for i in held}) > 1)
            outside = [i for i in held if not learned[i]]
            neutral = all(segments[i].role == "template" and not segments[i].excluded for i in outside)
            supervised = bool(wanted) and neutral if straddling else bool(wanted)
            found.append((token, supervised, wanted[0] if straddling and supervised else held[0], straddling))
            counts[held[0]] += 1
        assert at == len(text.encode())
    return found, counts


@given(st.lists(dialogue(), min_size=1, max_size=4))
def test_a_batch_is_labelled_like_each_token_by_itself(dialogues: list[Any]) -> None:
    for (segments, pieces, learned), made in zip(dialogues, label(dialogues, OPENS, LENGTHS), strict=True):
        wanted, counts = one_by_one(segments, pieces, learned)
        ids, supervised, segment_of, straddling = (list(column) for column in zip(*wanted, strict=True))
        assert (made.input_ids.tolist(), made.supervised.tolist()) == (ids, supervised)
        assert made.segment_of.tolist() == segment_of
        assert made.labels.tolist() == [i if s else IGNORED for i, s in zip(ids, supervised, strict=True)]
        assert made.straddling == [i for i, torn in enumerate(straddling) if torn]
        assert made.learned_in == sorted({i for i, s in zip(segment_of, supervised, strict=True) if s})
        half = made.beginning(len(ids) // 2)
        assert half.straddling == [i for i in made.straddling if i < len(ids) // 2]
        assert half.learned_in == sorted({i for i, s in zip(half.segment_of, half.supervised, strict=True) if s})
        assert count(pieces, len(segments), LENGTHS) == counts


def test_nothing_and_pieces_without_tokens() -> None:
    (made,) = label([([], [], [])], OPENS, None)
    assert made.encoded().input_ids == made.learned_in == [] and count([], 0, None) == Counter()
    segments = [Segment("x", "user"), Segment("y", "assistant", supervised=True)]
    pieces = [Piece(parts=[("x", 0)], offsets=[]), Piece(STOP, 1)]
    (made,) = label([(segments, pieces, [False, True])], OPENS, None)
    assert (made.labels.tolist(), made.segment_of.tolist()) == ([2], [1])
