"""Setting up the environment: no CUDA packages without a GPU, nothing done twice, clear errors; and test.sh."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FAKE_GPUS = "#!/bin/sh\necho 'GPU 0: NVIDIA H200'\necho 'GPU 1: NVIDIA H200'\n"


def _bash(repository: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with scripts/lib.sh loaded."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'. "$LIB"\n{code}'],
        env={**os.environ, "LIB": str(repository / "scripts" / "lib.sh"), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def fake_tools(tmp_path: Path) -> Path:
    """A folder of programs to put first on PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


def _program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(("visible", "count"), [(None, "2"), ("0,1", "2"), ("1", "1"), ("", "0")])
def test_gpus_are_counted_as_they_are_visible(
    visible: str | None, count: str, repository: Path, fake_tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(fake_tools, "nvidia-smi", FAKE_GPUS)
    monkeypatch.setenv("PATH", f"{fake_tools}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _bash(repository, "num_gpus").stdout.strip() == count


def test_a_broken_nvidia_smi_means_no_gpu(repository: Path, fake_tools: Path) -> None:
    _program(fake_tools, "nvidia-smi", "#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    run = _bash(repository, "num_gpus", PATH=f"{fake_tools}:{os.environ['PATH']}")
    assert (run.returncode, run.stdout.strip()) == (0, "0")


def test_without_a_gpu_the_constraints_exclude_every_cuda_package(repository: Path) -> None:
    lines = _bash(repository, "no_cuda_constraints").stdout.split()
    names = {line.split("==")[0] for line in lines}
    # Each CUDA build of torch since 2.0 needs triton and a cuDNN, and the newest the toolkit as one package.
    assert {"triton", "cuda-toolkit", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-nccl-cu12"} <= names
    assert all(line.endswith("==0.0.0.dev0") for line in lines)


def test_a_cpu_machine_installs_torch_under_the_constraints_and_says_what_to_do_when_refused(
    repository: Path, tmp_path: Path
) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    log = tmp_path / "log"
    # A Python without torch, whose pip fails.
    _program(venv / "bin", "python", f'#!/bin/sh\necho "$@" >>"{log}"\nexit 1\n')
    run = _bash(repository, f'VENV="{venv}"; TORCH_INDEX_URL=builds install_torch_for_cpu')
    assert run.returncode == 6
    assert "no NVIDIA GPU" in run.stderr
    assert "TORCH_INDEX_URL" in run.stderr
    install = log.read_text(encoding="utf-8").splitlines()[-1]
    assert f"-c {venv}/no-cuda.txt --index-url builds torch==2.13.0" in install


def test_an_environment_that_is_ready_is_left_alone(repository: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    _program(venv / "bin", "python", "#!/bin/sh\nexit 99\n")
    run = _bash(repository, f'VENV="{venv}"; environment_key >"{venv}/.ready"; setup_env; setup_env')
    assert (run.returncode, run.stderr) == (0, "")


def test_old_pythons_are_refused(repository: Path, fake_tools: Path) -> None:
    for name in ("python3", "python", "python3.10", "python3.11", "python3.12", "python3.13"):
        _program(fake_tools, name, "#!/bin/sh\nexit 1\n")
    run = _bash(repository, "find_python", PATH=f"{fake_tools}:{os.environ['PATH']}")
    assert run.returncode == 6
    assert "Python 3.10 or newer" in run.stderr


def test_a_full_disk_is_named_before_installing(repository: Path, fake_tools: Path) -> None:
    _program(fake_tools, "df", "#!/bin/sh\necho header\necho /dev/x 100 99 1048576 99% /\n")
    run = _bash(repository, "require_disk 4", PATH=f"{fake_tools}:{os.environ['PATH']}")
    assert run.returncode == 6
    assert "only 1 GiB free" in run.stderr


def test_a_missing_compiler_is_named(repository: Path) -> None:
    run = _bash(repository, "PATH=/nowhere; require_compiler", CXX="no-such-compiler")
    assert run.returncode == 6
    assert "C++ compiler" in run.stderr


def test_ci_runs_what_a_person_runs(repository: Path) -> None:
    text = (repository / ".ci" / "run").read_text(encoding="utf-8")
    assert "bash scripts/test.sh" in text


PARALLEL = "-n|2|--dist|loadgroup|--no-loadscope-reorder|"


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["--fast", "tests/x y"], f"{PARALLEL}-m|not launch and not slow|tests/x y|"),
        (["-n", "0", "--thorough"], f"{PARALLEL}-n|0|--thorough|"),  # the last -n counts
        (["tests/x.py", "--pdb"], "tests/x.py|--pdb|"),
        (["-p", "no:xdist"], "-p|no:xdist|"),
        (["-p", "no:cacheprovider"], f"{PARALLEL}-p|no:cacheprovider|"),
    ],
    ids=["fast", "workers", "debugger", "no plugin", "other plugin"],
)
def test_the_test_script_passes_arguments_on(repository: Path, tmp_path: Path, given: list[str], passed: str) -> None:
    # A copy of the scripts in an odd folder, with an environment that only prints its arguments.
    checkout = tmp_path / "a b"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("lib.sh", "test.sh"):
        (checkout / "scripts" / name).write_text((repository / "scripts" / name).read_text(encoding="utf-8"))
    (checkout / "pyproject.toml").write_text("")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    _program(checkout / ".venv" / "bin", "python", '#!/bin/sh\npwd\nprintf "%s|" "$@"\n')
    code = f'ROOT="{checkout}"; VENV="$ROOT/.venv"; environment_key >"$VENV/.ready"'
    assert _bash(repository, code).returncode == 0
    run = subprocess.run(
        ["bash", str(checkout / "scripts" / "test.sh"), *given], capture_output=True, text=True, cwd="/", check=True
    )
    assert run.stdout.splitlines() == [str(checkout), f"-m|pytest|{passed}"]


def test_every_script_is_valid_and_stops_at_the_first_error(repository: Path) -> None:
    for path in sorted((repository / "scripts").glob("*.sh")):
        subprocess.run(["bash", "-n", str(path)], check=True)
        if path.name != "lib.sh":
            assert "set -euo pipefail" in path.read_text(encoding="utf-8"), path


def test_the_distribution_replaces_fschat(repository: Path) -> None:
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    assert 'name = "fschat"' in text
    assert 'version = { attr = "fastchat.__version__" }' in text
    assert len((repository / "setup.py").read_text(encoding="utf-8").splitlines()) < 10
