"""What every test stands on: a quiet offline environment, small tokenizers and models, ../shared where it exists."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile

# Before torch, transformers or wandb are imported anywhere; launched runs inherit it.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "WANDB__SERVICE_WAIT": "300",  # seconds; a busy machine takes its time
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",  # everywhere the same tests; what only a GPU shows is in playground/benchmark/gpu.py
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "NO_PROXY": "127.0.0.1,localhost",  # servers that tests start
    "no_proxy": "127.0.0.1,localhost",
    "FSCHAT_CACHE": tempfile.mkdtemp(prefix="fschat-tests-"),  # never the user's own
}
os.environ.update(_ENVIRONMENT)
atexit.register(shutil.rmtree, _ENVIRONMENT["FSCHAT_CACHE"], ignore_errors=True)
for _name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "WANDB_API_KEY", "HF_TOKEN"):
    os.environ.pop(_name, None)

from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from tests import builders  # noqa: E402

# A change is judged by the same examples each time; at home hypothesis goes on looking for new ones.
# A busy machine is no fault of the code.
_quiet: dict[str, Any] = {"suppress_health_check": [hypothesis.HealthCheck.too_slow], "deadline": None}
hypothesis.settings.register_profile("ci", derandomize=True, database=None, **_quiet)
# Three times as many, and on every template: see CONTRIBUTING.md.
hypothesis.settings.register_profile("thorough", max_examples=300, database=None, **_quiet)
hypothesis.settings.register_profile("home", **_quiet)
hypothesis.settings.load_profile("home")
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _torch_is_left_as_it_was() -> Iterator[None]:
    """A test that leaves autocast on or another default dtype behind spoils the numbers of all that follow it."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_default_dtype()
        torch.set_autocast_enabled("cpu", False)
        torch.set_default_dtype(torch.float32)
        assert not autocast and dtype is torch.float32, f"left behind: autocast {autocast}, default dtype {dtype}"


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    """A loader's worker minds no signal: one that is left behind keeps the whole test run from ever ending."""
    yield
    left = multiprocessing.active_children()
    if left:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would make an error of a worker's death
    for worker in left:
        worker.kill()
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tokenizer_dir(kind)`: the directory of a tokenizer of that kind, made once per test session. Read only."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = builders.make_tokenizer(kind, tmp_path_factory.mktemp(f"tokenizer-{kind}"))
        return made[kind]

    return make


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model_dir(arch, tokenizer_kind, **more)`: a random model, made once per set of arguments. Read only."""
    made: dict[Any, Path] = {}

    def make(arch: str = "llama", tokenizer_kind: str = "metaspace_bos", **more: Any) -> Path:
        key = (arch, tokenizer_kind, tuple(sorted(more.items())))
        if key not in made:
            made[key] = builders.make_model(tmp_path_factory.mktemp(f"model-{arch}"), arch, tokenizer_kind, **more)
        return made[key]

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real tokenizers, models and data beside the checkout; tests that want it are skipped without it."""
    path = REPOSITORY.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("../shared is not there")
    return path
