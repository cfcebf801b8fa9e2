"""`training.json` is written completely and reads back unchanged, and a broken one is reported."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from fastchat.checkpoint.record import TrainingRecord, read_training_record
from fastchat.errors import CheckpointError


def test_round_trip(tmp_path):
    record = TrainingRecord(
        base_model="/models/a b",
        settings={"learning_rate": {"value": 3e-4, "from": "command line"}},
        template={"name": "vicuna_v1.1", "definition": {}},
        rope_parameters={"rope_type": "linear", "factor": 2.0},
        max_position_embeddings=512,
        metrics={"eval_loss": 1.25, "note": "数学"},
    )
    path = record.write(tmp_path)
    assert path.name == "training.json" and [p.name for p in tmp_path.iterdir()] == ["training.json"]
    assert read_training_record(tmp_path) == record


def test_fields_of_a_richer_record_are_left_out(tmp_path):
    @dataclass
    class Richer(TrainingRecord):
        optimizer: str = "AdamW"

    Richer(base_model="b").write(tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["optimizer"] == "AdamW"
    assert read_training_record(tmp_path) == TrainingRecord(base_model="b")


def test_secrets_stay_outside_and_numbers_that_look_like_one_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "10485760")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    record = TrainingRecord(metrics={"bytes": 10485760, "note": "hf_abcdefgh"}, files={"a": {"size": 10485760}})
    record.write(tmp_path)
    assert "hf_abcdefgh" not in (tmp_path / "training.json").read_text()
    found = read_training_record(tmp_path)
    assert found.metrics == {"bytes": 10485760, "note": "***"} and found.files == {"a": {"size": 10485760}}


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        TrainingRecord(metrics={"loss": float("nan")}).write(tmp_path)
    assert not (tmp_path / "training.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not a training record"),
        ("{}", "not a training record"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1, "files": {"training.json": {}}}', "do not match its digest"),
        ('{"format": 1, "metrics": {"loss": NaN}}', "cannot be read: it contains NaN"),
    ],
)
def test_broken_records(tmp_path, text, message):
    assert read_training_record(tmp_path) is None
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_training_record(tmp_path)
