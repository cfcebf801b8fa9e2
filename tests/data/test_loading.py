"""Files to records: what is tolerated, what is named with file, line and reason; and one record for every row."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from fastchat.data.rows.fingerprint import combined, sha256_of
from fastchat.data.rows.reading import read_rows
from fastchat.data.rows.records import load_dialogues
from fastchat.errors import EXIT_DATA, DataError

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
LINE = json.dumps(GOOD)


def named(text: str, **more: object) -> str:
    """A good row whose answer is `text`."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]
    return json.dumps({"messages": turns, **more}, ensure_ascii=False)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def answers(path: str) -> list[tuple[int, str | None]]:
    """(line, answer or None) of every record, bad rows skipped."""
    records = load_dialogues([path], on_bad_row="skip").records
    return [(r.line, r.dialogue.turns[1].text if r.dialogue else None) for r in records]


def reasons(path: str) -> list[tuple[int, str]]:
    return [(row.line, row.problem.reason) for row in read_rows(path) if row.problem]


# --- what is tolerated


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.txt"])
@pytest.mark.parametrize(
    "content",
    [
        f"{named('a')}\n{named('b')}\n",
        f"{named('a')}\n{named('b')}",
        f"[{named('a')},{named('b')}]",
        f"[\n{named('a')},\n{named('b')}\n]\n",
        f"\ufeff{named('a')}\r\n\r\n   \t\r\n{named('b')}\r\n",
        f"\ufeff\r\n[\r\n{named('a')}\r\n,\r\n\r\n{named('b')} ]\r\n\r\n",
    ],
    ids=["lines", "lines-no-newline", "array", "array-lines", "lines-bom-crlf-blank", "array-bom-crlf-blank"],
)
def test_content_decides_not_the_name(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content)
    assert [text for _, text in answers(path)] == ["a", "b"]
    zipped = write(tmp_path / (name + ".gz"), gzip.compress(content.encode()))
    assert answers(zipped) == answers(path)
    assert answers(write(tmp_path / "no-ending", gzip.compress(content.encode()))) == answers(path)


def test_every_row_knows_its_line(tmp_path: Path) -> None:
    indented = json.dumps([json.loads(named("a")), json.loads(named("b"))], indent=2)
    starts = [n for n, line in enumerate(indented.split("\n"), 1) if line == "  {"]
    assert answers(write(tmp_path / "a.json", indented)) == list(zip(starts, "ab", strict=True))
    lines = f"\n\n{named('a')}\n\n{named('b')}\n{named('c')}\n"
    assert answers(write(tmp_path / "b.jsonl", lines)) == [(3, "a"), (5, "b"), (6, "c")]


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\u0085four\x1cfive\x0bsix"
    path = write(tmp_path / "a.jsonl", named(text) + "\n" + named("b") + "\n")
    assert answers(path) == [(1, text), (2, "b")]


def test_a_row_of_several_megabytes(tmp_path: Path) -> None:
    text = 'quo"te\\ \U0001f600 ' * 300_000
    assert answers(write(tmp_path / "a.jsonl", named(text) + "\n")) == [(1, text)]
    assert answers(write(tmp_path / "a.json", f"[{named(text)}]")) == [(1, text)]


def test_rows_of_several_files_are_numbered_through(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", f"{named('a', id='x')}\n{named('b', idx=7)}\n")
    second = write(tmp_path / "b.json", f"[{named('c', id=True)}]")
    records = load_dialogues([first, second]).records
    assert [(r.index, r.source, r.line, r.id) for r in records] == [
        (0, first, 1, "x"),
        (1, first, 2, "7"),
        (2, second, 1, None),
    ]
    assert records[0].place == f"{first}:1 (id 'x')"
    assert records[2].dialogue is not None and records[2].dialogue.where == f"{second}:1"


# --- what is not

BAD_LINES = {
    "broken": ('{"messages": [}', "broken JSON"),
    "single-quotes": ("{'messages': []}", "broken JSON"),
    "trailing-comma": (LINE[:-1] + ",}", "broken JSON"),
    "two-objects": (f"{LINE} {LINE}", "broken JSON"),
    "raw-control-character": (LINE.replace("Yo", "Y\to"), "broken JSON"),
    "raw-nul": (LINE.replace("Yo", "Y\0o"), "broken JSON"),
    "deep": ('{"a":' * 200_000, "broken JSON"),
    "long-number": ('{"a": ' + "1" * 5000 + "}", "broken JSON"),
    "cut-off": (LINE[:40], "truncated JSON"),
    "cut-off-in-text": (LINE[: LINE.index("Yo") + 1], "truncated JSON"),
    "array": ("[1, 2]", "not an object"),
    "number": ("12", "not an object"),
    "null": ("null", "not an object"),
    "text": ('"hello"', "not an object"),
    "duplicate-key": (LINE[:-1] + ', "messages": []}', "duplicate key"),
    "duplicate-key-deep": (LINE.replace('"role": "user"', '"role": "user", "role": "user"'), "duplicate key"),
    "nan": (LINE[:-1] + ', "score": NaN}', "not a JSON number"),
    "infinity": (LINE[:-1] + ', "score": [-Infinity]}', "not a JSON number"),
    "lone-high-surrogate": (LINE.replace("Yo", "\\ud83d"), "lone surrogate"),
    "lone-low-surrogate": (LINE.replace("Yo", "\\uDE00 x"), "lone surrogate"),
    "surrogate-in-key": (LINE[:-1] + ', "\\ud83d": 1}', "lone surrogate"),
    "nul": (LINE.replace("Yo", "Y\\u0000o"), "NUL character"),
    "invalid-utf8": (LINE.encode().replace(b"Yo", b"Y\xff"), "invalid UTF-8"),
    "latin-1": (LINE.encode().replace(b"Yo", "Zürich".encode("latin-1")), "invalid UTF-8"),
    "utf8-surrogate": (LINE.encode().replace(b"Yo", b"\xed\xa0\x80"), "invalid UTF-8"),
    "overlong-utf8": (LINE.encode().replace(b"Yo", b"\xc0\x80"), "invalid UTF-8"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_and_its_neighbours_are_read(tmp_path: Path, bad: str | bytes, reason: str) -> None:
    bad = bad.encode() if isinstance(bad, str) else bad
    path = write(tmp_path / "a.jsonl", named("a").encode() + b"\n\n" + bad + b"\n" + named("b").encode() + b"\n")
    assert reasons(path) == [(3, reason)]
    assert answers(path) == [(1, "a"), (3, None), (4, "b")]
    with pytest.raises(DataError) as stop:
        load_dialogues([path])
    assert stop.value.exit_code == EXIT_DATA
    message = str(stop.value)
    assert f"1 of 3 rows cannot be read:\n  {path}:3: {reason}: " in message
    assert f"by reason: {reason} × 1" in message and "--on_bad_row skip" in message
    assert message.isprintable() or all(line.isprintable() for line in message.split("\n"))


def test_where_every_row_is_bad_skipping_is_no_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"turns": 1}\n{"turns": 2}\n')
    with pytest.raises(DataError, match="2 of 2 rows cannot be read") as stop:
        load_dialogues([path])
    assert "skip" not in str(stop.value) and "Is this the right file?" in str(stop.value)


@pytest.mark.parametrize(
    ("bad", "reason"), [value for key, value in BAD_LINES.items() if "cut" not in key and key != "deep"]
)
def test_a_bad_array_element_is_named_and_its_neighbours_are_read(
    tmp_path: Path, bad: str | bytes, reason: str
) -> None:
    bad = bad.encode() if isinstance(bad, str) else bad
    content = b"[\n" + named("a").encode() + b",\n\n" + bad + b",\n" + named("b").encode() + b"]\n"
    path = write(tmp_path / "a.json", content)
    assert reasons(path) == [(4, reason)]
    assert answers(path) == [(2, "a"), (4, None), (5, "b")]


def test_a_file_cut_off_anywhere_never_passes(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", f"{named('a')}\n{named('é')}"), ("a.json", f"[{named('a')},\n{named('é')}\n]")):
        whole = content.encode()
        for size in range(1, len(whole)):
            path = write(tmp_path / name, whole[:size])
            if whole[:size] in (named("a").encode(), named("a").encode() + b"\n"):
                continue  # a whole row: nothing shows that there was another
            with pytest.raises(DataError):
                load_dialogues([path])
            read = answers(path)
            assert [text for _, text in read if text is not None] in ([], ["a"]), size
            assert len(read) <= 2


def test_where_an_array_cannot_be_read_on_it_says_up_to_which_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", f'[\n{named("a")},\n{{"messages": [],\n{named("b")},\n{named("c")}]\n')
    rows = list(read_rows(path))
    assert [(r.line, r.problem and r.problem.reason) for r in rows] == [(2, None), (3, "truncated JSON")]
    assert "6" in rows[1].problem.detail  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"[{named('a')},]", [(1, "broken JSON")]),
        (f"[{named('a')}\n{named('b')}]", [(1, "broken JSON")]),
        (f"[{named('a')}}},\n{named('b')}]", [(1, "broken JSON")]),
        (f"[{named('a')}]\n]", [(2, "broken JSON")]),
        (f"[{named('a')}]\n[{named('b')}]", [(2, "broken JSON")]),
        (f"[1, {named('a')}]\n[{named('b')}]", [(1, "not an object"), (2, "not an object")]),
        (f'[{{"messages": [}}, {named("b")}]', [(1, "broken JSON")]),
        (f'[{{"messages": "a}}]\n, {named("b")}]', [(1, "broken JSON"), (2, "broken JSON")]),
        (f"[1]\n{named('b')}", [(1, "not an object")]),
        ("[", [(1, "truncated JSON")]),
        (f"[\n{named('a')}\n,\n", [(4, "truncated JSON")]),
    ],
)
def test_broken_arrays(tmp_path: Path, content: str, expected: list[tuple[int, str]]) -> None:
    assert reasons(write(tmp_path / "a.json", content)) == expected


def test_invalid_utf8_names_the_byte(tmp_path: Path) -> None:
    bad = LINE.encode().replace(b"Yo", b"Y\xff")
    (row,) = read_rows(write(tmp_path / "a.jsonl", bad))
    assert str(row.problem) == f"invalid UTF-8: byte 0xff, at byte {bad.index(0xFF) + 1} of the line"
    indented = b"[\n{\n" + bad[1:].replace(b", ", b",\n") + b"]"
    line = 1 + indented[: indented.index(0xFF)].count(b"\n")
    (row,) = read_rows(write(tmp_path / "a.json", indented))
    assert str(row.problem) == f"invalid UTF-8: byte 0xff, in line {line}"
    assert row.line == 2


def test_the_first_twenty_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", "".join(f"{named('a')}\n{{\n" for _ in range(15)))
    second = write(tmp_path / "b.jsonl", "".join(['{"messages": 3}\n'] * 10 + [LINE + "\n"]))
    with pytest.raises(DataError) as stop:
        load_dialogues([first, second])
    message = str(stop.value)
    assert message.startswith("25 of 41 rows cannot be read:\n")
    assert message.count(f"  {first}:") == 15 and message.count(f"  {second}:") == 5
    assert "  ... and 5 more\nby reason: truncated JSON × 15, wrong type × 10\n" in message


def test_skipping_counts_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", f'{named("a")}\n{{"a": 1]\n{{"messages": 3}}\nnull\n{{"a": 2]\n')
    loaded = load_dialogues([path], on_bad_row="skip")
    assert [r.dropped for r in loaded.records] == [
        None,
        "bad_row: broken JSON",
        "bad_row: wrong type",
        "bad_row: not an object",
        "bad_row: broken JSON",
    ]
    assert loaded.counts == {"rows": 5, "bad_rows": 4}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(
        "skipped 4 of 5 rows that cannot be read (broken JSON × 2, wrong type × 1, not an object × 1)"
    )
    assert f"{path}:2: broken JSON" in said


def test_escape_sequences_of_a_row_do_not_reach_the_message(tmp_path: Path) -> None:
    rows = ['{"messages": [{"role": "\\u001b[31mred\\u202e", "content": "x"}]}', '{"\\u001b]0;x\\u0007": 1}', "\x1b[2J"]
    path = write(tmp_path / "a.jsonl", "\n".join(rows))
    with pytest.raises(DataError) as stop:
        load_dialogues([path])
    assert all(line.isprintable() for line in str(stop.value).split("\n"))
    assert str(stop.value).count("\n") == 7


# --- files that cannot be read at all


def test_missing_files_name_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", LINE)
    with pytest.raises(DataError, match=r"train.json: no such file. In the same folder: train.jsonl\."):
        load_dialogues([str(tmp_path / "train.json")])
    with pytest.raises(DataError, match="There is no folder .*nowhere either"):
        load_dialogues([str(tmp_path / "nowhere" / "a.json")])
    with pytest.raises(DataError, match="is a folder; pass the file in it"):
        load_dialogues([str(tmp_path)])


@pytest.mark.parametrize("content", ["", "\n \r\n\n", "\ufeff", "[]", " [ \n ] \n"])
def test_a_file_without_rows(tmp_path: Path, content: str) -> None:
    good = write(tmp_path / "good.jsonl", LINE)
    for on_bad_row in ("stop", "skip"):
        with pytest.raises(DataError, match="empty.json: the file has no rows"):
            load_dialogues([good, write(tmp_path / "empty.json", content)], on_bad_row=on_bad_row)  # type: ignore[arg-type]


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = gzip.compress((LINE + "\n").encode() * 2000)
    for damaged in (packed[:-200], packed[:12], b"not gzip at all", packed[:40] + b"\xff" * 60 + packed[100:], b""):
        with pytest.raises(DataError, match=r"a.jsonl.gz: (cannot be unpacked as gzip|the file has no rows)"):
            load_dialogues([write(tmp_path / "a.jsonl.gz", damaged)], on_bad_row="skip")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (LINE.encode("utf-16"), "UTF-16 text"),
        (b"PK\x03\x04rest", "a zip archive"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, kind: str) -> None:
    with pytest.raises(DataError, match=f"a.json: is {kind}; it must be UTF-8 JSON"):
        load_dialogues([write(tmp_path / "a.json", content)])


def test_one_object_over_several_lines_is_not_a_file_of_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.json:1: a JSON object spread over several lines"):
        load_dialogues([write(tmp_path / "a.json", json.dumps(GOOD, indent=2))])


def test_fingerprint(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", b"one\r\n"), write(tmp_path / "b", b"\xfftwo")
    assert combined([sha256_of(a)]) == hashlib.sha256(b"one\r\n").hexdigest()
    with pytest.raises(DataError, match="c: no such file"):
        sha256_of(str(tmp_path / "c"))
    assert len({combined([sha256_of(x) for x in p]) for p in ([a], [b], [a, b], [b, a], [a, a])}) == 5


# --- the real files


@pytest.mark.parametrize(
    ("name", "num_rows", "treatments"),
    [
        ("alpaca_en_demo.json", 999, {}),
        ("dummy_conversation.json", 500, {}),
        ("glaive_toolcall_en_demo.json", 300, {}),
        ("gsm8k_multiturn.jsonl", 6000, {}),
    ],
)
def test_shared_data(shared: Path, name: str, num_rows: int, treatments: dict[str, int]) -> None:
    loaded = load_dialogues([str(shared / "data" / name)], calls=True)
    dialogues = [record.dialogue for record in loaded.records if record.dialogue]
    assert len(dialogues) == len(loaded.records) == num_rows
    is_glaive = name.startswith("glaive")
    assert sum(any(turn.calls for turn in d.turns) for d in dialogues) == (153 if is_glaive else 0)
    assert sum(bool(d.tools) for d in dialogues) == (191 if is_glaive else 0)
    expected = {"rows": num_rows, "bad_rows": 0}
    assert loaded.counts == expected | treatments
