"""Reads a tokenizer directory without torch, if that provably gives the same ids.

`AutoTokenizer` takes seconds and loads torch; reading `tokenizer.json`, which determines the ids, needs neither. Only
the other files can change them: tokens that the configuration adds, special tokens that it leaves to a class, a fix
that it requests. Then the reason is returned, and the caller loads the directory with transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fastchat.errors import SettingsError
from fastchat.files import JsonError, parse_json, read_object
from fastchat.security import brings_code, check_references

# Classes of transformers that define no special tokens beyond those in the files.
_PLAIN = ("TokenizersBackend", "PreTrainedTokenizerFast")
_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class RawTokenizer:
    """What the encoder needs of a tokenizer: its pipeline as JSON, and the strings that begin and end a sequence."""

    text: str  # tokenizer.json, as the library writes it
    spec: dict[str, Any]  # the same, parsed
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None = None
    name: str = ""
    parsed: Any = None  # the `tokenizers.Tokenizer` that `text` is of, where it is loaded already


def read_config(directory: str, name: str = "tokenizer_config.json") -> dict[str, Any]:
    """A JSON file of a directory; {} if it is missing. Raises SettingsError for a broken file."""
    path = Path(directory) / name
    if not path.is_file():
        return {}
    try:
        return read_object(path, constants=True)
    except (OSError, JsonError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


def read_raw(directory: str) -> tuple[RawTokenizer | None, str]:
    """Read a tokenizer directory without transformers.

    Returns: the tokenizer and "", or None and the reason why `tokenizer.json` alone may not give the right ids.
    Raises: SettingsError for a directory that is missing or has a broken file.
    """
    path = Path(directory)
    if not path.is_dir():
        return None, "it is not a local directory"
    check_references(path)
    file = path / "tokenizer.json"
    if not file.is_file():
        return None, "it has no tokenizer.json"
    config = read_config(directory)
    if "added_tokens_decoder" not in config:  # files older than that key
        config |= read_config(directory, "special_tokens_map.json")
    parsed = _parsed(file)
    text = parsed.to_str()  # as `from_class` gives it, so that the same tokens are found in the cache
    spec = parse_json(text)
    if reason := _why_not(spec, config):
        return None, reason
    template_file = path / "chat_template.jinja"
    chat_template = (
        template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    )
    if isinstance(chat_template, list):
        chat_template = {t.get("name"): t.get("template") for t in chat_template}
    bos, eos = (_content(config.get(key)) for key in ("bos_token", "eos_token"))
    return RawTokenizer(text, spec, bos, eos, _default(chat_template), str(directory), parsed), ""


def _parsed(file: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`. Raises SettingsError."""
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8-sig"))
    except Exception as error:  # noqa: BLE001 - the library has no class of its own for a file it cannot read
        try:
            read_object(file)  # says where a file is no JSON
        except (OSError, JsonError) as broken:
            raise SettingsError(f"{file} cannot be read: {broken}") from error
        raise SettingsError(f"{file} cannot be read: {error}") from error


def from_class(tokenizer: Any) -> RawTokenizer:
    """The same from a loaded Hugging Face tokenizer. Raises SettingsError for one without a `tokenizers` backend."""
    if not tokenizer.is_fast:
        raise SettingsError(
            f"{tokenizer.name_or_path}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json and no fast "
            "backend, so token offsets are unknown; convert it to a tokenizer.json first."
        )
    parsed = tokenizer.backend_tokenizer
    text, template = parsed.to_str(), _default(tokenizer.chat_template)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    return RawTokenizer(text, parse_json(text), bos, eos, template, tokenizer.name_or_path, parsed)


def _default(chat_template: str | dict[Any, Any] | None) -> str | None:
    """The template of a tokenizer; if it has several by name, the one for plain dialogues."""
    return chat_template.get("default") if isinstance(chat_template, dict) else chat_template


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _why_not(spec: dict[str, Any], config: dict[str, Any]) -> str:
    """Why the file might give other ids than the directory loaded with transformers; "" if the ids are the same."""
    if config.get("tokenizer_class") not in _PLAIN and not {"bos_token", "eos_token"} <= config.keys():
        return "its files leave BOS or EOS to its class"
    if brings_code(config):
        return "it comes with its own code"
    if config.get("fix_mistral_regex"):
        return "tokenizer_config.json requests a fix (fix_mistral_regex)"
    return _added_differ(spec, config)


def _added_differ(spec: dict[str, Any], config: dict[str, Any]) -> str:
    added = {t["content"]: t for t in spec["added_tokens"]}
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        own = added.get(token["content"])
        if own is None or own["id"] != int(token_id) or any(own.get(k) != token.get(k, own.get(k)) for k in own):
            return f"tokenizer_config.json adds the token {token['content']!r}"
    extra = [config.get("additional_special_tokens") or [], config.get("extra_special_tokens") or []]
    named = [_content(config.get(key)) for key in _SPECIAL_KEYS]
    for group in extra:
        named += [_content(t) for t in (group.values() if isinstance(group, dict) else group)]
    for content in named:
        if content and (content not in added or not added[content]["special"]):
            return f"tokenizer_config.json names {content!r}, which tokenizer.json does not have as a special token"
    return ""
