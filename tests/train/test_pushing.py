"""The card of a result, and uploads: what reaches a hub, what is checked before step 1, what a failure loses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastchat.checkpoint import card as cards
from fastchat.checkpoint.record import read_training_record
from fastchat.checkpoint.verify import verify
from fastchat.export import push
from tests.train.flags import covers
from tests.train.hub import TOKEN, Hub, serving


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process uploads to, logged in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    found = Hub()
    with serving(found) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def offline_result(train: Any, eval_flags: list[str]) -> Path:
    """A result of a run with an evaluation, which was uploaded nowhere."""
    out = train(*eval_flags, "--eval_on_start", "--learning_rate", "1e-3")
    assert out.code == 0, out.err
    return out.folder


def settings_of(text: str) -> dict[str, Any]:
    """The metadata of a card, as the hub's library reads it."""
    from huggingface_hub import ModelCard

    return ModelCard(text).data.to_dict()


def test_a_result_has_a_card_that_a_user_may_edit(offline_result: Path, tmp_path: Path, capsys: Any) -> None:
    path = offline_result / cards.CARD
    text = path.read_text(encoding="utf-8")
    metadata = settings_of(text)
    assert metadata["library_name"] == "peft" and metadata["pipeline_tag"] == "text-generation"
    assert "lora" in metadata["tags"] and "base_model" not in metadata, "the base is a folder, not a name on the hub"
    record = read_training_record(offline_result)
    assert record is not None
    assert f"{record.metrics['eval_loss']:.4f}" in text and f"{record.metrics['eval_loss_before']:.4f}" in text
    assert record.data["train"]["fingerprint"][:16] in text and "| `learning_rate` | `0.001` | command line |" in text
    assert "train.json" in text and "`vicuna_v1.1`" in text
    assert str(tmp_path) not in text and not re.search(r"(?<!:)/(tmp|home|root)/", text), "no path of this machine"
    assert verify(offline_result)[1]

    assert cards.write_card(offline_result, record, license="apache-2.0")
    assert settings_of(path.read_text())["license"] == "apache-2.0"
    assert cards.write_card(offline_result, record), "a card of ours is written again"
    assert cards.license_of(path) == "apache-2.0", "the licence stays"
    edited = path.read_text().replace("## Use", "## How to use it")
    path.write_text(edited)
    assert not cards.write_card(offline_result, record)
    assert path.read_text() == edited and "it is kept" in capsys.readouterr().err
    assert verify(offline_result)[1], "documents are not verified"


def test_a_readme_of_the_user_survives_a_run_and_a_merge_has_its_own_card(train: Any, tmp_path: Path) -> None:
    from fastchat.checkpoint.merge import merge_adapter

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / cards.CARD).write_text("---\nlicense: mit\n---\n\nMine.\n")
    out = train("--use_rslora")
    assert out.code == 0, out.err
    assert (out.folder / cards.CARD).read_text().endswith("Mine.\n") and "it is kept" in out.err
    merge_adapter(str(out.folder), str(tmp_path / "merged"))
    text = (tmp_path / "merged" / cards.CARD).read_text()
    metadata = settings_of(text)
    assert metadata["library_name"] == "transformers" and metadata["license"] == "mit"
    assert "with a LoRA adapter merged into it" in text and "rsLoRA, rank" in text
    assert verify(tmp_path / "merged")[1]


def test_a_card_names_hub_sources(tmp_path: Path) -> None:
    from fastchat.checkpoint.record import TrainingRecord

    sources = [{"name": "org/data", "files": [], "revision": "0123"}, {"name": "my/chats", "files": []}]
    record = TrainingRecord(base_model="org/base", data={"train": {"sources": sources, "counts": {}}})
    record.settings = {"run_note": {"value": "a | b\n`c` <b>", "from": "yaml"}}
    text = cards.card("x", record, cards.FULL)
    metadata = settings_of(text)
    assert metadata["base_model"] == "org/base" and metadata["base_model_relation"] == "finetune"
    assert metadata["datasets"] == ["org/data"] and "`chats`" in text and "my/chats" not in text
    assert "a \\| b 'c' ‹b>" in text


def test_what_is_uploaded(hub: Hub, offline_result: Path, tmp_path: Path, capsys: Any) -> None:
    (offline_result / "checkpoint-1").mkdir()
    (offline_result / "report.html").write_text("private")
    assert push.main([str(offline_result), "me/mine", "--private", "--license", "mit"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.url}/me/mine"
    assert hub.created["name"] == "mine" and hub.created.get("visibility", hub.created.get("private")) in (
        "private",
        True,
    )
    expected = {"adapter_model.safetensors", "adapter_config.json", "training.json", "README.md", "tokenizer.json"}
    assert set(hub.files) == expected | {"tokenizer_config.json", "chat_template.jinja"}
    weights = (offline_result / "adapter_model.safetensors").read_bytes()
    assert hub.files["adapter_model.safetensors"] == weights
    assert settings_of(hub.files["README.md"].decode())["license"] == "mit"
    for name, content in hub.files.items():
        assert TOKEN.encode() not in content, name
        assert str(tmp_path).encode() not in content and b"/tmp/" not in content, name
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for name, content in hub.files.items():
        (downloaded / name).write_bytes(content)
    assert verify(downloaded) == ([f"{downloaded}: valid, result, {len(expected)} files, {_size(hub)} bytes"], True)


def _size(hub: Hub) -> str:
    return f"{sum(len(content) for name, content in hub.files.items() if name not in ('README.md', 'training.json')):,}"


def test_what_is_not_a_result_is_not_uploaded(hub: Hub, offline_result: Path, tmp_path: Path, capsys: Any) -> None:
    assert push.main([str(tmp_path / "nowhere"), "me/x"]) == 5 and "no such folder" in capsys.readouterr().err
    assert push.main([str(tmp_path), "me/x"]) == 5 and "no training.json" in capsys.readouterr().err
    assert push.main([str(offline_result), "me/x/y"]) == 2 and "me/x/y" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    shutil.copytree(offline_result, damaged)
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert push.main([str(damaged), "me/x"]) == 5 and "not what was saved" in capsys.readouterr().err
    assert hub.files == {} and not any("create" in path for path in hub.asked)


@covers("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token")
def test_a_run_uploads_its_result(hub: Hub, train: Any) -> None:
    out = train("--push_to_hub", "--hub_model_id", "me/tuned", "--hub_private_repo", "True", "--hub_token", TOKEN)
    assert out.code == 0, out.err
    assert f"uploaded to {hub.url}/me/tuned" in out.err and "adapter_model.safetensors" in hub.files
    assert hub.asked[0] == "GET /api/whoami-v2", "asked before the run"
    assert TOKEN not in out.err and TOKEN not in (out.folder / "log.txt").read_text()
    recorded = json.loads((out.folder / "training.json").read_text())["settings"]
    assert recorded["push_to_hub"]["value"] is True and "hub_token" not in recorded


def test_a_failed_upload_loses_nothing_and_the_exit_code_says_so(hub: Hub, train: Any) -> None:
    hub.refuses = "/commit/"
    flags = ["--push_to_hub", "--hub_model_id", "me/tuned", "--hub_private_repo", "True"]
    out = train(*flags)
    assert out.code == 6 and out.err.count("error: ") == 1 and "Traceback" not in out.err
    assert f"only the upload is missing: fastchat push {out.folder} me/tuned --private" in out.err
    assert verify(out.folder)[1] and (out.status["status"], out.status["exit_code"]) == ("done", 6)
    failed = (out.folder / "status.json").read_text()
    assert push.main([str(out.folder), "me/tuned"]) != 0 and (out.folder / "status.json").read_text() == failed
    hub.refuses = "nothing"
    again = train(*flags)
    assert again.code == 0 and again.trainer is None, "the same command uploads what is there"
    assert "adapter_model.safetensors" in hub.files
    settled = {**json.loads(failed), "exit_code": 0, "message": ""}
    assert again.status == settled, "what was missing is not missing any more; the times are those of the run"
    (out.folder / "status.json").write_text(failed)
    assert push.main([str(out.folder), "me/tuned"]) == 0 and out.status == settled
    for other in ({**settled, "exit_code": None, "status": "running"}, {**settled, "exit_code": 6, "status": "failed"}):
        (out.folder / "status.json").write_text(json.dumps(other))
        assert push.main([str(out.folder), "me/tuned"]) == 0 and out.status == other, "it says something else"


def test_a_bug_in_an_upload_is_shown_and_the_run_is_done(hub: Hub, train: Any, monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise KeyError("never expected")

    monkeypatch.setattr("fastchat.train.pushing.push", broken)
    out = train("--push_to_hub", "--hub_model_id", "me/tuned")
    assert out.code == 6 and "Traceback" in out.err and out.status["status"] == "done" and verify(out.folder)[1]


@pytest.mark.parametrize(
    ("flags", "token", "told"),
    [
        (["--push_to_hub", "--hub_token", "hf_someOtherToken"], TOKEN, "the hub rejects the token"),
        (["--push_to_hub"], None, "there is no token"),
        (["--push_to_hub", "--hub_model_id", "a/b/c"], TOKEN, "'a/b/c' cannot be the name"),
        (["--hub_model_id", "me/x"], TOKEN, "add --push_to_hub True"),
        (["--push_to_hub", "--hub_model_id", "you/x"], TOKEN, "can upload to me/..., team/..."),
        (["--push_to_hub", "--hub_model_id", "me/open", "--hub_private_repo", "True"], TOKEN, "exists and is public"),
    ],
)
def test_what_would_fail_is_refused_before_the_first_step(
    hub: Hub, train: Any, monkeypatch: Any, tmp_path: Path, flags: list[str], token: str | None, told: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.existing["me/open"] = False
    out = train(*flags)
    assert out.code == 2 and told in out.err and out.trainer is None
    assert not (out.folder / "training.json").exists()


def test_a_hub_that_is_away_is_said_before_and_after(hub: Hub, train: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    out = train("--push_to_hub", "--hub_model_id", "me/tuned")
    assert out.code == 6 and out.status["status"] == "done" and verify(out.folder)[1]
    assert "The upload to me/tuned is tried after the run" in out.err and "fastchat push" in out.err


def test_what_an_upload_meets(hub: Hub, offline_result: Path, monkeypatch: Any, capsys: Any) -> None:
    """Tokens, names, licences and a network that fail: one message, nothing uploaded, the result as it was."""

    def pushed(*words: str) -> tuple[int, str]:
        code = push.main([str(offline_result), *words])
        told = capsys.readouterr().err
        assert code == 0 or (told.count("error: ") == 1 and "Traceback" not in told and TOKEN not in told)
        assert code == 0 or (hub.files == {} and verify(offline_result)[1])
        return code, told

    hub.role = "read"
    code, told = pushed("me/x")
    assert code == 2 and "can only read" in told
    hub.role = "write"
    hub.existing = {"me/open": False, "me/closed": True}
    assert pushed("you/x")[0] == pushed("me/open", "--private")[0] == pushed("me/x", "--license", "Apache 2")[0] == 2
    for path, code in (("/api/repos/create", 2), ("/lfs/", 2), ("/preupload/", 2), ("/validate-yaml", 2)):
        hub.refuses = path
        assert pushed("me/x")[0] == code
    hub.refuses = "nothing"
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        code, told = pushed("me/x")
        assert code == 6 and "cannot be reached" in told and "nothing was uploaded" in told
    monkeypatch.setenv("HF_TOKEN", "hf_someOtherTokenOfNobody")
    assert "rejects the token (401)" in pushed("me/x")[1]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    card = offline_result / cards.CARD
    mine = "---\nlicense: mit\n---\n\nMine.\n"
    ours = card.read_text()
    card.write_text(mine)
    code, told = pushed("me/x", "--license", "apache-2.0")
    assert code == 2 and "`license: apache-2.0`" in told and card.read_text() == mine
    card.write_text(ours)
    code, told = pushed("team/x")
    assert code == 0 and "no licence" in told and "who downloads the adapter needs it too" in told
    assert hub.created["organization"] == "team" and 'from_pretrained("team/x")' in hub.files["README.md"].decode()
    assert card.read_text() == ours, "the uploaded copy names the repository, the one here the folder"
    card.write_text(mine)
    assert pushed("closed", "--private", "--license", "mit")[0] == 0 and hub.files["README.md"].decode() == mine
