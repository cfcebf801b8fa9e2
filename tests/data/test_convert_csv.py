"""Tables of text become rows: what spreadsheets write is read, what is ambiguous is refused with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fastchat.data.convert_csv import main
from fastchat.data.rows.reading import read_rows
from fastchat.errors import DataError


def _convert(tmp_path: Path, content: bytes, *flags: str, name: str = "faq.csv") -> tuple[int, list[dict[str, str]]]:
    source, target = tmp_path / name, tmp_path / "rows.jsonl"
    source.write_bytes(content)
    code = main(["--in-file", str(source), "--out-file", str(target), *flags])
    return code, [json.loads(line) for line in target.read_text().splitlines()] if target.exists() else []


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cells_are_kept_as_they_are(mark: str, end: str, tmp_path: Path) -> None:
    cells = ['"a, b; c\td|e"', '"says ""hi""\nand more"']
    text = end.join([f"question{mark}answer", mark.join(cells), f"Hi{mark}", "", f"é{mark} Ja ", ""])
    code, rows = _convert(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert code == 0
    assert rows == [
        {"question": "a, b; c\td|e", "answer": 'says "hi"\nand more'},
        {"question": "Hi"},  # an empty cell is absent
        {"question": "é", "answer": " Ja "},
    ]


def test_a_zipped_table_of_known_columns_needs_no_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = gzip.compress(b"instruction,input,output\nAdd,1 and 2,3\nSay hi,,Hi\n")
    code, rows = _convert(tmp_path, content, name="a.csv.gz")
    assert code == 0 and rows[1] == {"instruction": "Say hi", "output": "Hi"}
    assert "--data_columns" not in capsys.readouterr().out


def test_the_mapping_of_other_columns_is_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _convert(tmp_path, b"Question,Answer\nHi,Ho\n")[0] == 0
    printed = capsys.readouterr().out
    assert """--data_columns '{"prompt": "Question", "completion": "Answer"}'""" in printed
    assert "columns: Question, Answer" in printed and "#in: 1, #out: 1" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question,answer\n1,2\n1,2,3\n4\n", "faq.csv:3: wrong number of cells: 3 instead of 2"),
        (b"a,b\n1,2\n\n3,4\n5\n", "faq.csv:5: wrong number of cells"),
        (b'a,b\n"1\n2",3\n4\n', "faq.csv:4: wrong number of cells"),
        (b'a,b\n1,"2"3\n', "faq.csv:2: the row that begins here cannot be read"),
        (b'a,b\n1,2\n3,"4\n', "faq.csv:3: the row that begins here cannot be read"),
        (b"a,a\n1,2\n", "the column 'a' is there twice"),
        (b"a,,b\n1,2,3\n", "a column has no name"),
        (b"just a text\nmore\n", "the names of the columns"),
        (b"", "the names of the columns"),
        (b"a,b\n", "no rows after the names"),
        ("a,b\né,2\n".encode("latin-1"), "is not UTF-8; save it as 'CSV UTF-8'"),
        ("a,b\n1,2\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _convert(tmp_path, content) == (3, [])
    assert message in capsys.readouterr().err


def test_bad_rows_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = _convert(tmp_path, b"prompt,completion\n1,2\n3\n", "--on-bad-row", "skip")
    said = capsys.readouterr()
    assert code == 0 and len(rows) == 1
    assert "skipped 1 of 2 rows" in said.err and "dropped: 1 (1 unreadable)" in said.out


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--in-file", str(tmp_path / "no.csv"), "--out-file", str(tmp_path / "rows.jsonl")]) == 3
    assert "no such file" in capsys.readouterr().err and not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("name", ["faq.csv", "faq.tsv.gz"])
def test_training_names_the_command(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content = b"question,answer\nHi,Ho\n"
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=f"fastchat data from-csv --in-file {path} --out-file rows.jsonl"):
        list(read_rows(str(path)))
