"""Rows without end, files that unfold to more than the memory, and paths that are no files: bounded or refused."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fastchat.conversation.files import load_template_file
from fastchat.data.rows import reading, row_size, tables
from fastchat.data.rows.fingerprint import sha256_of
from fastchat.data.rows.reading import read_rows
from fastchat.data.rows.records import Records
from fastchat.data.rows.sources import check_source, find_sources
from fastchat.errors import DataError, SettingsError
from fastchat.security import check_references, load_yaml
from fastchat.settings.recipe_files import find_deepspeed_config, find_recipe

LIMIT = 1 << 20  # in these tests


def row(text: str) -> str:
    return json.dumps({"instruction": "q", "output": text})


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reading, tables, row_size):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", LIMIT)
    monkeypatch.setattr(reading, "_BLOCK", 1 << 12)
    monkeypatch.setattr(reading, "_FIRST", 1 << 10)


def seen(path: Path) -> list[tuple[int, str]]:
    return [(r.line, str(r.problem) if r.problem else r.value["output"][:5]) for r in read_rows(str(path))]  # type: ignore[index]


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_line_that_is_too_large_is_a_bad_row(tmp_path: Path, zipped: bool, place: int) -> None:
    lines = [row("a"), row("b"), row("c")]
    lines.insert(place, row("x" * 3 * LIMIT))
    content = ("\n".join(lines) + "\n").encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(content) if zipped else content)
    found = seen(path)
    assert [line for line, _ in found] == [1, 2, 3, 4] and found[place][1].startswith(
        "row too large: 3.0 MiB; a row may"
    )
    assert [text for _, text in found if len(text) == 1] == ["a", "b", "c"]
    with pytest.raises(DataError, match=rf"a.jsonl:{place + 1}: row too large: 3.0 MiB"):
        list(Records([str(path)]))
    assert len(list(Records([str(path)], on_bad_row="skip"))) == 4


@pytest.mark.usefixtures("small_limit")
def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    fill = "y" * (LIMIT - len(row("")))
    path.write_text(f"{row(fill)}\n{row(fill)}z\n{row('b')}", encoding="utf-8")
    first, second, third = read_rows(str(path))
    assert first.problem is None and third.problem is None
    assert second.problem is not None and second.problem.reason in ("row too large", "broken JSON")


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize(
    "content",
    [
        f"[{row('a')}, {row('x' * 4 * LIMIT)}, {row('b')}]",
        f"[\n{row('a')},\n{row('x' * 4 * LIMIT)}]",
        f"[{row('a')}, {' ' * 4 * LIMIT}]",
        f"[{row('a')}, " + '{"instruction": "' + "q" * 4 * LIMIT,
        "[" + "\n" * 4 * LIMIT,
        "[" + "1, " * 2 * LIMIT,
        '["' + "1" * 4 * LIMIT,
    ],
)
def test_an_array_without_end_is_refused_with_the_way_out(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(DataError, match=r"a.json.gz:?.*MiB"):
        list(read_rows(str(path)))


@pytest.mark.usefixtures("small_limit")
def test_a_broken_element_of_a_large_array_is_one_bad_row(tmp_path: Path) -> None:
    rows = [row(f"{i:03d}" + "x" * 10_000) for i in range(500)]
    rows[3] = rows[3].replace(":", ";", 1)
    path = tmp_path / "a.json"
    path.write_text("[" + ",\n".join(rows) + "]", encoding="utf-8")
    found = seen(path)
    assert len(found) == 500 and found[3][1].startswith("broken JSON") and found[499][1] == "499xx"
    assert sum(len(text) > 5 for _, text in found) == 1


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_row_of_a_table_that_is_too_large_is_a_bad_row(tmp_path: Path, dictionary: bool) -> None:
    texts = ["a", "b", "x" * 2 * LIMIT, "c"]
    table = pyarrow.table({"instruction": ["q"] * 4, "output": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=dictionary, compression="zstd")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        found = seen(tmp_path / name)
        assert [line for line, _ in found] == [1, 2, 3, 4] and found[2][1].startswith("row too large: 2.0 MiB")


def test_the_limit_holds_in_memory(tmp_path: Path) -> None:
    """Half a gigabyte in one row of a small file, in a process that may have little more than Python and pyarrow."""
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"instruction": "q", "output": "')
        for _ in range(512):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + row("b").encode() + b"\n")
    code = (
        "import resource, sys; from fastchat.data.rows.reading import read_rows\n"
        "rows = read_rows(sys.argv[1]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(*[(r.line, r.problem and r.problem.reason) for r in rows])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    rows, grown = done.stdout.splitlines()
    assert rows == "(1, 'row too large') (2, None)"
    assert int(grown) < 256 * 1024  # KiB


# --- no files


@pytest.fixture(params=["pipe", "socket", "device", "link"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "x.json"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "link":
        path.symlink_to("/dev/zero")
    elif request.param == "device":
        path = Path("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as made:
            here = os.open(tmp_path, os.O_RDONLY)
            made.bind(f"/proc/self/fd/{here}/x.json")  # a path of a socket is short
            os.close(here)
            yield path
        return
    yield path


READERS: list[Callable[[str], Any]] = [
    lambda path: check_source("--data_path", path),
    lambda path: find_sources("--data_path", [path]),
    lambda path: list(read_rows(path)),
    sha256_of,
    lambda path: load_yaml(path, "recipe"),
    load_template_file,
    find_recipe,
    find_deepspeed_config,
]


@pytest.mark.parametrize("reader", range(len(READERS)))
def test_what_is_no_file_is_refused_at_once(special: Path, reader: int) -> None:
    with pytest.raises((DataError, SettingsError), match="is a (pipe|socket|character device)") as refused:
        READERS[reader](str(special))
    assert "\n" not in str(refused.value) and str(special) in str(refused.value)


def test_a_model_folder_with_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    check_references(tmp_path)
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(SettingsError, match="tokenizer.json is a pipe"):
        check_references(tmp_path)


def test_a_folder_and_zeros_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; pass the file in it"):
        list(read_rows(str(tmp_path)))
    for content in (b"\0" * 100, row("a").encode("utf-16-le"), row("a").encode("utf-16-be")):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DataError, match="begins with a NUL byte"):
            list(read_rows(str(tmp_path / "a.json")))
