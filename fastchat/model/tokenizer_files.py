"""A tokenizer's files: `tokenizer.json` determines the ids, and every loader reads the saved files in the same way.

Some transformers classes build the pipeline (normaliser, pre-tokenizer, decoder) from their own code, whatever the
file says, and lose keys when they are saved. So every tokenizer here is a plain `PreTrainedTokenizerFast`, which uses
the file unchanged; what a class adds besides ids (names of special tokens, model inputs) is copied.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastchat import files
from fastchat.errors import SettingsError, brief, say
from fastchat.model.source import read_json
from fastchat.security import NO_CODE

FILE, CONFIG, SENTENCEPIECE = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
PLAIN = "PreTrainedTokenizerFast"
_BEGIN_AND_END = ("add_bos_token", "add_eos_token")
# Not copied: the class, and values that transformers keeps in another form.
_ELSEWHERE = ("tokenizer_class", "auto_map", "added_tokens_decoder", "additional_special_tokens", "chat_template")
# Texts on which two tokenizers are compared: words, digits, spaces, line ends, other scripts, code, bytes.
PROBES = (
    "Hello, how are you? I'm fine: 12,345.67 + 8 = 12353.67!",
    "  two  spaces\tand\n\nlines\r\n2 < 3 > 1 [INST] {x: 1}",
    "Ünïcödé 日本語 العربية हिन्दी 😀 e\u0301",
    "def f(x):\n    return x ** 2  # the square of it",
)
# Large or changing files of a result or checkpoint that are no part of a tokenizer.
_NEVER_LOADED = (
    *("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "generation_config.json"),
    *("*.pt", "*.pth", "*.md", "*.html", "*.jsonl", "log.txt"),
    *("training.json", "status.json", "trainer_state.json", "MANIFEST.json"),
)
_COMPARED = 64  # added tokens that are tried between words


def find_file(source: str, name: str, cache_dir: str | None = None) -> Path | None:
    """The file `name` of a folder or a hub repository; None if it has none."""
    if Path(source).expanduser().is_dir():
        path = Path(source).expanduser() / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(source, name, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def config_of(source: str, name: str = CONFIG, cache_dir: str | None = None) -> dict[str, Any]:
    """The JSON object in a file of a folder or a hub repository; {} if it has none."""
    path = find_file(source, name, cache_dir)
    return read_json(path) if path else {}


# ---- reading


def from_file(source: str, *, cache_dir: str | None = None) -> Any:
    """The tokenizer whose pipeline is `tokenizer.json`. Says so if transformers deliberately repairs the pipeline."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, cache_dir=cache_dir)
    except Exception as problem:  # noqa: BLE001 - the library has no class of its own for a file it cannot read
        raise ValueError(str(problem)) from problem
    config = config_of(source, cache_dir=cache_dir)
    own = tokenizer.init_kwargs
    for key, value in config.items():
        if key not in (*_ELSEWHERE, *own) and (not key.endswith("_token") or key in _BEGIN_AND_END):
            own[key] = value
    _take_over(tokenizer, _class_of(source, config, cache_dir))
    path = find_file(source, FILE, cache_dir)
    assert path is not None, source
    if pipeline(tokenizer.backend_tokenizer) != pipeline(_pipeline_of(path)):
        say(
            f"tokenizer: transformers repairs the pre-tokenizer of {path} (fix_mistral_regex); the repaired one is "
            "used for training and saved"
        )
    return tokenizer


def from_sentencepiece(source: str, model: Path, *, cache_dir: str | None = None) -> Any:
    """The tokenizer of a folder with only `tokenizer.model`, converted and compared with SentencePiece itself.

    SettingsError if the file is in another format, or the two give different ids.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import PreTrainedTokenizerFast

    try:
        processor: Any = SentencePieceProcessor(model_file=str(model))
    except RuntimeError:
        raise SettingsError(
            f"{model} is not a SentencePiece model. If it is tiktoken's format, it does not say how text is split into "
            f"words: copy the {FILE} of the model's original download into the folder."
        ) from None
    config = config_of(source, cache_dir=cache_dir)
    asked = {} if "add_bos_token" in config else {"add_bos_token": processor.bos_id() >= 0}
    tokenizer = as_plain(PreTrainedTokenizerFast.from_pretrained(source, cache_dir=cache_dir, **asked), source)
    _take_over(tokenizer, _class_of(source, config, cache_dir))
    for text in PROBES if config.get("legacy", True) else PROBES[:1]:  # the other mode handles spaces differently
        theirs, ours = processor.encode(text), tokenizer.encode(text, add_special_tokens=False)
        if theirs != ours:
            raise SettingsError(
                f"{model}: the converted tokenizer gives other ids for {text!r} than SentencePiece. Copy the "
                f"{FILE} of the model's original download into the folder."
            )
    bos = "" if tokenizer.encode("a")[:1] == [tokenizer.bos_token_id] else "no "
    say(f"tokenizer: converted from {model.name}, with {bos}BOS in front; {FILE} is saved with the result")
    return tokenizer


def from_class(source: str, *, cache_dir: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer with the pipeline that its transformers class builds."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    except ValueError as problem:
        if "instantiate the backend tokenizer" not in str(problem):
            raise
        raise SettingsError(
            f"{source} has no {FILE}, and its files do not say how text is split into words. Copy the {FILE} of the "
            f"model's original download into it, or name the class that reads its files as tokenizer_class in {CONFIG}."
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise SettingsError(
            f"{source} gives the tokenizer class {type(tokenizer).__name__}, which has no fast version (no "
            f"{FILE}). The mask needs a fast tokenizer: convert it first, or use another base."
        )
    ids = tokenizer.encode("Hello 12", add_special_tokens=False)
    if all(
        token_id == tokenizer.unk_token_id for token_id in ids
    ):  # classes start with an empty vocabulary where a file is missing
        raise SettingsError(
            f"{source}: the tokenizer class {type(tokenizer).__name__} finds no vocabulary in its files. Copy the "
            f"{FILE} of the model's original download into it."
        )
    return as_plain(tokenizer, source)


def as_plain(tokenizer: Any, source: str) -> Any:
    """The same tokenizer (pipeline, special tokens, template) without its class."""
    from transformers import PreTrainedTokenizerFast

    named = {name: getattr(tokenizer, name) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        name_or_path=source,
        chat_template=tokenizer.chat_template,
        extra_special_tokens=list(tokenizer.extra_special_tokens),
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **{name: token for name, token in named.items() if token is not None},
    )


def _class_of(source: str, config: dict[str, Any], cache_dir: str | None) -> Any:
    """The transformers class that the files name, or the one for their model type; None if it is unknown."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    model = config_of(source, "config.json", cache_dir)
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    name = name or TOKENIZER_MAPPING_NAMES.get(model.get("model_type") or "")
    return tokenizer_class_from_name(name) if name else None


def _take_over(tokenizer: Any, cls: Any) -> None:
    """Sets what the files leave to their class: names of special tokens, model inputs, the padding side.

    A token that is not a special one in `tokenizer.json` is left out: nothing is added to the vocabulary.
    """
    own = tokenizer.init_kwargs
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for name, parameter in inspect.signature(cls.__init__).parameters.items() if cls else ():
        if name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES and name not in own and str(parameter.default) in special:
            own[name] = str(parameter.default)
            setattr(tokenizer, name, own[name])
    inputs = own.setdefault(
        "model_input_names", list(getattr(cls, "model_input_names", ["input_ids", "attention_mask"]))
    )
    tokenizer.model_input_names = inputs
    if hasattr(cls, "padding_side"):
        tokenizer.padding_side = own.setdefault("padding_side", cls.padding_side)


# ---- comparing


def pipeline(backend: Any) -> list[Any]:
    """Normaliser and pre-tokenizer of a backend as JSON, without options that only change offsets."""
    steps = (backend.normalizer, backend.pre_tokenizer)
    return [None if step is None else _comparable(files.parse_json(step.__getstate__())) for step in steps]


def _comparable(step: Any) -> Any:
    if isinstance(step, dict):
        return {key: _comparable(value) for key, value in step.items() if key != "trim_offsets"}
    return [_comparable(part) for part in step] if isinstance(step, list) else step


def _pipeline_of(path: Path) -> Any:
    """The backend of a `tokenizer.json` with only its pipeline: the vocabulary, which is large, is not read."""
    from tokenizers import Tokenizer

    steps = ("normalizer", "pre_tokenizer")
    spec = dict.fromkeys(steps) | files.read_members(path, *steps)
    model = {"type": "BPE", "vocab": {}, "merges": []}
    kept = {"version": "1.0", "added_tokens": [], "post_processor": None, "decoder": None, "model": model}
    return Tokenizer.from_str(json.dumps(kept | spec))


def probe_texts(tokenizer: Any) -> Iterator[str]:
    """Texts that show whether two tokenizers are the same, among them added tokens with words before and after."""
    yield from PROBES
    added = sorted(tokenizer.added_tokens_encoder, key=tokenizer.added_tokens_encoder.__getitem__)
    for token in [*added[: _COMPARED // 2], *added[_COMPARED // 2 :][-_COMPARED // 2 :]]:
        yield f"{token}word {token} 12{token}\n{token}"


def differing_text(tokenizer: Any, other: Any) -> str | None:
    """A text that the two tokenizers encode differently; None if none of the probes shows a difference."""
    return next((text for text in probe_texts(tokenizer) if tokenizer.encode(text) != other.encode(text)), None)


def other_class_line(source: str, tokenizer: Any, *, cache_dir: str | None = None) -> str:
    """The message if AutoTokenizer gives other ids for `source` than `tokenizer`, the one of its `tokenizer.json`."""
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(source, cache_dir=cache_dir, trust_remote_code=False)
        text = differing_text(tokenizer, other)
    except Exception:  # noqa: BLE001 - a class that cannot read this folder has no ids to differ
        return ""
    if text is None:
        return ""
    return (
        f"tokenizer: using the ids of {FILE}; the class {type(other).__name__} that transformers picks for this "
        f"folder gives others, for example for {brief(text, 60)!r} (--use_tokenizer_class True trains with those)"
    )


# ---- writing


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a plain tokenizer into `folder` so that `AutoTokenizer.from_pretrained` gives it back.

    The model's `config.json`, if any, must be there already: what AutoTokenizer does depends on it.
    """
    tokenizer.save_pretrained(str(folder))
    config = read_json(folder / CONFIG)
    config.pop("auto_map", None)
    config["tokenizer_class"] = PLAIN
    own = tokenizer.init_kwargs
    if "padding_side" in own:  # the padding side of training is not the model's
        config["padding_side"] = own["padding_side"]
    ids = tokenizer.encode("a")
    ends = dict(
        zip(_BEGIN_AND_END, ((ids[:1], tokenizer.bos_token_id), (ids[-1:], tokenizer.eos_token_id)), strict=True)
    )
    config |= {key: found == [wanted] for key, (found, wanted) in ends.items() if key in own}
    write_json(folder / CONFIG, config)
    name_class(tokenizer, folder)


def name_class(tokenizer: Any, folder: Path) -> None:
    """Makes `AutoTokenizer.from_pretrained(folder)` use `tokenizer.json` unchanged, if its class would not."""
    from transformers import AutoTokenizer

    if not (folder / "config.json").is_file() and read_json(folder / CONFIG).get("tokenizer_class") == PLAIN:
        return
    plain = {"tokenizer_class": PLAIN}
    for change in (plain, plain | {"auto_map": {"AutoTokenizer": [NO_CODE, None]}}):
        reloaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        if pipeline(reloaded.backend_tokenizer) == pipeline(tokenizer.backend_tokenizer):
            return
        write_json(folder / CONFIG, read_json(folder / CONFIG) | change)


def reopened(folder: Path | str, tokenizer: Any) -> Any:
    """The saved tokenizer, loaded with AutoTokenizer. SettingsError if it is not the same as `tokenizer`."""
    from transformers import AutoTokenizer

    try:
        saved = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as problem:  # noqa: BLE001 - whatever it is, the saved files cannot be loaded
        raise SettingsError(f"the saved tokenizer cannot be loaded: {brief(problem)}") from problem
    if saved.get_vocab() != tokenizer.get_vocab():
        raise SettingsError("the saved tokenizer has another vocabulary than the one used for training")
    for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
        if getattr(saved, name) != getattr(tokenizer, name):
            raise SettingsError(
                f"the saved tokenizer has {name} {getattr(saved, name)!r}, not {getattr(tokenizer, name)!r}"
            )
    if saved.chat_template != tokenizer.chat_template:
        raise SettingsError("the saved tokenizer has another chat template than the one used for training")
    text = differing_text(tokenizer, saved)
    if text is not None:
        ids = f"{saved.encode(text)[:12]} instead of {tokenizer.encode(text)[:12]}"
        raise SettingsError(f"the saved tokenizer gives other ids than training for {brief(text, 60)!r}: {ids}")
    return saved


def loaded_files(folder: Path) -> dict[str, str | None]:
    """{name: sha256} of the files in `folder` that loading a tokenizer might read: all but weights and a run's own.

    Two folders with the same ones give the same tokenizer. None for a file that cannot be read.
    """
    templates = folder / "additional_chat_templates"
    found: dict[str, str | None] = {}
    for path in sorted([*folder.iterdir(), *(templates.iterdir() if templates.is_dir() else ())]):
        if path.is_file() and not any(path.match(pattern) for pattern in _NEVER_LOADED):
            try:
                digest = files.sha256_of(path)
            except OSError:  # whether it matters is seen when the tokenizer is loaded
                digest = None
            found[path.relative_to(folder).as_posix()] = digest
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as transformers does."""
    files.write_json(path, value, indent=2, constants=True, durable=False)
