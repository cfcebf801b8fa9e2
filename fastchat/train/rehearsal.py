"""Saving tried before the first step: what cannot be saved, or not be read back, must not come to light after the last.

Everything of a result but its weights is written into a temporary folder by the functions that will save it, and opened
as its users will.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fastchat.checkpoint.card import write_card
from fastchat.checkpoint.record import TrainingRecord, read_training_record
from fastchat.checkpoint.save import write_company
from fastchat.conversation import Dialogue
from fastchat.data.encoding.saved_template import compare_template
from fastchat.data.tokens.cache import cache_folder
from fastchat.data.tokens.known import remembered
from fastchat.errors import SettingsError, UserError, brief
from fastchat.model.loading import read_configs
from fastchat.model.tokenizer_files import loaded_files, reopened
from fastchat.processes import rank
from fastchat.train.prepare import Text


def rehearse_saving(model: Any, text: Text, sample: Sequence[Dialogue], *, adapter: bool) -> None:
    """SettingsError where configurations or tokenizer of the result could not be written, or do not read back as what
    the run trains with, on the probes and on a `sample` of its data. For global rank 0."""
    with tempfile.TemporaryDirectory(prefix="fschat-") as name:
        folder = Path(name)
        try:
            stop_ids = text.chat_encoder.stop_ids
            write_company(folder, model, adapter=adapter, tokenizer=text.tokenizer, stop_ids=stop_ids)
            check_text(folder, text, sample)
            read_configs(folder, adapter=adapter)
        except UserError as problem:
            raise SettingsError(
                f"the result of this run could not be used: {problem}. Nothing was trained."
            ) from problem
        except (ValueError, TypeError, AttributeError) as problem:
            raise SettingsError(
                f"the result of this run could not be saved: {type(problem).__name__}: {brief(problem, 400)}. Nothing "
                "was trained."
            ) from problem


def check_text(folder: Path, text: Text, sample: Sequence[Dialogue]) -> int:
    """Reads the tokenizer saved in `folder` back as anybody would, and compares it and its chat template with training.

    Files that are byte for byte those that were compared last, by the rehearsal for example, are not compared again:
    the tokenizer and the `sample` of a run do not change. Nor are those that an earlier run has compared with the same
    tokenizer, template and sample.

    Returns: how many dialogues were compared. Raises SettingsError.
    """
    found = loaded_files(folder)
    if found != text.saved.files:
        text.saved.compared = remembered(
            cache_folder(),
            "saved tokenizer",
            [found, _described(text), [dialogue.to_dict() for dialogue in sample]],
            lambda: compare_template(reopened(folder, text.tokenizer), text.chat_encoder, sample),
        )
        text.saved.files = found
    return text.saved.compared


def _described(text: Text) -> list[Any]:
    """All of the tokenizer and the template of training that what was saved is compared with."""
    tokenizer = text.tokenizer
    names = {name: str(getattr(tokenizer, name)) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    return [text.chat_encoder.described(), tokenizer.backend_tokenizer.to_str(), names, tokenizer.chat_template]


class RecordRehearsal(TrainerCallback):
    """Makes, writes and reads the training record, and its card, once the engine is ready, before the first step."""

    def __init__(self, make: Callable[[], TrainingRecord]) -> None:
        self.make = make

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        record = self.make()
        if rank() == 0:
            with tempfile.TemporaryDirectory(prefix="fschat-") as folder:
                record.write(folder)
                read_training_record(folder)
                write_card(Path(folder), record)
