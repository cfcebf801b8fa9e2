"""A finished result that is no longer what was saved: made again from a checkpoint, or a refusal; never "done"."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.checkpoint.verify import verify
from tests.train.conftest import Outcome
from tests.train.flags import adapter, ok

pytestmark = pytest.mark.slow
Train = Callable[..., Outcome]
FLAGS = ["--save_strategy", "steps", "--save_steps", "1"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _restored(train: Train, first: Outcome, kept: dict[str, bytes], name: str, **more: bool) -> Outcome:
    again = ok(train(*FLAGS, **more))
    assert "is not as it was saved" in again.err and name in again.err and "restoring it from checkpoint-2" in again.err
    assert again.trainer.state.global_step == 2 and len(again.losses) == 2, "nothing is trained"
    assert verify(first.folder)[1] and set(kept) == _files(first.folder)
    assert again.record["metrics"]["train_loss"] == first.record["metrics"]["train_loss"]
    return again


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_any_file_that_is_lost_or_changed_is_made_again(train: Train, full: bool) -> None:
    first = ok(train(*FLAGS, full=full))
    kept = {name: (first.folder / name).read_bytes() for name in _files(first.folder)}
    damage = {"tokenizer.json": Path.unlink, "tokenizer_config.json": _cut, "training.json": _flip}
    damage |= {"config.json": _flip, "model.safetensors": Path.unlink} if full else {}
    damage |= {} if full else {"adapter_config.json": _flip, "adapter_model.safetensors": _flip}
    for name, harm in damage.items():
        harm(first.folder / name)
        _restored(train, first, kept, name, full=full)
        if name != "training.json":  # its times differ
            assert (first.folder / name).read_bytes() == kept[name]
    (first.folder / "training.json").unlink()
    _restored(train, first, kept, "training.json", full=full)
    assert "nothing to do" in ok(train(*FLAGS, full=full)).err


def test_weights_alone_are_enough(train: Train) -> None:
    first = ok(train(*FLAGS, "--save_only_model", "True"))
    before = adapter(first.folder)
    (first.folder / "adapter_model.safetensors").unlink()
    again = ok(train(*FLAGS, "--save_only_model", "True"))
    assert "restoring it from checkpoint-2" in again.err and len(again.losses) == 2
    assert all(tensor.equal(before[name]) for name, tensor in adapter(first.folder).items())


def test_the_checkpoint_before_trains_what_is_missing(train: Train) -> None:
    first = ok(train(*FLAGS))
    before = {name: tensor.clone() for name, tensor in adapter(first.folder).items()}  # they are mapped
    _flip(first.folder / "adapter_model.safetensors")
    _flip(first.folder / "checkpoint-2" / "adapter_model.safetensors")
    again = ok(train(*FLAGS))
    assert "restoring it from checkpoint-1" in again.err and "checkpoint-2 is not usable" in again.err
    assert all(tensor.equal(before[name]) for name, tensor in adapter(first.folder).items())


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "training.json", "tokenizer.json"])
def test_without_a_checkpoint_it_is_refused(train: Train, name: str) -> None:
    first = ok(train())
    for harm in (_flip, _cut, Path.unlink):
        harm(first.folder / name)
        again = train()
        assert again.code == 5 and f"{name}" in again.err and "nothing to do" not in again.err
        assert again.err.count("error: ") == 1 and again.status["exit_code"] == 0, "nothing is written there"


def test_a_linked_checkpoint_is_used_and_a_dangling_link_is_named(train: Train, tmp_path: Path) -> None:
    first = ok(train(*FLAGS, "--max_steps", "1"))
    whole = ok(train(*FLAGS, "--save_total_limit", "1", name="whole"))
    elsewhere = tmp_path / "elsewhere"
    shutil.move(first.folder / "checkpoint-1", elsewhere)
    (first.folder / "checkpoint-1").symlink_to(elsewhere)
    shutil.move(elsewhere, tmp_path / "hidden")
    lost = train(*FLAGS)
    assert lost.code == 5 and f"checkpoint-1: is a link to {elsewhere}, which does not exist" in lost.err
    assert "--overwrite_output_dir" not in lost.err
    never = train(*FLAGS, "--resume_from_checkpoint", "never")
    assert never.code == 2 and "checkpoint-1" in never.err and "--overwrite_output_dir" not in never.err
    shutil.move(tmp_path / "hidden", elsewhere)
    on = ok(train(*FLAGS, "--save_total_limit", "1"))
    assert "checkpoint-1: step 1" in on.err and on.losses == whole.losses
    assert sorted(p.name for p in on.folder.glob("*checkpoint-*")) == ["checkpoint-2"]
    assert (elsewhere / "MANIFEST.json").is_file(), "only the link went"


def test_a_damaged_end_of_the_metrics_is_left_out(train: Train) -> None:
    plain = ok(train(*FLAGS, name="plain"))
    first = ok(train(*FLAGS, "--max_steps", "1"))
    for i, tail in enumerate((b"\xff\xfe\x80{", b"\0" * 5000, b'{"step": 2, "lo', b"[1]\n3\n" + b"x" * 100_000)):
        shutil.copytree(first.folder, first.folder.with_name(f"copy-{i}"))
        with open(first.folder.with_name(f"copy-{i}") / "metrics.jsonl", "ab") as file:
            file.write(tail)
        on = ok(train(*FLAGS, name=f"copy-{i}"))
        assert on.metrics == plain.metrics and "left out" in on.err, tail


def test_lost_metrics_do_not_matter(train: Train) -> None:
    first = ok(train(*FLAGS, "--max_steps", "1"))
    (first.folder / "metrics.jsonl").unlink()
    (first.folder / "status.json").write_bytes(b"[\xff")
    assert [row["step"] for row in ok(train(*FLAGS)).rows] == [2]
