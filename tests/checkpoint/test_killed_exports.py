"""A merge or a new vocabulary that is killed midway: the target is complete or absent, the next attempt cleans up."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat.checkpoint.folders import check_new_folder, new_folder
from fastchat.checkpoint.merge import merge_adapter
from fastchat.checkpoint.prepare import prepare_model
from fastchat.errors import ResourceError, SettingsError
from tests.checkpoint.saves import COUNTED, DIED, dying_at
from tests.model.adapters import save_random_adapter

pytestmark = pytest.mark.slow


@pytest.fixture
def works(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> dict[str, Callable[[Path], Any]]:
    base = tiny_model_dir("llama")
    adapter, _ = save_random_adapter(tmp_path / "adapter", base)
    return {
        "merge": lambda target: merge_adapter(str(adapter), str(target)),
        "prepare": lambda target: prepare_model(str(base), str(target), pad_token="[NEW]"),
    }


def _loads(folder: Path) -> bool:
    """Whether the model is complete, loaded with transformers."""
    from fastchat.model.loading import load_base_model
    from fastchat.model.tokenizer import load_tokenizer

    load_tokenizer(str(folder))
    return load_base_model(str(folder), for_training=False).config.vocab_size > 0


@pytest.mark.parametrize("name", ["merge", "prepare"])
def test_dying_anywhere_leaves_the_target_complete_or_absent(works: Any, tmp_path: Path, name: str) -> None:
    """At every file-system event, alternately before and after it."""
    home = tmp_path / "home"
    home.mkdir()
    target, seen = home / "target", set()
    for event in range(200):
        code = dying_at(event, event % 2 == 0, lambda: works[name](target))
        assert code in (DIED, COUNTED), code
        seen.add(target.exists())
        if target.exists():
            assert _loads(target)
            break
    assert seen == {True, False} and event > 10, "the harness must see the events"
    assert os.listdir(home) == ["target"], "what earlier tries left is gone"


def test_a_live_writer_keeps_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new_folder(tmp_path / "target") as stage:
        (stage / "x").write_text("1")
        other = tmp_path / ".target.partial-1"
        other.mkdir()
        handle = os.open(other, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        code = (
            "import sys\nfrom pathlib import Path\nfrom fastchat.checkpoint.folders import new_folder\n"
            "with new_folder(Path(sys.argv[1])) as stage: (stage / 'y').write_text('2')"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "target")], check=True)
        assert stage.is_dir() and other.is_dir(), "held by somebody"
        os.close(handle)
        (tmp_path / "target" / "y").unlink()
    assert (tmp_path / "target" / "x").is_file()
    with new_folder(tmp_path / "another"):
        assert other.is_dir(), "it belongs to another target"
    (tmp_path / "target" / "x").unlink()
    with new_folder(tmp_path / "target"):
        pass
    assert not other.exists() and "removed .target.partial-1" in capsys.readouterr().err


def test_a_target_that_somebody_fills_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="was filled by another program"), new_folder(tmp_path / "target") as stage:
        (stage / "mine").touch()
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "theirs").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["target", "target/theirs"]


def test_odd_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="--out .* cannot be written: .*file is a file"):
        check_new_folder(str(tmp_path / "file" / "x" / "y"), "--out")
    (tmp_path / "empty [x]").mkdir()
    monkeypatch.chdir(tmp_path / "empty [x]")
    with new_folder(check_new_folder(".", "--out")) as stage:
        (stage / "x").touch()
    assert (tmp_path / "empty [x]" / "x").is_file()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with new_folder(tmp_path / "link") as stage:
        (stage / "x").touch()
    assert (tmp_path / "elsewhere" / "x").is_file() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["merge", "prepare"])
def test_a_full_disk_is_told_and_leaves_nothing(works: Any, tmp_path: Path, name: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the weights are larger, all else is smaller
    try:
        with pytest.raises(ResourceError, match=r"the disk is full: a .*model of about \d{3},\d{3} bytes did not fit"):
            works[name](tmp_path / "home" / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path / "home") == []


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("name", ["merge", "prepare"])
def test_modes_follow_the_umask(works: Any, tmp_path: Path, name: str, mask: int) -> None:
    before = os.umask(mask)
    try:
        works[name](tmp_path / "target")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "target").iterdir()} == {0o666 & ~mask}
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o777 & ~mask
