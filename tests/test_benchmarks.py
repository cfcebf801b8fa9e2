"""The benchmarks themselves: what runs without peers and without a GPU, at toy size."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def load(repository: Path, name: str, monkeypatch: Any) -> Any:
    """A script of playground/benchmark as a module."""
    folder = repository / "playground" / "benchmark"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_row_and_what_was_left_out(repository: Path, tmp_path: Path, monkeypatch: Any) -> None:
    chart = load(repository, "chart", monkeypatch)
    found = {
        "tokenise x": {"lines": {"here, core": "9 (8 to 10) ktok per CPU s"}, "rates": {"here, core": [8, 9, 10]}},
        "step": {"lines": {"trl": "0.2 CPU s per step"}, "seconds": {"trl": [0.1, 0.2], "here": [0.1, 0.1]}},
        "peer_start": {"lines": {"trl, first": "9 CPU s"}, "seconds": {"trl, first": [9, 9.5]}},
        "machine": "a machine",
        "versions": {"trl": "1.2"},
        "left out": {"fschat": "pip could not install it: no network"},
    }
    chart.draw(found, tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| tokenise x | here, core | 9 (8 to 10) ktok per CPU s |" in text and "| step | trl |" in text
    assert "- fschat: pip could not install it: no network" in text and "a machine. trl 1.2" in text
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"
    chart.draw({}, tmp_path)  # nothing measured: a table without rows


def test_a_peer_that_cannot_be_had_is_left_out_with_the_reason(
    repository: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    bench, peers = load(repository, "bench", monkeypatch), sys.modules["peers"]
    monkeypatch.setattr(bench, "versions", lambda python, names: {})

    def refuse(name: str, work: Path) -> Path:
        if name == "here":
            return Path(sys.executable)
        raise peers.Missing("pip could not install it: no network")  # type: ignore[attr-defined]

    monkeypatch.setattr(bench, "interpreter", refuse)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--work", str(tmp_path), "--only", "tokenise"])
    bench.main()
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["left out"] == {"tokenise": "it needs --tokenizers and --data_path"}
    one = bench.Bench(bench.parse_arguments())
    assert list(one.peers(["trl", "fschat"])) == ["here"]
    assert one.found["left out"]["trl"] == "pip could not install it: no network"


def test_bench_reads_what_the_other_scripts_print(repository: Path, monkeypatch: Any, capsys: Any) -> None:
    bench = load(repository, "bench", monkeypatch)
    start, merge = load(repository, "start", monkeypatch), load(repository, "merge", monkeypatch)
    step, packing = load(repository, "step", monkeypatch), load(repository, "packing", monkeypatch)

    def read(pattern_and_words: tuple[str, str]) -> dict[str, str]:
        return bench.figures_in(capsys.readouterr().out, *pattern_and_words)

    here, other = Path("here"), Path("other")
    taken = {(c, n): [start.Seconds(12.5, 30.0, 1.0)] for c in (here, other) for n in start.COLUMNS}
    start.report(taken, [here, other])
    once = "12.5 (12.5 to 12.5)"
    said = f"CPU seconds: --help {once}; first start {once}; second start {once}; preview {once}"
    assert read(bench.START) == {"this checkout": said, "the other": said}
    merge.report({"here": {"cpu_s": [11.0], "peak_bytes": [7e8]}, "peft": {"cpu_s": [12.0], "peak_bytes": [2e9]}})
    assert {who: text.split()[0] for who, text in read(bench.MERGE).items()} == {"here": "11.0", "peft": "12.0"}
    step.report({"plain loop": [1.0], "this project": [1.01], "transformers' Trainer": [0.99]}, 10)
    found = read(bench.STEP)
    assert found["this project"] == "101.00 CPU ms per step (101.00-101.00), 1.0% over the loop"
    assert list(found) == ["plain loop", "this project", "transformers' Trainer"]
    monkeypatch.setattr(sys, "argv", ["packing.py", "--number", "200", "--repeat", "1"])
    packing.main()
    assert "packs" in read(bench.PACK)["log-normal, median 400"]


def test_rungs_and_their_figures(repository: Path, tmp_path: Path, monkeypatch: Any) -> None:
    ladder = load(repository, "ladder", monkeypatch)
    names = [rung.name for rung in ladder.rungs(["Llama-2-7B", "Llama-3.1-8B"])]
    assert len(set(names)) == len(names) and names[1] == "Llama-2-7B, 4 rows, HF + PEFT, padded"
    # Llama-2-7B without embeddings and norms; its own 6.738e9 parameters have these besides.
    assert ladder.linear_weights(ladder.LLAMA2) == 6_738_415_616 - 32000 * 4096 - (2 * 32 + 1) * 4096
    assert ladder.tokens_per_second([(0.0, 9), (5.0, 9), (6.0, 10), (7.0, 20)]) == 15.0
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1, "num_tokens": 5}\n{"eval_loss": 2}\n{"loss": 1, "num', "utf-8")
    assert ladder.logged(tmp_path) == [{"loss": 1, "num_tokens": 5}]


@pytest.mark.thorough
def test_the_ladder_at_toy_size(repository: Path, tmp_path: Path) -> None:
    words = [sys.executable, "playground/benchmark/ladder.py", "--toy", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "ladder.json").read_text(encoding="utf-8"))
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert found["peak_flops"] > 0 and len(found["rungs"]) == 4
    measured = [name for name, result in found["rungs"].items() if "skipped" not in result]
    assert {"toy, 2 rows, HF + PEFT, padded", "toy, 2 rows, packing", "toy, 2 rows, packing + QLoRA"} <= set(measured)
    for name in measured:
        assert found["rungs"][name]["tokens/s"] > 0 and found["rungs"][name]["share"] >= 0, name
    skipped = [result["skipped"] for result in found["rungs"].values() if "skipped" in result]
    assert all(reason.startswith("this version has no --") for reason in skipped)
