"""Shared by all tests: a quiet offline environment, small tokenizers and models, ../shared if it exists."""

from __future__ import annotations

import atexit
import gc
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
    "WANDB__SERVICE_WAIT": "300",  # seconds; a busy machine is slow
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",  # the same on every machine; GPU checks are in playground/benchmark/gpu.py
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

from tests import builders, tiers  # noqa: E402

# CI uses the same examples each time; elsewhere hypothesis keeps looking for new ones.
# A busy machine is not a fault of the code.
_quiet: dict[str, Any] = {"suppress_health_check": [hypothesis.HealthCheck.too_slow], "deadline": None}
_few = {"max_examples": tiers.DEFAULT_EXAMPLES, **_quiet}
hypothesis.settings.register_profile("ci", derandomize=True, database=None, **_few)
hypothesis.settings.register_profile("home", **_few)
hypothesis.settings.register_profile("thorough", max_examples=tiers.THOROUGH_EXAMPLES, database=None, **_quiet)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "home")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="every case of every family, and ten times the examples")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--thorough"):  # before the test modules are imported, which ask for it
        hypothesis.settings.load_profile("thorough")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is for `--thorough` only, marks what reads real tokenizers and models as slow and what has `warm`
    as launches, and tells xdist which tests share a process.

    Runs of several processes share one, so that no two of them compete for the processors. The other tests of a file
    share one where they are slow or share an expensive fixture. What takes longest begins first.
    """
    if not config.getoption("--thorough"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    for item in items:
        if _reads_shared(item):
            item.add_marker("slow")
        if "warm" in getattr(item, "fixturenames", ()):
            item.add_marker("launch")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    for item in items:
        if not item.get_closest_marker("xdist_group") and (group := _group(item)):
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (not item.get_closest_marker("launch"), not item.get_closest_marker("slow")))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups without effect would only be noticed by the time that the tests take."""
    if "PYTEST_XDIST_WORKER" in os.environ and session.config.getoption("loadgroup", False):
        lost = [i.nodeid for i in session.items if i.get_closest_marker("xdist_group") and "@" not in i.nodeid]
        assert not lost, f"pytest {pytest.__version__} does not show its groups to pytest-xdist: {lost[0]}"


def _reads_shared(item: pytest.Item) -> bool:
    parameters = getattr(item, "callspec", None)
    values = parameters.params.values() if parameters else ()
    return "shared" in getattr(item, "fixturenames", ()) or any(
        isinstance(value, str) and value in tiers.SHARED for value in values
    )


def _group(item: pytest.Item) -> str | None:
    """The name of the tests that have to run in the same process as `item`, None if it does not matter."""
    if item.get_closest_marker("launch"):
        return "launch"
    known = getattr(item, "_fixtureinfo", None)
    fixtures = [one for several in known.name2fixturedefs.values() for one in several] if known else []
    shared = any(fixture.scope == "module" for fixture in fixtures)
    return item.path.stem if shared or item.get_closest_marker("slow") else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Takes the group out of the name that xdist reports, so that the name can be given to pytest again."""
    name, at, group = report.nodeid.rpartition("@")
    if at and "::" in name and "]" not in group and "PYTEST_XDIST_WORKER" not in os.environ:
        report.nodeid = name


_modules = 0


def pytest_runtest_setup() -> None:
    """What libraries leave behind is not searched for garbage, as each training would do for half a second."""
    global _modules
    if len(sys.modules) > _modules + 100:
        _modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _torch_is_left_as_it_was() -> Iterator[None]:
    """A test that leaves autocast on or changes the default dtype would spoil the numbers of all later tests."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_default_dtype()
        torch.set_autocast_enabled("cpu", False)
        torch.set_default_dtype(torch.float32)
        assert not autocast and dtype is torch.float32, f"left behind: autocast {autocast}, default dtype {dtype}"


@pytest.fixture(autouse=True)
def _templates_are_left_as_they_were() -> Iterator[None]:
    """A template that a test registers, or replaces, is gone after it."""
    name = "fastchat.conversation.registry"
    registry: Any = sys.modules.get(name)
    before = None if registry is None else (dict(registry._conversations), dict(registry._tables))
    yield
    registry = sys.modules.get(name)
    if registry is None:
        return
    if before is None or not before[0]:  # nothing was registered yet: the built-in ones are, when first asked for
        registry._known.cache_clear()
    for now, earlier in zip((registry._conversations, registry._tables), before or ({}, {}), strict=True):
        if now != earlier:
            now.clear()
            now.update(earlier)


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    """A data loader's worker ignores signals: one that is left running would keep the test run from ending."""
    yield
    left = multiprocessing.active_children()
    if left:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would turn a worker's death into an error
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
def warm() -> Iterator[Any]:
    """The process from which runs of several processes are forked; its imports take ten seconds, once."""
    from tests.train.warm import Warm

    process = Warm()
    yield process
    process.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real tokenizers, models and data next to the checkout; tests that need it are skipped without it."""
    path = REPOSITORY.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("../shared does not exist")
    return path
