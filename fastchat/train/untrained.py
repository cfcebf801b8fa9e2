"""A warning for what LoRA cannot learn: tokens of the template whose rows in a frozen embedding were never trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fastchat.data.tokens.dataset import ChatDataset
from fastchat.errors import SettingsError, say
from fastchat.model.full_modules import trained_rows
from fastchat.settings.lora_options import UNTRAINED
from fastchat.train.engine import Engine

_LOOKED_AT = 16  # dialogues whose control tokens are looked at
_NAMED = 20  # tokens in a message
_NEAR = 0.2  # of the median distance from the mean; trained rows are seldom nearer than half of it


def warn_untrained(model: Any, tokenizer: Any, stop_ids: Sequence[int], dataset: ChatDataset, engine: Engine) -> None:
    """Says which control tokens of the dialogues have rows that carry nothing, where neither matrix is trained.

    `model`: with its adapter. Full fine-tuning has nothing to warn of. Every process calls it.
    """
    added = set(tokenizer.get_added_vocab().values())
    seen = {int(i) for n in range(min(_LOOKED_AT, len(dataset))) for i in dataset[n]["input_ids"]}
    ids = sorted((seen & added) | set(stop_ids))
    layers = {"embedding": model.get_input_embeddings(), "output matrix": model.get_output_embeddings()}
    found: dict[int, list[str]] = {}
    for name, layer in layers.items():
        if layer is None or any(p.requires_grad for p in layer.parameters()) and not trained_rows(layer):
            continue
        for i in _untrained(layer, set(ids) - set(trained_rows(layer)), engine):
            found.setdefault(i, []).append(name)
    if found:
        names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
        leaves = " ".join(names[id(layer)] for layer in layers.values() if layer is not None)
        rows = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({' and '.join(w)})" for i, w in found.items())
        say(
            f"WARNING: the template uses tokens that the base model has never learned, and LoRA leaves their rows as "
            f"they are: {rows}. The model may never end an answer. Train them with --trainable_tokens {UNTRAINED}, "
            f"add {leaves} to --lora_target_modules, use full fine-tuning, or choose a --conv_template whose control "
            "tokens the base model knows"
        )


def untrained_tokens(model: Any, tokenizer: Any, engine: Engine) -> list[int]:
    """The ids of the added tokens of `tokenizer` whose row of the embedding or of the output matrix carries nothing.

    `model`: the base, without an adapter. Every process calls it. SettingsError where there is none.
    """
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    added = set(tokenizer.get_added_vocab().values())
    found = sorted({i for layer in layers if layer is not None for i in _untrained(layer, added, engine)})
    if not found:
        raise SettingsError(
            f"--trainable_tokens {UNTRAINED}: the base model has learned all added tokens of its tokenizer: "
            "leave it out, or name the tokens"
        )
    names = [repr(token) for token in tokenizer.convert_ids_to_tokens(found[:_NAMED])]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    say(f"--trainable_tokens {UNTRAINED}: {', '.join(names)}{more}")
    return found


def _untrained(layer: Any, ids: Iterable[int], engine: Engine) -> list[int]:
    plain = getattr(layer, "original_module", layer)  # peft would put trained rows into it
    with engine.whole(plain.weight) as weight:
        return untrained_rows(weight.detach(), sorted(ids))


def untrained_rows(weight: torch.Tensor, ids: list[int]) -> list[int]:
    """Those of `ids` whose row of `weight`, [V, H], is zero, is that of another token too, or is next to the mean.

    >>> untrained_rows(torch.tensor([[9.0, 0], [0, 9], [-9, 0], [0, -9], [5, 5], [5, 5], [0, 0.1]]), [0, 4, 5, 6])
    [4, 5, 6]
    """
    mean = weight.mean(dim=0, dtype=torch.float32)
    far = torch.cat([(part.float() - mean).norm(dim=1) for part in weight.split(8192)])
    near = far <= _NEAR * far.median()

    def carries_nothing(i: int) -> bool:
        row = weight[i]
        return bool(near[i]) or not row.any() or int((weight == row).all(dim=1).sum()) > 1

    return [i for i in ids if i < len(weight) and carries_nothing(i)]
