"""The other trainers that `bench.py` compares with, each in an environment of its own, and running code in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# Name -> what pip installs; the first is the peer itself. FastChat is of the time before transformers 5.
PEERS = {
    "trl": ["trl", "peft"],
    "llamafactory": ["llamafactory"],
    "fschat": ["fschat==0.2.36", "transformers<5", "accelerate", "peft", "sentencepiece", "protobuf"],
}
# These constraints cannot be met, so pip refuses a CUDA build of torch before it downloads one.
_CUDA = ("triton", "cuda-toolkit", "cuda-bindings", *(f"nvidia-{name}-cu12" for name in ("cublas", "cudnn", "nccl")))


class Missing(Exception):
    """A peer cannot be measured; the message says why."""


def interpreter(name: str, work: Path) -> Path:
    """The Python of a peer's environment in `work`, which is made if it is missing. "here" is this one.

    Missing with pip's last line if it cannot be installed; a second call tries again.
    """
    if name == "here":
        return Path(sys.executable)
    folder = work / "environments" / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    wanted = [f"torch=={version('torch').partition('+')[0]}", *PEERS[name]]
    if ready.is_file() and ready.read_text(encoding="utf-8") == " ".join(wanted):
        return python
    print(f"installing {' '.join(wanted)}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    limits = folder / "no-cuda.txt"
    limits.write_text("".join(f"{package}==0.0.0.dev0\n" for package in _CUDA), encoding="utf-8")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    builds = os.environ.get(
        "TORCH_INDEX_URL"
    )  # with CPU builds of torchvision and torchaudio, which PyPI does not have
    index = ["--extra-index-url", builds] if builds else []
    words = [str(python), "-m", "pip", "install", "-q", "-c", str(limits), *index, *wanted]
    done = subprocess.run(words, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"pip could not install it: {last_line(done.stderr)}")
    ready.write_text(" ".join(wanted), encoding="utf-8")
    return python


def versions(python: Path, names: Sequence[str]) -> dict[str, str]:
    """The installed versions of some packages in an environment."""
    code = "import json, sys; from importlib.metadata import version as v; "
    code += "print(json.dumps({n: v(n) for n in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def ask(python: Path, name: str, task: str, folder: Path, **options: Any) -> dict[str, Any]:
    """What `peer_work.py` finds for a task, in one thread and a process of its own. Missing if it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    environment |= {"FSCHAT_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hf"), "DISABLE_VERSION_CHECK": "1"}
    if name == "here":
        environment["PYTHONPATH"] = str(ROOT)
    answer = folder / f"{name}-{task}.json"
    answer.unlink(missing_ok=True)
    asked = {"name": name, "task": task, "answer": str(answer), **options}
    words = [str(python), str(HERE / "peer_work.py"), json.dumps(asked)]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    (folder / f"{name}-{task}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if not answer.is_file():
        raise Missing(f"{task} failed: {last_line(done.stderr or done.stdout)}")
    return json.loads(answer.read_text(encoding="utf-8"))


def last_line(text: str) -> str:
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"])[-1][:300]
