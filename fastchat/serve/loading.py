"""Loading what the API serves: the model, and its base next to it, each with an engine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from fastchat.checkpoint.trained_model import TrainedModel
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.errors import SettingsError, say
from fastchat.model.loading import load_config
from fastchat.model.rope import context_length
from fastchat.model.tokenizer import configured_stop_ids
from fastchat.model.tokenizer_files import config_of
from fastchat.serve.api.served import ServedModel
from fastchat.serve.chat import add_base_stops, add_stops, added_ids, open_encoder
from fastchat.serve.compare import base_to_load, check_vocabulary
from fastchat.serve.engines.base import Engine
from fastchat.serve.placement import choose_placement


def load_served(
    args: argparse.Namespace, path: str, name: str, template: str | None, base_name: str | None
) -> dict[str, ServedModel]:
    """The models by name; `base_name`: serve the base too, under this name, with the prompts of the tuned model.

    Raises UserError for a model, flags or a machine that do not go together.
    """
    options = {"cache_dir": args.cache_dir, "trust_remote_code": args.trust_remote_code}
    base = base_to_load(path, args.base_model_path) if base_name else None
    tuned, encoder, pad_id = open_encoder(path, None if base else args.base_model_path, template, **options)
    use_vllm = _use_vllm(args, tuned, base_name, options)
    made = {}
    for label, trained in _trained(tuned, name, base, base_name):
        engine, size = (_vllm if use_vllm else _transformers)(args, trained, encoder, pad_id, options)
        about = f"{trained.path}, an adapter on {trained.base}" if trained.is_adapter else trained.path
        made[label] = ServedModel(
            label, encoder, engine, size, args.conv_system_msg, (("Model", about),), int(time.time())
        )
        made[label].learn()
    return made


def _trained(
    tuned: TrainedModel, name: str, base: str | None, base_name: str | None
) -> Iterator[tuple[str, TrainedModel]]:
    yield name, tuned
    if base_name:
        # A model of its own, not the tuned one with its adapter off: both answer at the same time.
        path = base or tuned.base
        yield base_name, replace(tuned, path=path, base=path, is_adapter=False)


def _use_vllm(args: argparse.Namespace, tuned: TrainedModel, base_name: str | None, options: dict[str, Any]) -> bool:
    """Raises SettingsError if vLLM is asked for and missing, or for what it has no form for."""
    if args.engine == "transformers":
        return False
    found = find_spec("vllm") is not None
    if not found:
        if args.engine == "vllm":
            raise SettingsError("--engine vllm: vllm is not installed; pip install vllm, or leave the flag out.")
        return False
    flags = {
        "--device cpu": args.device == "cpu",
        "--load-8bit": args.load_8bit,
        "--load-4bit": args.load_4bit,
        "--max-gpu-memory": args.max_gpu_memory is not None,
        "--compare": base_name is not None,
    }
    given = [flag for flag, is_given in flags.items() if is_given]
    if given and args.engine == "vllm":
        raise SettingsError(f"--engine vllm does not know {given[0]}; leave one of the two out.")
    from fastchat.serve.engines.vllm import why_not

    lacks = [] if given else why_not(tuned, load_config(tuned.base, **options).to_dict())
    if lacks and args.engine == "vllm":
        raise SettingsError(
            f"vLLM cannot serve the adapter {tuned.path}: it has {'; '.join(lacks)}. Merge it first (fastchat merge), "
            "or pass --engine transformers."
        )
    if given or lacks:
        say(f"vLLM is not used: {given[0] if given else 'it cannot serve ' + '; '.join(lacks)}")
    return not given and not lacks


def _vllm(
    args: argparse.Namespace, trained: TrainedModel, encoder: ChatEncoder, pad_id: int, options: dict[str, Any]
) -> tuple[Engine, int]:
    from fastchat.serve.engines.vllm import Vllm

    config = load_config(trained.base, **options)
    text = config.get_text_config()
    own = config_of(trained.base, "generation_config.json", args.cache_dir)
    ends = (own.get("eos_token_id"), getattr(text, "eos_token_id", None))
    add_stops(encoder, configured_stop_ids(ends, added_ids(encoder)))
    limit = context_length(config)
    engine = Vllm(trained, config.to_dict(), limit, args.max_requests, args.num_gpus or 1, args.trust_remote_code)
    return engine, text.vocab_size


def _transformers(
    args: argparse.Namespace, trained: TrainedModel, encoder: ChatEncoder, pad_id: int, options: dict[str, Any]
) -> tuple[Engine, int]:
    from fastchat.serve.engines.transformers import Transformers

    bits = 8 if args.load_8bit else 4 if args.load_4bit else None
    # The second model finds less free memory than the first.
    placement = choose_placement(args.device, args.num_gpus, args.max_gpu_memory, bits)
    model = placement.load(trained, **options)
    add_base_stops(encoder, model)
    check_vocabulary(trained.base, model, encoder, pad_id)
    size = model.get_input_embeddings().weight.shape[0]
    return Transformers(model, pad_id, context_length(model.config), args.max_requests), size
