"""The model to evaluate, as it was trained: template, stop ids, RoPE, nf4 and precision from its training record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fastchat.checkpoint.record import TrainingRecord
from fastchat.checkpoint.trained_model import TrainedModel, find_trained, load_trained_tokenizer, torch_dtype
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.model.rope import context_length
from fastchat.serve.chat import add_base_stops, bind_template
from fastchat.serve.placement import Placement, choose_placement


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, with what its prompts are made with.

    Attributes:
        model: the causal language model, on its device.
        chat_encoder: tokenizer and template; what is supervised is what the run trained on.
        pad_id: fills batches.
        trained: where the model comes from.
        half: the 16-bit dtype that the run computed in while its weights had another; None to compute in the weights'.
    """

    model: Any
    chat_encoder: ChatEncoder
    pad_id: int
    trained: TrainedModel
    half: torch.dtype | None = None

    @property
    def context(self) -> int | None:
        """The most tokens of prompt and answer together; None for a model without a limit."""
        return context_length(self.model.config)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within it the model computes in the precision of its training."""
        enabled = self.half is not None
        with torch.inference_mode(), torch.autocast(self.model.device.type, dtype=self.half, enabled=enabled):
            yield


def load_for_evaluation(
    path: str,
    *,
    base_model_path: str | None = None,
    conv_template: str | None = None,
    placement: Placement | None = None,
    device: str | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load an adapter with its base, a full model or a checkpoint: a folder, or a hub name.

    Arguments and errors as in `fastchat.serve.chat.load_chat`.
    """
    trained = find_trained(path, base_model_path)
    options: dict[str, Any] = {"cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    tokenizer = load_trained_tokenizer(trained, **options)
    chat_encoder = bind_template(trained, conv_template, TextEncoder.from_tokenizer(tokenizer))
    train_on = recorded(trained.record, "train_on") or chat_encoder.train_on
    if train_on != chat_encoder.train_on:
        chat_encoder = chat_encoder.encoder.bind(chat_encoder.template, train_on)
    if trained.is_adapter and trained.record is not None and trained.record.dtype:
        options["dtype"] = torch_dtype(trained.record.dtype)
    model = (placement or choose_placement(device)).load(trained, **options)
    add_base_stops(chat_encoder, model)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return Loaded(model, chat_encoder, pad_id, trained, _half(trained.record, model.dtype))


def recorded(record: TrainingRecord | None, setting: str) -> Any:
    """The value of a setting of the run; None if it is not recorded."""
    found = record.settings.get(setting) if record is not None else None
    return found.get("value") if isinstance(found, dict) else None


def _half(record: TrainingRecord | None, weights: torch.dtype) -> torch.dtype | None:
    """What a run computed in under --bf16 or --fp16, where its weights are not in it already."""
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if recorded(record, name) is True and weights != dtype:
            return dtype
    return None
