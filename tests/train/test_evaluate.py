"""`fastchat eval` on what a run left: the run's own loss, and better answers than the base's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.eval import command_line
from tests import builders
from tests.train.flags import Train, ok

LEARN = ["--learning_rate", "1e-2", "--max_steps", "40", "--lr_scheduler_type", "constant"]
LEARN += ["--per_device_train_batch_size", "12", "--conv_template", "vicuna_v1.1", "--model_max_length", "512"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`evaluate(model, data, ...)`: runs the command and returns its summary, with its table, messages and lines."""

    def go(model: Path, data: Path, *flags: str, code: int = 0) -> dict[str, Any]:
        output, summary = tmp_path / "lines.jsonl", tmp_path / "summary.json"
        words = [str(model), "--data_path", str(data), "--device", "cpu", *flags]
        words += ["--output", str(output), "--summary", str(summary)]
        capsys.readouterr()
        assert command_line.main(words) == code
        out, err = capsys.readouterr()
        if code:
            return {"out": out, "err": err}
        lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        return {**json.loads(summary.read_text(encoding="utf-8")), "out": out, "err": err, "lines": lines}

    return go


def answers(path: Path, num: int = 12) -> Path:
    """Dialogues of two rounds that all get the same answers, from two sources."""
    rows = builders.chat_rows(num, rounds=2)
    for number, row in enumerate(rows):
        row["source"] = "even" if number % 2 == 0 else "odd"
        row["conversations"][1]["value"], row["conversations"][3]["value"] = "It is 7.", "Now 1,000 apples."
    return builders.write_rows(path, rows)


def by_hand(folder: Path, base: Path, data: Path) -> tuple[float, int]:
    """(mean loss, supervised tokens) of an adapter, one example after the other, by peft and transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fastchat.data.encoding.examples import tokenize_dialogues
    from fastchat.data.encoding.text_encoder import TextEncoder
    from fastchat.data.rows.records import load_dialogues
    from fastchat.model.tokenizer import load_tokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    encoder = TextEncoder.from_tokenizer(load_tokenizer(str(folder))[0])
    chat_encoder = encoder.bind(encoder.choose("vicuna_v1.1"))
    records = load_dialogues([str(data)]).records
    total, number = 0.0, 0
    dialogues = [(record.index, record.dialogue) for record in records if record.dialogue is not None]
    for example in tokenize_dialogues(dialogues, chat_encoder, max_length=512):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1)
        for at, label in enumerate(example.labels[1:]):
            if label != -100:
                total, number = total - float(logits[at, label]), number + 1
    return total / number, number


def test_the_loss_is_that_of_the_run_and_of_a_loop(
    train: Train, evaluate: Run, model_dir: Path, data_files: tuple[Path, Path]
) -> None:
    data = data_files[1]
    flags = ["--eval_data_path", str(data), "--eval_strategy", "epoch", "--packing", "True", "--learning_rate", "1e-2"]
    run = ok(train(*flags, "--conv_template", "vicuna_v1.1", "--model_max_length", "512"))
    found = evaluate(run.folder, data, "--batch_size", "3")
    assert found["loss"] == pytest.approx(run.record["metrics"]["eval_loss"], rel=1e-6, abs=1e-6)
    loss, number = by_hand(run.folder, model_dir, data)
    assert found["loss"] == pytest.approx(loss, abs=1e-6) and found["num_supervised_tokens"] == number
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert found["loss_interval"][0] < found["loss"] < found["loss_interval"][1]
    # The parts add up to the whole.
    assert list(found["by_turn"]) == ["1", "2", "3"] and list(found["by_source"]) == ["eval.json"]
    parts = found["by_turn"].values()
    assert sum(part["num_supervised_tokens"] for part in parts) == number
    total = sum(part["loss"] * part["num_supervised_tokens"] for part in parts)
    assert total / number == pytest.approx(loss, abs=1e-6)
    lines = found["lines"]
    assert sum(line["num_supervised_tokens"] for line in lines) == number
    total = sum(line["loss"] * line["num_supervised_tokens"] for line in lines)
    assert total / number == pytest.approx(loss, abs=1e-6)
    few = evaluate(run.folder, data, "--max_samples", "2")
    assert [line["row"] for line in few["lines"]] == [0, 3] and few["counts"]["dialogues"] == 7


@pytest.mark.slow
def test_a_run_that_learned(train: Train, evaluate: Run, model_dir: Path, tmp_path: Path) -> None:
    data = answers(tmp_path / "data.jsonl")
    run = ok(train(*LEARN, "--data_path", str(data), "--save_strategy", "epoch", full=True))
    ask = ("--generate", "--max_new_tokens", "24", "--batch_size", "5")
    tuned = evaluate(run.folder, data, *ask)
    assert list(tuned["by_source"]) == ["even", "odd"]
    for groups in (tuned["by_turn"], tuned["by_source"]):
        assert [part["num_answers"] for part in groups.values()] == [12, 12]
    lines = tuned["lines"]
    assert len(lines) == 12 and lines[1]["source"] == "odd" and lines[1]["place"] == f"{data}:2 (id 'sum-1')"
    assert [answer["reference"] for answer in lines[0]["answers"]] == ["It is 7.", "Now 1,000 apples."]
    # It has learned, and the base has not.
    base = evaluate(model_dir, data, *ask, "--conv_template", "vicuna_v1.1")
    assert base["loss"] > tuned["loss"] + 1 and base["token_accuracy"] < tuned["token_accuracy"]
    assert tuned["exact_match"] == 1 and base["exact_match"] == 0 and base["num_stopped"] < 24
    assert tuned["exact_match_interval"] == pytest.approx([0.8620, 1.0], abs=1e-4)
    assert "answer 2" in tuned["out"] and "source odd" in tuned["out"] and "100.0 % [86.2 % to 100.0 %]" in tuned["out"]
    # A checkpoint is a model too; an answer that is wrong in its words can be right in its number.
    other = builders.chat_rows(3, rounds=1)
    for row, value in zip(other, ("The result: 7", "$8", "none"), strict=True):
        row["conversations"][1]["value"] = value
    checkpoint = run.folder / "checkpoint-40"
    other_file = builders.write_rows(tmp_path / "other.json", other)
    for match, nothing in (
        (["numeric"], "number"),
        (["regex", "--pattern", r"(\d)"], "match of --pattern '(\\\\d)'"),
    ):
        numbers = evaluate(checkpoint, other_file, *ask, "--match", *match)
        assert (numbers["num_right"], numbers["num_compared"], numbers["num_answers"]) == (1, 2, 3)
        assert f"1 answer of 3 left out: the data's own answer has no {nothing}" in numbers["err"]
    assert list(numbers["by_source"]) == ["other.json"]
    _continues(evaluate, run.folder, data, ask, tuned)


def _continues(evaluate: Run, folder: Path, data: Path, ask: tuple[str, ...], whole: dict[str, Any]) -> None:
    """An evaluation that is killed while it generates keeps its answers; another one does not take them."""
    from fastchat.eval import partial

    plain, kept = partial.Partial.add, []

    def dies(self: Any, key: str, result: Any) -> None:
        plain(self, key, result)
        kept.append(key)
        if len(kept) == 7:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial.Partial, "add", dies)
        evaluate(folder, data, *ask, code=130)
    left = data.parent / "lines.jsonl.partial"
    with open(left, "ab") as file:
        file.write(b'{"key": "9 0 1", "resu')  # killed while writing
    other = evaluate(folder, data, *ask, "--temperature", "1", code=2)
    assert "has the answers of another evaluation" in other["err"]
    again = evaluate(folder, data, *ask)
    assert "continuing: 7 answers already in" in again["err"] and not left.exists()
    assert again["lines"] == whole["lines"] and again["exact_match"] == whole["exact_match"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--match", "numeric"], 2, "--match compares generated answers: add --generate"),
        (["--generate", "--match", "regex"], 2, "--match regex needs --pattern"),
        (["--generate", "--match", "regex", "--pattern", "("], 2, "is not a regular expression"),
        (["--model_max_length", "4096"], 2, "--model_max_length 4096: the model's context is 512 tokens"),
        (["--summary", "nowhere/x.json"], 2, "there is no folder"),
        (["--generate", "--match", "numeric", "--max_new_tokens", "1"], 3, "no answer of the data has a number"),
        (["--model_max_length", "4"], 3, "there is nothing to evaluate"),
    ],
)
def test_mistakes(
    flags: list[str], code: int, message: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = builders.chat_rows(2, rounds=1)
    for row in rows:
        row["conversations"][1]["value"] = "None at all."
    data = builders.write_rows(tmp_path / "data.json", rows)
    words = [str(model_dir), "--data_path", str(data), "--conv_template", "vicuna_v1.1", "--device", "cpu", *flags]
    assert command_line.main(words) == code
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_without_model_or_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main([]) == 2 and "no model is given" in capsys.readouterr().err
    assert command_line.main(["x"]) == 2 and "--data_path is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["x", "--data_path", "y", "--generate", "--top_p", "0"])
    assert "--top-p: 0 is not a number above 0 and at most 1" in capsys.readouterr().err
