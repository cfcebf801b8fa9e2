"""Puts the training template into the saved tokenizer, and verifies that it gives the training ids.

Other software takes its prompts from the saved tokenizer. They must be the prompts that the model was trained on, id
for id, so the Jinja template is written for this tokenizer and compared with training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import AddedToken

from fastchat.conversation import Dialogue, Rendered, Template, to_jinja
from fastchat.data.encoding.chat_encoder import ChatEncoder, encode_prompt
from fastchat.data.encoding.messages import to_openai
from fastchat.data.encoding.prefix import first_difference
from fastchat.data.encoding.probes import HARMLESS, probes_of
from fastchat.data.encoding.supervision import Encoded
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate, compile_template
from fastchat.errors import SettingsError

MOST_COMPARED = 1 << 20  # characters of a dialogue: encoding a longer one as a whole takes too much memory


def chat_template(chat_encoder: ChatEncoder) -> str:
    """The text of `chat_template.jinja` for one template and one tokenizer."""
    if isinstance(chat_encoder.template, TokenizerTemplate):
        return chat_encoder.template.source
    eos = chat_encoder.encoder.eos
    lead, space = _lead(chat_encoder)
    return to_jinja(chat_encoder.template, chat_encoder.substitute, lead, space, eos.content if eos else "")


def jinja_arguments(dialogue: Dialogue, template: Template | TokenizerTemplate) -> dict[str, Any]:
    """What a saved chat template is rendered with: messages, tools and further arguments of the dialogue."""
    if isinstance(template, TokenizerTemplate):
        return template.arguments(dialogue)
    return {"messages": to_openai(dialogue), "tools": list(dialogue.tools) or None, **dialogue.template_arguments}


def install_template(tokenizer: Any, chat_encoder: ChatEncoder, dialogues: Iterable[Dialogue] = ()) -> None:
    """Put the template into a Hugging Face tokenizer and verify it on harmless dialogues and on `dialogues`.

    Control strings that are in the tokenizer's vocabulary but not declared as tokens (Gemma's `<start_of_turn>` in some
    copies) are declared, with the ids they have; otherwise the tokenizer would split them.

    Raises:
        SettingsError: the tokenizer's own rendering gives other ids than training does.
    """
    declared = set(tokenizer.added_tokens_encoder)
    missing = [c.content for c in chat_encoder.controls.values() if c and c.content not in declared]
    size = len(tokenizer)
    tokenizer.add_tokens([AddedToken(c, normalized=False, special=True) for c in missing], special_tokens=True)
    assert len(tokenizer) == size, f"declaring {missing} changed the vocabulary from {size} to {len(tokenizer)}"
    tokenizer.chat_template = chat_template(chat_encoder)
    compare_template(tokenizer, chat_encoder, [*probes_of(chat_encoder.template), *dialogues])


def compare_template(tokenizer: Any, chat_encoder: ChatEncoder, dialogues: Iterable[Dialogue]) -> int:
    """Compare the tokenizer's chat template with training: every complete dialogue, and every prompt in it.

    Returns: how many dialogues were compared. Skipped are those of more than MOST_COMPARED characters, and those with a
    special-token string in a message: encoding them as a whole makes a control token of it, which training avoids.

    Raises:
        SettingsError: the tokenizer's own rendering gives other ids than training does.
    """
    compared = 0
    for dialogue in dialogues:
        if dialogue.plain or dialogue.num_characters > MOST_COMPARED:
            continue
        renderings = chat_encoder.template.renderings(dialogue)
        encoded = [chat_encoder.encode(rendered) for rendered in renderings]
        if any(one.special_token_strings for one in encoded):
            continue
        compared += 1
        for shown, ids in _wholes(dialogue, chat_encoder, renderings, encoded):
            _compare(tokenizer, chat_encoder, shown, ids, False)
        for shown, turn in _answers(dialogue, renderings):
            asked = shown.before(turn)
            _compare(tokenizer, chat_encoder, asked, encode_prompt(asked, chat_encoder), True)
    return compared


def _wholes(
    dialogue: Dialogue, chat_encoder: ChatEncoder, renderings: Sequence[Rendered], encoded: Sequence[Encoded]
) -> Iterator[tuple[Dialogue, Sequence[int]]]:
    """Complete dialogues with their ids in training. Where a tokenizer's own template never shows an answer as it is
    generated (its prompts end with `<think>`, say), only the prompts can be compared."""
    if not isinstance(chat_encoder.template, TokenizerTemplate):
        yield dialogue, chat_encoder.encode(chat_encoder.template.render(dialogue)).input_ids
        return
    encoder = chat_encoder.encoder
    names = {"bos_token": encoder.raw.bos_token or "", "eos_token": encoder.raw.eos_token or ""}
    template = compile_template(chat_encoder.template.source)
    for rendered, one in zip(renderings, encoded, strict=True):
        shown = rendered.dialogue or dialogue
        arguments = jinja_arguments(shown, chat_encoder.template)
        if template.render(**arguments, add_generation_prompt=False, **names) == rendered.text:
            yield shown, one.input_ids


def _answers(dialogue: Dialogue, renderings: Sequence[Rendered]) -> Iterator[tuple[Dialogue, int]]:
    """Every answer, with the dialogue of the rendering that it is supervised in."""
    shown = {
        segment.turn: rendered.dialogue or dialogue
        for rendered in renderings
        for segment in rendered.segments
        if segment.supervised
    }
    for k, turn in enumerate(dialogue.turns):
        if turn.role == "assistant":
            yield shown.get(k, dialogue), k


def _compare(tokenizer: Any, chat_encoder: ChatEncoder, dialogue: Dialogue, ours: Sequence[int], prompt: bool) -> None:
    quiet = {"verbose": False}  # dialogues may be longer than the model's window here
    arguments = jinja_arguments(dialogue, chat_encoder.template)
    theirs = tokenizer.apply_chat_template(
        arguments.pop("messages"),
        tokenize=True,
        add_generation_prompt=prompt,
        return_dict=False,
        tokenizer_kwargs=quiet,
        **arguments,
    )
    at = first_difference(ours, theirs)
    if at is not None:
        a, b = (chat_encoder.encoder.decode(ids[max(0, at - 2) : at + 4]) for ids in (ours, theirs))
        raise SettingsError(
            f"template {chat_encoder.template.name!r} cannot be saved as a chat template of "
            f"{chat_encoder.encoder.name}: position {at} of a rendered dialogue is {a!r} in training "
            f"and {b!r} through apply_chat_template."
        )


def _lead(chat_encoder: ChatEncoder) -> tuple[str, bool]:
    """What the Jinja template must begin with, so that encoding it without special tokens gives the training ids.

    Returns: the BOS to write ("" if the template writes it or there is none), and whether a space must follow it.
    A tokenizer that adds a space only before the very first text (llama-2) does not add it after a written BOS.
    """
    encoder = chat_encoder.encoder
    first = chat_encoder.encode(chat_encoder.template.render(HARMLESS[0]))
    if encoder.bos is None or first.segment_of[:1] != [-1]:
        return "", False
    if first.input_ids[1:2] and first.input_ids[1] in {c.id for c in chat_encoder.controls.values() if c}:
        return encoder.bos.content, False  # no tokenizer adds a space before a control token
    written = encoder.whole.encode(encoder.bos.content + "a", add_special_tokens=False).ids
    return encoder.bos.content, written != encoder.whole.encode("a").ids[: len(written)]
