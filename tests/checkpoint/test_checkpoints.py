"""Manifest, search, rotation, lock and disk space of checkpoint folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastchat.checkpoint import space, staging
from fastchat.checkpoint.discover import check_checkpoint, newest_checkpoint
from fastchat.checkpoint.fingerprint import model_fingerprint
from fastchat.checkpoint.manifest import MANIFEST, Manifest, files_in, find_problems, read_manifest, write_manifest
from fastchat.checkpoint.verify import main as verify_main
from fastchat.errors import CheckpointError, ResourceError
from tests.checkpoint.saves import save, valid_in


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _verify(folder: Path) -> int:
    with pytest.raises(SystemExit) as end:
        verify_main([str(folder)])
    return int(end.value.code or 0)


def test_a_checkpoint_describes_itself(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    manifest = read_manifest(path)
    assert manifest.step == 3 and sorted(manifest.files) == files_in(path) and len(manifest.files) == 5
    assert manifest.size == sum((path / name).stat().st_size for name in manifest.files)
    probe = tmp_path / "probe"
    probe.touch()
    modes = {(path / name).stat().st_mode for name in [*manifest.files, MANIFEST]}
    assert modes == {probe.stat().st_mode}, "modes follow the umask"


def test_modes_follow_another_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(old)
    assert {(path / name).stat().st_mode & 0o777 for name in [*files_in(path), MANIFEST]} == {0o600}


def test_a_flipped_bit_in_any_file_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, 1)
    assert _verify(tmp_path) == 0 and "valid, step 1" in capsys.readouterr().out
    for name in [*files_in(path), MANIFEST]:
        kept = (path / name).read_bytes()
        _flip(path / name)
        assert _verify(path) == 5, name
        assert name in capsys.readouterr().err
        (path / name).write_bytes(kept)
    assert find_problems(path) == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: (p / "optimizer.pt").unlink(), "optimizer.pt: is missing"),
        (lambda p: os.truncate(p / "optimizer.pt", 10), "optimizer.pt: has 10 bytes instead of"),
        (lambda p: (p / "global_step" / "extra.pt").write_text("x"), "global_step/extra.pt: not listed"),
        (lambda p: (p / MANIFEST).unlink(), "no MANIFEST.json"),
        (lambda p: (p / MANIFEST).write_text("{"), "damaged"),
        (lambda p: (p / MANIFEST).write_text('{"format": 99, "digest": ""}'), "format 99"),
        (
            lambda p: ((p / "rank_0.pt").rename(p.parent / "away"), (p / "rank_0.pt").symlink_to(p.parent / "away")),
            "is a link",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, harm, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, 1)
    harm(path)
    assert any(said in problem for problem in find_problems(path)), find_problems(path)
    assert _verify(tmp_path) == 5 and said in capsys.readouterr().err


# Written before `fastchat/files.py` existed.
EARLIER = """{
 "step": 3,
 "epoch": 0.5,
 "samples": 12,
 "tokens": 0,
 "supervised_tokens": 0,
 "world_size": 2,
 "engine": "ddp",
 "fingerprints": {
  "template": "é"
 },
 "settings": {
  "learning_rate": 2e-05,
  "x": null,
  "y": [
   1,
   true
  ]
 },
 "files": {
  "é.pt": {
   "size": 5,
   "sha256": "4ba69735ca53765ed6a709edb56c6ea236b7193a3b29a6b390c346f0f4340e4e"
  }
 },
 "format": 1,
 "digest": "9912c32a2b26379e642fa82fccd03fef2b647b69260717f0fd94b9fff49cb4bf"
}
"""


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"\xff", b'{"format": 1, "digest": "", "epoch": NaN}'])
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path, 1)
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match="MANIFEST.json is damaged: it"):
        read_manifest(path)


def test_a_manifest_of_before_is_valid_and_written_alike(tmp_path: Path) -> None:
    """To the byte: this version reads existing checkpoints, and earlier versions read those of this version."""
    (tmp_path / "é.pt").write_bytes(b"state")
    (tmp_path / MANIFEST).write_text(EARLIER, encoding="utf-8")
    assert find_problems(tmp_path) == []
    write_manifest(tmp_path, read_manifest(tmp_path))
    assert (tmp_path / MANIFEST).read_text(encoding="utf-8") == EARLIER
    assert sorted(os.listdir(tmp_path)) == [MANIFEST, "é.pt"]


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    from fastchat.checkpoint.manifest import Manifest

    path = save(tmp_path, 1)
    problems = find_problems(path, Manifest(step=1, files={"../x": {"size": 1, "sha256": ""}, "/etc/passwd": {}}))
    assert sum("points outside" in problem for problem in problems) == 2


def test_verify_starts_without_torch(tmp_path: Path, repository: Path) -> None:
    save(tmp_path, 1)
    code = (
        "import sys\nfrom fastchat.checkpoint.verify import verify\nfrom pathlib import Path\n"
        "print(verify(Path(sys.argv[1]))[1], 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=repository, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["True", "False", "False"]
    nothing = subprocess.run(
        [sys.executable, "-m", "fastchat.checkpoint.verify", str(tmp_path / "none")],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert nothing.returncode == 5 and "there is no such folder" in nothing.stderr


def test_the_newest_valid_one_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    for step in (2, 10, 30):
        save(tmp_path, step)
    newest = newest_checkpoint(tmp_path)
    assert newest and newest.manifest.step == 30 and newest.lines() == []
    _flip(tmp_path / "checkpoint-30" / "optimizer.pt")
    (tmp_path / "checkpoint-40").mkdir()
    found = newest_checkpoint(tmp_path)
    assert found and found.path.name == "checkpoint-10"
    assert [path.name for path, _ in found.skipped] == ["checkpoint-40", "checkpoint-30"]
    assert "optimizer.pt: has the right size but different content" in found.lines()[1]
    with pytest.raises(CheckpointError, match="optimizer.pt"):
        check_checkpoint(tmp_path / "checkpoint-30")


def test_only_invalid_ones_are_an_error_and_none_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "missing") is None
    (save(tmp_path, 1) / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="no valid checkpoint(.|\n)*optimizer.pt: is missing"):
        newest_checkpoint(tmp_path)


def test_a_checkpoint_under_another_steps_name_is_not_taken(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "checkpoint-9")
    with pytest.raises(CheckpointError, match="its name says step 9, its manifest step 1"):
        newest_checkpoint(tmp_path)


def test_stages_never_look_like_checkpoints(tmp_path: Path) -> None:
    stage = staging.new_stage(tmp_path, 5)
    assert not stage.match("checkpoint-*") and staging.checkpoints_in(tmp_path) == []
    assert staging.recover(tmp_path) and not stage.exists()


def test_the_best_one_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    best = tmp_path / "checkpoint-1"
    gone = staging.rotate(tmp_path, 2, current=4, protected=[best])
    assert sorted(p.name for p in gone) == ["checkpoint-2", "checkpoint-3"] and valid_in(tmp_path) == [1, 4]


def test_checkpoints_of_later_steps_go_first(tmp_path: Path) -> None:
    for step in (1, 2, 8, 9):
        save(tmp_path, step)
    staging.rotate(tmp_path, 2, current=2)
    assert valid_in(tmp_path) == [1, 2]


def test_an_error_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    from fastchat.checkpoint.manager import save_checkpoint
    from fastchat.checkpoint.manifest import Manifest

    save(tmp_path, 1)

    def full(stage: Path) -> None:
        (stage / "some").write_bytes(b"x" * 100)
        raise OSError(28, "No space left on device", str(stage))

    with pytest.raises(ResourceError, match="the disk is full: a checkpoint of about 1,234 bytes"):
        save_checkpoint(tmp_path, Manifest(step=2), full, keep=1, expected_bytes=1234)
    assert os.listdir(tmp_path) == ["checkpoint-1"] and valid_in(tmp_path) == [1]
    with pytest.raises(CheckpointError, match="is empty"):
        save_checkpoint(tmp_path, Manifest(step=2), lambda stage: None, keep=1)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 3 MB; skipped if mounting is not allowed."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], check=False)
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from fastchat.checkpoint.manager import save_checkpoint
    from fastchat.checkpoint.manifest import Manifest

    run = small_disk / "run"
    save(run, 1)
    big = {"weight": torch.zeros(1 << 20)}  # 4 MB
    writers = (lambda s: save_file(big, s / "w.safetensors"), lambda s: torch.save(big, s / "w.pt"))
    for write in writers:
        with pytest.raises(ResourceError, match=r"5,000,000 bytes (did not fit|could not be written) .*bytes are free"):
            save_checkpoint(run, Manifest(step=2), write, keep=1, expected_bytes=5_000_000)
        assert os.listdir(run) == ["checkpoint-1"] and valid_in(run) == [1]
    with pytest.raises(ResourceError, match="3 checkpoints of about 2,000,000 bytes"):
        space.check_space(run, 2_000_000, 3, 100)


def test_a_disk_that_turns_read_only(small_disk: Path) -> None:
    run = small_disk / "run"
    save(run, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ResourceError, match="could not be written"):
        save(run, 2)
    assert valid_in(run) == [1]


def test_free_space_of_a_folder_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # other programs write to this disk meanwhile
        asked: list[Path] = []
        real = os.statvfs
        patch.setattr(space.os, "statvfs", lambda folder: asked.append(folder) or real(folder))
        assert space.free_bytes(tmp_path / "a" / "b") > 0 and asked == [tmp_path]
    space.check_space(tmp_path, 1000, 1, 1000)


def test_a_models_fingerprint_is_its_weights(tmp_path: Path, tiny_model_dir) -> None:
    source = tiny_model_dir("llama", "metaspace_bos")
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    assert model_fingerprint(copy) == model_fingerprint(source) is not None
    (copy / "config.json").write_text(json.dumps({}))
    assert model_fingerprint(copy) == model_fingerprint(source)
    _flip(copy / "model.safetensors")
    assert model_fingerprint(copy) != model_fingerprint(source)
    assert model_fingerprint("some/hub-name") is None and model_fingerprint(tmp_path) is None


def test_a_value_changed_in_a_manifest_is_found(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(step=20, tokens=1000))
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace('"tokens": 1000', '"tokens": 1001'))
    with pytest.raises(CheckpointError, match="its digest does not match"):
        read_manifest(tmp_path)
