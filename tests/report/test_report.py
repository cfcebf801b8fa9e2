"""The report that is made from a run folder alone: what it shows, of whole folders, damaged ones, and several."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fastchat.checkpoint.staging import checkpoint_path
from fastchat.files import Lock
from fastchat.report import command, figures, png, svg
from fastchat.report.charts import Chart, Series, charts_of, points_of
from fastchat.report.html import page_of
from fastchat.report.reading import read_run
from tests.report.folders import ROWS, STATUS, answers, begun, record, write_run


class Page(HTMLParser):
    """The texts of a page, and its polylines and tables by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(text)
        data = json.loads(text.split('id="data">')[1].split("</script>")[0])
        self.data = {chart["key"]: chart["series"] for chart in data}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += f"{data}\n"

    def lines_of(self, key: str) -> list[list[tuple[float, float]]]:
        """The vertices of the curves in a chart."""
        found, inside = [], False
        for tag, attrs in self.tags:
            inside = attrs.get("data-key") == key if tag == "figure" else inside
            if inside and tag == "polyline":
                pairs = (pair.split(",") for pair in str(attrs["points"]).split())
                found.append([(float(x), float(y)) for x, y in pairs])
        return found


def _page(*folders: Path) -> Page:
    return Page(page_of([read_run(folder) for folder in folders]))


def test_charts_have_exactly_the_logged_points(tmp_path: Path) -> None:
    page = _page(write_run(tmp_path / "run"))
    logged = {key: [[row["step"], row[key]] for row in ROWS if key in row] for row in ROWS for key in row}
    gib = {
        key: [[step, value / 2**30] for step, value in logged[key]] for key in ("memory_measured", "memory_predicted")
    }
    expected = {
        "loss": {"training": logged["loss"], "evaluation": logged["eval_loss"]},
        "learning_rate": {"": logged["learning_rate"]},
        "grad_norm": {"": logged["grad_norm"]},
        "tokens_per_second": {"": logged["tokens_per_second"]},
        "memory": {"measured": gib["memory_measured"], "planned": gib["memory_predicted"]},
        "eval_token_accuracy": {"": logged["eval_token_accuracy"]},
    }
    found = {key: {one["name"]: one["points"] for one in series} for key, series in page.data.items()}
    assert found == expected
    for key, series in expected.items():
        drawn = page.lines_of(key)
        every = [point for points in series.values() for point in points]
        steps, values = zip(*every, strict=True)
        x, y = svg.axis(steps, whole=True), svg.axis(values)
        for points, vertices in zip(series.values(), drawn, strict=True):
            assert len(vertices) == len(points)
            for (step, value), (across, down) in zip(points, vertices, strict=True):
                assert x.low + across / svg.SIZE * (x.high - x.low) == pytest.approx(step, abs=1e-3)
                assert y.low + (1 - down / svg.SIZE) * (y.high - y.low) == pytest.approx(value, rel=1e-3, abs=1e-5)
    for title in ("Optimizer step", "Loss per learned token", "Tokens per second", "GiB per process"):
        assert title in page.text
    assert "Evaluation: token accuracy" in page.text, "a key that is not known here"


def test_the_verdict_comes_first_and_everything_is_there(tmp_path: Path) -> None:
    text = _page(write_run(tmp_path / "run")).text
    head, _, rest = text.partition("WARNING: look out")
    assert "tiny, QLoRA, rank 16" in head
    assert "Finished in 2 min 10 s: 7 steps" not in head and "Finished in 2 min 10 s: 21 steps on 8 dialogues." in head
    assert "Evaluation loss 1.362 → 0.0121, training loss 1.2 → 0.1714." in head
    assert "11.0 GiB (12.0 GiB planned)" in head and rest.count("WARNING: look out") == 0, "each warning once"
    assert "chats.json" in rest and "8 used, 1 dropped (1 longer than the length limit)" in rest
    assert "8 examples in 3 packs of 512, 58.59 % filled" in rest
    assert "2 of 5 tokens are learned" in rest and "torch 2.13.0" in rest


def test_settings_say_where_they_come_from(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    found = {one.name: one for one in figures.settings_of(run)}
    own = {name: (one.value, one.default, one.origin) for name, one in found.items() if one.differs}
    assert own == {
        "model_name_or_path": ("/models/tiny", "not set", "command line"),
        "learning_rate": ("0.003", "5e-05", "yaml"),
        "lora_r": ("16", "8", "command line"),
        "q_lora": ("true", "false", "command line"),
        "data_seed": ("42", "not set", "derived"),
        "of_a_newer_version": ('{"a": [1, null]}', None, "yaml"),
    }
    assert set(found) == set(own) | {"logging_steps"}


def test_values_that_only_look_different_are_the_default(tmp_path: Path) -> None:
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    made = record(lora_dropout=0.0, lora_target_modules=names, lora_modules_to_save=["lm_head"], eval_steps=40.0)
    found = {one.name: one for one in figures.settings_of(read_run(write_run(tmp_path / "run", training=made)))}
    assert not found["lora_target_modules"].differs
    shown = {name: (found[name].value, found[name].default) for name in ("lora_dropout", "eval_steps")}
    assert shown == {"lora_dropout": ("0", "0.05"), "eval_steps": ("40", "not set")}
    assert (found["lora_modules_to_save"].value, found["lora_modules_to_save"].default) == ("lm_head", "not set")


def test_evaluation_data_is_not_said_to_be_learned(tmp_path: Path) -> None:
    page = page_of([read_run(write_run(tmp_path / "run"))])
    training, evaluation = (re.search(f'<table id="{name}-data">.*?</table>', page)[0] for name in ("train", "eval"))  # type: ignore[index]
    assert "8 used" in training and "90 learned" in training
    assert "8 used" in evaluation and "90 evaluated" in evaluation
    assert "learned" not in evaluation and "trained" not in evaluation


# --- runs that did not end well


@pytest.mark.parametrize(
    ("status", "running", "said"),
    [
        ({"status": "running"}, False, "Ended without a message (killed?) after step 21 of 40"),
        ({"status": "running"}, True, "Running, step 21 of 40 is logged"),
        ({"status": "failed", "message": "loss is NaN"}, False, "Failed after step 21 of 40"),
        ({"status": "bug", "message": "KeyError: 3"}, False, "Failed after step 21 of 40"),
        ({"status": "preempted", "message": "received SIGTERM"}, False, "Stopped after step 21 of 40"),
        (None, False, "Ended without a message (killed?) after step 21 of 40"),
    ],
)
def test_a_run_without_a_result(tmp_path: Path, status: dict[str, Any] | None, running: bool, said: str) -> None:
    """What it recorded when it began is enough."""
    begin = begun() | {"steps": 40, "record": record()}
    now = None if status is None else STATUS | status
    folder = write_run(tmp_path / "run", training=None, status=now, report=begin)
    with Lock(folder) as lock:
        if running:
            lock.acquire()
        text = _page(folder).text
    assert said in text and "tiny, QLoRA, rank 16" in text and "8 used, 1 dropped" in text
    assert (status or {}).get("message", "") in text
    assert ("status.json is missing" in text) == (status is None)


def test_a_killed_run_of_an_earlier_version_is_known_by_its_checkpoint(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", training=None, report=None, answers=None, status=STATUS | {"status": "running"}
    )
    for step in (5, 10):
        checkpoint_path(folder, step).mkdir()
        path = checkpoint_path(folder, step) / "training.json"
        path.write_text(json.dumps(record(lora_r=step)) if step == 10 else "{")
    assert "tiny, QLoRA, rank 10" in _page(folder).text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"metrics": None}, "metrics.jsonl is missing"),
        ({"metrics": '{"step": 1, "loss": 2}\n{"step": 2, "lo'}, "metrics.jsonl: 1 damaged line left out"),
        ({"metrics": "[]\n3\n" + '{"step": "x"}\n'}, "metrics.jsonl: 3 damaged lines left out"),
        ({"metrics": "{" * 100_000}, "metrics.jsonl: 1 damaged line left out"),
        ({"training": "{"}, "training.json is damaged"),
        ({"training": "[1]"}, "training.json is damaged: it is not a JSON object"),
        ({"training": record() | {"files": {"training.json": {"sha256": "0"}}}}, "has changed since it was saved"),
        ({"status": "nonsense"}, "status.json is damaged"),
        ({"answers": "\x00\n"}, "answers.jsonl: 1 damaged line left out"),
        ({"answers": None}, "answers.jsonl is missing"),
        ({"log": None}, "log.txt is missing"),
        ({"report": None}, "report.json is missing"),
        ({"report": '"x"'}, "report.json is damaged"),
    ],
)
def test_what_is_missing_is_named_and_the_rest_is_shown(tmp_path: Path, damage: dict[str, Any], said: str) -> None:
    page = _page(write_run(tmp_path / "run", **damage))
    assert f"this report is not complete: {said}" in page.text or said in page.text
    if "training" not in damage:
        assert "tiny, QLoRA, rank 16" in page.text
    if "metrics" not in damage:
        assert len(page.data["loss"][0]["points"]) == 7


JUNK: list[Any] = [None, True, -1, 1e308, "x" * 5000, [], [[1]], {}, {"a": {"b": []}}, 10**400, "\ud800<b>"]


@pytest.mark.parametrize("name", ["training", "report", "status", "metrics", "answers"])
def test_values_of_any_kind_make_a_page(tmp_path: Path, name: str) -> None:
    """Whatever a file says under its keys, the page is made and stays closed."""
    whole = {"training": record(), "report": begun() | {"record": record()}, "status": STATUS}
    whole |= {"metrics": ROWS[1], "answers": answers("x")[1]}
    for key, junk in [(key, junk) for key in whole[name] for junk in JUNK]:
        content: Any = {**whole[name], key: junk}
        content = [content] if name in ("metrics", "answers") else content
        page = _page(write_run(tmp_path / "run", **{name: content}))
        assert [tag for tag, _ in page.tags].count("script") == 2 and not any(tag == "b" for tag, _ in page.tags)


def test_numbers_that_are_none_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": True}, {"step": 4, "loss": 1.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "loss": NaN}\n{"step": 6, "loss": 1e999}\n'
    run = read_run(write_run(tmp_path / "run", metrics=text))
    assert points_of(run, "loss") == [(1, 2.0), (4, 1.0)]
    assert "4 values that are not finite numbers are left out" in Page(page_of([run])).text


@pytest.mark.parametrize(
    "points", [[(3, 1.0)], [(3, 0.0), (4, 0.0)], [(0, -1e-9), (10**9, 1e12)], [(1, 5.0), (2, 5.0)]]
)
def test_few_or_equal_points_have_a_chart(points: list[tuple[int, float]]) -> None:
    drawn = svg.drawn(Chart("k", "T", "y", [Series("", points)]))
    numbers = [
        float(n) for pair in re.findall(r'points="([^"]*)"', drawn) for xy in pair.split() for n in xy.split(",")
    ]
    assert len(numbers) == 2 * len(points) and all(0 <= n <= svg.SIZE for n in numbers)


def test_a_pipe_in_the_folder_is_not_opened(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics=None)
    os.mkfifo(folder / "metrics.jsonl")
    assert "metrics.jsonl is a pipe, not a file" in _page(folder).text


# --- several runs


def test_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = [{**row, "loss": row["loss"] * 2} if "loss" in row else row for row in ROWS]
    first = write_run(tmp_path / "a" / "run")
    second = write_run(tmp_path / "b" / "run", metrics=slower, training=record(lora_r=64, use_dora=True))
    page_path = tmp_path / "compared.html"
    assert command.main([str(first), str(second), "--output", str(page_path)]) == 0
    page = Page(page_path.read_text(encoding="utf-8"))
    assert [one["name"] for one in page.data["loss"]] == ["a/run", "b/run"], "named apart"
    assert page.data["loss"][1]["points"] == [[row["step"], row["loss"]] for row in slower if "loss" in row]
    assert len(page.lines_of("loss")) == 2 and len(page.data["memory"]) == 4
    differing = page_path.read_text().split('id="differing"')[1].split("</table>")[0]
    assert re.findall(r'row">(.*?)</th>', differing) == ["lora_r", "use_dora"]
    assert "<td>16</td><td>64</td>" in differing and "<td>false</td><td>true</td>" in differing
    assert "QLoRA, rank 16" in page.text and "QDoRA, rank 64" in page.text
    assert page.text.count("Q x") == 1, "the same prompt is shown once, with the answers of both"
    assert "a/run, after training, step 21" in page.text and "b/run, after training, step 21" in page.text


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for words, code, said in (
        ([tmp_path / "rum"], 2, "no such folder. There is no rum"),
        ([run / "status.json"], 2, "a file; pass its folder"),
        ([tmp_path / "empty"], 2, "it has none of training.json, metrics.jsonl, status.json, report.json"),
        ([run, run], 2, "the same run is given twice"),
        ([run, "--output", tmp_path], 2, "is a folder; name a file in it"),
        ([run, "--output", tmp_path / "x" / "y.html"], 2, f"there is no folder {tmp_path / 'x'}"),
        ([run, "--output", run / "log.txt"], 2, "is not the report of a run and is not replaced"),
        ([run, "--output", "/proc/x.html"], 6, "cannot be written"),
    ):
        assert command.main(list(map(str, words))) == code
        assert said in capsys.readouterr().err
    assert sorted(path.suffix for path in run.iterdir()) == [".json"] * 3 + [".jsonl"] * 2 + [".txt"]


def test_it_starts_without_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    code = "import sys; from fastchat.cli import main; assert main(['report', sys.argv[1]]) == 0; "
    code += "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"report: {run / 'report.html'}", "[]"], done.stderr


def test_pngs_have_the_same_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn: list[list[tuple[int, float]]] = []
    real = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, **k: (drawn.append(list(zip(x, y, strict=True))), real(self, x, y, **k))[1]
    )
    charts = charts_of([read_run(write_run(tmp_path / "run", metrics=[*ROWS, {"step": 22, "$x_/../y": 1.0}]))])
    assert png.write_pngs(charts, tmp_path / "pngs") == len(charts)
    assert drawn == [series.points for chart in charts for series in chart.series]
    names = sorted(path.name for path in (tmp_path / "pngs").iterdir())
    assert names == sorted(f"{re.sub('[^a-z_]', '_', chart.key)}.png" for chart in charts)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "pngs").iterdir())
