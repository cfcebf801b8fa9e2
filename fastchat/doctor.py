"""`fastchat doctor`: what this machine and installation can do, one line for each thing, with the way out where it
cannot. Exit code 6 if something that every training needs is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import fastchat
from fastchat.errors import EXIT_DONE, EXIT_RESOURCE, EXIT_SETTINGS, brief, show, without_secrets
from fastchat.plan.machine import detect_cpu_memory, detect_gpus
from fastchat.settings.help import asked_for_help, help_head

_GIB = 1 << 30
_NEEDED = {  # distribution -> the oldest version that works (also in pyproject.toml; a test compares them)
    "torch": "2.6", "transformers": "5.10", "tokenizers": "0.22", "peft": "0.18", "accelerate": "1.12",
    "deepspeed": "0.18", "bitsandbytes": "0.48", "safetensors": "0.6", "datasets": "4.0",
}  # fmt: skip
_TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")  # see train/reporting.py; a test compares them
_IMPORT_S = 120
_LITTLE_DISK, _LITTLE_SHM = 20 * _GIB, 1 * _GIB
GOOD, NOTE, BAD = "ok", "note", "MISSING"
_ABOUT = """Check the installation and this machine: one line for each thing.
ok: it is there. note: something optional is missing, or there is little of it. MISSING: no training without it (exit
code 6). What to do is at the end of the line.
--hosts compares several hosts instead; `fastchat doctor --hosts --help` has more."""
_EXAMPLES = ("fastchat doctor", "fastchat doctor --hosts node-a,node-b my.yaml")


@dataclass(frozen=True)
class Finding:
    """One line: GOOD, NOTE (something optional is missing, or little) or BAD; what was found; and what to do."""

    state: str
    what: str
    found: str
    way_out: str = ""

    @property
    def line(self) -> str:
        hint = f": {self.way_out}" if self.way_out else ""
        return f"{self.state:<8} {self.what:<16} {self.found}{hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word.partition("=")[0] == "--hosts" for word in words):
        from fastchat.host_checks.command import main as compare_hosts

        return compare_hosts(words)
    if words:
        if asked_for_help(words) is not None:
            show("\n".join(help_head("fastchat doctor [--hosts NAME,NAME]", _ABOUT, _EXAMPLES)))
            return EXIT_DONE
        print(f"error: doctor takes no arguments but --hosts, not {' '.join(words)!r}", file=sys.stderr)
        return EXIT_SETTINGS
    worst = EXIT_DONE
    for check in CHECKS:
        for finding in _guarded(check):
            show(without_secrets(finding.line))
            worst = EXIT_RESOURCE if finding.state == BAD else worst
    return worst


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a check finds; one that fails is a finding too, since the doctor is for broken machines."""
    try:
        yield from check()
    except Exception as problem:  # noqa: BLE001
        what = check.__name__.strip("_")
        yield Finding(BAD, what, f"cannot be checked ({_told(problem)})", "repair what the message names")


def _told(problem: BaseException) -> str:
    return brief(f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__, 160)


def _python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 10)
    where = f"{platform.python_version()} ({sys.executable})"
    yield Finding(GOOD if good else BAD, "Python", where, "" if good else "3.10 or newer is needed")
    yield Finding(GOOD, "fastchat", f"{fastchat.__version__} ({Path(fastchat.__file__).parent})")


def _libraries() -> Iterator[Finding]:
    versions = {name: _version(name) for name in _NEEDED}
    broken = import_problems(tuple(name for name, version in versions.items() if version))
    for name, oldest in _NEEDED.items():
        version = versions[name]
        if version is None:
            yield Finding(BAD, name, "not installed", f"pip install '{name}>={oldest}'")
        elif _numbers(version) < _numbers(oldest):
            way_out = f"{oldest} or newer is needed: pip install -U '{name}>={oldest}'"
            yield Finding(BAD, name, version, way_out)
        elif name in broken:
            again = f"pip install --force-reinstall --no-deps '{name}=={version}', or what the error names"
            yield Finding(BAD, name, f"{version} cannot be imported ({broken[name]})", again)
        else:
            yield Finding(GOOD, name, version)


def _version(distribution: str) -> str | None:
    """The installed version; None without one, also where an installation was interrupted."""
    try:
        return importlib.metadata.version(distribution) or None
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return None


_IMPORTER = """
import importlib, json, sys
names, sys.path[:] = json.loads(sys.argv[1])
results = open(int(sys.argv[2]), "w", encoding="utf-8", errors="replace")
for name in names:
    print(name, "begun", sep="\t", file=results, flush=True)
    try:
        importlib.import_module(name)
        said = ""
    except BaseException as problem:
        said = " ".join(f"{type(problem).__name__}: {problem}".split())
    print(name, said, sep="\t", file=results, flush=True)
"""


@lru_cache
def import_problems(modules: tuple[str, ...]) -> dict[str, str]:
    """The modules that cannot be imported, with the reason. Another process tries it, which an import may end."""
    found: dict[str, str] = {}
    left = list(modules)
    while left:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as results:
            words = [sys.executable, "-c", _IMPORTER, json.dumps([left, sys.path]), str(results.fileno())]
            ended = _ending(words, results.fileno())
            results.seek(0)
            told = dict(line.rstrip("\n").split("\t", 1) for line in results)
        for name, said in told.items():
            if said:
                found[name] = ended if said == "begun" else brief(said, 160)
        if not told:
            return found | dict.fromkeys(left, ended)
        left = [name for name in left if name not in told]
    return found


def _ending(words: Sequence[str], results: int) -> str:
    try:
        done = subprocess.run(words, capture_output=True, timeout=_IMPORT_S, check=False, pass_fds=[results])
    except subprocess.TimeoutExpired:
        return f"it takes longer than {_IMPORT_S} s"
    except OSError as problem:
        return _told(problem)
    return f"it ends the process, exit code {done.returncode}"


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _gpus() -> Iterator[Finding]:
    gpus = detect_gpus()
    if not gpus:
        hint = "" if shutil.which("nvidia-smi") else "no NVIDIA driver here; "
        yield Finding(NOTE, "GPU", "none visible", f"{hint}training runs on the CPU, which is for small models only")
        return
    driver = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()
    for gpu in gpus:
        yield Finding(GOOD, "GPU", f"{gpu.name}, {gpu.memory / _GIB:.0f} GiB, driver {driver[0] if driver else '?'}")
    build = _output([sys.executable, "-c", "import torch; print(torch.version.cuda or '', torch.cuda.is_available())"])
    cuda, _, usable = build.strip().rpartition(" ")
    if usable != "True":
        why = f"torch is built for CUDA {cuda}" if cuda.strip() else "torch is a CPU build"
        yield Finding(
            BAD, "CUDA", f"{why} and sees no GPU", "install the torch build that fits the driver: pytorch.org"
        )
    else:
        yield Finding(GOOD, "CUDA", cuda)


def _compiler() -> Iterator[Finding]:
    found = next((path for name in (os.environ.get("CXX", "c++"), "g++") if (path := shutil.which(name))), None)
    way_out = "" if found else "needed for DeepSpeed's offload and --torch_compile: apt install g++"
    yield Finding(GOOD if found else NOTE, "C++ compiler", found or "none", way_out)
    ninja = shutil.which("ninja") or importlib.util.find_spec("ninja")
    yield Finding(GOOD if ninja else NOTE, "ninja", "found" if ninja else "none", "" if ninja else "pip install ninja")


def _optional() -> Iterator[Finding]:
    uses = {
        "flash_attn": ("flash attention", "pip install --no-build-isolation '.[flash]'; without it: sdpa"),
        **{name: (name, f"only for --report_to {name}: pip install {name}") for name in _TRACKERS},
    }
    for module, (name, way_out) in uses.items():
        # By distribution: a `wandb/` folder of an earlier run is importable too, but is not the library.
        distributions = importlib.metadata.packages_distributions().get(module)
        if distributions:
            yield Finding(GOOD, name, _version(distributions[0]) or "?")
        else:
            yield Finding(NOTE, name, "not installed", way_out)


def _memory() -> Iterator[Finding]:
    memory = detect_cpu_memory()
    if memory is not None:
        yield Finding(GOOD, "CPU memory", f"{memory / _GIB:.0f} GiB, {os.cpu_count()} CPUs")
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        way_out = "" if free >= _LITTLE_SHM else "several GPUs exchange data there: docker run --shm-size 8g"
        yield Finding(NOTE if way_out else GOOD, "shared memory", f"{free / _GIB:.1f} GiB free in /dev/shm", way_out)


def _disk() -> Iterator[Finding]:
    yield _free("disk here", Path.cwd(), "--output_dir")
    yield _free("disk of the hub", _hub_home(), "HF_HOME")


def _free(what: str, folder: Path, variable: str) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    little = free < _LITTLE_DISK
    way_out = f"a 7B model takes 13 GiB; free some space or set {variable} to another disk" if little else ""
    return Finding(NOTE if little else GOOD, what, f"{free / _GIB:.0f} GiB free in {folder}", way_out)


def _hub_home() -> Path:
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()


def _hub() -> Iterator[Finding]:
    named = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    stored = Path(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token").is_file()
    if named or stored:
        yield Finding(GOOD, "hub login", "HF_TOKEN is set" if named else "a token is stored")
    else:
        yield Finding(NOTE, "hub login", "none", "gated models (Llama, Gemma) need one: hf auth login")


def _output(words: Sequence[str]) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(_python, _libraries, _gpus, _compiler, _optional, _memory, _disk, _hub),
)


if __name__ == "__main__":
    sys.exit(main())
