"""Files are read in pieces: what comes out is what reading them whole gave, and memory does not grow with them."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fastchat.data.rows import reading
from fastchat.data.rows.reading import Row, RowReader, read_rows
from fastchat.data.rows.records import Records, load_dialogues
from fastchat.errors import DataError
from tests.data.test_loading import BAD_LINES, named, write


def seen(rows: list[Row]) -> list[Any]:
    return [(row.line, row.value, row.problem and str(row.problem)) for row in rows]


def broken_arrays() -> list[bytes]:
    """Arrays of good and bad elements, indented in different ways; and the same with a byte changed at random."""
    good = [named("a").encode(), named("é 你好 \u2028").encode(), json.dumps(json.loads(named("c")), indent=2).encode()]
    arrays = []
    for bad in [b.encode() if isinstance(b, str) else b for key, (b, _) in BAD_LINES.items() if key != "deep"]:
        arrays += [
            b"[" + b",\n".join([*good, bad, *good]) + b"]\n",
            b"\xef\xbb\xbf [\n" + bad + b"\n,\n" + good[1] + b"]",
        ]
    rng = random.Random(0)
    for content in [b"[" + b", ".join(good * 2) + b"]", b"[\n  " + b",\n\n  ".join(good) + b"\n]\n"] * 40:
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] = rng.choice(b'{}[],:"\\ \n\xff0a')
        arrays.append(bytes(changed))
    return arrays


@pytest.mark.parametrize("block", [1, 7, 64])
def test_pieces_do_not_change_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    for number, content in enumerate(broken_arrays()):
        path = write(tmp_path / f"{number}.json", content)
        try:
            whole = seen(list(read_rows(path)))
        except DataError as error:
            whole = [str(error)]
        with monkeypatch.context() as patch:
            patch.setattr(reading, "_BLOCK", block)
            patch.setattr(reading, "_FIRST", max(block, 8))
            try:
                pieces = seen(list(read_rows(path)))
            except DataError as error:
                pieces = [str(error)]
        assert pieces == whole, content


@pytest.mark.parametrize("form", ["array in one line", "array", "lines"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(reading, "_BLOCK", 1 << 14)
    peaks = []
    for number in (1000, 8000):
        rows = [named(f"answer {i} " * 5) for i in range(number)]
        text = {"array in one line": f"[{', '.join(rows)}]", "array": "[\n" + ",\n".join(rows) + "\n]"}
        path = write(tmp_path / f"{number}.json", text.get(form, "\n".join(rows)))
        tracemalloc.start()
        assert sum(1 for _ in read_rows(path)) == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 50_000 < 400_000, peaks  # the second file has 1.7 MB


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_how_far_reading_has_come(tmp_path: Path, name: str) -> None:
    import gzip

    # Of random digits: what gzip makes of them is larger than what it reads ahead (128 KiB since Python 3.12).
    digits = random.Random(0)
    rows = [json.loads(named(f"{i} {digits.getrandbits(2000)}")) for i in range(3000)]
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        text = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
        write(tmp_path / name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    reader = RowReader(str(tmp_path / name))
    assert reader.share == 0
    shares = [reader.share for _ in reader]
    assert shares == sorted(shares) and 0 <= shares[0] < 0.5 and shares[-1] == reader.share == 1
    records = Records([str(tmp_path / name)] * 2)
    read = [records.bytes_read for _ in records]
    assert read == sorted(read) and records.bytes_read == records.num_bytes > 1000


# --- parquet


def parquet(path: Path, rows: list[dict[str, Any]], **more: Any) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, **more), path)
    return str(path)


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
FORMS: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {"id": "a", "messages": [*TURNS, {"role": "assistant", "content": "Yo 你好"}]},
        {"id": "b", "messages": []},
        {
            "id": None,
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "train": False}],
        },
    ],
    "conversations": [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "score": 1.5}
    ],
    "items": [{"items": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "S"}],
    "alpaca": [
        {"instruction": "Add", "input": "1 2", "output": "3", "history": [["q", "a"]]},
        {"instruction": "Add", "input": None, "output": "3", "history": None},
    ],
    "two shapes in one file": [
        {
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}],
            "instruction": None,
            "output": None,
        },
        {"messages": None, "instruction": "Say", "output": "this"},
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_parquet_gives_the_dialogues_of_the_same_json(tmp_path: Path, form: str) -> None:
    rows = FORMS[form]
    without_nulls = [{key: value for key, value in row.items() if value is not None} for row in rows]
    lines = load_dialogues([write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, without_nulls)))]).records
    table = load_dialogues([parquet(tmp_path / "a.anything", rows)]).records
    assert [(r.index, r.line, r.id, r.dropped) for r in table] == [(r.index, r.line, r.id, r.dropped) for r in lines]
    for ours, theirs in zip(table, lines, strict=True):
        if theirs.dialogue is not None:
            assert ours.dialogue and (ours.dialogue.turns, ours.dialogue.system) == (
                theirs.dialogue.turns,
                theirs.dialogue.system,
            )


def test_bad_rows_of_parquet_have_the_number_of_the_row(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    alien = {"messages": [{"role": "alien", "content": "Hi"}]}
    nul = {"messages": [{"role": "user", "content": "a\0b"}, {"role": "assistant", "content": "Yo"}]}
    path = parquet(tmp_path / "a.parquet", [good] * 299 + [alien, good, nul])
    with pytest.raises(DataError) as stop:
        load_dialogues([path])
    assert f"{path}:300: unknown role: turn 1 is from 'alien'" in str(stop.value)
    assert f"{path}:302: NUL character" in str(stop.value) and "2 of 302 rows cannot be read" in str(stop.value)


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    texts = pyarrow.array([b"fine", b"Z\xfcrich", b"fine"]).cast(pyarrow.binary())
    broken = pyarrow.StringArray.from_buffers(3, *texts.buffers()[1:])
    table = pyarrow.table({"instruction": broken, "output": pyarrow.array(["a", "b", "c"])})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = list(read_rows(str(tmp_path / "a.parquet")))
    assert [(row.line, str(row.problem or "")) for row in rows] == [(1, ""), (2, "invalid UTF-8: byte 0xfc"), (3, "")]


def test_columns_that_say_nothing_are_not_read_and_unknown_ones_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"instruction": "a", "output": "b", "embedding": [1.0] * 8, "id": 7}])
    (row,) = read_rows(path)
    assert row.value == {"instruction": "a", "output": "b", "id": 7}
    other = parquet(tmp_path / "b.parquet", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(DataError, match=r"b.parquet:1: missing key: .*'completion'; keys there: 'prompt', 'answer'"):
        load_dialogues([other])


def test_damaged_and_empty_parquet(tmp_path: Path) -> None:
    path = Path(parquet(tmp_path / "a.parquet", [{"instruction": "a" * 999, "output": "b"}] * 500))
    content = path.read_bytes()
    for damaged in (content[:-9], content[: len(content) // 2], b"PAR1rest"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a.parquet: cannot be read as parquet \(.+\); copy or download it again"):
            list(read_rows(str(path)))
    empty = parquet(tmp_path / "e.parquet", [], schema=pyarrow.schema([("instruction", pyarrow.string())]))
    with pytest.raises(DataError, match="e.parquet: the file has no rows.$"):
        list(read_rows(empty))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x.csv", "CSV"), ("X.TSV", "tab-separated text"), ("x.txt", "plain text"), ("x.csv.gz", "CSV")],
)
@pytest.mark.parametrize("skip", ["stop", "skip"])
def test_a_table_is_named_once_and_never_skipped(tmp_path: Path, name: str, kind: str, skip: Any) -> None:
    content = b"\n\xef\xbb\xbfprompt,completion\nhi,yo\nhi,yo\n"
    path = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError) as error:
        load_dialogues([str(path)], on_bad_row=skip)
    said = str(error.value)
    assert f"{name}: is {kind}, not JSON" in said and "completion'" in said and "--on_bad_row" not in said


@pytest.mark.parametrize("name", ["x.csv", "x.txt", "x"])
def test_rows_in_a_file_of_any_name_are_read(tmp_path: Path, name: str) -> None:
    rows = list(read_rows(write(tmp_path / name, named("a") + "\n" + named("b") + "\n")))
    assert [row.problem for row in rows] == [None, None]


def test_broken_lines_in_a_json_file_are_listed_as_before(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 2 rows cannot be read"):
        load_dialogues([str(write(tmp_path / "x.jsonl", "hello\nworld\n"))])


@pytest.mark.parametrize(
    "begin", [b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh9", b"PK\3\4", b"FEA1", b"\x80\x04", b"x" * 257 + b"ustar"]
)
def test_other_kinds_of_files_are_named(tmp_path, begin):
    path = tmp_path / "a.jsonl"
    path.write_bytes(begin + b"\0rest\n" * 9)
    with pytest.raises(DataError, match=r"a\.jsonl: is .*(zstd|xz|bzip2|zip|Feather|pickle|tar)"):
        list(read_rows(str(path)))
