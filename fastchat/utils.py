"""Upstream's small helpers, kept for programs that import them. No heavy imports at the top."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import AsyncGenerator, Generator
from typing import Any

from fastchat import constants
from fastchat.upstream_names import refuse

SEQUENCE_LENGTH_KEYS = [
    "max_position_embeddings",
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
    "model_max_length",
]
_SENTENCE_ENDS = (".", "?", "!", "。", "？", "！", "…", '"', "'", "”")
_UNKNOWN_LENGTH = 2048  # upstream's default for a config without a length


def build_logger(logger_name: str, logger_filename: str) -> logging.Logger:
    """A logger that writes to stderr and into `constants.LOGDIR`; unlike upstream's it does not redirect stdout."""
    logger = logging.getLogger(logger_name)
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handlers: list[logging.Handler] = [logging.StreamHandler()]
        if constants.LOGDIR:
            os.makedirs(constants.LOGDIR, exist_ok=True)
            handlers.append(logging.FileHandler(os.path.join(constants.LOGDIR, logger_filename), encoding="utf-8"))
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))
            logger.addHandler(handler)
    return logger


def disable_torch_init() -> None:
    """Does nothing: transformers builds a model that it loads without initializing its weights first."""


def get_gpu_memory(max_gpus: int | None = None) -> list[float]:
    """The memory of each GPU that this process has not allocated, in GiB."""
    import torch

    count = torch.cuda.device_count() if max_gpus is None else min(max_gpus, torch.cuda.device_count())
    totals = [torch.cuda.get_device_properties(gpu).total_memory for gpu in range(count)]
    return [(total - torch.cuda.memory_allocated(gpu)) / 2**30 for gpu, total in enumerate(totals)]


def pretty_print_semaphore(semaphore: Any) -> str:
    """A semaphore's value and whether it is locked, for a log."""
    return "None" if semaphore is None else f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"


def iter_over_async(async_gen: AsyncGenerator, event_loop: Any) -> Generator:
    """Iterate over an async generator in synchronous code."""
    while True:
        try:
            yield event_loop.run_until_complete(async_gen.__anext__())
        except StopAsyncIteration:
            return


def is_partial_stop(output: str, stop_str: str) -> bool:
    """Whether `output` ends with a prefix of `stop_str`."""
    return any(output.endswith(stop_str[:size]) for size in range(1, len(stop_str) + 1))


def run_cmd(cmd: str) -> int:
    """Print a shell command, run it, and return its exit code."""
    print(cmd)
    return subprocess.call(cmd, shell=True)


def is_sentence_complete(output: str) -> bool:
    """Whether `output` ends with sentence-final punctuation."""
    return output.endswith(_SENTENCE_ENDS)


def get_context_length(config: Any) -> int:
    """The context length of a transformers config in tokens; 2048 if the config has none."""
    from fastchat.model.rope import context_length

    length = context_length(config) if hasattr(config, "get_text_config") else None
    lengths = (getattr(config, key, None) for key in SEQUENCE_LENGTH_KEYS)
    return length or next((int(found) for found in lengths if found), _UNKNOWN_LENGTH)


def str_to_torch_dtype(dtype: str | None) -> Any:
    """The torch dtype of that name; None for None. Raises ValueError for an unknown name."""
    import torch

    names = ("float32", "float16", "bfloat16")
    if dtype is not None and dtype not in names:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(names)}")
    return None if dtype is None else getattr(torch, dtype)


__getattr__ = refuse(__name__)
