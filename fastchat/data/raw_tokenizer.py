"""A tokenizer directory read without torch, where that provably gives the same ids.

`AutoTokenizer` needs seconds and loads torch; the file `tokenizer.json` alone needs neither. Most classes use that file
as it stands, but some rebuild parts of the pipeline from their own code. So a directory is read raw only where its
class either takes the file unchanged or rebuilds exactly what the file says (compared field by field); otherwise the
reason is returned and the caller loads the real class.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError
from fastchat.security import check_references

# Classes of transformers 5 that take tokenizer.json unchanged.
_UNCHANGED = ("TokenizersBackend", "PreTrainedTokenizerFast")
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
_UNDERSCORE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
# The regular expression of Qwen2's own pre-tokenizer.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = [
    {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
]
# Classes that rebuild normaliser and pre-tokenizer, with what they rebuild. Gemma's class splits at spaces after its
# normaliser has turned every space into an underscore, so that the split never happens.
_REBUILT: dict[str, tuple[Any, Any]] = {
    "LlamaTokenizer": (None, _METASPACE),
    "LlamaTokenizerFast": (None, _METASPACE),
    "GemmaTokenizer": (_UNDERSCORE, None),
    "GemmaTokenizerFast": (_UNDERSCORE, None),
    "Qwen2Tokenizer": ({"type": "NFC"}, {"type": "Sequence", "pretokenizers": _QWEN2}),
    "Qwen2TokenizerFast": ({"type": "NFC"}, {"type": "Sequence", "pretokenizers": _QWEN2}),
}
# Which class a model type brings in, whatever its tokenizer_config.json declares.
_REGISTERED = {
    "llama": "TokenizersBackend",
    "mistral": "TokenizersBackend",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}
_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class RawTokenizer:
    """What the encoder needs of a tokenizer: its pipeline as JSON, and which strings begin and end a sequence."""

    text: str  # tokenizer.json
    spec: dict[str, Any]  # the same, parsed
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None = None
    name: str = ""


def read_config(directory: str) -> dict[str, Any]:
    """`tokenizer_config.json` of a directory; {} where it has none. Raises SettingsError for a broken file."""
    path = Path(directory) / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid JSON: {error}") from error


def read_raw(directory: str) -> tuple[RawTokenizer | None, str]:
    """Read a tokenizer directory raw.

    Returns: the tokenizer and "", or None and the reason why only the real class is sure to give the right ids.
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
    try:
        text = file.read_text(encoding="utf-8")
        spec = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid JSON: {error}") from error
    if reason := _why_not(spec, config, _model_type(path)):
        return None, reason
    template_file = path / "chat_template.jinja"
    chat_template = (
        template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    )
    if isinstance(chat_template, list):
        chat_template = next((t["template"] for t in chat_template if t.get("name") == "default"), None)
    bos, eos = (_content(config.get(key)) for key in ("bos_token", "eos_token"))
    return RawTokenizer(text, spec, bos, eos, chat_template, str(directory)), ""


def from_class(tokenizer: Any) -> RawTokenizer:
    """The same of a loaded Hugging Face tokenizer. Raises SettingsError for one without a `tokenizers` backend."""
    if not tokenizer.is_fast:
        raise SettingsError(
            f"{tokenizer.name_or_path}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json and no fast "
            "backend, so token offsets are unknown; convert it to a tokenizer.json first."
        )
    text = tokenizer.backend_tokenizer.to_str()
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    return RawTokenizer(
        text, json.loads(text), tokenizer.bos_token, tokenizer.eos_token, template, tokenizer.name_or_path
    )


def _model_type(directory: Path) -> str | None:
    file = directory / "config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("model_type") if file.is_file() else None


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _comparable(step: Any) -> Any:
    """A pipeline step without the fields that change offsets or decoding only."""
    if isinstance(step, dict):
        return {k: _comparable(v) for k, v in step.items() if k not in ("trim_offsets",)}
    return [_comparable(s) for s in step] if isinstance(step, list) else step


def _why_not(spec: dict[str, Any], config: dict[str, Any], model_type: str | None) -> str:
    """Why the raw file might give other ids than the tokenizer's class; "" where it provably gives the same."""
    cls = config.get("tokenizer_class")
    if cls not in _UNCHANGED and cls not in _REBUILT:
        return f"the class {cls} is not one whose ids are known to be those of tokenizer.json"
    if model_type is not None and model_type not in _REGISTERED:
        return f"the model type {model_type} may bring a tokenizer class of its own"
    for candidate in {cls, _REGISTERED.get(model_type or "")} & set(_REBUILT):
        normalizer, pre_tokenizer = _REBUILT[candidate]
        if _comparable(spec["normalizer"]) != normalizer or _comparable(spec["pre_tokenizer"]) != pre_tokenizer:
            return f"{candidate} rebuilds the pipeline and tokenizer.json has another one"
        llama = candidate.startswith("Llama")
        if llama and (config.get("add_prefix_space") is False or config.get("legacy")):
            return f"{candidate} reads add_prefix_space and legacy from tokenizer_config.json"
    if "auto_map" in config:
        return "it brings code of its own"
    return _added_differ(spec, config) or _special_differ(spec, config)


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


def _special_differ(spec: dict[str, Any], config: dict[str, Any]) -> str:
    """The class writes a new post-processor where the configuration says whether to add BOS or EOS."""
    text = json.dumps(spec.get("post_processor"))
    if spec.get("post_processor") is None:
        return "tokenizer.json has no post-processor, and the class makes its own"
    for key, token in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        wanted = config.get(key)
        has = f'"SpecialToken": {{"id": {json.dumps(_content(config.get(token)))}' in text
        if wanted is not None and bool(wanted) != has:
            return f"tokenizer_config.json says {key}={wanted} and tokenizer.json does otherwise"
    return ""
