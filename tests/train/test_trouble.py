"""Two processes in trouble: signals, deaths, poisoned numbers; and the runs that go on after them, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.checkpoint.discover import newest_checkpoint
from fastchat.checkpoint.manifest import read_manifest
from fastchat.checkpoint.verify import verify
from tests.machine import wait_for
from tests.tiers import pairs, thorough
from tests.train.conftest import Outcome
from tests.train.launches import start
from tests.train.test_resume import same_run
from tests.train.warm import Warm

pytestmark = pytest.mark.launch
ENGINES = ("ddp", "zero2", "zero3")
RUN = ["--num_train_epochs", "2", "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2"]
RUN += ["--lora_dropout", "0.1", "--learning_rate", "1e-3", "--disable_tqdm", "True", "--log_samples", "True"]
RUN += ["--save_strategy", "steps", "--save_steps", "4", "--ddp_timeout", "60"]
LEFT = ["checkpoint-4", "log.txt", "metrics.jsonl", "samples.jsonl", "status.json"]  # by a run that failed after it


@pytest.fixture(scope="module")
def flags_of(model_dir: Path, data_files: tuple[Path, Path], tmp_path_factory) -> Callable[[str], list[str]]:
    folder = tmp_path_factory.mktemp("configurations")

    def flags(engine: str) -> list[str]:
        found = ["--model_name_or_path", str(model_dir), "--data_path", str(data_files[0]), *RUN]
        if engine.startswith("zero"):
            content = {"zero_optimization": {"stage": int(engine[-1])}, "zero_allow_untested_optimizer": True}
            (folder / f"{engine}.json").write_text(json.dumps(content))
            found += ["--deepspeed", str(folder / f"{engine}.json")]
        return found

    return flags


@pytest.fixture(scope="module")
def plain(warm: Warm, flags_of, tmp_path_factory) -> Callable[[str], Outcome]:
    """The uninterrupted run of an engine, made once."""
    made: dict[str, Outcome] = {}

    def run(engine: str) -> Outcome:
        if engine not in made:
            made[engine] = warm.run(flags_of(engine), tmp_path_factory.mktemp(f"plain-{engine}") / "out")
            assert warm.codes == [0, 0], made[engine].err
        return made[engine]

    return run


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        thorough(kind, engine, in_default=(kind, engine) in (("int", "ddp"), ("term", "zero3")))
        for kind in ("term", "int")
        for engine in ENGINES
    ],
)
def test_a_signal_to_one_rank_saves_the_same_step_everywhere(
    warm: Warm, flags_of, plain, tmp_path: Path, engine: str, kind: str
) -> None:
    """A second signal, to the other rank, comes while the first one's checkpoint is on its way."""
    trouble = f"{kind}:1:2,term:0:2" if kind == "int" else "term:1:6"
    stopped = warm.run(flags_of(engine), tmp_path / "out", TROUBLE=trouble)
    assert warm.codes == [75, 75], stopped.err
    assert stopped.status["exit_code"] == 75 and stopped.status["status"] == "preempted"
    step = 3 if kind == "int" else 7
    assert f"checkpoint-{step}" in os.listdir(stopped.folder) and f"step {step} of 10 is saved" in stopped.err
    assert verify(stopped.folder)[1] and "Traceback" not in stopped.err, stopped.err
    path = stopped.folder / f"checkpoint-{step}"
    manifest = read_manifest(path)
    assert (manifest.world_size, manifest.engine, manifest.samples) == (
        2,
        engine,
        4 * step if step < 5 else 20 + 4 * (step - 5),
    )
    shards = [name for name in manifest.files if "optim_states" in name]
    assert len(shards) == (2 if engine.startswith("zero") else 0), "every rank's shard"
    resumed = warm.run(flags_of(engine), tmp_path / "out")
    assert warm.codes == [0, 0], resumed.err
    same_run(plain(engine), resumed)


@pytest.mark.parametrize(("rank", "phase"), pairs([0, 1], ["data", "model"]))
def test_a_signal_before_training_ends_all_at_once(warm: Warm, flags_of, tmp_path: Path, rank: int, phase: str) -> None:
    stopped = warm.run(flags_of("ddp"), tmp_path / "out", TROUBLE=f"int:{rank}:{phase}")
    assert warm.codes == [75, 75], stopped.err
    assert f"received {'SIGTERM' if rank else 'SIGINT'} before the first step: nothing was saved" in stopped.err
    assert stopped.err.count("stopped: ") == 1 and "Traceback" not in stopped.err
    assert not stopped.folder.exists(), "a start that was stopped leaves no folder"


@pytest.mark.parametrize("rank", [thorough(0, in_default=False), 1])
def test_a_bug_in_one_rank_before_training_ends_the_other_at_once(
    warm: Warm, flags_of, tmp_path: Path, rank: int
) -> None:
    """It would wait in a collective operation for a partner that is in another one."""
    outcome = warm.run(flags_of("ddp"), tmp_path / "out", TROUBLE=f"bug:{rank}:mapping")
    assert warm.codes == [1, 1], outcome.err
    assert outcome.err.count("error: RuntimeError: planted") == 1 and "PeerFailed" not in outcome.err, outcome.err
    assert not (outcome.folder / "training.json").exists()


def test_a_signal_while_a_checkpoint_is_saved_or_before_it_is_loaded(
    warm: Warm, flags_of, plain, tmp_path: Path
) -> None:
    """Two signals in the middle of the save at step 4; then one to a run that was about to go on."""
    stopped = warm.run(flags_of("ddp"), tmp_path / "out", TROUBLE="term:1:saving,int:1:saving")
    assert warm.codes == [75, 75] and "step 5 of 10 is saved" in stopped.err, stopped.err
    assert verify(stopped.folder)[1] and "checkpoint-5" in os.listdir(stopped.folder)
    before = sorted(os.listdir(stopped.folder))
    again = warm.run(flags_of("ddp"), tmp_path / "out", TROUBLE="term:1:model")
    assert warm.codes == [75, 75] and "before the first step" in again.err, again.err
    assert verify(again.folder)[1] and sorted(os.listdir(again.folder)) == before
    same_run(plain("ddp"), warm.run(flags_of("ddp"), tmp_path / "out"))


@pytest.mark.parametrize("engine", [thorough(name, in_default=name == "ddp") for name in ENGINES])
def test_a_signal_at_the_end(warm: Warm, flags_of, data_files: tuple[Path, Path], tmp_path: Path, engine: str) -> None:
    """While the result is saved, then during the last evaluation: the next start makes what is left."""
    flags = [*flags_of(engine), "--eval_data_path", str(data_files[1]), "--do_eval", "True", "--max_steps", "2"]
    for trouble in ("term:0:result", "int:1:evaluation"):
        stopped = warm.run(flags, tmp_path / "out", TROUBLE=trouble)
        assert warm.codes == [75, 75], stopped.err
        assert "the result is saved; the same command makes the last evaluation" in stopped.err
        assert "checkpoint-2" in os.listdir(stopped.folder) and verify(stopped.folder)[1]
    done = warm.run(flags, tmp_path / "out")
    assert warm.codes == [0, 0] and "evaluation loss" in done.err, done.err
    assert done.record["metrics"]["eval_loss"] > 0 and [row["step"] for row in done.metrics[:2]] == [1, 2]


@pytest.mark.parametrize(
    ("engine", "rank"),
    [thorough(*case, in_default=case == ("ddp", 1)) for case in (("ddp", 0), ("ddp", 1), ("zero2", 1))],
)
def test_a_disk_full_for_one_rank_stops_all(warm: Warm, flags_of, tmp_path: Path, engine: str, rank: int) -> None:
    outcome = warm.run(flags_of(engine), tmp_path / "out", TROUBLE=f"full:{rank}:5")
    assert warm.codes == [6, 6], outcome.err
    assert "a checkpoint of about" in outcome.err and "bytes are free" in outcome.err, outcome.err
    assert outcome.status["exit_code"] == 6 and "Traceback" not in outcome.err
    assert verify(outcome.folder)[1], "the one before is kept"
    assert sorted(os.listdir(outcome.folder)) == LEFT


def test_a_rank_that_hangs_ends_the_run_within_the_timeout(warm: Warm, flags_of, tmp_path: Path) -> None:
    """The rank would sleep for an hour. (A short timeout, yet long enough for a busy machine's other waits.)"""
    hung = warm.run([*flags_of("ddp"), "--ddp_timeout", "20"], tmp_path / "out", TROUBLE="hang:1:5")
    assert hung.code == 6 and "did not answer within --ddp_timeout" in hung.err, hung.err
    assert verify(hung.folder)[1]


@pytest.mark.parametrize("engine", [thorough(name, in_default=name == "ddp") for name in ENGINES])
def test_a_killed_rank_is_named_and_the_next_run_goes_on(
    warm: Warm, flags_of, plain, tmp_path: Path, engine: str
) -> None:
    """Long before the timeout, which is an hour here: the harness does not wait for that."""
    flags = [*flags_of(engine), "--ddp_timeout", "3600"]
    killed = warm.run(flags, tmp_path / "out", TROUBLE="kill:1:5")
    assert warm.codes == [6, -9], killed.err
    assert "rank 1 (process " in killed.err and killed.status["exit_code"] == 6
    assert verify(killed.folder)[1]
    resumed = warm.run(flags_of(engine), tmp_path / "out")
    assert warm.codes == [0, 0] and "checkpoint-4: step 4" in resumed.err, resumed.err
    same_run(plain(engine), resumed)


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        thorough(kind, engine, in_default=(kind, engine) == ("nan", "ddp"))
        for kind in ("nan", "inf")
        for engine in ENGINES
    ],
)
def test_a_poisoned_loss_on_one_rank_stops_all(
    warm: Warm, flags_of, plain, tmp_path: Path, engine: str, kind: str
) -> None:
    outcome = warm.run(flags_of(engine), tmp_path / "out", TROUBLE=f"{kind}:1:5")
    assert warm.codes == [4, 4], outcome.err
    rows = [json.loads(line) for line in (plain(engine).folder / "samples.jsonl").read_text().splitlines()]
    bad = next(row["samples"] for row in rows if row["step"] == 6 and row["rank"] == 1)[:1]
    assert f"step 6: the loss is not finite (rank 1, sample ids {bad[0]})" in outcome.err, outcome.err
    assert outcome.status["exit_code"] == 4 and "Traceback" not in outcome.err
    assert outcome.losses == plain(engine).losses[:5], "no number was hidden, no bad step was logged"
    assert sorted(os.listdir(outcome.folder)) == LEFT


@pytest.mark.parametrize("engine", [*(thorough(name, in_default=name == "zero3") for name in ENGINES)])
def test_skipping_leaves_that_update_out(warm: Warm, flags_of, plain, tmp_path: Path, engine: str) -> None:
    outcome = warm.run([*flags_of(engine), "--on_nonfinite", "skip"], tmp_path / "out", TROUBLE="nan:1:5")
    assert warm.codes == [0, 0], outcome.err
    assert "this update is left out (--on_nonfinite skip), 1 so far" in outcome.err
    rows = outcome.metrics
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rows[5]["loss"] is None and rows[5]["num_supervised_tokens"] == 0
    assert outcome.losses[:5] == plain(engine).losses[:5] and all(loss is not None for loss in outcome.losses[6:])
    assert outcome.record["metrics"]["train_loss"] > 0


@pytest.mark.parametrize("launcher", [thorough("torchrun", in_default=False), "deepspeed"])
def test_a_signal_to_the_launcher_leaves_no_process_behind(flags_of, tmp_path: Path, launcher: str) -> None:
    """`deepspeed` dies at once and tells nobody; its ranks notice, save the same step and exit."""
    folder = tmp_path / "out"
    flags = [*flags_of("zero3" if launcher == "deepspeed" else "ddp"), "--num_train_epochs", "5000"]
    with open(tmp_path / "log", "w") as log:
        process = start(launcher, "train_lora", flags, folder, log)
        try:
            wait_for(lambda: (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size > 500)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=300)
            wait_for(lambda: not running(folder))
        finally:
            for left in running(folder):
                os.kill(left, signal.SIGKILL)
    text = (tmp_path / "log").read_text()
    status = json.loads((folder / "status.json").read_text())
    assert code != 0 and status["exit_code"] == 75 and status["status"] == "preempted", text
    steps = [name for name in os.listdir(folder) if name.startswith("checkpoint-")]
    assert verify(folder)[1] and f"checkpoint-{status['message'].split('step ')[1].split(' ')[0]}" in steps, text
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize(
    ("launcher", "rank", "when"),
    [("torchrun", 1, '"step": 2'), thorough("deepspeed", 0, "memory expected", in_default=False)],
)
def test_a_killed_rank_is_recorded_whatever_its_launcher_does(
    flags_of, tmp_path: Path, launcher: str, rank: int, when: str
) -> None:
    """The launcher sends the others a SIGTERM at once: that is no wish to stop, and must not cut their words short."""
    folder = tmp_path / "out"
    flags = [*flags_of("zero2" if launcher == "deepspeed" else "ddp"), "--num_train_epochs", "5000"]
    with open(tmp_path / "log", "w") as log:
        process = start(launcher, "train_lora", flags, folder, log)
        try:
            files = (tmp_path / "log", folder / "metrics.jsonl")
            wait_for(lambda: any(when in path.read_text() for path in files if path.is_file()))
            os.kill(next(pid for pid in running(folder) if _rank_of(pid) == str(rank)), signal.SIGKILL)
            assert process.wait(timeout=300) != 0
            wait_for(lambda: not running(folder))
        finally:
            for left in running(folder):
                os.kill(left, signal.SIGKILL)
    text = (tmp_path / "log").read_text()
    assert f"rank {rank} (process" in text and text.count("error: rank") == 1 and "this is a bug" not in text, text
    if when.startswith('"step"'):
        status = json.loads((folder / "status.json").read_text())
        assert status["exit_code"] == 6 and f"rank {rank} (process" in status["message"], text
    else:
        assert not folder.exists(), "no step was made"


def _rank_of(pid: int) -> str | None:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended meanwhile
        return None
    pairs = (word.partition(b"=") for word in content.split(b"\0"))
    return next((value.decode() for name, _, value in pairs if name == b"RANK"), None)


def running(folder: Path) -> list[int]:
    """Processes that still have this output folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(int(path.name))
    return found


def test_a_signal_to_every_process_of_a_run_is_saved_too(flags_of, tmp_path: Path) -> None:
    """As schedulers and terminals do it: also to the processes that load the data."""
    folder = tmp_path / "out"
    flags = [*flags_of("plain"), "--num_train_epochs", "5000", "--dataloader_num_workers", "2"]
    with open(tmp_path / "log", "w") as log:
        process = start("python", "train_lora", flags, folder, log, start_new_session=True)
        try:
            wait_for(lambda: (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size > 500)
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(timeout=300) == 75, (tmp_path / "log").read_text()
            wait_for(lambda: not running(folder))
        finally:
            for left in running(folder):
                os.kill(left, signal.SIGKILL)
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text and verify(folder)[1], text
    assert f"checkpoint-{json.loads((folder / 'status.json').read_text())['message'].split()[3]}" in os.listdir(folder)


@pytest.mark.parametrize("engine", [thorough(name, in_default=name != "zero2") for name in ENGINES])
def test_a_byte_flipped_in_any_file_of_a_checkpoint_is_named(plain, tmp_path: Path, engine: str) -> None:
    """Every file of every rank; the one before is taken."""
    run = tmp_path / "run"
    for step in (8, 4):
        shutil.copytree(plain(engine).folder / f"checkpoint-{step}", run / f"checkpoint-{step}")
    names = [path for path in (run / "checkpoint-8").rglob("*") if path.is_file()]
    known = {"MANIFEST.json", "adapter_model.safetensors", "rank_0.pt", "rank_1.pt", "scheduler.pt"}
    assert known < {path.name for path in names}
    assert sum("optim" in path.name for path in names) == (1 if engine == "ddp" else 2), "every rank's shard"
    for path in names:
        kept = path.read_bytes()
        path.write_bytes(kept[: len(kept) // 3] + bytes([kept[len(kept) // 3] ^ 4]) + kept[len(kept) // 3 + 1 :])
        found = newest_checkpoint(run)
        assert found and found.path.name == "checkpoint-4", path
        assert path.name in found.lines()[0], found.lines()
        path.write_bytes(kept)
    found = newest_checkpoint(run)
    assert found and found.path.name == "checkpoint-8"


def test_another_engine_is_refused_and_another_number_of_processes_resumes(
    warm: Warm, flags_of, plain, tmp_path: Path
) -> None:
    warm.run(flags_of("ddp"), tmp_path / "out", TROUBLE="term:0:1")
    assert warm.codes == [75, 75]
    other = warm.run(flags_of("zero2"), tmp_path / "out")
    assert warm.codes == [2, 2] and "saved under ddp and this run is zero2" in other.err
    alone = warm.run(flags_of("ddp"), tmp_path / "out", processes=1)
    assert alone.code == 0 and "saved by 2 processes with a global batch" in alone.err, alone.err
    assert alone.losses == pytest.approx(plain("ddp").losses, abs=5e-3)  # with dropout, of other random numbers


def test_one_process_of_a_machine_tokenises_for_all(warm: Warm, flags_of, plain, tmp_path: Path) -> None:
    flags = [*flags_of("ddp"), "--preprocessing_num_workers", "2", "--val_set_size", "4", "--eval_strategy", "epoch"]
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    first = warm.run(flags, tmp_path / "first", FSCHAT_CACHE=str(cache))
    assert warm.codes == [0, 0], first.err
    assert first.err.count("16 are trained on") == 1 and "labels derived" not in first.err
    assert (tmp_path / "first" / "log.txt").read_text().count("labels derived a second time") == 1
    assert len(list(cache.glob("*/entry.json"))) == 1 and not list(cache.glob("*.making"))
    second = warm.run(flags, tmp_path / "second", FSCHAT_CACHE=str(cache))
    assert warm.codes == [0, 0] and f"train tokens: found in {cache}" in second.err
    (tmp_path / "file").write_text("")
    third = warm.run(flags, tmp_path / "third", FSCHAT_CACHE=str(tmp_path / "file"), TMPDIR=str(scratch))
    assert warm.codes == [0, 0] and third.err.count("for this run only") == 1
    assert first.losses == second.losses == third.losses and len(first.losses) > 0
    assert not list(scratch.glob("fschat-*")), "gone as soon as both have mapped it"
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{\n")
    refused = warm.run([*flags, "--data_path", str(bad)], tmp_path / "fourth", FSCHAT_CACHE=str(cache))
    assert warm.codes == [3, 3] and f"{bad}:1: truncated JSON" in refused.err
