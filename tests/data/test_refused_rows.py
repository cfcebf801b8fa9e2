"""Records that the tokenizer's own chat template refuses: they stop a run, or are left out and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastchat.conversation import Dialogue, Turn
from fastchat.data import preview
from fastchat.data.encoding.examples import tokenize_dialogues
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.rows.drop_reasons import REFUSED
from fastchat.data.rows.records import Records
from fastchat.data.tokens.store import make_shard, usable
from fastchat.errors import DataError
from tests.builders import make_tokenizer
from tests.data.test_tokenizer_template import CHATML

STRICT = "{% for m in messages %}{% if 'no!' in m.content %}{{ raise_exception('not this') }}{% endif %}{% endfor %}"
STRICT += CHATML


def _rows(path: Path) -> str:
    asked = [{"role": "user", "content": question} for question in ("q", "no!", "q", "no!")]
    rows = [{"messages": [turn, {"role": "assistant", "content": "an answer"}]} for turn in asked]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_refused_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tokenizer("byte_nobos", tmp_path / "t", chat_template=STRICT)
    encoder, _ = open_tokenizer(str(model))
    chat_encoder = encoder.bind(encoder.choose("tokenizer"))
    pairs = usable(Records([_rows(tmp_path / "a.jsonl")]))
    with pytest.raises(DataError, match=r"a.jsonl:2: .*not this\. Choose .* Skip such rows with --on_bad_row skip"):
        list(tokenize_dialogues(pairs, chat_encoder, max_length=64))
    examples = list(tokenize_dialogues(pairs, chat_encoder, max_length=64, on_bad_row="skip"))
    assert [example.dropped for example in examples] == [None, REFUSED, None, REFUSED]
    assert examples[0].input_ids == examples[2].input_ids != []
    shard = make_shard(pairs, chat_encoder, max_length=64, overlong="truncate", on_bad_row="skip")
    assert shard.counts[f"dropped_{REFUSED}"] == 2 and "a.jsonl:2" in shard.refusal
    assert shard.arrays["index"].tolist() == [0, 2]

    words = ["--model_name_or_path", str(model), "--data_path", str(tmp_path / "a.jsonl")]
    words += ["--conv_template", "tokenizer", "--html", str(tmp_path / "page.html")]
    assert preview.main(words) == 3 and "a.jsonl:2" in capsys.readouterr().err
    assert preview.main([*words, "--on_bad_row", "skip"]) == 0
    out, err = capsys.readouterr()
    assert "skipped 2 of 4 rows that the template rejects; first: " in err and "a.jsonl:2" in err
    assert "2 used, 2 dropped (2 rejected by the template)" in out


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% include 'x' %}", "rejects the row: no loader"),
        ("hello", "the user message is not shown at all"),
        ("{% for m in messages %}{{ m.content|upper }}{% endfor %}", "the template changes a message"),
        ("{{ raise_exception('never') }}", "rejects the row: never"),
    ],
)
def test_a_template_that_renders_nothing_says_why(tmp_path: Path, source: str, why: str) -> None:
    model = make_tokenizer("byte_nobos", tmp_path / "t", chat_template=source)
    encoder, _ = open_tokenizer(str(model))
    chat_encoder = encoder.bind(encoder.choose("tokenizer"))
    row = Dialogue((Turn("user", "Hi"), Turn("assistant", "Hello.")), None, "a.jsonl", 7)
    with pytest.raises(DataError, match=f"a.jsonl:7: .*{why}"):
        chat_encoder.template.renderings(row)
