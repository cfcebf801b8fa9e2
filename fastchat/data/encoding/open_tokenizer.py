"""The tokenizer of a model folder or hub name: its raw file where that is enough, else through transformers.

In a module of its own, because it reaches the model room: what decides ids does not depend on how the file was found.
"""

from __future__ import annotations

from fastchat.data.encoding.text_encoder import TextEncoder


def open_tokenizer(path: str, trust_remote_code: bool = False, use_class: bool = False) -> tuple[TextEncoder, str]:
    """(the tokenizer, a line that says why it was loaded with transformers; "" where its file was enough).

    `use_class`: the ids of its class, not those of `tokenizer.json`. Raises SettingsError.
    """
    encoder, reason = (None, "--use_tokenizer_class asks for it") if use_class else TextEncoder.from_directory(path)
    if encoder:
        return encoder, ""
    from fastchat.model.tokenizer import load_plain

    tokenizer = load_plain(path, trust_remote_code=trust_remote_code, use_class=use_class)
    return TextEncoder.from_tokenizer(tokenizer), f"tokenizer: loaded with transformers, because {reason}"
