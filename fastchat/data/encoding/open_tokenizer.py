"""Opens the tokenizer of a model folder or hub name: from `tokenizer.json` if that is enough, else with transformers.

A separate module, because it imports from fastchat.model: the code that makes ids does not depend on how it is opened.
"""

from __future__ import annotations

from fastchat.data.encoding.text_encoder import TextEncoder


def open_tokenizer(path: str, trust_remote_code: bool = False, use_class: bool = False) -> tuple[TextEncoder, str]:
    """(the tokenizer, a line that says why it was loaded with transformers, or "").

    `use_class`: use the ids of its class, not those of `tokenizer.json`. Raises SettingsError.
    """
    encoder, reason = (None, "--use_tokenizer_class is set") if use_class else TextEncoder.from_directory(path)
    if encoder:
        return encoder, ""
    from fastchat.model.tokenizer import load_plain

    tokenizer = load_plain(path, trust_remote_code=trust_remote_code, use_class=use_class)
    return TextEncoder.from_tokenizer(tokenizer), f"tokenizer: loaded with transformers, because {reason}"
