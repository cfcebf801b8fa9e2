"""Mistyped model folders: every command suggests existing folders at once, without asking the hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat import paths
from fastchat.checkpoint import verify
from fastchat.data import preview
from fastchat.errors import SettingsError
from fastchat.model import apply_lora
from fastchat.model.source import is_local
from fastchat.paths import folders_instead, meant_here, say_hub_is_asked
from fastchat.serve import cli


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder with two checkpoints, in the current folder."""
    for name in ("o1/checkpoint-10", "o1/checkpoint-20", "w"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "w" / "none.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_called_one(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="w/none.txt is a file, not a model directory"):
        is_local("w/none.txt")
    assert verify.verify(Path("w/none.txt")) == (["w/none.txt is a file: pass its folder"], False)


@pytest.mark.parametrize(
    ("name", "here"),
    [
        *(("o1/checkpoint-15", True), ("w/none", True), ("o1/", True), ("./o2", True), ("~/o2", True), ("/o2", True)),
        *(("a/b/c", True), ("", True)),
        *(("gpt2", False), ("org/name", False), ("o11", False), ("o2/checkpoint-15", False)),
    ],
)
def test_what_can_only_be_a_folder(name: str, here: bool) -> None:
    assert meant_here(name) is here
    if here and name != "o1/":
        with pytest.raises(SettingsError, match="No such model directory"):
            is_local(name)
    else:
        assert is_local(name) is (name == "o1/")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("o1/checkpoint-15", " There is no checkpoint-15 in o1; nearest: checkpoint-10, checkpoint-20."),
        ("o1/checkpoint-15/deeper", " There is no checkpoint-15 in o1; nearest: checkpoint-10, checkpoint-20."),
        ("o1/best", " There is no best in o1; folders there: checkpoint-10, checkpoint-20."),
        ("w/none", " There is no none in w; folders there: none."),
        ("o11", " There is no o11 here; nearest: o1."),
        ("o2/x", " There is no o2 here; nearest: o1."),
    ],
)
def test_what_is_there_instead(path: str, said: str) -> None:
    assert folders_instead(path) == said


def test_the_hub_is_asked_for_what_looks_like_a_folder_only_after_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """`o11` may be a hub name, so there is a message but no refusal."""
    say_hub_is_asked.cache_clear()
    for name in ("o11", "o11", "gpt2", "org/name"):
        is_local(name)
    line = "o11: no such folder (there is o1), so it is looked up on the hub\n"
    assert capsys.readouterr().err == line


def _preview(name: str) -> int:
    return preview.main(["--model_name_or_path", name, "--data_path", "d.jsonl"])


def _verify(name: str) -> int:
    with pytest.raises(SystemExit) as ended:
        verify.main([name])
    assert isinstance(ended.value.code, int)
    return ended.value.code


COMMANDS = {
    "chat": (lambda name: cli.main(["--model-path", name, "--message", "hi"]), 2),
    "merge": (lambda name: apply_lora.main(["--lora-path", name, "--target-model-path", "m"]), 2),
    "preview": (_preview, 2),
    "verify": (_verify, 5),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_checkpoint_is_told_with_those_that_are_there(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    go: tuple[Callable[[str], int], int] = COMMANDS[command]
    assert go[0]("o1/checkpoint-15") == go[1]
    err = capsys.readouterr().err
    of_the_hub = "To use the hub model of this name, start in another folder." in err
    assert of_the_hub is (command in ("chat", "preview"))
    assert "o1/checkpoint-15" in err and "nearest: checkpoint-10, checkpoint-20." in err and err.count("\n") == 1


def test_a_mistyped_adapter_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for base in ([], ["--base-model-path", "w"]):
        assert apply_lora.main(["--lora-path", "o11", "--target-model-path", "m", *base]) == 2
        assert "No such adapter directory: 'o11'. There is no o11 here; nearest: o1." in capsys.readouterr().err


def test_a_hub_that_does_not_answer_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its library would try each file six times, for half a minute."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    paths._use_cache_without_network.cache_clear()
    for _ in range(2):
        paths._use_cache_without_network()
    said = capsys.readouterr().err
    assert constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"
    assert said.count("http://127.0.0.1:9 cannot be reached") == 1


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    class Session:
        def head(self, address: str, timeout: float) -> None:
            assert address == constants.ENDPOINT and timeout > 0

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    paths._use_cache_without_network.cache_clear()
    paths._use_cache_without_network()
    assert not constants.HF_HUB_OFFLINE and not capsys.readouterr().err
