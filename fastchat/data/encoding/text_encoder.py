"""Encodes plain text and control tokens separately, with the parts of one tokenizer.

Plain text is encoded without added tokens and without a post-processor, so that nothing in a message can become a
control token. This must not change the ids of harmless text, which `ChatEncoder` verifies for each template.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from fastchat.conversation import OWN_TEMPLATE, Template, choose_template
from fastchat.data.encoding.chat_encoder import ChatEncoder, Control
from fastchat.data.encoding.fast_path import FastPath
from fastchat.data.encoding.raw_tokenizer import RawTokenizer, from_class, read_raw
from fastchat.data.encoding.supervision import ASSISTANT, PlainTokens
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate
from fastchat.errors import SettingsError
from fastchat.files import parse_json

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")  # around the model, in a `tokenizer.json`


class TextEncoder:
    """A tokenizer split into two parts: one for plain text, one for control tokens.

    Attributes:
        vocabulary: every token string -> id, added tokens included.
        bos, eos: the tokens that begin and end a sequence, None if the tokenizer has none.
        unknown: the token for text that the vocabulary does not cover; None if all text is covered.
        adds_bos: whether the tokenizer itself adds BOS before a text.
        spaces: the added tokens that consist of white space, as in `tokenizer.json`; they are text.
        fast: the fast way to the tokens of plain texts, used where there are many.
    """

    def __init__(self, raw: RawTokenizer):
        self.raw = raw
        self.name = raw.name
        self.spec = raw.spec
        self.added = {token["content"]: token for token in self.spec["added_tokens"]}
        self.whole = _whole(raw)
        _check_unique_ids(raw, self.whole)
        # Padding and truncation set in the file would change what encode returns.
        self.whole.no_padding()
        self.whole.no_truncation()
        self.vocabulary = _vocabulary(self.spec)
        self.unknown = _unknown(self.spec["model"])
        self._variants = _variants(self.whole, self.spec)
        # Without the other added tokens, those that are kept may get other ids.
        self.spaces = [token for content, token in self.added.items() if _is_space(content)]
        kept = {t["content"]: self._variants["first"].token_to_id(t["content"]) for t in self.spaces}
        self._renumber = {new: self.added[c]["id"] for c, new in kept.items() if new not in (None, self.added[c]["id"])}
        self.bos, self.eos = (self.control(t) if t else None for t in (raw.bos_token, raw.eos_token))
        with_special = self.whole.encode("a").ids
        self.adds_bos = self.bos is not None and with_special != self.whole.encode("a", add_special_tokens=False).ids
        self.adds_bos = self.adds_bos and self.bos is not None and with_special[:1] == [self.bos.id]
        self.fast = FastPath(self)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TextEncoder:
        """From a loaded Hugging Face tokenizer."""
        return cls(from_class(tokenizer))

    @classmethod
    def from_directory(cls, path: str) -> tuple[TextEncoder | None, str]:
        """From a directory, without torch; None and the reason if `tokenizer.json` may not be enough."""
        raw, reason = read_raw(path)
        return (cls(raw), "") if raw else (None, reason)

    def choose(self, name: str | None, model_name: str = "") -> Template | TokenizerTemplate:
        """The template called `name`; "tokenizer" is the tokenizer's own. Raises SettingsError, see choose_template."""
        own = self.raw.chat_template
        if name != OWN_TEMPLATE:
            return choose_template(
                name, vocabulary=set(self.vocabulary), chat_template=own, model_name=model_name or Path(self.name).name
            )
        if own is None:
            raise SettingsError(
                f"--conv_template tokenizer: the tokenizer {self.name} has no chat template (base models often have "
                "none). Choose a built-in one, such as --conv_template chatml or vicuna_v1.1 (docs/templates.md)."
            )
        return TokenizerTemplate(own, self.raw)

    def bind(self, template: Template | TokenizerTemplate, train_on: str = ASSISTANT) -> ChatEncoder:
        """Combine this tokenizer with a template and a choice of what is supervised (`supervision.TRAIN_ON`).

        Raises SettingsError if exact ids cannot be verified.
        """
        return ChatEncoder(self, template, train_on)

    @classmethod
    def from_description(cls, described: dict[str, Any], name: str = "") -> ChatEncoder:
        """The encoder described by `ChatEncoder.described`. `name` is the tokenizer's, for messages."""
        of = described["tokenizer"]
        raw = RawTokenizer(of["text"], parse_json(of["text"]), of["bos"], of["eos"], of["template"], name)
        table = described["template"]
        template = TokenizerTemplate(of["template"], raw) if table is None else Template.from_dict(table)
        return cls(raw).bind(template, described["train_on"])

    def control(self, content: str) -> Control | None:
        """A control string that has an id of its own, added token or not; None if the tokenizer has none for it."""
        token_id = self.vocabulary.get(content)
        flags = self.added.get(content, {})
        return (
            None
            if token_id is None
            else Control(token_id, content, bool(flags.get("lstrip")), bool(flags.get("rstrip")))
        )

    def plain(self, texts: Sequence[str], position: str) -> list[list[tuple[int, int, int]]]:
        """Encode plain texts; ids are those of the complete tokenizer, offsets are in characters.

        Args:
            position: where the texts are: "first" in the sequence, "after" a control token, or "inside" a text.

        Returns: for each text a list of (id, start, end).
        """
        found = self.plain_tokens(texts, position)
        return [[(i, s, e) for i, (s, e) in zip(ids, offsets, strict=True)] for ids, offsets in found]

    def plain_tokens(self, texts: Sequence[str], position: str) -> list[PlainTokens]:
        """The same as (ids, [(start, end), ...]) of each text: without a Python object made here for every token."""
        encodings = self._variants[position].encode_batch(list(texts), add_special_tokens=False)
        renumber = self._renumber
        if not renumber:
            return [(x.ids, x.offsets) for x in encodings]
        return [([renumber.get(i, i) for i in x.ids], x.offsets) for x in encodings]

    def plain_ids(self, texts: Sequence[str], position: str) -> list[list[int]]:
        """Only the ids of each text, which is faster."""
        encodings = self._variants[position].encode_batch_fast(list(texts), add_special_tokens=False)
        renumber = self._renumber
        if not renumber:
            return [x.ids for x in encodings]
        return [[renumber.get(i, i) for i in x.ids] for x in encodings]

    @property
    def positions(self) -> list[str]:
        """The positions in which plain texts are encoded differently."""
        return list({id(variant): position for position, variant in self._variants.items()}.values())

    def no_space_before(self, position: str) -> tuple[str, ...] | None:
        """Before which beginnings of a text the tokenizer adds no space; None if it adds one before none at all."""
        if position == "inside":
            return None
        if any(step["type"] == "Prepend" for step in self.steps("normalizer")):
            return ()
        spaces = [step for step in self.steps("pre_tokenizer") if step["type"] == "Metaspace"]
        adds = any(step.get("prepend_scheme") != "never" for step in spaces if position == "first")
        adds = adds or any(step.get("prepend_scheme", "always") == "always" for step in spaces)
        return (" ",) if adds else None

    def steps(self, name: str) -> list[dict[str, Any]]:
        """The steps of the "normalizer" or the "pre_tokenizer" in `tokenizer.json`, sequences flattened."""
        return _steps(self.spec[name])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens included."""
        return self.whole.decode(list(ids), skip_special_tokens=False)


def _whole(raw: RawTokenizer) -> Tokenizer:
    """The complete tokenizer. Parsing a vocabulary is slow, so the model of one that is loaded already is shared."""
    if raw.parsed is None:
        return Tokenizer.from_str(raw.text)
    whole = _around(raw.parsed.model, {step: raw.spec[step] for step in _STEPS})
    tokens = sorted(raw.spec["added_tokens"], key=lambda token: token["id"])
    whole.add_tokens([_added_token(token, special=token["special"]) for token in tokens])
    same = {token["id"]: token["content"] for token in tokens} == {
        token_id: token.content for token_id, token in whole.get_added_tokens_decoder().items()
    }
    return whole if same else Tokenizer.from_str(raw.text)


def _vocabulary(spec: dict[str, Any]) -> dict[str, int]:
    """Every token -> id, as `Tokenizer.get_vocab` gives them, which takes a quarter of a second for 150,000."""
    listed = spec["model"]["vocab"]  # of a Unigram model: (token, score) in the order of their ids
    tokens = listed if isinstance(listed, dict) else {token: index for index, (token, _) in enumerate(listed)}
    return {**tokens, **{token["content"]: token["id"] for token in spec["added_tokens"]}}


def _check_unique_ids(raw: RawTokenizer, whole: Tokenizer) -> None:
    """Raise SettingsError where tokens have the same id: only one of them is written to a `tokenizer.json`, so a saved
    copy, and the processes that tokenise, would give other ids."""
    if whole.get_vocab_size(with_added_tokens=False) == len(raw.spec["model"]["vocab"]):
        return
    tokens_of: dict[int, list[str]] = {}
    for token, token_id in whole.get_vocab(with_added_tokens=False).items():
        tokens_of.setdefault(token_id, []).append(token)
    for token_id, tokens in sorted(tokens_of.items()):
        if len(tokens) > 1:
            raise SettingsError(
                f"the tokenizer {raw.name} gives the id {token_id} to {len(tokens)} tokens "
                f"({', '.join(map(repr, sorted(tokens)[:4]))}), so a saved copy of it would have other ids; give each "
                "token of its tokenizer.json an id of its own."
            )


def _unknown(model: dict[str, Any]) -> str | None:
    """The unknown token of a `tokenizer.json`; a Unigram model gives its index in the vocabulary."""
    place = model.get("unk_id")
    return model.get("unk_token") if place is None else model["vocab"][place][0]


def _is_space(content: str) -> bool:
    return not content.replace("▁", " ").strip()


def _variants(whole: Tokenizer, spec: dict[str, Any]) -> dict[str, Tokenizer]:
    """Encoders without added tokens, for a text at the very start, after a control token, and inside a text.

    They differ only in the space that some tokenizers add before a text: Metaspace with the scheme "first" (llama-2)
    adds it only at the very start, a "Prepend" normaliser also after every added token.
    """
    pipeline = {"normalizer": spec["normalizer"], "pre_tokenizer": spec["pre_tokenizer"]}
    after = copy.deepcopy(pipeline)
    for step in _steps(after["pre_tokenizer"]):
        if step["type"] == "Metaspace" and step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    inside = copy.deepcopy(after)
    for step in _steps(inside["pre_tokenizer"]):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    steps = _steps(inside["normalizer"])
    rest = [step for step in steps if not _at_the_start(step)]
    if len(rest) < len(steps):
        inside["normalizer"] = {"type": "Sequence", "normalizers": rest}
    built = {"first": _plain_tokenizer(whole, spec, pipeline)}
    built["after"] = built["first"] if after == pipeline else _plain_tokenizer(whole, spec, after)
    built["inside"] = built["after"] if inside == after else _plain_tokenizer(whole, spec, inside)
    return built


def _at_the_start(step: dict[str, Any]) -> bool:
    """Whether a normaliser changes only the beginning of a text."""
    regex = step.get("pattern", {}).get("Regex", "") if step["type"] == "Replace" else ""
    return step["type"] == "Prepend" or regex.startswith((r"\A", "^"))


def _plain_tokenizer(whole: Tokenizer, spec: dict[str, Any], pipeline: dict[str, Any]) -> Tokenizer:
    """A tokenizer with the same model (shared, not copied), another pipeline, no post-processor and no added tokens.

    Added tokens that consist of white space are kept: they are text, and the ids agree only with them.
    """
    plain = _around(whole.model, pipeline)
    plain.add_tokens([_added_token(t) for t in spec["added_tokens"] if _is_space(t["content"])])
    return plain


def _around(model: Any, steps: dict[str, Any]) -> Tokenizer:
    """A tokenizer with this model (shared, not copied) and the given steps of a `tokenizer.json`, no added tokens."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    none = {"version": "1.0", "added_tokens": [], "model": empty, **dict.fromkeys(_STEPS)}
    parsed = Tokenizer.from_str(json.dumps(none | steps))
    made = Tokenizer(model)
    for name in _STEPS:
        step = getattr(parsed, name)
        if step is not None:
            setattr(made, name, step)
    return made


def _added_token(token: dict[str, Any], *, special: bool = False) -> AddedToken:
    """A token of `added_tokens` in a `tokenizer.json`."""
    flags = {flag: bool(token.get(flag)) for flag in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(token["content"], special=special, **flags)


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, sequences flattened."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [s for inner in step.get("normalizers", step.get("pretokenizers", [])) for s in _steps(inner)]
    return [step]
