"""Upstream's training interface for other people's programs: its arguments, `preprocess` and data sets.

Ids and labels are those of this project's own training; the shapes are upstream's: every row padded to the tokenizer's
`model_max_length`. Programs import these names from `fastchat.train.train`, `train_lora` and `train_with_template`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset
from transformers import Trainer

from fastchat.checkpoint.gather import gather
from fastchat.conversation import get_template
from fastchat.data.batches.collate import collate
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import IGNORED, tokenize_dialogues
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.formats import parse_row
from fastchat.data.rows.reading import read_rows
from fastchat.data.rows.records import load_dialogues
from fastchat.data.rows.unshown import refuse_unshown
from fastchat.errors import DataError, say
from fastchat.model.model_adapter import get_conversation_template
from fastchat.model.tokenizer import choose_pad
from fastchat.train.engine import ZeRO

IGNORE_TOKEN_ID = IGNORED
_BY_MARK = ZeRO({}, 1)  # the engine is the program's own: what DeepSpeed marked is gathered, all else is whole
_VICUNA = "vicuna"
_LONGEST = 10**6  # tokens; transformers writes 10**30 where a tokenizer names no length
_HELD_OUT_AT_RATIO_1 = 0.05  # upstream evaluates on this share of the training data then


@dataclass
class ModelArguments:
    """Upstream's fields and defaults, as its dataclass has them."""

    model_name_or_path: str | None = "facebook/opt-125m"
    trust_remote_code: bool = False
    padding_side: str = "right"


@dataclass
class DataArguments:
    """Upstream's fields and defaults, as its dataclass has them."""

    data_path: str | None = None
    eval_data_path: str | None = None
    lazy_preprocess: bool = False


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own, with upstream's three fields."""

    cache_dir: str | None = None
    optim: str = "adamw_torch"
    model_max_length: int = 512


@dataclass
class LoraTrainingArguments(TrainingArguments):
    """`TrainingArguments` of upstream's train_lora."""

    flash_attn: bool = False


@dataclass
class LoraArguments:
    """Upstream's fields and defaults, as its dataclass has them."""

    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    lora_weight_path: str = ""
    lora_bias: str = "none"
    q_lora: bool = False


def rank0_print(*args: Any) -> None:
    """Print in the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(*args)


def preprocess(sources: Sequence[Any], tokenizer: Any, template_id: str = _VICUNA, **kwargs: Any) -> dict[str, Any]:
    """Conversations (lists of {"from", "value"}) to input_ids, labels and attention_mask, each [N, model_max_length].

    Labels are -100 wherever nothing is to be generated, and in all of a row that has no answer to learn, which is
    counted and said. `template_id`: a model path; `systems` among `kwargs`: a system message each, or "".
    Raises DataError for a malformed conversation, SettingsError for a tokenizer without a fast version.
    """
    systems = kwargs.get("systems") or [None] * len(sources)
    rows = [
        {"conversations": source, "system": system or None} for source, system in zip(sources, systems, strict=True)
    ]
    return _tensors(rows, tokenizer, template_id)


def _tensors(rows: Sequence[Mapping[str, Any]], tokenizer: Any, template_id: str) -> dict[str, Any]:
    chat_encoder = TextEncoder.from_tokenizer(tokenizer).bind(get_template(get_conversation_template(template_id).name))
    limit = min(int(tokenizer.model_max_length), _LONGEST)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else choose_pad(tokenizer).id
    examples = [_example(number, row, chat_encoder, limit, pad) for number, row in enumerate(rows)]
    nothing = sum(all(label == IGNORED for label in example["labels"]) for example in examples)
    if nothing:
        say(f"{nothing} of {len(rows)} conversations have no answer to learn within {limit} tokens")
    length = limit if limit < _LONGEST else max(len(example["input_ids"]) for example in examples)
    filled = collate(
        [*examples, {"input_ids": [pad] * length, "labels": [IGNORED] * length}],
        pad_token_id=pad,
        padding_side=tokenizer.padding_side,
    )
    tensors = {name: tensor[:-1] for name, tensor in filled.items()}
    return {**tensors, "attention_mask": tensors["attention_mask"].bool()}


def _example(
    number: int, row: Mapping[str, Any], chat_encoder: ChatEncoder, limit: int, pad: int
) -> dict[str, list[int]]:
    try:
        dialogue = parse_row(
            {key: value for key, value in row.items() if value is not None}, "raw_data", number
        ).dialogue
        if dialogue is not None:
            refuse_unshown(dialogue, reasoning=False, calls=chat_encoder.template.shows_calls)
    except BadRow as bad:
        raise DataError(f"conversation {number}: {bad}") from None
    if dialogue is None:
        return {"input_ids": [pad], "labels": [IGNORED]}
    # One tensor per conversation: of several examples that of the last answer, which upstream learns too.
    *_, example = tokenize_dialogues([(number, dialogue)], chat_encoder, max_length=limit)
    if example.dropped is None:
        return {"input_ids": example.input_ids, "labels": example.labels}
    ids = list(chat_encoder.encode(chat_encoder.template.render(dialogue)).input_ids[:limit])
    return {"input_ids": ids, "labels": [IGNORED] * len(ids)}


class SupervisedDataset(Dataset):
    """Rows of a data file, tokenized at once; items are rows of what `preprocess` gives."""

    def __init__(self, raw_data: Sequence[Mapping[str, Any]], tokenizer: Any, template_id: str = _VICUNA):
        super().__init__()
        made = _tensors(raw_data, tokenizer, template_id)
        self.input_ids, self.labels, self.attention_mask = (
            made[name] for name in ("input_ids", "labels", "attention_mask")
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.input_ids[i], "labels": self.labels[i], "attention_mask": self.attention_mask[i]}


class LazySupervisedDataset(Dataset):
    """The same, tokenized row by row when first asked for."""

    def __init__(self, raw_data: Sequence[Mapping[str, Any]], tokenizer: Any, template_id: str = _VICUNA):
        super().__init__()
        self.raw_data, self.tokenizer, self.template_id = raw_data, tokenizer, template_id
        self.cached_data_dict: dict[int, dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self.raw_data)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        if i not in self.cached_data_dict:
            made = _tensors([self.raw_data[i]], self.tokenizer, self.template_id)
            self.cached_data_dict[i] = {name: tensor[0] for name, tensor in made.items()}
        return self.cached_data_dict[i]


def make_supervised_data_module(tokenizer: Any, data_args: Any) -> dict[str, Any]:
    """{"train_dataset", "eval_dataset"} of the files in `data_args`; None without an eval_data_path."""
    kind = LazySupervisedDataset if data_args.lazy_preprocess else SupervisedDataset
    held_out = getattr(data_args, "eval_data_path", None)
    return {
        "train_dataset": kind(_rows(data_args.data_path), tokenizer=tokenizer),
        "eval_dataset": kind(_rows(held_out), tokenizer=tokenizer) if held_out else None,
    }


def make_split_data_module(
    tokenizer: Any, data_args: Any, template_id: str, train_ratio: float = 0.98
) -> dict[str, Any]:
    """`make_supervised_data_module` of upstream's train_with_template: holds 1 - `train_ratio` of the rows out."""
    kind = LazySupervisedDataset if data_args.lazy_preprocess else SupervisedDataset
    rows = _rows(data_args.data_path)
    order = np.random.default_rng(0).permutation(len(rows))
    split = int(len(rows) * min(train_ratio, 1.0))
    evaluated = order[split:] if train_ratio < 1 else order[-max(int(len(rows) * _HELD_OUT_AT_RATIO_1), 1) :]
    return {
        name: kind([rows[i] for i in chosen], tokenizer=tokenizer, template_id=template_id)
        for name, chosen in (("train_dataset", order[:split]), ("eval_dataset", evaluated))
    }


def _rows(path: str) -> list[dict[str, Any]]:
    """The rows of a data file. Raises DataError that lists every malformed one."""
    load_dialogues([path], calls=True)  # whether the template shows them is checked for each row
    return [row.value for row in read_rows(path) if row.value is not None]


def trainer_save_model_safe(trainer: Trainer) -> None:
    """Save the whole model into the trainer's output folder, under every engine of transformers."""
    trainer.save_model()


def safe_save_model_for_hf_trainer(trainer: Trainer, output_dir: str) -> None:
    """Save the whole model into `output_dir`."""
    trainer.save_model(str(Path(output_dir)))


def maybe_zero_3(param: torch.Tensor) -> torch.Tensor | None:
    """A copy of a parameter on the CPU, whole also under ZeRO-3, where all processes call it; None in all but the
    first."""
    return gather([("", param)], _BY_MARK).get("")


def get_peft_state_maybe_zero_3(named_params: Any, bias: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors by name, on the CPU, whole also under ZeRO-3, where all processes call it; empty in all but
    the first. `bias`: "none", "all", or "lora_only" (of the layers with an adapter)."""
    named = dict(named_params)
    adapted = {name.split("lora_")[0] for name in named if "lora_" in name}

    def wanted(name: str) -> bool:
        owner = name.removesuffix("bias").removesuffix("base_layer.")
        chosen = {"none": False, "all": "bias" in name, "lora_only": name.endswith("bias") and owner in adapted}
        if bias not in chosen:
            raise NotImplementedError(f"bias {bias!r} is not one of {', '.join(chosen)}")
        return "lora_" in name or chosen[bias]

    return gather(((name, tensor) for name, tensor in named.items() if wanted(name)), _BY_MARK)
