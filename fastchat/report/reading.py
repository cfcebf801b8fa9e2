"""The files of a run folder as plain values. Whatever is missing or damaged is left empty and named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastchat.checkpoint.record import METRICS_NAME, RECORD_NAME, STATUS_NAME, read_training_record
from fastchat.checkpoint.staging import checkpoints_in
from fastchat.errors import CheckpointError, SettingsError, brief, values_without_secrets, without_secrets
from fastchat.files import JsonError, Lock, parse_json, read_object
from fastchat.paths import folders_instead
from fastchat.security import special_kind
from fastchat.streams import LOG_NAME

BEGUN_NAME = "report.json"  # what is known when training begins: settings, data, plan, an example
ANSWERS_NAME = "answers.jsonl"  # the answers to the prompts of --sample_prompts
PAGE_NAME = "report.html"
_LONGEST = 16 << 20  # bytes of a line; a longer one is damage
_LOG_BYTES = 32 << 20  # of the end of the log
_MOST_WARNINGS = 20
_TOO_MANY_STEPS = 2**53  # beyond it neither floats nor scripts count


@dataclass
class RunFiles:
    """What the folder of a run says.

    Attributes:
        status: `status.json`. running: whether a process of the run still has the folder.
        record: `training.json`; of a run without a result what it recorded at its start, or in a checkpoint.
        finished: whether there is a result.
        begun: `report.json`.
        rows: of `metrics.jsonl`; answers: of `answers.jsonl`.
        warnings: of `log.txt`, each once.
        problems: one line for each file that is missing or damaged.
    """

    folder: Path
    name: str
    status: dict[str, Any] = field(default_factory=dict)
    running: bool = False
    record: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    begun: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_run(path: str | Path, *, running: bool | None = None) -> RunFiles:
    """Reads a run folder. `running`: whether its run is going on; by default the folder's lock is asked.

    Raises SettingsError for a folder that has no file of a run.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "a file; pass its folder" if folder.exists() else f"no such folder.{folders_instead(folder)}"
        raise SettingsError(f"{path}: {what}")
    known = (RECORD_NAME, METRICS_NAME, STATUS_NAME, BEGUN_NAME)
    if not any((folder / name).exists() for name in known):
        raise SettingsError(f"{path} is not the folder of a run: it has none of {', '.join(known)}")
    run = RunFiles(folder, folder.resolve().name or str(folder))
    run.status = _object(run, STATUS_NAME)
    run.begun = _object(run, BEGUN_NAME)
    run.rows = _lines(run, METRICS_NAME)
    run.answers = _lines(run, ANSWERS_NAME, optional=not _asked_for_answers(run))
    _read_record(run)
    run.warnings = _warnings(run)
    for name in ("status", "begun", "record", "answers", "problems"):
        setattr(run, name, values_without_secrets(getattr(run, name)))
    run.running = _is_running(run) if running is None else running
    return run


def as_object(value: Any) -> dict[str, Any]:
    """`value` if it is an object, else an empty one: files may hold anything."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def _read_record(run: RunFiles) -> None:
    """`training.json`, else what was recorded at the start of the run, else that of the newest checkpoint."""
    run.finished = (run.folder / RECORD_NAME).is_file()
    if run.finished:
        run.record = _object(run, RECORD_NAME)
        try:
            read_training_record(run.folder)
        except CheckpointError as error:
            run.problems.append(brief(error, 400))
        if run.record:
            return
    run.record = as_object(run.begun.get("record"))
    if run.record and not run.finished and run.status.get("status") == "done":
        run.problems.append(f"{RECORD_NAME} is missing: settings and data are those from the start of the run")
    for _, checkpoint in reversed(checkpoints_in(run.folder)):
        if run.record:
            return
        try:
            run.record = read_object(checkpoint / RECORD_NAME)
        except (OSError, JsonError):
            continue
    if not run.record and not run.finished:
        run.problems.append(f"{RECORD_NAME} is missing: the settings, the data and the memory plan are not known")


def _asked_for_answers(run: RunFiles) -> bool:
    return bool(as_object(run.begun.get("samples")).get("prompts"))


def _is_running(run: RunFiles) -> bool:
    """Whether a process holds the lock of the run folder."""
    if run.status.get("status") != "running":
        return False
    with Lock(run.folder) as lock:
        try:
            return not lock.acquire(shared=True, wait=False)
        except OSError:
            return False


def _object(run: RunFiles, name: str) -> dict[str, Any]:
    path = run.folder / name
    if _unreadable(run, path, optional=name == RECORD_NAME):
        return {}
    try:
        return read_object(path)
    except (OSError, JsonError) as error:
        run.problems.append(f"{name} is damaged: {brief(_reason(error))}")
        return {}


def _lines(run: RunFiles, name: str, *, optional: bool = False) -> list[dict[str, Any]]:
    """The objects of a file with one per line; lines that are none are counted."""
    path = run.folder / name
    if _unreadable(run, path, optional=optional):
        return []
    rows: list[dict[str, Any]] = []
    damaged = 0
    try:
        for line in _long_lines(path):
            try:
                row = parse_json(line, constants=True)
            except JsonError:
                row = None
            if isinstance(row, dict) and isinstance(row.get("step"), int) and abs(row["step"]) < _TOO_MANY_STEPS:
                rows.append(row)
            else:
                damaged += bool(line.strip())
    except OSError as error:
        run.problems.append(f"{name} cannot be read: {_reason(error)}")
    if damaged:
        run.problems.append(f"{name}: {damaged:,} damaged line{'s' if damaged > 1 else ''} left out")
    return rows


def _long_lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while line := file.readline(_LONGEST):
            yield line


def _unreadable(run: RunFiles, path: Path, *, optional: bool) -> bool:
    if kind := special_kind(path):
        run.problems.append(f"{path.name} is {kind}, not a file")
        return True
    if not path.exists():
        if not optional:
            run.problems.append(f"{path.name} is missing")
        return True
    return False


def _warnings(run: RunFiles) -> list[str]:
    """The lines of the log that begin with WARNING or error."""
    path = run.folder / LOG_NAME
    if _unreadable(run, path, optional=False):
        return []
    found: dict[str, None] = {}
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            for line in file:
                text = line.decode("utf-8", "replace").strip()
                if text.lower().startswith(("warning:", "error:")):
                    found[brief(without_secrets(text), 500)] = None
    except OSError as error:
        run.problems.append(f"{path.name} cannot be read: {_reason(error)}")
    more = len(found) - _MOST_WARNINGS
    return [*list(found)[:_MOST_WARNINGS], *([f"{more:,} more in {LOG_NAME}"] if more > 0 else [])]


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
