"""Merging an adapter into its base: a full model that loads anywhere, with template, RoPE and stop tokens in place.

An adapter corrects the weights that it was trained on. With q_lora those were the dequantised nf4 values, so it is
merged into exactly those; merged into the original weights it would correct errors that are not there (measured
on stories260K: logits off by 0.1 instead of 4e-7).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastchat.bars import waiting
from fastchat.checkpoint.card import CARD, license_of, write_card
from fastchat.checkpoint.digests import record_digests
from fastchat.checkpoint.folders import check_new_folder, new_folder
from fastchat.checkpoint.full import MAX_SHARD, saved_configs
from fastchat.checkpoint.merged_weights import MergedWeights
from fastchat.checkpoint.record import RECORD_NAME
from fastchat.checkpoint.shards import write_shards
from fastchat.checkpoint.space import disk_errors
from fastchat.checkpoint.trained_model import TrainedModel, find_trained, load_trained, load_trained_tokenizer
from fastchat.data.encoding.saved_template import install_template
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.errors import CheckpointError, SettingsError, say
from fastchat.model.loading import load_base_model, load_config, weights_dtype
from fastchat.model.lora import check_adapter_directory
from fastchat.model.mapped import released_after_use
from fastchat.model.tokenizer_files import reopened, write_tokenizer

PROBE_TOKENS = 32
# How far logits may move when weights are rounded to the base's dtype once, as a share of the largest logit.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Merged:
    """A finished merge: its folder, its dtype, and how far its logits are from those of base and adapter unmerged."""

    path: Path
    dtype: torch.dtype
    weights: str
    error: float
    effect: float
    stop_ids: tuple[int, ...]


def merge_adapter(
    lora_path: str,
    target_path: str,
    *,
    base_model_path: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> Merged:
    """Write base plus adapter as one model into the new folder `target_path`, complete or not at all.

    `weights`: what to merge into, "full" or "dequantised"; by default what the adapter was trained on. The result has
    the dtype of the base model's files. It is loaded again and must give the logits of base and adapter unmerged.
    Raises SettingsError for a non-empty target, a folder that is not an adapter, or a base that does not fit it;
    ResourceError if the disk is full or not writable.
    """
    target = check_new_folder(target_path, "--target-model-path")
    if not Path(lora_path).expanduser().is_dir():
        check_adapter_directory(lora_path)  # raises: an adapter is a folder, never a name on the hub
    tuned = find_trained(lora_path, base_model_path)
    if not tuned.is_adapter:
        check_adapter_directory(lora_path)  # raises
    other = tuned.other_base()
    if other:
        raise CheckpointError(f"{other}: nothing was merged; pass the right one with --base-model-path")
    weights = weights or ("dequantised" if tuned.quantised else "full")
    options = {"cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    dtype = weights_dtype("auto", load_config(tuned.base, **options))
    tokenizer = load_trained_tokenizer(tuned, **options)
    stop_ids = _stop_ids(tuned, tokenizer)
    model = load_trained(tuned, weights=weights, device=device, **options)
    probe = _probe(model)
    with waiting("computing the logits before"), released_after_use(model):
        wanted, effect = _logits_and_effect(model, probe)
    merged = MergedWeights(model, dtype)
    del model
    size = sum(tensor.nbytes for tensor in merged.planned.values())
    with disk_errors(target, size, "merged model"), new_folder(target) as folder:
        _write_configs(folder, merged.model, dtype, tokenizer, stop_ids)
        digests = write_shards(
            folder, merged.planned, merged.take, max_shard=MAX_SHARD, num_parameters=merged.num_parameters
        )
        _write_company(folder, tuned, tokenizer, digests)
        if tuned.record is not None:
            write_card(target, tuned.record, into=folder, license=license_of(Path(tuned.path).expanduser() / CARD))
        try:
            reopened(folder, tokenizer)
        except SettingsError as problem:
            raise CheckpointError(f"{problem}; the merged model was not saved") from problem
        del merged
        error = _compare(folder, probe, wanted, dtype, device)
    say(f"Merged into {target}: {dtype}, {weights} base; logits off by {error:.1e}, moved by the adapter {effect:.1e}.")
    return Merged(target, dtype, weights, error, effect, stop_ids)


def _stop_ids(tuned: TrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer in the run's template; puts that template into `tokenizer` as well."""
    chat_encoder = tuned.bind(TextEncoder.from_tokenizer(tokenizer))
    if chat_encoder is None:
        say(f"{tuned.path} has no training record: the merged model keeps the tokenizer's chat template and EOS.")
        return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    install_template(tokenizer, chat_encoder)
    return tuple(chat_encoder.stop_ids)


def _write_configs(folder: Path, model: Any, dtype: torch.dtype, tokenizer: Any, stop_ids: Collection[int]) -> None:
    """Write what `save_pretrained` writes besides the weights."""
    from transformers.dynamic_module_utils import custom_object_save

    config, generation = saved_configs(model, tokenizer, stop_ids)
    config.dtype, config.architectures = str(dtype).removeprefix("torch."), [type(model).__name__]
    if model.is_remote_code():
        custom_object_save(model, str(folder), config=config)
    config.save_pretrained(str(folder))
    if model.can_generate():
        generation.save_pretrained(str(folder))


def _write_company(folder: Path, tuned: TrainedModel, tokenizer: Any, digests: dict[str, dict[str, Any]]) -> None:
    """Write tokenizer, chat template and training record next to the weights, whose `digests` it records."""
    write_tokenizer(tokenizer, folder)
    for name in ("chat_template.jinja", RECORD_NAME):
        source = Path(tuned.path).expanduser() / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
    record_digests(folder, digests)


def _probe(model: Any) -> torch.Tensor:
    """A fixed row of token ids, [1, T], spread over the vocabulary."""
    rows = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(rows, (1, PROBE_TOKENS), generator=generator)


@torch.no_grad()
def _logits_and_effect(model: Any, probe: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Logits of base with adapter, [1, T, V] in float32 on the CPU, and how far the adapter moves them."""
    probe = probe.to(model.device)
    tuned = model(input_ids=probe).logits.float().cpu()
    with model.disable_adapter():
        plain = model(input_ids=probe).logits.float().cpu()
    return tuned, (tuned - plain).abs().max().item()


@torch.no_grad()
def _compare(folder: Path, probe: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, device: str) -> float:
    """Load the merged folder with transformers; the largest logit difference. Raises CheckpointError if too large."""
    merged = load_base_model(str(folder), device=device, for_training=False).eval()
    if merged.dtype != dtype:
        raise CheckpointError(f"the merged model loads as {merged.dtype} instead of {dtype}; it was not saved")
    with waiting("computing the logits after"), released_after_use(merged):
        got = merged(input_ids=probe.to(merged.device)).logits.float().cpu()
    error = (got - wanted).abs().max().item()
    allowed = TOLERANCE.get(dtype, 0.1) * max(1.0, wanted.abs().max().item())
    if not error <= allowed:
        raise CheckpointError(
            f"the merged model's logits differ from base and adapter by {error:.2e} (allowed: {allowed:.2e}); it "
            "was not saved"
        )
    return error
