"""The imports of a training, which make about a million objects that live as long as the process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """For the code that imports torch and transformers: no garbage is looked for while it runs, nor later in what it
    leaves behind. That search costs a fifth of the time of these imports, and finds nothing.

    Does nothing where torch is there already: what the caller's own program has made stays under collection.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_libraries() -> None:
    """Import torch, transformers and peft without three packages that they import although this project gives them
    no use: together half of the time of all imports. Call it before anything else imports transformers.

    - peft imports bitsandbytes, which compiles functions of its backend for other devices than GPUs at import, and so
      loads torch's compiler. Without a compiler it uses the same functions as they are, and so it does here.
    - The Trainer imports datasets (and pandas) to recognise a `datasets.Dataset`, which it never gets here.
    - accelerate imports DeepSpeed to recognise a model that is wrapped by it. There is none before somebody has
      imported DeepSpeed.
    """
    import torch

    with mock.patch.object(torch, "compile", _uncompiled), suppress(ImportError):
        import bitsandbytes  # noqa: F401
    import accelerate.utils.other
    import transformers.utils

    with mock.patch.object(transformers.utils, "is_datasets_available", lambda: False):
        import transformers.trainer  # noqa: F401
    accelerate.utils.other.is_deepspeed_available = lambda: "deepspeed" in sys.modules  # pyright: ignore


def _uncompiled(model: Callable[..., Any] | None = None, **_: Any) -> Any:
    """What `torch.compile` returns, as a function or as a decorator with arguments."""
    return model if model is not None else _uncompiled
