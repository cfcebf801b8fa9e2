"""A dialogue of megabytes: what shows, explains and checks it encodes no more of it than training does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data import preview
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.cross_check import LabelCrossCheck
from fastchat.data.encoding.examples import tokenize_dialogue
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.encoding.saved_template import MOST_COMPARED, compare_template
from tests.builders import make_tokenizer

HUGE = "word " * (MOST_COMPARED // 4)


def test_nothing_encodes_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tokenizer("metaspace_bos", tmp_path / "t")
    rows = [{"instruction": "q", "output": HUGE}, {"instruction": "q", "output": "a"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    encode_many = ChatEncoder.encode_many
    sizes: list[int] = []

    def counted(self: ChatEncoder, rendered: Any) -> Any:
        sizes.extend(sum(len(segment.text) for segment in one.segments) for one in rendered)
        return encode_many(self, rendered)

    monkeypatch.setattr(ChatEncoder, "encode_many", counted)
    words = ["--model_name_or_path", str(model), "--data_path", str(tmp_path / "a.jsonl"), "--model_max_length", "128"]
    assert preview.main([*words, "--html", str(tmp_path / "page.html")]) == 0
    assert sizes and max(sizes) < MOST_COMPARED // 8

    encoder, _ = open_tokenizer(str(model))
    chat_encoder = encoder.bind(get_template("vicuna_v1.1"))
    dialogue = Dialogue((Turn("user", "q"), Turn("assistant", HUGE)))
    example = tokenize_dialogue(dialogue, chat_encoder, max_length=128)
    checked = LabelCrossCheck(chat_encoder).check([(dialogue, example.input_ids, example.labels)])
    assert (checked.records, checked.skipped) == (0, 1)
    assert compare_template(None, chat_encoder, [dialogue]) == 0
    assert max(sizes) < MOST_COMPARED // 8
