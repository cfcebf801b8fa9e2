"""What every run shows and proves before its first step and when it saves; and `--train_on` through a whole run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.train.flags import Train, covers, ok

pytestmark = pytest.mark.slow


def test_counts_example_proof_and_saved_template_are_shown(train: Train) -> None:
    err = ok(train()).err
    for line in (
        r"proven on this tokenizer with template vicuna_v1.1, on 9 dialogues: prompts are prefixes, "
        r"stops are learned, one BOS, no text becomes a control token, labels agree",
        r"train labels derived a second time: \d+ answers in 20 rows agree",
        r"--- .*train.json:1 \(id 'sum-0'\): \d+ tokens, \d+ learned in 1 answer",
        r"<s> A chat between .* USER: What is 0 plus 0\? ASSISTANT:\[\[ The answer is 0\.</s>\]\]",
        r"\[\[ \]\] encloses the learned tokens",
        r"train data, .*: \d+\.\d % of the tokens are learned; no answer is cut off",
        r"rows         20: 20 used, none dropped",
        r"turns        \d+: \d+ answers learned",
        r"tokens       [\d,]+: [\d,]+ learned \(\d+\.\d %\)",
        r"the saved chat template gives the training ids of 16 rows, and their prompts",
    ):
        assert re.search(f"^{line}$", err, re.M), (line, err)
    order = [err.index(text) for text in ("proven on this", "second time", "rows  ", "model      ", "the saved chat")]
    assert order == sorted(order)


def test_a_wrong_label_stops_the_run_before_the_model_loads(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fastchat.data.tokens import prepare as tokenising

    add = tokenising.StoreWriter.add

    def shifted(self: Any, part: Any) -> None:
        labels = part.arrays["labels"] = part.arrays["labels"].copy()
        labels[(labels != -100).nonzero()[0][-1]] = -100  # the last stop
        add(self, part)

    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "cache"))  # nothing wrong stays for other tests
    monkeypatch.setattr(tokenising.StoreWriter, "add", shifted)
    monkeypatch.setattr("fastchat.train.recipe.prepare_model", lambda *_, **__: pytest.fail("the model was loaded"))
    outcome = train()
    assert outcome.code == 3 and "two ways of deriving the learned tokens disagree at token" in outcome.err
    assert "learned tokens in brackets: " in outcome.err and not (outcome.folder / "training.json").exists()


def _other_template(monkeypatch: pytest.MonkeyPatch, *, trial: bool) -> None:
    """Damages the chat template in what is saved: by the trial before the first step, or only in a result."""
    from fastchat.model import tokenizer_files

    def write(tokenizer: Any, folder: Path) -> None:
        tokenizer_files.write_tokenizer(tokenizer, folder)
        if trial or list(folder.glob("*.safetensors")):
            file = folder / "chat_template.jinja"
            file.write_text(file.read_text(encoding="utf-8").replace("ASSISTANT", "HELPER"), encoding="utf-8")

    monkeypatch.setattr("fastchat.checkpoint.save.write_tokenizer", write)


def test_what_cannot_be_saved_is_found_before_the_first_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    _other_template(monkeypatch, trial=True)
    outcome = train()
    assert (
        outcome.code == 2
        and "the result of this run could not be used: the saved tokenizer has another chat" in outcome.err
    )
    assert outcome.trainer is None and not outcome.folder.exists()


@pytest.mark.parametrize("full", [False, True])
def test_the_same_saved_files_are_read_back_once(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: bool
) -> None:
    from fastchat.model.tokenizer_files import loaded_files, reopened

    read: list[Any] = []

    def noted(folder: Any, tokenizer: Any) -> Any:
        read.append(folder)
        return reopened(folder, tokenizer)

    monkeypatch.setattr("fastchat.train.rehearsal.reopened", noted)
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "cache"))  # nothing is known from earlier runs
    folder = ok(train("--save_strategy", "steps", "--save_steps", "1", full=full)).folder
    assert len(read) == 1, "by the trial before the first step; two checkpoints and the result have the same files"
    ok(train(full=full, name="again"))
    assert len(read) == 1, "and it is known from then on"
    found = loaded_files(folder)
    assert "tokenizer.json" in found and found == loaded_files(folder / "checkpoint-1")
    (folder / "added_tokens.json").write_text("{}", encoding="utf-8")
    assert loaded_files(folder).keys() - found == {"added_tokens.json"}


def test_a_record_that_cannot_be_made_is_found_before_the_first_step(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*args: Any) -> None:
        raise TypeError("no JSON")

    monkeypatch.setattr("fastchat.train.record.RunRecord.write", write)
    outcome = train()
    assert outcome.code == 1 and outcome.trainer.state.global_step == 0 and not outcome.folder.exists()


def test_a_value_that_no_record_can_hold_is_told_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastchat.train.record.used_attention", lambda model: object())  # not JSON
    outcome = ok(train())
    assert outcome.err.count("training.json will not contain 'attention' (TypeError: ") == 1
    assert outcome.record["attention"] is None and outcome.record["optimizer"] == "AdamW"


def test_a_saved_tokenizer_that_says_something_else_is_never_used(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fastchat.checkpoint.merge import merge_adapter
    from fastchat.checkpoint.verify import verify
    from fastchat.errors import CheckpointError
    from fastchat.serve.chat import load_chat

    _other_template(monkeypatch, trial=False)
    outcome = train()
    assert outcome.code == 5 and "the weights are saved, but its tokenizer is not usable" in outcome.err
    assert (outcome.folder / "adapter_model.safetensors").is_file() and outcome.status["status"] == "failed"
    for change in ("as it is", "no record of it", "no status"):
        if change == "no record of it":  # as a version before that field left it: the status alone says so
            record = {k: v for k, v in outcome.record.items() if k not in ("unusable", "files")}
            (outcome.folder / "training.json").write_text(json.dumps(record))
        elif change == "no status":
            (outcome.folder / "training.json").write_text(json.dumps(record | {"unusable": "for a reason"}))
            (outcome.folder / "status.json").unlink()
        for use in (load_chat, lambda folder: merge_adapter(folder, str(tmp_path / "merged"))):
            with pytest.raises(CheckpointError, match="not usable|failed when it was saved"):
                use(str(outcome.folder))
        lines, good = verify(outcome.folder)
        assert not good and "usable" in lines[0]
    again = train("--lora_weight_path", str(outcome.folder), name="b")
    assert again.code == 5 and "for a reason" in again.err


@covers("train_on")
def test_train_on(train: Train) -> None:
    """The three learn more and more; what was learned is in training.json."""
    seen = {}
    for train_on in ("last", "assistant", "all"):
        outcome = ok(train("--train_on", train_on, name=train_on))
        counts = outcome.record["data"]["train"]["counts"]
        seen[train_on] = counts["supervised_tokens"]
        assert outcome.record["settings"]["train_on"]["value"] == train_on
        said = {"last": "--train_on last: only the last", "all": "WARNING: --train_on all: prompts are learned"}.get(
            train_on
        )
        assert (said or "--train_on") in outcome.err or not said
        assert "labels derived a second time" in outcome.err
    assert seen["last"] < seen["assistant"] < seen["all"] == counts["tokens"] - counts["dialogues"]  # all but BOS
