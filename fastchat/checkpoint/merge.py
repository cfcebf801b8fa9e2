"""Merging an adapter into its base: a full model that loads anywhere, with template, RoPE and stop tokens in place.

An adapter corrects the weights that it was trained on. With q_lora those were the dequantised nf4 values, so it is
merged into exactly those; merged into the original weights it would correct errors that are not there (measured
on stories260K: logits off by 0.1 instead of 4e-7).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastchat.bars import each, waiting
from fastchat.checkpoint.card import CARD, license_of, write_card
from fastchat.checkpoint.digests import record_digests
from fastchat.checkpoint.folders import check_new_folder, new_folder
from fastchat.checkpoint.full import write_model
from fastchat.checkpoint.record import RECORD_NAME
from fastchat.checkpoint.space import disk_errors
from fastchat.checkpoint.trained_model import TrainedModel, find_trained, load_trained, load_trained_tokenizer
from fastchat.data.encoding.saved_template import install_template
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.errors import CheckpointError, SettingsError, brief, is_out_of_memory, say
from fastchat.model.loading import load_base_model, load_config, weights_dtype
from fastchat.model.lora import check_adapter_directory
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
    with waiting("computing the logits before"):
        wanted, effect = _logits_and_effect(model, probe)
    merged = merge_weights(model, dtype).cpu()
    tensors = dict(merged.state_dict())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with disk_errors(target, size, "merged model"), new_folder(target) as folder:
        write_model(folder, merged, tensors, tokenizer, stop_ids)
        _write_company(folder, tuned, tokenizer)
        if tuned.record is not None:
            write_card(target, tuned.record, into=folder, license=license_of(Path(tuned.path).expanduser() / CARD))
        try:
            reopened(folder, tokenizer)
        except SettingsError as problem:
            raise CheckpointError(f"{problem}; the merged model was not saved") from problem
        del model, merged, tensors
        error = _compare(folder, probe, wanted, dtype, device)
    say(f"Merged into {target}: {dtype}, {weights} base; logits off by {error:.1e}, moved by the adapter {effect:.1e}.")
    return Merged(target, dtype, weights, error, effect, stop_ids)


@torch.no_grad()
def merge_weights(model: Any, dtype: torch.dtype) -> Any:
    """Add each layer's low-rank product to its weight, in float32, rounding once to `dtype`, and put trained rows and
    modules into their places. Returns a plain model."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    base = model.get_base_model()
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    _untie_if_adapted(base, layers)
    _check_one_adapter_each(layers)
    rows = [m for m in model.modules() if isinstance(m, TrainableTokensLayer)]
    for layer in each([*layers, *rows], "merging", "layer"):
        weight = _adapted_weight(layer)
        weight.data = weight.data.float()
        try:
            layer.merge(safe_merge=True)  # raises where a weight would not be finite
        except ValueError as problem:
            raise CheckpointError(f"The adapter has values that are not finite: {problem}") from None
        except RuntimeError as problem:  # peft cannot merge each of its kinds; NotImplementedError is one of these
            if is_out_of_memory(problem):
                raise
            raise CheckpointError(
                f"peft cannot merge an adapter of this kind ({brief(problem, 300)}): use base and adapter unmerged"
            ) from None
        weight.data = weight.data.to(dtype)
    return model.unload().to(dtype)


def _adapted_weight(layer: Any) -> torch.nn.Parameter:
    return getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))  # experts use other names


def _check_one_adapter_each(layers: list[Any]) -> None:
    """Raise CheckpointError if two layers with an adapter each share one weight, as Zamba's blocks do."""
    if len({id(_adapted_weight(layer)) for layer in layers}) < len(layers):
        raise CheckpointError(
            "Some layers of this architecture share one weight and have an adapter each, so these cannot be merged "
            "into it: use base and adapter unmerged"
        )


def _untie_if_adapted(base: Any, layers: list[Any]) -> None:
    """Give the head a weight of its own if only one of two tied layers has an adapter."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = any(layer is head or layer is embedding for layer in layers)
    own = [layer.get_base_layer() if layer in layers else layer for layer in (head, embedding)]
    if not adapted or own[0].weight is not own[1].weight:
        return
    own[0].weight = torch.nn.Parameter(own[0].weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
    say("The adapter changes only one of the tied head and embedding: they are untied in the merged model.")


def _stop_ids(tuned: TrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer in the run's template; puts that template into `tokenizer` as well."""
    chat_encoder = tuned.bind(TextEncoder.from_tokenizer(tokenizer))
    if chat_encoder is None:
        say(f"{tuned.path} has no training record: the merged model keeps the tokenizer's chat template and EOS.")
        return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    install_template(tokenizer, chat_encoder)
    return tuple(chat_encoder.stop_ids)


def _write_company(folder: Path, tuned: TrainedModel, tokenizer: Any) -> None:
    """Write tokenizer, chat template and training record, with the new digests, next to the weights."""
    write_tokenizer(tokenizer, folder)
    for name in ("chat_template.jinja", RECORD_NAME):
        source = Path(tuned.path).expanduser() / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
    record_digests(folder)


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
    with waiting("computing the logits after"):
        got = merged(input_ids=probe.to(merged.device)).logits.float().cpu()
    error = (got - wanted).abs().max().item()
    allowed = TOLERANCE.get(dtype, 0.1) * max(1.0, wanted.abs().max().item())
    if not error <= allowed:
        raise CheckpointError(
            f"the merged model's logits differ from base and adapter by {error:.2e} (allowed: {allowed:.2e}); it "
            "was not saved"
        )
    return error
