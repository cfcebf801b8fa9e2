"""The cache: complete or absent, one maker at a time, damage noticed, bounded, and never in anybody's way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat.data.rows import fingerprint
from fastchat.data.rows.fingerprint import KnownSums, sha256_of
from fastchat.data.tokens import cache as token_cache
from fastchat.data.tokens.cache import Entry, cache_folder, evict, obtain
from fastchat.data.tokens.store import StoreWriter
from fastchat.errors import ResourceError, SettingsError
from tests.data.test_store import part_of


@pytest.fixture(autouse=True)
def nothing_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is a process of its own, as far as locks go."""
    monkeypatch.setattr(token_cache, "_USING", {})


def forget() -> None:
    """The end of the process that used entries."""
    for lock in token_cache._USING.values():
        lock.release()
    token_cache._USING.clear()


class Maker:
    """Makes a small store, and counts how often."""

    def __init__(self, fail: BaseException | None = None):
        self.calls, self.fail = 0, fail

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        writer = StoreWriter(folder)
        writer.add(part_of(2, 1, 3))
        files = writer.close()
        if self.fail is not None:
            raise self.fail
        return {"files": files, "counts": {"rows": 3}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_made_once_then_found(tmp_path: Path) -> None:
    make, folder = Maker(), tmp_path / "deep" / "cache"
    first, there = obtain(folder, "key", make)
    again, there_now = obtain(folder, "key", make)
    assert (there, there_now, make.calls) == (False, True, 1)
    assert first == again == Entry(folder / "key", again.about) and again.about["counts"] == {"rows": 3}
    assert len(again.store()) == 3 and names(folder) == ["key", "key.using"]


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        obtain(tmp_path, "key", Maker(error))
    assert names(tmp_path) == ["key.using"]
    obtain(tmp_path, "other", Maker())
    forget()
    evict(tmp_path)
    assert names(tmp_path) == ["other", "other.using"]


@pytest.mark.parametrize("name", ["ids.bin", "digests.bin", "entry.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damage_is_noticed_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    make = Maker()
    place = obtain(tmp_path, "key", make)[0].folder
    content = bytearray((place / name).read_bytes())
    content[-2] ^= 1
    (place / name).unlink() if how == "gone" else (place / name).write_bytes(
        content if how == "flipped" else content[:-1]
    )
    entry, there = obtain(tmp_path, "key", make)
    said = capsys.readouterr().err.splitlines()
    assert not there and make.calls == 2 and len(entry.store()) == 3
    assert len(said) == 1 and f"cached tokens in {place} are damaged (" in said[0] and name in said[0]
    assert obtain(tmp_path, "key", make)[1] and names(tmp_path) == ["key", "key.using"]


CHILD = """
import sys, time
from pathlib import Path
from fastchat.data.tokens.cache import obtain
from tests.data.test_token_cache import Maker
make = Maker()
def slow(folder):
    print("making", flush=True)
    time.sleep(float(sys.argv[2]))
    return make(folder)
print(obtain(Path(sys.argv[1]), "key", slow)[1], flush=True)
sys.stdin.readline()
"""


def child(folder: Path, seconds: float, repository: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(seconds)],
        cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_second_run_waits_and_a_killed_one_leaves_nothing_in_the_way(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = child(tmp_path, 3, repository)
    assert first.stdout and first.stdout.readline() == "making\n"
    make = Maker()
    entry, there = obtain(tmp_path, "key", make)
    assert there and make.calls == 0 and len(entry.store()) == 3
    assert "another run is tokenising the same data: waiting" in capsys.readouterr().err
    assert first.stdout.readline() == "False\n"
    first.communicate("end\n")

    killed = child(tmp_path / "other", 600, repository)
    assert killed.stdout and killed.stdout.readline() == "making\n"
    killed.kill()
    killed.communicate()
    assert any(name.startswith(".key.") for name in names(tmp_path / "other"))
    assert not obtain(tmp_path / "other", "key", make)[1] and make.calls == 1
    assert names(tmp_path / "other") == ["key", "key.using"]


@pytest.mark.slow
def test_what_another_run_uses_is_not_removed(tmp_path: Path, repository: Path) -> None:
    user = child(tmp_path, 0, repository)
    assert user.stdout and [user.stdout.readline() for _ in range(2)] == ["making\n", "False\n"]
    os.utime(tmp_path / "key", (1, 1))
    evict(tmp_path)
    assert "key" in names(tmp_path)
    user.communicate("end\n")
    evict(tmp_path)
    assert names(tmp_path) == []


def test_threads_of_one_program_make_it_once(tmp_path: Path) -> None:
    make, found = Maker(), []
    threads = [threading.Thread(target=lambda: found.append(obtain(tmp_path, "key", make)[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False, True, True, True] and make.calls == 1


# --- bounded


def test_what_is_old_goes_and_beyond_the_limit_what_was_used_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("ancient", "third", "second", "first"):
        obtain(tmp_path, key, Maker())
    now = time.time()
    for key, days in (("ancient", 31), ("third", 3), ("second", 2), ("first", 1)):
        os.utime(tmp_path / key, (now - days * 86400,) * 2)
    forget()
    obtain(tmp_path, "third", Maker())  # a use counts as new
    forget()
    obtain(tmp_path, "new", Maker())
    assert f"token cache: {tmp_path}/ancient removed (0 MiB, unused for 30 days)" in capsys.readouterr().err
    assert {"first", "second", "third", "new"} <= set(names(tmp_path)) and "ancient.using" not in names(tmp_path)
    forget()
    size = sum(path.stat().st_size for path in (tmp_path / "new").iterdir())
    monkeypatch.setattr(token_cache, "MAX_BYTES", 3 * size)
    obtain(tmp_path, "newest", Maker())
    said = capsys.readouterr().err
    assert f"{tmp_path}/second removed" in said and f"{tmp_path}/first removed" in said and "is larger than" in said
    assert [name for name in names(tmp_path) if "." not in name] == ["new", "newest", "third"]


def test_trouble_in_clearing_up_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("another run was faster")

    make = Maker()
    monkeypatch.setattr(token_cache, "evict", gone)
    entry, _ = obtain(tmp_path, "key", make)
    assert entry.folder == tmp_path / "key" and make.calls == 1


# --- where it cannot be


def test_a_folder_that_takes_nothing_is_replaced_by_a_temporary_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    entry, there = obtain(tmp_path / "file", "key", Maker())
    assert entry.temporary and not there and len(entry.store()) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"the token cache {tmp_path}/file cannot be used (" in said
    assert "tokenising for this run only" in said


@pytest.mark.parametrize("also_temporary", [False, True])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also_temporary: bool) -> None:
    make, scratch = Maker(), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(token_cache.tempfile, "tempdir", str(scratch))

    def full(folder: Path) -> dict[str, Any]:
        about = make(folder)
        if also_temporary or make.calls == 1:
            raise OSError(28, "No space left on device")
        return about

    if also_temporary:
        with pytest.raises(ResourceError, match="no space for the tokens in .*scratch either .*FSCHAT_CACHE"):
            obtain(tmp_path / "cache", "key", full)
        assert names(scratch) == []
    else:
        assert obtain(tmp_path / "cache", "key", full)[0].temporary
    assert names(tmp_path / "cache") == ["key.using"]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Path) -> None:
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "x"))
    assert cache_folder("out") == tmp_path / "x"
    for inside in (repository / "cache", tmp_path / "out" / "deep", tmp_path / "out"):
        monkeypatch.setenv("FSCHAT_CACHE", str(inside))
        with pytest.raises(SettingsError, match=f"FSCHAT_CACHE={inside} is in .*: choose a folder elsewhere"):
            cache_folder(str(tmp_path / "out"))
    monkeypatch.delenv("FSCHAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fschat" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "fschat" / "tokens"


# --- sums of files


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file whose bytes are read."""
    read: list[str] = []
    real = sha256_of

    def noted(path: str) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(fingerprint, "sha256_of", noted)
    return read


@pytest.mark.parametrize(
    "change", ["nothing", "same size and old times", "longer", "replaced", "touched", "note damaged", "note of another"]
)
def test_a_sum_is_known_as_long_as_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str], change: str
) -> None:
    monkeypatch.setattr(fingerprint, "_TOO_FRESH_S", 0.0)
    path, sums = tmp_path / "a", KnownSums(tmp_path / "sums")
    path.write_bytes(b"content")
    time.sleep(0.02)  # the system's clock for files ticks every few milliseconds
    before = path.stat()
    assert sums(str(path)) == sums(str(path)) == sha256_of(str(path)) and len(reads) == 1
    changes: dict[str, Callable[[], Any]] = {
        "same size and old times": lambda: (path.write_bytes(b"CONTENT"), os.utime(path, ns=(1, before.st_mtime_ns))),
        "longer": lambda: path.write_bytes(b"content!"),
        "replaced": lambda: ((tmp_path / "b").write_bytes(b"CONTENT"), os.replace(tmp_path / "b", path)),
        "touched": path.touch,
        "note damaged": lambda: next((tmp_path / "sums").iterdir()).write_text('{"state": '),
        "note of another": lambda: next((tmp_path / "sums").iterdir()).write_text('{"state": [], "sha256": "x"}'),
    }
    changes.get(change, lambda: None)()
    assert sums(str(path)) == sha256_of(str(path)) and len(reads) == (1 if change == "nothing" else 2)


def test_a_file_that_has_just_been_written_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    path, sums = tmp_path / "a", KnownSums(tmp_path / "sums")
    path.write_bytes(b"content")
    assert sums(str(path)) == sums(str(path)) and len(reads) == 2


def test_sums_that_cannot_be_kept_are_made_each_time(tmp_path: Path, monkeypatch: Any, reads: list[str]) -> None:
    monkeypatch.setattr(fingerprint, "_TOO_FRESH_S", -1.0)
    path = tmp_path / "a"
    path.write_bytes(b"content")
    sums = KnownSums(path / "no-folder")
    assert sums(str(path)) == sums(str(path)) and len(reads) == 2
