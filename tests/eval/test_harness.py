"""`fastchat eval lm-eval`: the command that it runs, and the prompts that the harness then makes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fastchat.conversation import Dialogue, Turn
from fastchat.data.encoding.chat_encoder import encode_prompt
from fastchat.eval import command_line, harness
from fastchat.eval.loading import load_for_evaluation
from tests.test_structure import REPOSITORY


@pytest.mark.parametrize(("found", "message"), [(None, "is not installed"), ("0.4.9.2", "0.4.9.2 is too old, 0.4.10")])
def test_without_the_harness_one_message_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: str | None, message: str
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    assert command_line.main(["lm-eval", "out", "--tasks", "gsm8k"]) == 6
    err = capsys.readouterr().err
    assert err.startswith(f"error: lm-evaluation-harness {message}") and err.count("\n") == 1
    assert err.endswith(": pip install 'fschat[lm-eval]'\n")


def test_the_oldest_version_is_that_of_the_extra() -> None:
    extras = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"lm-eval>={".".join(map(str, harness.OLDEST))}"' in extras


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[list[str]] = []

    def runs(command: list[str], check: bool) -> Any:
        ran.append(command)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(metadata, "version", lambda name: "0.5")
    monkeypatch.setattr(subprocess, "run", runs)
    words = ["lm-eval", "out", "--tasks", "gsm8k", "--conv_template", "vicuna_v1.1", "--limit", "5"]
    assert command_line.main(words) == 7, "the exit code of the harness"
    (command,) = ran
    arguments = json.loads(command[command.index("--model_args") + 1])
    assert arguments == {"path": "out", "conv_template": "vicuna_v1.1"}
    assert command[-2:] == ["--limit", "5"] and "--apply_chat_template" in command
    assert command_line.main([*words, "--model_args", "pretrained=x"]) == 2
    assert "--model_args is set by this command; leave it out." in capsys.readouterr().err and len(ran) == 1


@pytest.mark.parametrize("kind", ["metaspace_bos", "gemma", "byte_nobos"])
def test_the_harness_sends_the_ids_of_training(tiny_model_dir: Callable[..., Path], kind: str) -> None:
    pytest.importorskip("lm_eval")
    from fastchat.eval.harness_model import TrainedModelLM

    name = "gemma" if kind == "gemma" else "vicuna_v1.1"
    folder = tiny_model_dir("llama", kind)
    model = TrainedModelLM(str(folder), conv_template=name, device="cpu", batch_size=2)
    encoder = load_for_evaluation(str(folder), conv_template=name, device="cpu").chat_encoder
    turns = (Turn("user", "How many?"), Turn("assistant", "Two."))
    wanted = encode_prompt(Dialogue(turns[:1], None, "f", 1), encoder)
    text = model.apply_chat_template([{"role": "user", "content": "How many?"}])
    assert model.tok_encode(text) == wanted
    assert model.tok_batch_encode([text, text])[0].tolist() == [wanted, wanted]
    rows = [{"role": turn.role, "content": turn.text} for turn in turns] + [{"role": "user", "content": "Now?"}]
    wanted = encode_prompt(Dialogue((*turns, Turn("user", "Now?")), None, "f", 1), encoder)
    assert model.tok_encode(model.apply_chat_template(rows)) == wanted
    assert set(encoder.stop_ids) <= set(model._stop_ids)
