"""As which examples a dialogue is trained: the template's renderings of it, and what `--train_on` takes of them.

A template that shows an answer differently once it is history (without its reasoning, or with another text around it)
renders a dialogue several times, and each answer is supervised in one of the renderings. Then

    --train_on last   keeps the rendering with the last trained answer
    --train_on all    supervises every text once: in the first rendering that shows it. A rendering has the turns of the
                      ones before it again; there they are context, even where it shows them differently
"""

from __future__ import annotations

from dataclasses import replace

from fastchat.conversation import Dialogue, Rendered
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.supervision import ALL, LAST


def renderings_of(dialogue: Dialogue, chat_encoder: ChatEncoder) -> list[Rendered]:
    """The renderings that are trained on, at least one; of a dialogue, not of a plain text.

    Raises RefusedByTemplate (a DataError) if a tokenizer's own template rejects the dialogue.
    """
    made = chat_encoder.template.renderings(dialogue)
    if len(made) > 1 and chat_encoder.train_on == LAST:
        return [max(made, key=lambda rendered: max(answers_of(rendered), default=-1))]
    if len(made) > 1 and chat_encoder.train_on == ALL:
        later = (_without_history(one, before) for before, one in zip(made, made[1:], strict=False))
        return [made[0], *later]
    return made


def answers_of(rendered: Rendered) -> list[int]:
    """The turns of the supervised answers of a rendering, ascending."""
    return sorted({segment.turn for segment in rendered.segments if segment.supervised})


def _without_history(rendered: Rendered, before: Rendered) -> Rendered:
    """The rendering with the turns that `before` already showed excluded."""
    segments = list(rendered.segments)
    last = max(segment.turn for segment in before.segments)
    known = [i for i, segment in enumerate(segments) if 0 <= segment.turn <= last]
    new = next((i for i, segment in enumerate(segments) if segment.turn > last), len(segments))
    size = known[-1] + 1 if known else new
    tail = _tail(before)
    if tail and size < len(segments) and segments[size].role == "template" and segments[size].text.startswith(tail):
        # The text after the last known message goes on with the beginning of the next one.
        parts = [text for text in (tail, segments[size].text[len(tail) :]) if text]
        segments[size : size + 1] = [replace(segments[size], text=part) for part in parts]
        size += 1
    history = [segment if segment.supervised else replace(segment, excluded=True) for segment in segments[:size]]
    return replace(rendered, segments=(*history, *segments[size:]))


def _tail(rendered: Rendered) -> str:
    """The template's text after the last message."""
    tail = ""
    for segment in reversed(rendered.segments):
        if segment.role != "template":
            break
        tail = segment.text + tail
    return tail
