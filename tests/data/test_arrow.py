"""Arrow files in both forms, and the folders that `save_to_disk` writes: the same rows as from JSON, in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from fastchat.data.preview import main as preview
from fastchat.data.rows.reading import RowReader, read_rows
from fastchat.data.rows.records import Records
from fastchat.data.rows.sources import check_source, find_sources
from fastchat.errors import DataError

ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"q{i}", "weight": None},
            {"role": "assistant", "content": f"a{i}", "weight": i % 2},
        ],
        "images": None,
        "site": "web",
        "id": f"r{i}",
    }
    for i in range(600)
]


def write(path: Path, form: str, rows: list[dict[str, Any]] = ROWS, **options: Any) -> str:
    table = pyarrow.Table.from_pylist(rows)
    make = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
    with (
        pyarrow.OSFile(str(path), "wb") as file,
        make(file, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as out,
    ):
        out.write_table(table, max_chunksize=500)
    return str(path)


def answers(path: str) -> list[tuple[int, str, bool]]:
    made = [(r.line, r.dialogue.turns[1].text, r.dialogue.turns[1].train) for r in Records([path]) if r.dialogue]
    return made


@pytest.mark.parametrize("form", ["stream", "file"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_both_forms(tmp_path: Path, form: str, compression: str | None) -> None:
    path = write(tmp_path / "a.arrow", form, compression=compression)
    assert answers(path) == [(i + 1, f"a{i}", i % 2 == 1) for i in range(600)]
    records = Records([path])
    assert [r.id for r in records] == [f"r{i}" for i in range(600)]
    assert records.lines == ["keys of rows that are not read: 'site' (600 rows)"]
    shares = [reader.share for reader in [RowReader(path)] for _ in reader]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1
    assert next(read_rows(path, whole=True)).value == _bare(ROWS[0])


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    return [_bare(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("form", ["stream", "file"])
def test_a_file_cut_off_anywhere_never_passes(tmp_path: Path, form: str) -> None:
    path = Path(write(tmp_path / "a.arrow", form))
    content = path.read_bytes()
    batch = pyarrow.ipc.open_stream(content).schema.serialize().size if form == "stream" else 8  # ends of messages
    for size in (7, 9, batch, len(content) // 2, len(content) - 9, len(content) - 8, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"a.arrow: cannot be read as Arrow \(.+\); copy it or save it again"):
            list(read_rows(str(path)))


def test_damaged_offsets_are_an_error_and_no_crash(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.arrow", "stream"))
    content = bytearray(path.read_bytes())
    place = content.index((2).to_bytes(4, "little") + (4).to_bytes(4, "little"))  # offsets of the list of turns
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.arrow: cannot be read as Arrow"):
        list(read_rows(str(path)))


def saved(folder: Path, num_files: int = 2, **state: Any) -> Path:
    """What `save_to_disk` writes, without `datasets`."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{num_files:05d}.arrow" for i in range(num_files)]
    size = len(ROWS) // num_files
    for i, name in enumerate(names):
        write(folder / name, "stream", ROWS[i * size : (i + 1) * size])
    values = {"_data_files": [{"filename": name} for name in names], "_split": "train", **state}
    (folder / "state.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "dataset_info.json").write_text("{}", encoding="utf-8")
    return folder


def test_a_saved_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "set")
    (source,) = find_sources("--data_path", [str(folder)], split="anything")
    assert [Path(file).name[:10] for file in source.files] == ["data-00000", "data-00001"]
    assert capsys.readouterr().err.strip() == f"--data_path {folder}: a saved dataset, 2 files"
    assert [r.id for r in Records(source.files)] == [f"r{i}" for i in range(600)]


def test_the_order_of_the_files_is_that_of_the_state(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set")
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (source,) = find_sources("--data_path", [str(folder)])
    assert [r.id for r in Records(source.files)][0] == "r300"


def test_a_saved_data_set_with_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        saved(tmp_path / "both" / split, 1)
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    for split in ("train", "test"):
        (source,) = find_sources("--data_path", [str(tmp_path / "both")], split=split)
        assert source.files == (str(tmp_path / "both" / split / "data-00000-of-00001.arrow"),)
        assert f"split {split} of a saved dataset, 1 file" in capsys.readouterr().err
    with pytest.raises(
        DataError, match="no split 'tset' in it; its splits are train, test; choose one: --eval_data_split test"
    ):
        check_source("--eval_data_path", str(tmp_path / "both"), "tset")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_data_files": [{"filename": "../../etc/passwd"}]}, "which is not in its folder"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow: no such file, although state.json lists it"),
        ({"_data_files": []}, "the saved dataset has no rows"),
        ({"_data_files": None}, "it lists no data files"),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "flatten_indices"),
    ],
)
def test_states_that_cannot_be_followed(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = saved(tmp_path / "set", **change)
    with pytest.raises(DataError, match=reason):
        check_source("--data_path", str(folder))
    (folder / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="state.json: cannot be read"):
        check_source("--data_path", str(folder))


def test_what_datasets_itself_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    made.filter(lambda row: row["id"] != "r1", load_from_cache_file=False).save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(train=made, test=made.select(range(3))).save_to_disk(tmp_path / "both")
    (one,) = find_sources("--data_path", [str(tmp_path / "one")])
    assert [r.id for r in Records(one.files)] == [f"r{i}" for i in range(600) if i != 1]
    (test,) = find_sources("--data_path", [str(tmp_path / "both")], split="test")
    assert [r.id for r in Records(test.files)] == ["r0", "r1", "r2"]


def test_the_preview_reads_a_split(tmp_path: Path, tokenizer_dir: Any, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "both" / "dev", 1)
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["dev"]}', encoding="utf-8")
    words = ["--model_name_or_path", str(tokenizer_dir("metaspace_bos")), "--conv_template", "vicuna_v1.1"]
    words += ["--data_path", str(tmp_path / "both"), "--num", "0"]
    assert preview([*words, "--data_split", "dev"]) == 0
    out, err = capsys.readouterr()
    assert (
        "300 answers learned" in out
        and "300 dropped (300 without an answer to learn)" in out
        and "'site' (600 rows)" in err
    )
    assert preview(words) == 3
    assert "there is no split 'train' in it; its splits are dev" in capsys.readouterr().err


def _bad_text(*texts: bytes) -> Any:
    return pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())


@pytest.mark.parametrize("form", ["stream", "file"])
def test_text_that_is_not_utf8_is_one_bad_row(tmp_path: Path, form: str) -> None:
    """In a plain column, in a dictionary, and inside a list of structs."""
    asked = pyarrow.array(["q"] * 3)
    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1, 0]), _bad_text(b"good", b"b\xff"))
    roles = pyarrow.array(["user", "assistant"] * 3)
    texts = _bad_text(b"q", b"a", b"q", b"b\xff", b"q", b"a")
    said = pyarrow.StructArray.from_arrays([roles, texts], ["role", "content"])
    tables = (
        pyarrow.table({"instruction": asked, "output": _bad_text(b"good", b"b\xff", b"fine")}),
        pyarrow.table({"instruction": asked, "output": words}),
        pyarrow.table({"messages": pyarrow.ListArray.from_arrays([0, 2, 4, 6], said)}),
    )
    for table in tables:
        path = str(tmp_path / "a.arrow")
        make = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
        with pyarrow.OSFile(path, "wb") as file, make(file, table.schema) as out:
            out.write_table(table)
        problems = [(row.line, str(row.problem)) for row in read_rows(path) if row.problem]
        assert problems == [(2, "invalid UTF-8: byte 0xff")]


def test_saved_data_sets_without_rows_or_with_other_splits(tmp_path: Path) -> None:
    empty, splits = tmp_path / "empty", tmp_path / "splits"
    for folder in (empty, splits):
        folder.mkdir()
    (empty / "state.json").write_text(json.dumps({"_data_files": []}), encoding="utf-8")
    with pytest.raises(DataError, match="empty: the saved dataset has no rows"):
        check_source("--data_path", str(empty))
    (splits / "dataset_dict.json").write_text(json.dumps({"splits": ["train_sft", "test_sft"]}), encoding="utf-8")
    with pytest.raises(DataError, match="are train_sft, test_sft; choose one: --data_split train_sft$"):
        check_source("--data_path", str(splits))
    with pytest.raises(DataError, match="choose one: --eval_data_split test_sft$"):
        check_source("--eval_data_path", str(splits), "test")
