"""Adding tokens to a tokenizer's files without changing anything else in them.

The files are edited as JSON rather than loaded and saved again: a save by the current library rewrites parts that an
older version, or a serving engine, reads differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastchat.errors import CheckpointError, SettingsError
from fastchat.model.source import read_json
from fastchat.model.tokenizer import load_plain
from fastchat.model.tokenizer_files import PROBES, write_json

_AS_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@dataclass
class Plan:
    """What adding a set of tokens means for one vocabulary.

    Attributes:
        ids: token -> id of every requested token, in the order of the request.
        added: the tokens that get a new id.
        marked: the tokens that had an id as ordinary text and become special.
        known: the tokens that were special already.
        size: one more than the largest id afterwards.
    """

    ids: dict[str, int] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    size: int = 0


def plan_tokens(folder: Path, tokens: Sequence[str]) -> Plan:
    """The id that each token has or gets in `folder`/tokenizer.json, by the library's own rules."""
    from tokenizers import AddedToken, Tokenizer

    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = raw.get_vocab(with_added_tokens=True)
    special = {token.content for token in raw.get_added_tokens_decoder().values()}
    plan = Plan()
    for token in tokens:
        kind = plan.known if token in special else plan.marked if token in vocabulary else plan.added
        kind.append(token)
    raw.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in plan.added])
    ids = raw.get_vocab(with_added_tokens=True)
    plan.ids = {token: ids[token] for token in tokens}
    plan.size = 1 + max(*ids.values(), 0)
    return plan


def write_tokens(folder: Path, plan: Plan, pad_token: str | None, special_tokens: Sequence[str]) -> None:
    """Writes the planned tokens into the tokenizer files in `folder`, with `pad_token` as the pad token."""
    new = {token: plan.ids[token] for token in (*plan.added, *plan.marked)}
    tokenizer = read_json(folder / "tokenizer.json")
    entries = tokenizer.setdefault("added_tokens", [])
    entries += [{"id": token_id, "content": token, **_AS_SPECIAL} for token, token_id in new.items()]
    entries.sort(key=lambda entry: entry["id"])
    write_json(folder / "tokenizer.json", tokenizer)

    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    _name(config, pad_token, special_tokens)
    if isinstance(config.get("added_tokens_decoder"), dict):
        config["added_tokens_decoder"] |= {str(i): {"content": token, **_AS_SPECIAL} for token, i in new.items()}
    write_json(folder / "tokenizer_config.json", config)
    if (folder / "special_tokens_map.json").is_file():
        names = read_json(folder / "special_tokens_map.json")
        _name(names, pad_token, special_tokens)
        write_json(folder / "special_tokens_map.json", names)


def check_tokens(before: Any, folder: Path, plan: Plan, pad_token: str | None, *, trust_remote_code: bool) -> None:
    """Loads the tokenizer in `folder` and compares it with the one it was made from.

    Raises:
        CheckpointError: a token has another id than planned, is cut into pieces, or any other token changed.
        SettingsError: ordinary text has other ids than before.
    """
    after = load_plain(str(folder), trust_remote_code=trust_remote_code)
    for token, token_id in plan.ids.items():
        found = after.encode(f"a{token}b", add_special_tokens=False)
        if after.convert_tokens_to_ids(token) != token_id or found.count(token_id) != 1:
            raise CheckpointError(f"{token!r} reads back as {found} instead of id {token_id}; nothing was saved")
    if pad_token is not None and after.pad_token_id != plan.ids[pad_token]:
        raise CheckpointError(f"the saved tokenizer pads with {after.pad_token!r}, not {pad_token!r}")
    old, new = before.get_vocab(), after.get_vocab()
    changed = [token for token in old.keys() | new.keys() if old.get(token) != new.get(token)]
    if sorted(changed) != sorted(plan.added):
        raise CheckpointError(f"other tokens changed too, such as {changed[:3]}; nothing was saved")
    for text in (*PROBES, "".join(before.get_added_vocab())):
        if before.encode(text) != after.encode(text):
            raise SettingsError(
                f"with {' '.join((*plan.added, *plan.marked))} in the vocabulary, {text[:50]!r} is tokenised "
                "differently: choose tokens that do not occur in ordinary text, such as '[PAD]'."
            )


def _name(config: dict[str, Any], pad_token: str | None, special_tokens: Sequence[str]) -> None:
    """Adds the tokens under their names, in the form that the file already uses."""
    if pad_token is not None:
        old = config.get("pad_token")
        config["pad_token"] = {**_AS_SPECIAL, **old, "content": pad_token} if isinstance(old, dict) else pad_token
    if special_tokens:
        newer = isinstance(config.get("extra_special_tokens"), list)
        listed = config.setdefault("extra_special_tokens" if newer else "additional_special_tokens", [])
        contents = [entry["content"] if isinstance(entry, dict) else entry for entry in listed]
        listed += [token for token in special_tokens if token not in contents]
