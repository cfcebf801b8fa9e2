"""The adapter of a run, from its settings: what `add_lora` is given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from fastchat.checkpoint.record import TrainingRecord, read_training_record
from fastchat.errors import SettingsError, nearest
from fastchat.model.adapter_parts import TRAINED
from fastchat.model.first_weights import FirstWeights
from fastchat.model.lora import adapter_targets, add_lora, check_adapter_directory
from fastchat.settings.arguments import LoraArguments
from fastchat.settings.lora_options import UNTRAINED, LoraOptions, check_engine, parse_layers
from fastchat.train.engine import Engine
from fastchat.train.untrained import untrained_tokens

AddAdapter = Callable[[Any, Callable[[], Any]], Any]
_BATCH_TOKENS = 2048  # after as many, a batch of EVA is full


def adapter_record(lora: LoraArguments | None) -> TrainingRecord | None:
    """The training record of the adapter to continue, where there is one."""
    path = lora.lora_weight_path if lora is not None else None
    return read_training_record(path) if path else None


def adapter_of(
    lora: LoraArguments,
    tokenizer: Any,
    dataset: Any,
    engine: Engine,
    *,
    usual_targets: bool,
    checkpointing: bool,
    device: torch.device,
    resumes: bool,
) -> AddAdapter:
    """What gives a base its adapter, called with the base and a function that loads it without quantisation.

    `usual_targets`: take those of the model, not those of `lora`. `dataset`: of input_ids and labels, which a
    forward pass gets on `device`. `resumes`: the weights come from a checkpoint.
    """

    def add(model: Any, original: Callable[[], Any]) -> Any:
        """`model` with its adapter. `original` loads the base without quantisation."""
        _check_continued(lora, engine)
        tokens = token_ids(tokenizer, lora.trainable_tokens)
        if UNTRAINED in lora.trainable_tokens and not lora.lora_weight_path:
            tokens += untrained_tokens(model, tokenizer, engine)
        peft_model = add_lora(
            model,
            r=lora.lora_r,
            alpha=lora.lora_alpha,
            dropout=lora.lora_dropout,
            target_modules=None if usual_targets else lora.lora_target_modules,
            target_parameters=lora.lora_target_parameters,
            bias=lora.lora_bias,
            gradient_checkpointing=checkpointing,
            weight_path=lora.lora_weight_path or None,
            options=LoraOptions(
                use_rslora=lora.use_rslora,
                use_dora=lora.use_dora,
                layers=tuple(parse_layers(lora.lora_layers_to_transform)),
                modules_to_save=tuple(lora.lora_modules_to_save),
                trainable_tokens=tuple(dict.fromkeys(tokens)),
            ),
            first=FirstWeights(
                lora.lora_init, partial(_batches, dataset, device, lora.lora_r), original, known=resumes
            ),
            numel=engine.numel,
            whole=engine.whole,
        )
        return gathered_with_adapters(peft_model, engine)

    return add


def _check_continued(lora: LoraArguments, engine: Engine) -> None:
    """SettingsError where the adapter to continue has what the engine cannot train."""
    own = check_adapter_directory(lora.lora_weight_path) if lora.lora_weight_path else {}
    check_engine(
        trainable_tokens=list(own.get("trainable_token_indices") or ()),
        use_dora=bool(own.get("use_dora")),
        q_lora=lora.q_lora,
        zero_stage=engine.zero_stage,
    )


def gathered_with_adapters(model: Any, engine: Engine) -> Any:
    """`model`, with the weights gathered that its adapters compute with themselves: DoRA takes the norms of the weight,
    and an adapter on a parameter changes it before the module that has it begins."""
    from peft.tuners.lora import ParamWrapper

    for module in model.modules():
        if TRAINED in (getattr(module, "lora_magnitude_vector", None) or ()):
            engine.reads(module.lora_magnitude_vector[TRAINED], module.get_base_layer().weight)
        elif isinstance(module, ParamWrapper):
            engine.gather_as_one(module)
    return model


def derived_targets(lora: LoraArguments, model: Any) -> dict[str, Any]:
    """The settings that follow from the model, or from the adapter that is trained further: what has an adapter."""
    modules, parameters = adapter_targets(model.peft_config[TRAINED].to_dict())
    further = {"lora_target_parameters": parameters or None} if lora.lora_weight_path else {}
    return {"lora_target_modules": modules, **further}


def token_ids(tokenizer: Any, values: Sequence[str]) -> list[int]:
    """The ids of tokens given as their texts or ids; without those that `untrained` stands for.

    SettingsError for a text that is not one token of the vocabulary.
    """
    vocabulary = tokenizer.get_vocab() if values else {}  # a large dict, made at each call
    found = []
    for value in values:
        if value == UNTRAINED:
            continue
        if value not in vocabulary and not value.isdecimal():
            close = nearest(value, list(tokenizer.get_added_vocab()), n=1)
            raise SettingsError(
                f"--trainable_tokens: {value!r} is not one token of this tokenizer: add it to the model first, with "
                "`fastchat prepare`" + (f"; did you mean {close[0]}?" if close else "")
            )
        found.append(vocabulary[value] if value in vocabulary else int(value))
    return found


def _batches(dataset: Any, device: torch.device, supervised: int) -> Iterator[dict[str, torch.Tensor]]:
    """The dialogues in their order, again and again, several of them in a batch: input_ids, labels and attention_mask,
    [B, T]. A batch has at least as many `supervised` tokens, or all dialogues."""
    batch: list[Any] = []
    for index in itertools.cycle(range(len(dataset))):
        batch.append(dataset[index])
        tokens = len(batch) * max(len(row["input_ids"]) for row in batch)
        enough = sum(int((np.asarray(row["labels"]) != -100).sum()) for row in batch) >= supervised
        if len(batch) == len(dataset) or (tokens >= _BATCH_TOKENS and enough):
            yield _padded(batch, device)
            batch = []


def _padded(rows: Sequence[Any], device: torch.device) -> dict[str, torch.Tensor]:
    def stacked(name: str, fill: int) -> torch.Tensor:
        values = [torch.tensor(row[name], dtype=torch.int64) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill).to(device)

    ids = stacked("input_ids", 0)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows], device=device)
    mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    return {"input_ids": ids, "labels": stacked("labels", -100), "attention_mask": mask}
