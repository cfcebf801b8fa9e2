"""A result that is not what was saved, by one byte or one file, is named by all that open it, before they do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastchat.checkpoint import full as full_files
from fastchat.checkpoint.manifest import MANIFEST
from fastchat.checkpoint.record import write_values
from fastchat.checkpoint.trained_model import find_trained
from fastchat.checkpoint.verify import verify
from fastchat.errors import CheckpointError
from fastchat.model import apply_lora, prepare_model
from fastchat.serve import cli
from tests.train.conftest import Outcome

pytestmark = pytest.mark.slow

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
RECORD, CHANGED = "training.json", "its values do not match its digest"
FLIPPED, MISSING = "has the right size but different content", "is missing"
TEMPLATE = ("--conv_template", "vicuna_v1.1")  # else a result, which has a template, wants to be asked about it
Use = Callable[[Path], tuple[int, str]]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def harmed(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name, what is to be said of it) for each file with one bit flipped, then without it; then it is as it was."""
    for name in names:
        for harm, said in ((flip, FLIPPED), (Path.unlink, MISSING)):
            kept = (folder / name).read_bytes()
            harm(folder / name)
            yield name, said
            (folder / name).write_bytes(kept)


@pytest.fixture
def uses(train: Callable[..., Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Use]:
    """Everything that opens a result, as the commands do: folder -> (exit code, what was said)."""

    def command(main: Any, *words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(list(words))
        return code, capsys.readouterr().err

    def trained(*words: str, **more: Any) -> tuple[int, str]:
        outcome = train(*words, name="next", **more)
        return outcome.code, outcome.err

    new = str(tmp_path / "new")
    talk = ["--device", "cpu", "--message", "Hi", "--max-new-tokens", "2", "--model-path"]
    return {
        "serve": lambda folder: command(cli.main, *talk, str(folder)),
        "merge": lambda folder: command(apply_lora.main, "--lora-path", str(folder), "--target-model-path", new),
        "continue": lambda folder: trained("--lora_weight_path", str(folder)),
        "train on": lambda folder: trained("--model_name_or_path", str(folder), *TEMPLATE),
        "prepare": lambda folder: command(
            prepare_model.main, "--model-path", str(folder), "--output-path", new, "--pad-token", "[NEW]"
        ),
    }


def assert_named(use: Use, folder: Path, name: str, said: str) -> None:
    code, err = use(folder)
    assert code == 5 and f"{name}: {said}" in err and "Copy it again" in err, (name, said, code, err)


def test_an_adapter(train: Callable[..., Outcome], eval_flags: list[str], uses: dict[str, Use], tmp_path: Path) -> None:
    outcome = train(*eval_flags, "--save_strategy", "steps", "--save_steps", "1")
    folder, names = outcome.folder, ("adapter_config.json", "adapter_model.safetensors", *TOKENIZER)
    assert set(outcome.record["files"]) == {*names, "chat_template.jinja", RECORD}
    assert "eval_loss" in outcome.record["metrics"], "written a second time, with its digest"
    lines, good = verify(folder)
    assert good and len(lines) == 3 and "checkpoint-1: valid, step 1" in lines[0]
    assert lines[2].startswith(f"{folder}: valid, result, 5 files")
    for name, said in harmed(folder, names):
        lines, good = verify(folder)
        assert not good and lines[2].startswith(f"{folder}: {name}: {said}") and "valid, step 2" in lines[1]
        for use in ("serve", "merge"):
            assert_named(uses[use], folder, name, said)
        if (name, said) == ("adapter_config.json", MISSING):  # noticed even earlier, with the arguments
            code, err = uses["continue"](folder)
            assert code == 2 and "no adapter_config.json there" in err
        else:
            assert_named(uses["continue"], folder, name, said)
    jinja = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text("mine", encoding="utf-8")  # people do edit it; no chat is made by it
    assert any(line.startswith(f"{folder}: chat_template.jinja: has 4 bytes instead") for line in verify(folder)[0])
    assert uses["serve"](folder)[0] == 0
    (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "next").glob("*.safetensors")), "nothing was trained"
    for use in ("serve", "merge", "continue"):
        assert uses[use](folder)[0] == 0, use
    assert verify(tmp_path / "new")[1] and verify(tmp_path / "next")[1]


def test_a_changed_value_in_the_record_is_noticed(train: Callable[..., Outcome], uses: dict[str, Use]) -> None:
    folder = train("--rope_scaling_type", "linear", "--rope_scaling_factor", "2").folder
    path = folder / RECORD
    text = path.read_text(encoding="utf-8")
    assert text.count('"factor": 2.0') == 1
    path.write_text(text.replace('"factor": 2.0', '"factor": 6.0'), encoding="utf-8")
    lines, good = verify(folder)
    assert not good and CHANGED in lines[0]
    for use in ("serve", "merge", "continue"):
        code, err = uses[use](folder)
        assert code == 5 and CHANGED in err and 'remove "files" from it' in err, use
    values = json.loads(text)
    path.write_text(json.dumps(values), encoding="utf-8")
    assert verify(folder)[1], "the layout is no value"
    values["rope_parameters"]["factor"] = 6.0
    del values["files"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert uses["serve"](folder)[0] == 0, "the way out that the message names"


def test_a_checkpoint_is_opened_by_its_manifest(train: Callable[..., Outcome], uses: dict[str, Use]) -> None:
    folder = train("--save_strategy", "steps", "--save_steps", "1").folder / "checkpoint-1"
    assert (folder / MANIFEST).is_file() and json.loads((folder / "training.json").read_text())["files"] == {}
    flip(folder / "optimizer.pt")
    find_trained(str(folder))  # nothing that is opened is harmed
    for name, said in harmed(folder, ("adapter_config.json", "adapter_model.safetensors")):
        assert_named(uses["serve"], folder, name, said)


def test_a_whole_model(
    train: Callable[..., Outcome], uses: dict[str, Use], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(full_files, "MAX_SHARD", "100KB")
    outcome = train(full=True)
    folder, names = outcome.folder, tuple(outcome.record["files"])
    shard = max(name for name in names if name.endswith(".safetensors"))
    opened = ("config.json", "model.safetensors.index.json", shard, *TOKENIZER)
    assert {*opened, "generation_config.json"} < set(names) and shard.startswith("model-0000")
    for name, said in harmed(folder, opened):
        lines, good = verify(folder)
        assert not good and len(lines) == 1 and f"{name}: {said}" in lines[0]
        for use in ("serve", "prepare"):
            assert_named(uses[use], folder, name, said)
    flip(folder / shard)
    assert_named(uses["train on"], folder, shard, FLIPPED)
    flip(folder / shard)
    for use in ("serve", "train on", "prepare"):
        assert uses[use](folder)[0] == 0, use
    assert verify(tmp_path / "new")[1], "the digests of the prepared model are its own"
    shutil.copyfile(folder / shard, folder / "model-more.safetensors")
    assert verify(folder) == ([f"{folder}: model-more.safetensors: not listed in training.json"], False)


def test_a_damaged_base_is_noticed_under_its_adapter(train: Callable[..., Outcome], uses: dict[str, Use]) -> None:
    base = train(full=True, name="base").folder
    adapter = train("--model_name_or_path", str(base), *TEMPLATE, name="adapter").folder
    flip(base / "model.safetensors")
    for use in ("serve", "merge"):
        assert_named(uses[use], adapter, "model.safetensors", FLIPPED)


def test_a_merged_model_has_digests_of_its_own(
    train: Callable[..., Outcome], uses: dict[str, Use], tmp_path: Path
) -> None:
    folder = train().folder
    assert uses["merge"](folder)[0] == 0
    of_run, of_merge = (json.loads((path / "training.json").read_text()) for path in (folder, tmp_path / "new"))
    own = {"config.json", "generation_config.json", "model.safetensors", *TOKENIZER}
    assert set(of_merge["files"]) == {*own, "chat_template.jinja", RECORD}
    assert {**of_merge, "files": of_run["files"]} == of_run, "all else is the run's"
    for name, said in harmed(tmp_path / "new", ("config.json", "model.safetensors")):
        assert not verify(tmp_path / "new")[1]
        assert_named(uses["serve"], tmp_path / "new", name, said)


def test_without_digests_it_is_used_as_before(train: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = train().folder
    record = folder / "training.json"
    values = json.loads(record.read_text())
    del values["files"]
    record.write_text(json.dumps(values))
    flip(folder / "adapter_model.safetensors")
    find_trained(str(folder))
    assert verify(folder) == ([f"{folder}: not verified, its training.json has no digests"], False)
    record.write_text(json.dumps({**values, "files": ["adapter_model.safetensors"]}))
    with pytest.raises(CheckpointError, match='"files" is not a list of digests'):
        find_trained(str(folder))
    assert not verify(folder)[1]
    record.unlink()
    find_trained(str(folder))
    assert "no checkpoint-*, no MANIFEST.json and no training.json" in verify(folder)[0][0]


def test_links_of_the_hubs_cache_are_followed_and_names_outside_are_not(
    train: Callable[..., Outcome], tmp_path: Path
) -> None:
    folder = train().folder
    weights = folder / "adapter_model.safetensors"
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    find_trained(str(folder))
    assert verify(folder)[1]
    values = json.loads((folder / RECORD).read_text())
    values["files"]["../blob.safetensors"] = values["files"]["adapter_model.safetensors"]
    write_values(folder, values)
    assert verify(folder) == ([f"{folder}: ../blob.safetensors: points outside the folder"], False)
