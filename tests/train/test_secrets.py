"""Secrets in settings and in the environment are in no file of a run, and settings look the same in every one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat.checkpoint.manifest import read_manifest
from fastchat.errors import without_secrets
from tests.train.conftest import Outcome
from tests.train.flags import ok
from tests.train.warm import Warm

PASSWORD, TOKEN, KEY = "pa55-of-mine", "tok-0123456789", "key-9876543210"
ADDRESS = f"https://me:{PASSWORD}@host/?token={TOKEN}"
FLAGS = ["--run_name", ADDRESS, "--lr_scheduler_kwargs", "{}", "--save_strategy", "steps", "--save_steps", "1"]


def _secrets_in(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    found = [(path, word) for path in files for word in (PASSWORD, TOKEN, KEY) if word.encode() in path.read_bytes()]
    return [f"{path.name}: {word}" for path, word in found]


def test_no_file_of_a_run_holds_one(train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, data_files) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("SOME_PASSWORD", PASSWORD)
    named = data_files[0].with_name(f"{KEY}.json")
    named.write_bytes(data_files[0].read_bytes())
    flags = [*FLAGS, "--data_path", str(named)]
    outcome = ok(train(*flags))
    assert not _secrets_in(outcome.folder)
    manifest = read_manifest(outcome.folder / "checkpoint-1")
    for name in ("run_name", "data_path", "output_dir"):
        assert manifest.settings[name] == outcome.record["settings"][name]["value"]
    assert manifest.settings["run_name"] == "https://***@host/?token=***"
    assert "nothing to do" in ok(train(*flags)).err, "it is still the same run"
    failed = train(*flags, "--learning_rate", "1e30", "--max_steps", "3", name=f"{PASSWORD}")
    assert PASSWORD not in (failed.folder / "status.json").read_text()


def test_reports_get_none_either(base_flags: list[str], tmp_path: Path) -> None:
    from fastchat.train.settings import parse

    settings = parse([*base_flags, "--run_name", ADDRESS, "--output_dir", str(tmp_path / "out")], lora=True)
    told = f"{settings.training.to_json_string()}{settings.training.to_sanitized_dict()}{settings.training.run_name}"
    assert "host" in told and PASSWORD not in told and TOKEN not in told


def test_deepspeeds_own_files(warm: Warm, base_flags: list[str], tmp_path: Path) -> None:
    """It writes its configuration into each of its shards."""
    config: dict[str, Any] = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
    config["csv_monitor"] = {"enabled": False, "job_name": ADDRESS}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    flags = [*base_flags, *FLAGS, "--deepspeed", str(tmp_path / "ds.json")]
    outcome = warm.run(flags, tmp_path / "out", processes=1)
    assert warm.codes == [0], outcome.err
    assert not _secrets_in(outcome.folder)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("s3://b/x?X-Amz-Signature=abc&X-Amz-Credential=de/f", "s3://b/x?X-Amz-Signature=***&X-Amz-Credential=***"),
        ("https://h/?sv=1&sig=a%2Fb", "https://h/?sv=1&sig=***"),
        ("https://h/?password=x;client_secret=y", "https://h/?password=***;client_secret=***"),
        ("a=1&keyboard=x tokens=3 ?page=2", "a=1&keyboard=x tokens=3 ?page=2"),
    ],
)
def test_addresses(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
