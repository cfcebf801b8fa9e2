"""What leaves the process: no connection when everything is local, and no secret in anything that is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.launches import REPOSITORY

pytestmark = pytest.mark.slow
# Trains, previews, merges and chats in one process, noting every use of the network; then trains with wandb offline.
PROGRAM = """
import json, sys
folder, model, data, held_out = sys.argv[1:]
phase, found = "imports", []

def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        if not isinstance(arguments[-1], str) or not arguments[-1].startswith("/"):
            found.append((phase, event, repr(arguments)))

sys.addaudithook(watch)
from fastchat.train import answers, train_lora
answers.NEW_TOKENS = 8
from fastchat.train.status import attempt

def train(name, *more):
    words = ["--model_name_or_path", model, "--data_path", data, "--output_dir", f"{folder}/{name}", "--max_steps", "2"]
    words += ["--save_strategy", "steps", "--save_steps", "1", "--eval_data_path", held_out, "--eval_strategy", "epoch"]
    assert attempt(lambda status: train_lora.run([*words, *more], status), f"{folder}/{name}") == 0, name

phase = "training"
train("out")
phase = "preview"
from fastchat.data import preview
assert preview.main(["--model_name_or_path", model, "--data_path", data, "--output", f"{folder}/ids.jsonl"]) == 0
phase = "merge"
from fastchat.model import apply_lora
assert apply_lora.main(["--lora-path", f"{folder}/out", "--target-model-path", f"{folder}/merged"]) == 0
phase = "serve"
from fastchat.serve import cli
assert cli.main(["--model-path", f"{folder}/out", "--message", "Hi", "--max-new-tokens", "3", "--device", "cpu"]) == 0
phase = "verify"
from pathlib import Path
from fastchat.checkpoint.verify import verify
assert verify(Path(folder) / "out")[1]
with open(f"{folder}/network.json", "w") as file:
    json.dump(found, file)
import os
os.environ["WANDB_MODE"] = "offline"
train("reported", "--report_to", "wandb")
"""
SECRETS = {
    "HF_TOKEN": "hf_planted0token",
    "WANDB_API_KEY": "c0ffee" * 6 + "abcd",
    "MY_OWN_SECRET": "planted-own-secret",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, data_files: tuple[Path, Path]) -> Path:
    """Where the program ran, with a home of its own; its output is in `log`."""
    folder = tmp_path_factory.mktemp("outside")
    hidden = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_MODE", "RANK", "WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | SECRETS
    environment |= {"PYTHONPATH": str(REPOSITORY), "HOME": str(folder), "HF_HOME": str(folder / "hf")}
    environment |= {"WANDB_MODE": "disabled", "WANDB_DIR": str(folder)}
    words = [str(folder), str(model_dir), *map(str, data_files)]
    with open(folder / "log", "w") as log:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words], cwd=folder, env=environment, stdout=log, stderr=log, timeout=600
        )
    assert done.returncode == 0, (folder / "log").read_text()[-5000:]
    return folder


def test_nothing_is_asked_of_the_network(folder: Path) -> None:
    assert json.loads((folder / "network.json").read_text()) == []


def test_the_watch_sees_a_connection(tmp_path: Path) -> None:
    """The same hook, on a program that looks a name up and connects."""
    head = PROGRAM.split("from fastchat.train import")[0]
    asked = "import socket\ntry: socket.create_connection(('localhost', 9), 1)\nexcept OSError: pass\nprint(found)"
    done = subprocess.run(
        [sys.executable, "-c", head + asked, *"abcd"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "socket.getaddrinfo" in done.stdout and "socket.connect" in done.stdout


def test_no_secret_is_in_any_file_or_log(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("wandb" in str(path) for path in files) and (folder / "reported" / "training.json") in files
    assert {folder / "out" / name for name in ("answers.jsonl", "report.html", "report.json")} <= set(files)
    for path in files:
        content = path.read_bytes()
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{name} is in {path}"


def test_no_pickle_but_tensors_is_written(folder: Path) -> None:
    import torch

    names = {path.name for path in folder.rglob("*")}
    assert "training_args.bin" not in names and not {name for name in names if name.endswith((".bin", ".pkl"))}
    pickled = list(folder.rglob("*.pt"))
    assert pickled, "optimizer, schedule and random numbers"
    for path in pickled:
        torch.load(path, weights_only=True)
