"""fastchat.files: atomic writes, strict JSON, digests, locks that end with their process."""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat import files
from fastchat.checkpoint.manifest import read_manifest
from fastchat.checkpoint.record import read_training_record
from fastchat.data.encoding.raw_tokenizer import read_raw
from fastchat.data.rows.arrow import saved_files
from fastchat.errors import UserError
from fastchat.model.source import check_model_directory
from fastchat.plan.adapter import adapter_settings
from fastchat.plan.model_files import read_architecture
from fastchat.plan.zero import read_zero
from fastchat.settings.recipe_files import read_recipe
from fastchat.train.deepspeed_config import load_deepspeed


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic(path) as file:
        file.write("half")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1}
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    code = (
        "import resource, signal, sys; from fastchat import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "files.write_text(sys.argv[1], 'x' * 5000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_writing_through_a_link_keeps_the_link(tmp_path: Path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.txt", tmp_path / "a.txt"
    target.write_text("old")
    link.symlink_to(target)
    files.write_text(link, "new\r\n")
    assert link.is_symlink() and target.read_bytes() == b"new\r\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1', "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"a": NaN}', "NaN, which is not valid JSON"),
        (b"[-Infinity]", "-Infinity, which is not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(files.JsonError, match=reason):
        files.read_json(path)


def test_constants_are_read_where_they_are_allowed(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": Infinity}')
    assert files.read_json(path, constants=True) == {"a": float("inf")}
    files.write_json(path, {"a": float("inf")}, constants=True)
    assert files.read_json(path, constants=True) == {"a": float("inf")}


def test_an_object_is_read_where_one_is_expected(tmp_path: Path):
    path = tmp_path / "a.json"
    for value in ([], "text", None, 1):
        files.write_json(path, value)
        with pytest.raises(files.JsonError, match="it is not a JSON object"):
            files.read_object(path)
    files.write_json(path, {"a": 1})
    assert files.read_object(path) == {"a": 1}


def test_bytes_are_parsed_as_utf_8():
    assert files.parse_json('{"a": "é"}'.encode()) == files.parse_json('{"a": "é"}') == {"a": "é"}
    with pytest.raises(files.JsonError, match="not UTF-8"):
        files.parse_json('{"a": "é"}'.encode("latin-1"))


def test_digests(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * (1 << 20) + b"y")
    assert files.sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert files.sha256_of_blocks([b"x", b"", b"y"]) == hashlib.sha256(b"xy").hexdigest()
    # The digests of existing checkpoints and results depend on this form.
    assert (
        files.sha256_of_json({"b": [1.5, None], "a": "é"})
        == hashlib.sha256(b'{"a": "\\u00e9", "b": [1.5, null]}').hexdigest()
    )
    assert files.sha256_of_json({"b": [1], "a": "é"}) == files.sha256_of_json({"a": "é", "b": [1]})
    assert files.sha256_of_text("\ud800") != files.sha256_of_text("?")


HOLDER = """
import sys
from fastchat.files import Lock
lock = Lock(sys.argv[1], create=True)
assert lock.acquire(shared=sys.argv[2] == "shared")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["shared", "exclusive"])
def test_a_lock_ends_with_its_process(tmp_path: Path, how: str):
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with files.Lock(path) as lock:
        assert not lock.acquire(wait=False)
        assert lock.acquire(shared=True, wait=False) is (how == "shared")
    holder.kill()
    holder.communicate()
    with files.Lock(path) as lock:
        assert lock.acquire(wait=False)


def test_a_folder_is_locked_without_a_file_in_it(tmp_path: Path):
    with files.Lock(tmp_path) as lock, files.Lock(tmp_path) as second:
        assert lock.acquire(wait=False) and not second.acquire(wait=False)
        assert os.listdir(tmp_path) == []


# Readers of user files: which file in the folder it is, and how it is read.
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "--deepspeed, training": ("x.json", lambda folder: load_deepspeed(str(folder / "x.json"))),
    "--deepspeed, planning": ("x.json", lambda folder: read_zero(str(folder / "x.json"), 8)),
    "a recipe": ("x.json", lambda folder: read_recipe(folder / "x.json")),
    "a model's index": ("model.safetensors.index.json", lambda folder: check_model_directory(str(folder))),
    "a model to plan": ("config.json", lambda folder: read_architecture(str(folder))),
    "an adapter to plan": ("adapter_config.json", lambda folder: adapter_settings({"lora_weight_path": str(folder)})),
    "a tokenizer": ("tokenizer.json", lambda folder: read_raw(str(folder))),
    "a tokenizer's names": ("tokenizer_config.json", lambda folder: read_raw(str(folder))),
    "data of `datasets`": ("state.json", lambda folder: saved_files(str(folder), "train")),
    "a result": ("training.json", read_training_record),
    "a checkpoint": ("MANIFEST.json", read_manifest),
}


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, b'{"a": "\xff"}'], ids=lambda content: content[:9])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_no_json_object_is_told_by_its_reader(tmp_path: Path, reader: str, content: bytes):
    name, read = READERS[reader]
    for other in ("config.json", "tokenizer.json"):
        (tmp_path / other).write_text("{}")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        read(tmp_path)
    expected = {"a result": 5, "a checkpoint": 5, "data of `datasets`": 3}.get(reader, 2)
    assert caught.value.exit_code == expected and len(str(caught.value)) < 1000


def test_some_members_are_read_without_what_follows_them(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    text = '\ufeff{"a" : "}, \\"b\\": 1",\n "c": [1, {"b": 2}], "b": null, "vocabulary": '
    file.write_text(text + "not read", encoding="utf-8")
    assert files.read_members(file, "b", "a") == {"b": None, "a": '}, "b": 1'}
    with pytest.raises(files.JsonError):
        files.read_members(file, "b", "z")
    for whole in ('{"a": 1}', "{}", "[]", ""):
        file.write_text(whole, encoding="utf-8")
        assert files.read_members(file, "b") == {}


def test_parsing_a_large_text_keeps_the_collection_of_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LARGE", 4)
    assert files.parse_json("[1, 2]") == [1, 2] and gc.isenabled()
    with pytest.raises(files.JsonError):
        files.parse_json("[1, 2")
    assert gc.isenabled()
