"""The wheel, installed elsewhere: it includes its recipes and tables, and previews, plans and trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import builders

Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, because setuptools writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for name in ("pyproject.toml", "setup.py", "README.md"):
        (sources / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository / name, sources / name)
    shutil.copytree(repository / "fastchat", sources / "fastchat", ignore=shutil.ignore_patterns("__pycache__"))
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(sources))
    _pip(*build)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Python:
    """`python("-m", "module", ...)` in an empty folder, the wheel first, then the tests' own environment."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    _pip("install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    env = os.environ | {"PYTHONPATH": str(site)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, *words], cwd=elsewhere, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    assert run("-c", "import fastchat; print(fastchat.__file__)").stdout.startswith(str(site))
    return run


def _pip(*words: str) -> None:
    env = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([sys.executable, "-m", "pip", *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_holds_every_file_of_the_package(wheel: Path, repository: Path) -> None:
    """All files except documents: code, tables, recipes, configurations and the parts of the page."""
    paths = [
        path for path in (repository / "fastchat").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    ours = {path.relative_to(repository).as_posix() for path in paths if path.suffix != ".md"}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fastchat/")}
    assert ours - held == set() and {name for name in held - ours if not name.endswith(".md")} == set()


@pytest.mark.launch
@pytest.mark.slow
def test_preview_plan_and_training(python: Python, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model = str(tiny_model_dir("llama", "metaspace_bos"))
    data = str(builders.write_rows(tmp_path / "data.json", builders.chat_rows(8, 1)))
    common = ("--model_name_or_path", model, "--data_path", data, "--conv_template", "vicuna_v1.1")
    page = tmp_path / "page.html"
    python("-m", "fastchat.data.preview", *common, "--html", str(page))
    assert "<script" in page.read_text(encoding="utf-8")

    machine = ("--gpus", "1", "--gpu_memory", "24GiB", "--cpu_memory", "64GiB")
    by_name = ("llama-2-7b-lora", "--model_size", "7b", "--deepspeed", "deepspeed_config_lora_s3")
    assert "fits" in python("-m", "fastchat.plan", *by_name, *machine).stdout

    out = tmp_path / "out"
    small = (
        "--output_dir",
        str(out),
        "--max_steps",
        "1",
        "--val_set_size",
        "0",
        "--eval_strategy",
        "no",
        "--packing",
        "0",
    )
    small = (*small, "--use_cpu", "True", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1")
    python("-m", "fastchat.train.train_lora", "qwen2.5-7b-lora", *common, *small)
    assert (out / "adapter_model.safetensors").is_file()
