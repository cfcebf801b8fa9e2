"""What --data_path may name, and what is said where nothing is there. A real server stands for the hub."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastchat.data.rows.records import load_dialogues
from fastchat.data.rows.sources import Source, check_source, find_sources
from fastchat.errors import DataError

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FLAG = "--data_path"


def write(folder: Path, *names: str, rows: int = 1) -> list[str]:
    paths = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW] * rows), path)
        else:
            path.write_text((json.dumps(ROW) + "\n") * rows, encoding="utf-8")
        paths.append(str(path))
    return paths


def find(*names: str, **more: Any) -> list[Source]:
    return find_sources(FLAG, names, **more)


# --- on disk


def test_a_file_is_itself_and_is_read_in_the_order_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b, a = write(tmp_path, "b.json", "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert find("b.json", "a.jsonl") == [Source("b.json", (b,)), Source("a.jsonl", (a,))]


def test_a_pattern_is_sorted_and_reaches_into_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write(tmp_path, "b.jsonl", "a.jsonl", "deep/c.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert find(f"{tmp_path}/*.jsonl")[0].files == (paths[1], paths[0])
    assert f"folders skipped: {tmp_path}/folder.jsonl" in capsys.readouterr().err
    assert find(f"{tmp_path}/**/?.jsonl")[0].files == (paths[1], paths[0], paths[2])


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    for call in (lambda name: find(name), lambda name: check_source(FLAG, name)):
        with pytest.raises(DataError, match=r"--data_path .*\*.jsonl: the pattern matches no file"):
            call(f"{tmp_path}/*.jsonl")


def test_a_folder_gives_all_its_data_files_and_names_the_rest_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = write(tmp_path, "a.parquet", "b.json", "c.jsonl.gz", "z.jsonl")
    write(tmp_path, "README.md", ".hidden", "sub/x.json")
    assert find(str(tmp_path))[0].files == tuple(wanted)
    said = capsys.readouterr().err
    assert said == f"--data_path {tmp_path}: 4 files; left out: .hidden, README.md, sub\n"


def test_a_folder_without_data_says_what_is_in_it(tmp_path: Path) -> None:
    write(tmp_path, "x.csv", "sub/x.json")
    with pytest.raises(DataError, match=r"has no data file \(.json, .jsonl, .*\); it contains: sub, x.csv"):
        find(str(tmp_path))


def test_nothing_there_names_what_is_near(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    with pytest.raises(DataError, match=r"train.json: no such file. In the same folder: train.jsonl\..*OWNER/NAME"):
        find(f"{tmp_path}/train.json")


def test_what_is_on_disk_wins_over_pattern_and_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd, inside = write(tmp_path, "a[1].jsonl", "me/ds/x.json")
    write(tmp_path, "a1.jsonl")
    assert [source.files for source in find("a[1].jsonl", "me/ds")] == [(odd,), (inside,)]


def test_files_named_twice_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = write(tmp_path, "a.jsonl")
    found = find(path, f"{tmp_path}/*")
    assert [source.files for source in found] == [(path,), (path,)]
    assert f"{path} given more than once" in capsys.readouterr().err


# --- the hub


class Hub:
    """A server on this machine that answers as the hub does: one dataset, `me/ds`, whose files lie in `folder`."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, list[str]()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                status, headers, body = hub.answer(self.path.split("?")[0], self.headers.get("authorization"))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, login: str | None) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        if path.startswith("/api/datasets/me/gated"):
            return 403 if login else 401, {"X-Error-Code": "GatedRepo"}, b"{}"
        if path.startswith("/api/datasets/me/broken"):
            return 503, {}, b"{}"
        if "me/ds" not in path:
            return 401 if not login else 404, {"X-Error-Code": "RepoNotFound"} if login else {}, b"{}"
        names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        if parts[:4] == ["api", "datasets", "me", "ds"] and "tree" in parts:
            sizes = {name: (self.folder / name).stat().st_size for name in names}
            tree = [{"type": "file", "path": n, "size": s, "oid": f"{n}-{s}"} for n, s in sizes.items()]
            return 200, {}, json.dumps(tree).encode()
        if parts[:4] == ["api", "datasets", "me", "ds"]:
            if parts[-1] not in ("ds", "main", COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            info = {"id": "me/ds", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return 200, {}, json.dumps({**info, "private": False, "tags": [], "downloads": 0, "likes": 0}).encode()
        name = "/".join(parts[5:])
        body = (self.folder / name).read_bytes()
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{name}-{len(body)}"'.replace("/", "-")}, body


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub's library asks this one, and keeps what it loads in a folder of the test."""
    import huggingface_hub.constants as constants

    folder = tmp_path / "served"
    folder.mkdir()
    hub = Hub(folder)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_a_split_is_downloaded_and_read_like_any_files(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    write(hub.folder, "data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", rows=2)
    write(hub.folder, "data/test-00000-of-00001.parquet", "README.md")
    (source,) = find("me/ds")
    assert (source.name, source.revision) == ("me/ds", COMMIT)
    assert [Path(file).name for file in source.files] == [f"train-0000{i}-of-00002.parquet" for i in (0, 1)]
    assert len(load_dialogues(source.files).records) == 4
    assert f"me/ds: split train of the hub dataset at commit {COMMIT[:12]}, 2 files" in capsys.readouterr().err
    assert not any("test-0000" in line for line in hub.asked), "only what is read is downloaded"
    (test,) = find("me/ds", split="test")
    assert [Path(file).name for file in test.files] == ["test-00000-of-00001.parquet"]


def test_the_dataset_card_says_which_files_make_up_a_split(hub: Hub) -> None:
    write(hub.folder, "a.jsonl", "b.jsonl")
    files = "- split: train\n    path: b.jsonl\n  - split: held_out\n    path: a.jsonl\n"
    (hub.folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n  {files}---\n")
    assert [Path(source.files[0]).name for source in find("me/ds", split="held_out")] == ["a.jsonl"]
    with pytest.raises(DataError, match="me/ds: the dataset has no split 'test'; it has held_out, train"):
        find("me/ds", split="test")


def test_a_dataset_with_several_configurations_lists_them(hub: Hub) -> None:
    write(hub.folder, "a.jsonl", "b.jsonl")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in "ab")
    (hub.folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(DataError, match=r"me/ds: .*available configs: \['a', 'b'\].*pass their paths"):
        find("me/ds")


def test_files_that_are_no_conversations_are_named(hub: Hub) -> None:
    write(hub.folder, "train.csv")
    with pytest.raises(DataError, match=r"me/ds: its file train.csv is neither JSON nor parquet"):
        find("me/ds")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/gated", "this dataset is gated: .*/datasets/me/gated, then log in"),
        (
            "me/missing",
            "no such file or folder here, and no dataset of this name on the hub. If it is private, run `hf auth",
        ),
        ("me/broken", r"no such file or folder here; the hub does not respond \(.*503.*dataset is not in the cache"),
    ],
)
@pytest.mark.parametrize("login", [None, "a-secret-token"])
def test_what_the_hub_refuses(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str, message: str, login: str | None
) -> None:
    if login:
        monkeypatch.setenv("HF_TOKEN", login)
    check_source(FLAG, name)  # nothing to tell before the hub is asked
    with pytest.raises(DataError, match=f"--data_path {name}: .*{message}") as refused:
        find(name)
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_revision(hub: Hub) -> None:
    write(hub.folder, "train.jsonl")
    assert find("me/ds", revision=COMMIT)[0].revision == COMMIT
    with pytest.raises(DataError, match=r"me/ds: the dataset has no revision 'v9' \(--data_revision\)"):
        find("me/ds", revision="v9")


def test_offline_what_is_in_the_cache_is_used(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub.constants as constants

    write(hub.folder, "train.jsonl", "test.jsonl", "README.md")
    online = find("me/ds")
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find("me/ds") == online and len(hub.asked) == asked
    with pytest.raises(
        DataError, match="HF_HUB_OFFLINE is set, and the dataset is not in the cache.*`hf download me/other"
    ):
        find("me/other")
    with pytest.raises(DataError, match="me/ds: .*has no split 'test'|HF_HUB_OFFLINE is set"):
        find("me/ds", split="test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.server.shutdown()
    hub.server.server_close()
    capsys.readouterr()
    assert find("me/ds") == online
    assert "the hub does not respond" in (said := capsys.readouterr().err) and f"copy of {COMMIT[:12]}" in said


def test_a_cached_split_with_a_shard_missing_is_not_used(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants as constants

    snapshot = tmp_path / "hub" / "datasets--me--ds" / "snapshots" / COMMIT
    write(snapshot, "data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet")
    (tmp_path / "hub" / "datasets--me--ds" / "refs").mkdir()
    (tmp_path / "hub" / "datasets--me--ds" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"the cached dataset lacks data/train-00001-of-00003.parquet. With network access"
    ):
        find("me/ds")
    write(snapshot, "data/train-00001-of-00003.parquet")
    assert len(find("me/ds")[0].files) == 3


def test_a_repository_cannot_name_files_outside_itself(hub: Hub) -> None:
    hub.answer = lambda path, login: (  # type: ignore[method-assign]
        200,
        {},
        json.dumps({"id": "me/ds", "sha": COMMIT, "siblings": [{"rfilename": "../../evil.jsonl"}]}).encode(),
    )
    with pytest.raises(DataError, match="lists a file outside its own folder"):
        find("me/ds")
    assert not os.path.exists("/tmp/evil.jsonl")


def test_an_address_is_no_pattern():
    for name in ("https://host/a.jsonl?x=1", "s3://bucket/a.parquet"):
        with pytest.raises(DataError, match="is a URL; download the file"):
            check_source("--data_path", name)
