"""What a run leaves to be read: answers before and after, report.html; and that none of it changes or ends the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastchat.report import command, png, reading
from fastchat.train import answers, run_report
from tests.builders import write_rows
from tests.train.flags import Train, covers, ok

HTML = ["--run_report", "html", "--sample_prompts", "3"]
RUN = [
    "--lora_dropout",
    "0.1",
    "--learning_rate",
    "1e-2",
    "--gradient_checkpointing",
    "True",
    "--eval_on_start",
    "True",
]


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "NEW_TOKENS", 6)


# Each of them keeps something between forward passes, or computes otherwise while it does not train.
KINDS = {
    "lora": [],
    "q_lora": ["--q_lora", "True"],
    "dynamic RoPE": ["--rope_scaling_type", "dynamic", "--rope_scaling_factor", "4", "--model_max_length", "120"],
}


@covers("sample_prompts")
@pytest.mark.parametrize("kind", KINDS)
def test_answers_leave_the_run_as_it_is(
    train: Train, eval_flags: list[str], tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    flags = [*RUN, *eval_flags, *KINDS[kind]]
    if kind == "dynamic RoPE":  # the answers are longer than all that is trained, that longer than the base's positions
        monkeypatch.setattr(answers, "NEW_TOKENS", 100)
        flags += ["--model_name_or_path", str(tiny_model_dir(max_positions=64)), "--eval_on_start", "False"]
    without = ok(train(*flags, name="without"))
    sampled = ok(train(*flags, "--sample_prompts", "3", name="sampled"))
    assert len(reading.read_run(sampled.folder).answers) == 6
    assert sampled.metrics == without.metrics
    weights = [(outcome.folder / "adapter_model.safetensors").read_bytes() for outcome in (without, sampled)]
    assert weights[0] == weights[1]
    assert not (without.folder / "answers.jsonl").exists()


@covers("run_report")
def test_the_answers_are_those_of_the_model_to_prompts_of_the_data(
    train: Train, eval_flags: list[str], data_files: tuple[Path, Path]
) -> None:
    outcome = ok(train(*RUN, *eval_flags, *HTML))
    rows = [json.loads(line) for line in (outcome.folder / "answers.jsonl").read_text().splitlines()]
    assert [(row["step"], row["row"]) for row in rows] == [(0, 0), (0, 2), (0, 4), (2, 0), (2, 2), (2, 4)]
    data = json.loads(data_files[1].read_text())
    for row in rows:
        question, answer = (turn["value"] for turn in data[row["row"]]["conversations"][:2])
        assert row["prompt"].endswith(f"USER: {question} ASSISTANT:") and row["reference"] == answer
        assert row["end"] == "length" and row["num_tokens"] == 6
    # The trainer's model still has the weights of the result.
    run, prompts = outcome.trainer, answers.choose_prompts(outcome.trainer.eval_dataset, 3, max_length=512)
    ids = prompts[0].ids
    import torch

    with torch.no_grad():
        made = run.model.eval().generate(torch.tensor([ids]), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert made[0, len(ids) :].tolist() == _ids_of(outcome, rows[3]["answer"], ids)
    assert f"report     {outcome.folder / 'report.html'}\nnext       " in outcome.err
    assert not (outcome.folder / "report-charts").exists(), "no PNGs with --run_report html"


def _ids_of(outcome: Any, answer: str, prompt: list[int]) -> list[int]:
    """The greedy ids whose text is `answer`, found by decoding what the model gives again."""
    from fastchat.eval.answers import read_answer
    from fastchat.eval.generation import Sampling, generate

    encoder = outcome.trainer.callback_handler.callbacks[-1].run.text.chat_encoder
    (made,) = generate(
        outcome.trainer.model, [prompt], stop_ids=encoder.stop_ids, pad_id=0, sampling=Sampling(max_new_tokens=6)
    )
    assert read_answer(encoder, prompt, made.ids)[0] == answer
    return made.ids


def test_the_report_is_the_same_when_it_is_made_again(
    train: Train, eval_flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = run_report.rewrite
    monkeypatch.setattr(run_report, "rewrite", lambda *a, **k: (real(*a, **k), written.append(_page(*a)))[0])
    outcome = ok(train(*RUN, *eval_flags, *HTML, "--save_strategy", "steps", "--save_steps", "1", "--packing", "True"))
    states = [re.search(r'id="verdict">([^.:,]*)', page)[1] for page in written]  # type: ignore[index]
    assert states == ["Running"] * (len(written) - 1) + ["Finished in"] or states[-1].startswith("Finished")
    assert len(written) >= 5, "at the start, at evaluations, when it saves, and at the end"
    page = _page(outcome.folder)
    assert page == written[-1]
    (outcome.folder / "report.html").unlink()
    monkeypatch.setattr(png, "installed", lambda: False)
    assert command.main([str(outcome.folder)]) == 0
    assert _page(outcome.folder) == page
    assert "pip install matplotlib" in capsys.readouterr().err
    for name, entry in outcome.record["settings"].items():
        assert f'<th scope="row">{name}</th>' in page, f"{name}: {entry}"
    assert "packs of 512" in page and "% filled" in page and "<mark>" in page


def _page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_what_fails_is_said_once_and_ends_no_run(
    train: Train, eval_flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    short = ["--max_steps", "1", *eval_flags]
    plain = ok(train(*short, name="plain"))

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("planted")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    flags = [*short, *HTML, "--run_report", "png"]
    for module, name, instead, said in (
        (run_report, "answer_all", fails, r"the answers of --sample_prompts could not be made \(RuntimeError: planted"),
        (run_report, "choose_prompts", fails, r"the prompts of --sample_prompts could not be made"),
        (run_report, "rewrite", full, r"report.html could not be made \(OSError: No space left on device\)"),
        (run_report, "write_json", full, r"report.json could not be made \(OSError: No space left"),
        (png, "_drawn", fails, r"no PNGs of the charts: RuntimeError: planted"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, instead)
            outcome = ok(train(*flags, name=name))
        warnings = [line for line in outcome.err.splitlines() if line.startswith("WARNING")]
        assert len(warnings) == 1 and re.search(said, warnings[0]), outcome.err
        assert outcome.metrics == plain.metrics


def test_a_file_of_somebody_else_is_not_replaced(train: Train, eval_flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "report.html"
    mine.write_text("the page of a preview")
    outcome = ok(train(*RUN, *eval_flags, *HTML, "--overwrite_output_dir", "True"))
    assert mine.read_text() == "the page of a preview"
    assert outcome.err.count("is not the report of a run and is not replaced") == 1
    assert command.main([str(outcome.folder)]) == 2
    assert command.main([str(outcome.folder), "--output", str(tmp_path / "other.html")]) == 0


def test_a_run_that_starts_over_keeps_nothing_of_the_earlier_one(train: Train, eval_flags: list[str]) -> None:
    first = ok(train(*RUN, *eval_flags, *HTML))
    assert (first.folder / "answers.jsonl").exists()
    second = ok(train(*RUN, "--overwrite_output_dir", "True", "--learning_rate", "1e-3", "--eval_on_start", "False"))
    assert not {"answers.jsonl", "report.html", "report.json"} & {path.name for path in second.folder.iterdir()}


def test_a_resumed_run_keeps_the_answers_from_before_it(train: Train, eval_flags: list[str]) -> None:
    flags = [*RUN, *eval_flags, *HTML, "--save_strategy", "steps", "--save_steps", "1", "--num_train_epochs", "1"]
    whole = ok(train(*flags, "--max_steps", "3", name="whole"))
    from fastchat.train.callbacks import MetricsFile
    from fastchat.train.stopping import STOPPING

    real = MetricsFile.on_log

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        real(self, args, state, control, **kwargs)
        if state.global_step == 1:
            STOPPING.reason = STOPPING.reason or "planted"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", stop)
        stopped = train(*flags, "--max_steps", "3", name="stopped")
    STOPPING.reason = None
    assert stopped.code == 75, stopped.err
    for _ in range(2):  # as the run left it, and made again
        page = _page(stopped.folder)
        assert "Stopped after step 2 of 3" in page and "the same command resumes" in page
        assert command.main([str(stopped.folder)]) == 0
    resumed = ok(train(*flags, "--max_steps", "3", name="stopped"))
    found = [reading.read_run(outcome.folder).answers for outcome in (whole, resumed)]
    assert found[0] == found[1] and [row["step"] for row in found[0]] == [0] * 3 + [3] * 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train_on", "all"], r"--sample_prompts 3: the evaluation data has 0 prompts that"),
        (["--sample_prompts", "100"], r"--sample_prompts 100: the evaluation data has \d+ prompts that"),
        (["--model_max_length", "80"], r"--sample_prompts 3: the evaluation data has 0 prompts that"),
    ],
)
def test_prompts_that_are_missing_are_counted(
    train: Train, eval_flags: list[str], tmp_path: Path, flags: list[str], said: str
) -> None:
    outcome = ok(train(*eval_flags, *HTML, *flags))
    assert re.search(said, outcome.err), outcome.err


def test_without_evaluation_data_there_are_no_answers(train: Train) -> None:
    assert "no effect: --eval_strategy is no" in ok(train("--sample_prompts", "3")).err
    outcome = ok(train("--sample_prompts", "4", "--run_report", "html", name="b"))
    assert "--sample_prompts" not in outcome.err and not (outcome.folder / "answers.jsonl").exists()
    assert "Answers before" not in _page(outcome.folder)


def test_time_and_a_stop_cut_the_answers(
    train: Train, eval_flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(answers, "SECONDS", 0.0)
    outcome = ok(train(*eval_flags, *HTML))
    rows = reading.read_run(outcome.folder).answers
    assert {(row["end"], row["num_tokens"]) for row in rows} == {("time", 1)}
    assert "cut at the time limit" in _page(outcome.folder)


def test_a_secret_in_the_data_is_hidden(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the environment; a text of the data may hold it too."""
    monkeypatch.setenv("SOME_TOKEN", "sesame-open-0")
    turns = [{"from": "human", "value": "Say sesame-open-0"}, {"from": "gpt", "value": "It is sesame-open-0 </script>"}]
    data = write_rows(tmp_path / "rows.json", [{"conversations": turns}] * 6)
    flags = ["--data_path", str(data), "--eval_data_path", str(data), "--eval_strategy", "epoch"]
    outcome = ok(train(*flags, *HTML))
    for name in ("report.html", "report.json", "answers.jsonl"):
        text = (outcome.folder / name).read_text()
        assert "sesame-open-0" not in text and "***" in text, name
