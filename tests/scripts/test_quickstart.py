"""The quickstart: its data is as described, its verdict can be negative, and the whole script works and shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts.conftest import Run
from tests.tiers import thorough


@pytest.fixture
def quickstart(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import one of the files in playground/quickstart, as running it by path does."""
    import importlib

    monkeypatch.syspath_prepend(str(repository / "playground" / "quickstart"))
    return importlib.import_module


@pytest.fixture
def made(quickstart: Callable[[str], ModuleType], tmp_path: Path) -> Path:
    """The files that make_data.py writes."""
    quickstart("make_data").main(tmp_path / "made")
    return tmp_path / "made"


def _questions_and_answers(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        texts = [turn["value"] for turn in record["conversations"]]
        pairs += list(zip(texts[::2], texts[1::2], strict=True))
    return pairs


def test_the_same_tables_give_the_same_files(
    made: Path, quickstart: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    quickstart("make_data").main(tmp_path / "again")
    names = [p.relative_to(made) for p in sorted(made.rglob("*")) if p.is_file()]
    assert Path("blank/tokenizer.json") in names
    assert all((tmp_path / "again" / name).read_bytes() == (made / name).read_bytes() for name in names)


def test_held_out_questions_are_about_things_no_training_chat_mentions(made: Path) -> None:
    trained = _questions_and_answers(made / "chat_train.json")
    held_out = _questions_and_answers(made / "chat_eval.json")
    assert (len(trained), len(held_out)) == (480, 82)
    assert not {answer for _, answer in trained} & {answer for _, answer in held_out}


def test_the_base_reads_every_fact_and_no_chat(made: Path) -> None:
    rows = [json.loads(line) for line in (made / "base.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["instruction"] + row["output"] for row in rows]
    everything = "\n".join(texts)
    assert all(answer in everything for _, answer in _questions_and_answers(made / "chat_eval.json"))
    assert not re.search(r"\?|USER|ASSISTANT|Please|What is", everything)


def test_its_conversations_load_as_they_are(made: Path) -> None:
    from fastchat.data.rows.records import load_dialogues

    for name, number in (("chat_train.json", 320), ("chat_eval.json", 82)):
        loaded = load_dialogues([str(made / name)])
        assert [record.dropped for record in loaded.records] == [None] * number


@pytest.fixture
def verdict(
    made: Path, quickstart: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., int]:
    """`verdict(base=..., tuned=..., after=...)`: the exit code for models that answer like that."""
    compare = quickstart("compare")
    right = [answer for _, answer in _questions_and_answers(made / "chat_eval.json")]
    says = {"right": right, "goes on": [f"{answer} And so on." for answer in right], "wrong": ["no."] * len(right)}
    adapter = tmp_path / "adapter"
    adapter.mkdir()

    def judge(base: str, tuned: str, after: float = 0.1) -> int:
        (adapter / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 0.2}\n')
        metrics = {"eval_loss_before": 2.0, "eval_loss": after}
        (adapter / "training.json").write_text(json.dumps({"metrics": metrics}))
        monkeypatch.setattr(compare, "load_chat", lambda path, **_: tuned if path == str(adapter) else base)
        monkeypatch.setattr(compare, "ask", lambda chat, records: says[chat])
        return compare.main(tmp_path / "base", adapter, made / "chat_eval.json")

    return judge


def test_the_verdict_is_good_only_where_the_tuned_model_is_clearly_better(
    verdict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict(base="wrong", tuned="right") == 0
    printed = capsys.readouterr().out
    assert "base 0, tuned 82" in printed
    assert "clearly better" in printed
    assert verdict(base="wrong", tuned="wrong") == 1
    assert "NOT clearly better" in capsys.readouterr().out
    assert verdict(base="right", tuned="right") == 1
    # A model that says the right thing and does not stop has not learned to answer.
    assert verdict(base="wrong", tuned="goes on") == 1
    assert verdict(base="wrong", tuned="right", after=2.5) == 1


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.xdist_group(
    "quickstart"
)  # takes minutes: not in the group of the other launches, and it may run next to other tests
@pytest.mark.parametrize("whole", [False, thorough(True, in_default=False)])
def test_the_quickstart_works_and_shows_it(repository: Path, run_script: Run, whole: bool) -> None:
    """By default with half of the pre-training: it then learns less, and still clearly something."""
    if not (repository / ".venv" / ".ready").is_file():
        pytest.skip("without .venv the quickstart would install one: run the tests with scripts/test.sh")
    run = run_script("quickstart.sh", timeout=3600, **({} if whole else {"BASE_EPOCHS": "3", "CHAT_EPOCHS": "2"}))
    assert run.returncode == 0, run.stdout + run.stderr
    counts = re.search(r"right, of 82 questions .*: base (\d+), tuned (\d+)", run.stdout)
    assert counts, run.stdout
    assert int(counts[2]) >= (60 if whole else 30) and int(counts[2]) - int(counts[1]) >= (30 if whole else 20)
    assert re.search(r"evaluation loss +[1-9]\.\d+ at the start +0\.\d+ at the end", run.stdout)
    assert "What to do next" in run.stdout
    assert len((run.stdout + run.stderr).splitlines()) < 60, "every line is worth reading"
    record = json.loads((repository / ".cache/quickstart/adapter/training.json").read_text(encoding="utf-8"))
    assert record["engine"] == "zero2"
    base = json.loads((repository / ".cache/quickstart/base/training.json").read_text(encoding="utf-8"))
    assert base["metrics"]["steps"] > (500 if whole else 250)
    assert base["trainable_parameters"] > 900_000
