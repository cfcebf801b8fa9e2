"""Puts the training template into the saved tokenizer, and verifies that it gives the training ids.

Other software takes its prompts from the saved tokenizer. They must be the prompts that the model was trained on, id
for id, so the Jinja template is written for this tokenizer and compared with training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken

from fastchat.conversation import Dialogue, to_jinja
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.prefix import first_difference
from fastchat.data.encoding.probes import HARMLESS
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate, to_messages
from fastchat.errors import SettingsError

MOST_COMPARED = 1 << 20  # characters of a dialogue: encoding a longer one as a whole takes too much memory


def chat_template(chat_encoder: ChatEncoder) -> str:
    """The text of `chat_template.jinja` for one template and one tokenizer."""
    if isinstance(chat_encoder.template, TokenizerTemplate):
        return chat_encoder.template.source
    eos = chat_encoder.encoder.eos
    lead, space = _lead(chat_encoder)
    return to_jinja(chat_encoder.template, chat_encoder.substitute, lead, space, eos.content if eos else "")


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
    probes = chat_encoder.template.probes if isinstance(chat_encoder.template, TokenizerTemplate) else HARMLESS
    compare_template(tokenizer, chat_encoder, [*probes, *dialogues])


def compare_template(tokenizer: Any, chat_encoder: ChatEncoder, dialogues: Iterable[Dialogue]) -> int:
    """Compare the tokenizer's chat template with training: every complete dialogue, and every prompt in it.

    Returns: how many dialogues were compared. Skipped are those of more than MOST_COMPARED characters, and those with a
    special-token string in a message: encoding them as a whole makes a control token of it, which training avoids.

    Raises:
        SettingsError: the tokenizer's own rendering gives other ids than training does.
    """
    compared = 0
    for dialogue in dialogues:
        if dialogue.num_characters > MOST_COMPARED:
            continue
        if chat_encoder.encode(chat_encoder.template.render(dialogue)).special_token_strings:
            continue
        compared += 1
        answers = [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant"]
        _compare(tokenizer, chat_encoder, dialogue, False)
        for turn in answers:
            _compare(tokenizer, chat_encoder, dialogue.before(turn), True)
    return compared


def _compare(tokenizer: Any, chat_encoder: ChatEncoder, dialogue: Dialogue, prompt: bool) -> None:
    ours = chat_encoder.encode(chat_encoder.template.render(dialogue, add_generation_prompt=prompt)).input_ids
    quiet = {"verbose": False}  # dialogues may be longer than the model's window here
    theirs = tokenizer.apply_chat_template(
        to_messages(dialogue),
        tokenize=True,
        add_generation_prompt=prompt,
        return_dict=False,
        tokenizer_kwargs=quiet,
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
    written = encoder.whole.encode(encoder.bos.content + "a", add_special_tokens=False).ids
    return encoder.bos.content, written != encoder.whole.encode("a").ids[: len(written)]
