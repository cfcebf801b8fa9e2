"""The base of a tuned model as a second model to chat with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastchat.checkpoint.record import read_training_record
from fastchat.checkpoint.trained_model import TrainedModel
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.errors import SettingsError
from fastchat.model.lora import ADAPTER_CONFIG
from fastchat.model.rope import context_length
from fastchat.serve.chat import Chat
from fastchat.serve.placement import Placement

BASE, TUNED = "base", "tuned"


class WithoutAdapter:
    """A model whose adapter is switched off while it generates."""

    def __init__(self, model: Any):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **options: Any) -> Any:
        """The ids that the base generates."""
        with self._model.disable_adapter():
            return self._model.generate(**options)


def base_to_load(model_path: str, base_model_path: str | None) -> str | None:
    """The base to load for a comparison; None for an adapter, which can be switched off.

    Of a full model it is `base_model_path` or, by default, the one in its training record. Raises SettingsError if
    neither is given.
    """
    folder = Path(model_path).expanduser()
    if (folder / ADAPTER_CONFIG).is_file():
        return None
    record = read_training_record(model_path) if folder.is_dir() else None
    path = base_model_path or (record.base_model if record else None)
    if not path:
        raise SettingsError(
            f"--compare: {model_path} does not say which base it was trained on; pass --base-model-path."
        )
    return path


def with_base(chat: Chat, base: str | None, placement: Placement, **options: Any) -> dict[str, Chat]:
    """The base and the tuned model, both with the prompts of the tuned one. `base`: what `base_to_load` returned."""
    if base is None:
        return {BASE: replace(chat, model=WithoutAdapter(chat.model)), TUNED: chat}
    model = placement.load(TrainedModel(base, base, is_adapter=False, record=None), **options)
    check_vocabulary(base, model, chat.chat_encoder, chat.pad_id)
    context = min((size for size in (context_length(model.config), chat.context) if size), default=None)
    return {BASE: replace(chat, model=model, context=context), TUNED: chat}


def check_vocabulary(base: str, model: Any, encoder: ChatEncoder, pad_id: int) -> None:
    """Raise SettingsError if prompts of `encoder` can have ids that `model` does not know. A pad token is in none."""
    ids = {i for i in encoder.encoder.vocabulary.values() if i != pad_id or i in encoder.stop_ids}
    rows, needed = model.get_input_embeddings().weight.shape[0], max(ids) + 1
    if rows < needed:
        raise SettingsError(
            f"{base} has {rows:,} tokens in its vocabulary, and the prompts of the tuned model need {needed:,}: they "
            "cannot be compared."
        )
