"""Which data a run takes: sources, proportions, held-out dialogues, the token cache; and what resuming checks of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastchat.data.tokens import cache as token_cache
from tests import builders
from tests.train.conftest import Outcome
from tests.train.flags import Train, covers, ok

pytestmark = pytest.mark.slow


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A token cache of the test's own."""
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "_USING", {})
    return tmp_path / "cache"


def rows_of(outcome: Outcome, which: str = "train") -> list[int]:
    """The input rows that a run trains or evaluates on."""
    dataset = outcome.trainer.train_dataset if which == "train" else outcome.trainer.eval_dataset
    return [dataset[i]["index"] for i in range(len(dataset))]


def corpus(outcome: Outcome, which: str = "train") -> dict[str, Any]:
    return outcome.record["data"][which]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two data files, 12 and 5 dialogues, and something else."""
    made = tmp_path / "data"
    made.mkdir()
    rows = builders.chat_rows(17)
    builders.write_rows(made / "a.jsonl", rows[:12])
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[12:]), made / "b.parquet")
    (made / "README.md").write_text("not data")
    return made


@covers("preprocessing_num_workers", "overwrite_cache")
def test_the_second_start_reads_no_row(train: Train, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ok(train())
    assert "found in" not in first.err and len(list(cache.glob("*/entry.json"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr("fastchat.data.tokens.prepare.Records", None)
        second = ok(train(name="b"))
    assert f"train tokens: found in {cache}" in second.err and second.losses == first.losses
    keys = ("counts", "fingerprint", "sources")
    assert [corpus(second)[key] for key in keys] == [corpus(first)[key] for key in keys]
    table = "20: 20 used"
    assert table in first.err and table in second.err
    third = ok(train("--overwrite_cache", "--preprocessing_num_workers", "2", name="c"))
    assert "found in" not in third.err and third.losses == first.losses
    assert "at least 1" in train("--preprocessing_num_workers", "0", name="d").err


def test_the_cache_is_never_in_the_output_folder(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "out" / "tokens"))
    outcome = train()
    assert outcome.code == 2 and "is in --output_dir" in outcome.err


def test_a_cache_that_takes_nothing_is_replaced(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = ok(train())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FSCHAT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(token_cache.tempfile, "tempdir", str(scratch))
    outcome = ok(train(name="b"))
    assert "the token cache" in outcome.err and "for this run only" in outcome.err
    assert outcome.losses == plain.losses and os.listdir(scratch) == [], "gone as soon as it is mapped"


def test_patterns_and_folders(train: Train, folder: Path) -> None:
    one = ok(train("--data_path", folder))
    assert f"--data_path {folder}: 2 files; left out: README.md" in one.err
    assert [(s["name"], s["rows"], len(s["files"])) for s in corpus(one)["sources"]] == [(str(folder), 17, 2)]
    two = ok(train("--data_path", f"{folder}/*.*[lt]", name="b"))
    three = ok(train("--data_path", folder / "a.jsonl", folder / "b.parquet", name="c"))
    assert corpus(one)["fingerprint"] == corpus(two)["fingerprint"] == corpus(three)["fingerprint"]
    assert one.losses == two.losses == three.losses, "the same data however it is named"
    assert [s["rows"] for s in corpus(three)["sources"]] == [12, 5]


@covers("data_split", "eval_data_split", "data_revision")
def test_a_dataset_of_the_hub_in_its_cache(train: Train, tmp_path: Path) -> None:
    repository, commit = tmp_path / "hub" / "datasets--me--sums", "c" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text(commit)
    for split, rows in (("train", 6), ("test", 3), ("extra", 4)):
        (repository / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        builders.write_rows(repository / "snapshots" / commit / f"{split}.jsonl", builders.chat_rows(rows))
    (repository / "snapshots" / commit / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "test", "extra"))
        + "---\n"
    )
    names = ["--data_path", "me/sums", "--cache_dir", str(tmp_path / "hub"), "--data_revision", "v1"]
    evaluated = [*names, "--eval_data_path", "me/sums", "--eval_strategy", "epoch"]
    outcome = ok(train(*evaluated))
    assert (corpus(outcome)["counts"]["rows"], corpus(outcome, "eval")["counts"]["rows"]) == (6, 3)
    assert corpus(outcome)["sources"][0]["revision"] == commit
    other = ok(train(*evaluated, "--data_split", "extra", "--eval_data_split", "train", name="b"))
    assert (corpus(other)["counts"]["rows"], corpus(other, "eval")["counts"]["rows"]) == (4, 6)
    refused = train(*names[:-1], "v2", name="c")
    assert refused.code == 3 and "HF_HUB_OFFLINE is set" in refused.err and "--revision v2" in refused.err


@covers("data_columns", "data_roles")
def test_files_with_other_names(train: Train, cache: Path, data_files: tuple[Path, Path], tmp_path: Path) -> None:
    """The run is that of the same dialogues under our names; it is recorded, and has tokens of its own in the cache."""
    roles = {"human": "Customer", "gpt": "agent"}
    renamed = [
        {"key": row["id"], "dialog": [{"who": roles[t["from"]], "said": t["value"]} for t in row["conversations"]]}
        for row in json.loads(data_files[0].read_text())
    ]
    path = builders.write_rows(tmp_path / "renamed.json", renamed)
    names = {"messages": "dialog", "role": "who", "content": "said", "id": "key"}
    mapping = ["--data_columns", json.dumps(names), "--data_roles", '{"customer": "user", "agent": "assistant"}']
    plain, outcome = ok(train()), ok(train("--data_path", path, *mapping, name="b"))
    assert outcome.losses == plain.losses
    assert outcome.record["settings"]["data_columns"]["value"] == names
    recipe = tmp_path / "again.yaml"
    recipe.write_text(json.dumps({"data_columns": names, "data_roles": {"CUSTOMER": "human", "agent": "gpt"}}))
    base = [str(recipe), "--model_name_or_path", plain.record["base_model"], "--data_path", str(path)]
    again = ok(train("--per_device_train_batch_size", "4", "--max_steps", "2", base=base, name="c"))
    assert again.losses == plain.losses
    other = ok(train("--data_path", data_files[0], path, *mapping, name="d"))
    assert corpus(other)["counts"]["dialogues"] == 40
    for words, code, message in (
        (["--data_columns", '{"mesages": "dialog"}'], 2, "did you mean messages"),
        (["--data_columns", '{"messages": "dialogue"}'], 3, "did you mean 'dialog'"),
        (mapping[:2], 3, "unknown role: turn 1 is from 'Customer'"),
    ):
        refused = train("--data_path", path, *words, name="e")
        assert refused.code == code and message in refused.err


@covers("data_proportions")
def test_proportions(train: Train, folder: Path) -> None:
    flags = ["--data_path", folder / "a.jsonl", folder / "b.parquet", "--data_proportions"]
    outcome = ok(train(*flags, "0.5", "0.5"))
    assert (
        f"10 dialogues make up an epoch: 5 of 12 from {folder}/a.jsonl, 5 of 5 from {folder}/b.parquet" in outcome.err
    )
    rows = rows_of(outcome)
    assert rows[5:] == [12, 13, 14, 15, 16] and len(set(rows)) == 10
    assert corpus(outcome)["chosen"]["dialogues"] == 10 and corpus(outcome)["counts"]["dialogues"] == 17
    assert [s["dialogues_taken"] for s in corpus(outcome)["sources"]] == [5, 5]
    assert rows_of(ok(train(*flags, "2", "2", name="b"))) == rows
    other = ok(train(*flags, "0.5", "0.5", "--data_seed", "7", name="c"))
    assert rows_of(other) != rows and corpus(other)["fingerprint"] != corpus(outcome)["fingerprint"]
    recipe = folder / "r.yaml"
    recipe.write_text("data_proportions: [0.75, 0.25]\n")
    base = ["--model_name_or_path", outcome.record["base_model"], "--max_steps", "1"]
    assert len(rows_of(ok(train(*flags[:-1], base=[str(recipe), *base], name="d")))) == 16


def test_a_dialogue_that_is_several_examples_and_a_text(train: Train, tmp_path: Path) -> None:
    """With a template that shows earlier answers differently; epochs count examples, shares dialogues."""
    rows = [*builders.chat_rows(9, rounds=3), {"text": "A text that is continued, without any template. " * 40}]
    data = builders.write_rows(tmp_path / "rows.jsonl", rows)
    flags = ["--data_path", data, "--conv_template", "yuan2", "--model_max_length", "128", "--val_set_size", "2"]
    outcome = ok(train(*flags, "--eval_strategy", "epoch", "--max_steps", "-1", "--num_train_epochs", "1"))
    counts = corpus(outcome)["counts"]
    trained, held_out = rows_of(outcome), rows_of(outcome, "eval")
    assert (counts["dialogues"], counts["split_dialogues"], counts["plain_texts"], counts["split_texts"]) == (
        10,
        9,
        1,
        1,
    )
    assert counts["examples"] == len(trained) + len(held_out) > 27 and not set(trained) & set(held_out)
    assert len(set(trained)) == 8 and all((trained + held_out).count(row) == 3 for row in range(9))
    assert outcome.trainer.state.global_step == -(-len(trained) // 4)
    assert f"{counts['examples']} of 10 rows; several from 9 dialogues" in outcome.err
    assert "WARNING: 1 of 10 rows hold plain text" in outcome.err
    assert f"data       8 dialogues ({len(trained)} examples), " in outcome.err
    assert "batch      4 examples = 1 process x 4" in outcome.err


def test_a_source_of_which_nothing_is_left_is_named(train: Train, folder: Path, data_files: tuple[Path, Path]) -> None:
    rows = builders.chat_rows(3)
    for row in rows:
        row["conversations"][1]["value"] = "long " * 300
    long = builders.write_rows(folder / "long.json", rows)
    flags = ["--data_path", data_files[0], long, "--overlong", "drop", "--data_proportions", "1", "1"]
    outcome = train(*flags, "--model_max_length", "250")
    assert outcome.code == 3 and f"of {long} not one dialogue would be trained on (it has 0" in outcome.err
    assert not (outcome.folder / "metrics.jsonl").exists()


@covers("val_set_size")
@pytest.mark.parametrize("size", ["0.25", "5"])
def test_held_out_dialogues(train: Train, size: str) -> None:
    flags = ["--val_set_size", size, "--eval_strategy", "epoch", "--log_samples", "True", "--max_steps", "5"]
    outcome = ok(train(*flags))
    trained, held_out = rows_of(outcome), rows_of(outcome, "eval")
    assert sorted(trained + held_out) == list(range(20)) and len(held_out) == 5
    assert "--val_set_size: 5 of 20 dialogues are held out, 15 are trained on" in outcome.err
    assert "data       15 dialogues, " in outcome.err
    samples = [json.loads(line) for line in (outcome.folder / "samples.jsonl").read_text().splitlines()]
    assert {row for line in samples for row in line["samples"]} == set(trained)
    chosen, evaluated = corpus(outcome)["chosen"], corpus(outcome, "eval")["chosen"]
    assert (chosen["dialogues"], evaluated["dialogues"], evaluated["held_out"]) == (15, 5, True)
    counts = corpus(outcome)["counts"]
    for key in ("dialogues", "tokens", "supervised_tokens"):
        assert chosen[key] + evaluated[key] == counts[key]
    assert outcome.record["metrics"]["eval_num_supervised_tokens"] == evaluated["supervised_tokens"]
    assert rows_of(ok(train(*flags, name="b")), "eval") == held_out
    assert rows_of(ok(train(*flags, "--data_seed", "3", name="c")), "eval") != held_out


def test_the_evaluation_of_held_out_dialogues_is_that_of_a_file(train: Train, data_files: tuple[Path, Path]) -> None:
    held = ok(train("--val_set_size", "6", "--eval_strategy", "epoch", "--eval_on_start", "True"))
    rows = json.loads(data_files[0].read_text())
    parts = [np.array(rows_of(held)), np.array(rows_of(held, "eval"))]
    files = [
        builders.write_rows(held.folder.parent / f"{k}.json", [rows[i] for i in part]) for k, part in enumerate(parts)
    ]
    flags = [
        "--data_path",
        files[0],
        "--eval_data_path",
        files[1],
        "--eval_strategy",
        "epoch",
        "--eval_on_start",
        "True",
    ]
    split = ok(train(*flags, name="b"))
    assert [row.get("eval_loss") for row in split.metrics] == [row.get("eval_loss") for row in held.metrics]
    assert split.losses == held.losses
    first, last = (f"{row['eval_loss']:.4f}" for row in (held.metrics[0], held.metrics[-1]))
    assert f"evaluation loss {first} before training -> {last}\n" in held.err and first != last
    ending = held.err.partition("saved and verified in ")[2]
    assert ending.startswith(f"{held.folder}: adapter (") and ending.count("\nnext       fastchat ") == 3


def test_held_out_of_a_mixture(train: Train, folder: Path) -> None:
    data = ["--data_path", folder / "a.jsonl", folder / "b.parquet", "--data_proportions", "0.5", "0.5"]
    outcome = ok(train(*data, "--val_set_size", "4", "--eval_strategy", "epoch"))
    whole = rows_of(ok(train(*data, name="b")))
    assert sorted(rows_of(outcome) + rows_of(outcome, "eval")) == whole and len(rows_of(outcome, "eval")) == 4


def test_held_out_without_evaluation_is_said(train: Train) -> None:
    outcome = ok(train("--val_set_size", "0.1"))
    assert "holds dialogues out that nothing looks at" in outcome.err and outcome.trainer.eval_dataset is None
    assert "data       18 dialogues, " in outcome.err and "eval" not in outcome.record["data"]


def test_the_same_words_on_both_sides_are_said(train: Train, tmp_path: Path) -> None:
    rows = builders.chat_rows(6)
    data = builders.write_rows(tmp_path / "twice.json", rows + rows)
    outcome = ok(train("--data_path", data, "--val_set_size", "3", "--eval_strategy", "epoch"))
    same = sum(row % 6 in {other % 6 for other in rows_of(outcome)} for row in rows_of(outcome, "eval"))
    assert same and f"WARNING: {same} of 3 evaluation dialogues are in the training data too" in outcome.err


CONTRADICTIONS = [
    (["--val_set_size", "0.1", "--eval_data_path", "DATA"], "keep one"),
    (["--val_set_size", "-1"], "--val_set_size is -1"),
    (["--val_set_size", "1.5"], "a whole number of dialogues, or a share"),
    (["--val_set_size", "20"], "none of the 20 dialogues would be left"),
    (["--data_proportions", "0.5", "0.5"], "2 numbers for 1 values of --data_path"),
    (["--data_proportions", "half"], "--data_proportions is half; numbers are expected"),
    (["--eval_strategy", "epoch"], "needs --eval_data_path or --val_set_size"),
    (["--dataloader_drop_last", "True", "--per_device_train_batch_size", "21"], "20 rows to train on, less than"),
]


@pytest.mark.parametrize(("flags", "message"), CONTRADICTIONS, ids=[" ".join(flags) for flags, _ in CONTRADICTIONS])
def test_contradictions(train: Train, data_files: tuple[Path, Path], flags: list[str], message: str) -> None:
    outcome = train(*[str(data_files[1]) if flag == "DATA" else flag for flag in flags])
    assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err


RUN = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]
OTHER_DATA: dict[str, tuple[list[str], str]] = {
    "held out": (["--val_set_size", "3"], "--val_set_size (2.0 -> 3.0)"),
    "nothing held out": (["--val_set_size", "0"], "--val_set_size (2.0 -> 0.0)"),
    "another file": (["--data_path", "DATA", "{b}"], "the training data ("),
    "roles": (["--data_roles", '{{"x": "user"}}'], '--data_roles (null -> {"x": "user"})'),
    "proportions": (["--data_proportions", "3", "1"], "--data_proportions ([0.5, 0.5] -> [3.0, 1.0])"),
}


@pytest.mark.parametrize("change", OTHER_DATA)
def test_resuming_needs_the_same_choice(train: Train, folder: Path, data_files: tuple[Path, Path], change: str) -> None:
    flags = [*RUN, "--data_path", folder / "a.jsonl", folder / "b.parquet", "--data_proportions", "0.5", "0.5"]
    flags += ["--val_set_size", "2"]
    first = ok(train(*flags))
    (first.folder / "status.json").unlink()
    more, message = OTHER_DATA[change]
    more = [word.format(b=folder / "b.parquet").replace("DATA", str(data_files[1])) for word in more]
    refused = train(*flags, *more)
    assert refused.code == 2 and message in refused.err, refused.err
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    same = [str(flag).replace(str(folder), str(copy)) for flag in flags]
    resumed = ok(train(*same))
    assert "resuming from" in resumed.err, "the same data at another place"
    shutil.rmtree(first.folder)
