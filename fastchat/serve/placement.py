"""Where a model is loaded for chatting: on which GPUs, and in how many bits.

A model that does not fit on the first GPU is spread over the next ones by accelerate. Nothing is left in the memory of
the CPU or on disk next to GPUs, because a token would then take seconds: too little memory is an error.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from fastchat.checkpoint.trained_model import TrainedModel, load_trained
from fastchat.errors import SettingsError

GPU_SHARE = 0.85  # of a GPU's free memory is for weights; the rest is for keys, values and activations


@dataclass(frozen=True)
class Placement:
    """Where and how the weights are loaded.

    Attributes:
        devices: the arguments `device`, or `extra` with a device map, of `load_base_model`.
        bits: 8 or 4 to quantise the weights while they are loaded; None for the form they were trained in.
    """

    devices: dict[str, Any] = field(default_factory=lambda: {"device": "cpu"})
    bits: int | None = None

    def load(self, tuned: TrainedModel, **options: Any) -> Any:
        """The model of `tuned`, ready to generate. Raises SettingsError for a model that cannot be quantised so,
        ResourceError if it does not fit."""
        options |= self.devices
        if self.bits == 8:
            if tuned.quantised:
                raise SettingsError(
                    f"--load-8bit: {tuned.path} was trained on a 4-bit base, which is loaded in 4 bits anyway; leave "
                    "the flag out."
                )
            options["extra"] = {**options.get("extra", {}), "quantization_config": _int8_config()}
        if self.bits == 4 and tuned.is_adapter:
            options["weights"] = "nf4"
        elif self.bits == 4:
            options["quantization"] = True
        model = load_trained(tuned, **options)
        _forget_generation_defaults(model)
        return model


def choose_placement(
    device: str | None = None,
    num_gpus: int | None = None,
    max_gpu_memory: str | None = None,
    bits: int | None = None,
) -> Placement:
    """The placement for these flags.

    Args:
        device: "cpu" or "cuda"; None uses the GPUs if there are any, another one (cuda:1) is the only one used.
        num_gpus: use the first so many; None for all. The next one is used only once the one before is full.
        max_gpu_memory: for weights on each GPU, such as "13GiB"; the model is then balanced over all of them.

    Raises SettingsError for values that this machine or the two together do not allow.
    """
    if device not in (None, "cpu", "cuda"):
        return Placement({"device": device}, bits)
    most = None if max_gpu_memory is None else _bytes(max_gpu_memory)
    there = 0 if device == "cpu" else torch.cuda.device_count()
    if not there:
        asked = {"--num-gpus": num_gpus, "--max-gpu-memory": max_gpu_memory, "--device cuda": device == "cuda" or None}
        given = [flag for flag, value in asked.items() if value is not None]
        if given:
            why = "--device cpu uses none" if device == "cpu" else "torch finds none on this machine"
            raise SettingsError(f"{given[0]} needs a GPU, and {why}.")
        return Placement({"device": "cpu"}, bits)
    wanted = num_gpus or there
    if wanted > there:
        raise SettingsError(f"--num-gpus {wanted}: torch finds only {there} on this machine.")
    if most is not None:
        extra = {"device_map": "auto", "max_memory": dict.fromkeys(range(wanted), most)}
    elif wanted == 1:
        return Placement({"device": "cuda"}, bits)
    else:
        free = {gpu: int(torch.cuda.mem_get_info(gpu)[0] * GPU_SHARE) for gpu in range(wanted)}
        extra = {"device_map": "sequential", "max_memory": free}
    return Placement({"extra": extra}, bits)


def _bytes(text: str) -> int:
    from accelerate.utils.modeling import convert_file_size_to_int

    try:
        return convert_file_size_to_int(text)
    except ValueError:
        raise SettingsError(f"--max-gpu-memory {text}: give a number with its unit, such as 13GiB.") from None


def _int8_config() -> Any:
    from transformers import BitsAndBytesConfig

    # It says for every layer that float32 inputs are rounded to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return BitsAndBytesConfig(load_in_8bit=True)


def _forget_generation_defaults(model: Any) -> None:
    """Drop the base's own sampling settings, so that only ours apply. Its stop ids are kept."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.generation_config = GenerationConfig(eos_token_id=inner.generation_config.eos_token_id)
