"""The slow imports of a training run without garbage collection, and what they leave is never searched again."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from fastchat.train.imports import uncollected_imports


def test_collection_is_off_for_the_imports_and_on_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    frozen = gc.get_freeze_count()
    with pytest.raises(ValueError), uncollected_imports():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled() and gc.get_freeze_count() > frozen


def test_a_program_that_has_torch_keeps_its_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    frozen = gc.get_freeze_count()
    with uncollected_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen


def test_a_program_that_collects_nothing_keeps_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    gc.disable()
    try:
        with uncollected_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


IMPORTS = """
import sys
from pathlib import Path
from fastchat.train.imports import import_libraries
import_libraries()
import bitsandbytes, peft, torch, transformers
from accelerate.utils import extract_model_from_parallel
model = torch.nn.Linear(64, 64)
assert extract_model_from_parallel(model) is model
for name in ("datasets", "pandas", "deepspeed", "torch._inductor.lowering"):
    assert name not in sys.modules, name
weights = bitsandbytes.nn.Params4bit(model.weight.detach(), quant_type="nf4").to("cpu")
off = bitsandbytes.functional.dequantize_4bit(weights, weights.quant_state) - model.weight
assert off.abs().max() < 0.05
def real(x):
    return x + 1
assert torch.compile(real) is not real
assert transformers.utils.is_datasets_available()
"""


def test_libraries_that_a_run_does_not_use_are_not_imported_but_work(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
