"""Which test shows which flag: `@covers("lora_r")` notes it, `test_flags_setup.py` compares with what is accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from tests.train.conftest import Outcome

COVERED: set[str] = {  # shown in test_bad_inputs.py, in test_launch.py and in every run
    "model_name_or_path",
    "data_path",
    "output_dir",
    "on_bad_row",
    "overwrite_output_dir",
    "deepspeed",
}
Train = Callable[..., Outcome]
T = TypeVar("T")


def covers(*names: str) -> Callable[[T], T]:
    """Marks a test as the one that shows the effect of these flags."""
    COVERED.update(names)
    return lambda test: test


def ok(outcome: Outcome) -> Outcome:
    """The outcome, which must be a finished run's."""
    assert outcome.code == 0, outcome.err
    return outcome


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The saved adapter's tensors."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")
