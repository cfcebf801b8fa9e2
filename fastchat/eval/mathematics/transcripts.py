"""The output folder of an evaluation: settings.json, transcripts.jsonl (one line per attempt) and results.json.

Attempts are solved in groups, and a group is written when all of it is done. So an evaluation that was interrupted
continues with the first group that is not there, in the same batches, and ends with the same results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastchat import files
from fastchat.errors import ResourceError, SettingsError, brief, counted, say
from fastchat.eval.mathematics.comparing import Verdict, compare
from fastchat.eval.mathematics.rounds import Attempt

SETTINGS, TRANSCRIPTS, RESULTS = "settings.json", "transcripts.jsonl", "results.json"
RIGHT, WRONG, UNDECIDED = "right", "wrong answer", "answer that cannot be compared"
_NEEDED = {"attempt", "number", "answer", "right", "reason", "code_runs", "groups", "last"}  # for the results
_FLAG = "--output-dir"


class Folder:
    """The output folder, locked while it is open.

    Attributes:
        records: the attempts that are done, in order, as in transcripts.jsonl.
    """

    def __init__(self, path: str, settings: Mapping[str, Any], group: int):
        """Read what is there; nothing is made yet.

        `settings`: what the results depend on; `group`: attempts of a group.

        Raises SettingsError if the folder has an evaluation with other settings, or another process writes to it;
        ResourceError if it cannot be written.
        """
        self.path, self._group, self._settings = Path(path).expanduser(), group, dict(settings)
        self.records: list[dict[str, Any]] = []
        self._lock: files.Lock | None = None
        try:
            if self._nearest() == self.path.absolute():
                self._open()
            else:
                self._check_place()
        except BaseException:
            self.close()
            raise

    def create(self) -> None:
        """Make the folder, if it does not exist, with its settings. Raises as the constructor does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:  # another process may have made it meanwhile
                self._open()
            if not (self.path / SETTINGS).exists():
                files.write_json(self.path / SETTINGS, self._settings)
        except OSError as error:
            raise self._unwritable(error) from None

    def _open(self) -> None:
        """Lock the folder, and read it."""
        try:
            self._lock = files.Lock(self.path)
            if not self._locked(self._lock):
                raise SettingsError(f"{_FLAG} {self.path}: another process is writing to this folder.")
            self._check()
            self._read()
        except OSError as error:
            raise self._unwritable(error) from None

    def _check_place(self) -> None:
        """Whether the folder can be made; found out before the model is loaded."""
        if not os.access(self._nearest(), os.W_OK):
            raise ResourceError(f"{_FLAG} {self.path}: {self._nearest()} cannot be written; choose another folder.")

    def _nearest(self) -> Path:
        """The folder, or the nearest one above that exists. Raises SettingsError if that is a file."""
        path = self.path.absolute()
        found = next(place for place in (path, *path.parents) if os.path.lexists(place))
        if not found.is_dir():
            raise SettingsError(f"{_FLAG} {self.path}: {found} is not a folder; choose another one.")
        return found

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append a group of attempts. Raises ResourceError."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        place = self.path / TRANSCRIPTS
        try:
            with open(place, "a", encoding="utf-8", newline="") as file:
                file.write(lines)
            files.sync(place)
        except OSError as error:
            raise self._unwritable(error) from None
        self.records += [dict(record) for record in records]

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json. Raises ResourceError."""
        try:
            files.write_json(self.path / RESULTS, results)
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._lock is not None:
            self._lock.release()

    @staticmethod
    def _locked(lock: files.Lock) -> bool:
        try:
            return lock.acquire(wait=False)
        except files.NoLocks:
            return True

    def _check(self) -> None:
        """Compare with the settings of an evaluation that is there."""
        place, settings = self.path / SETTINGS, self._settings
        if not place.exists():
            others = sorted(entry.name for entry in self.path.iterdir())
            if others:
                raise SettingsError(
                    f"{_FLAG} {self.path}: has other files ({brief(', '.join(others), 80)}); choose a new folder."
                )
            return
        try:
            before = files.read_object(place)
        except files.JsonError as error:
            raise SettingsError(f"{place}: {error}; choose another {_FLAG}.") from None
        changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        if changed:
            shown = "; ".join(f"{key} was {before.get(key)}, is {settings.get(key)}" for key in changed)
            raise SettingsError(
                f"{_FLAG} {self.path} has an evaluation with other settings ({brief(shown, 400)}). Choose another "
                "folder, or delete this one to start over."
            )

    def _read(self) -> None:
        """Read the complete groups; what follows them, a line or group cut by a crash, is removed."""
        place = self.path / TRANSCRIPTS
        if not place.exists():
            return
        lines = place.read_bytes().splitlines(keepends=True)
        for line in lines:
            try:
                record = files.parse_json(line.decode("utf-8")) if line.endswith(b"\n") else None
            except (files.JsonError, UnicodeDecodeError):
                record = None
            if not isinstance(record, dict) or not set(record) >= _NEEDED or record["attempt"] != len(self.records):
                break
            self.records.append(record)
        whole = len(self.records)
        if whole and not self.records[-1]["last"]:
            whole -= whole % self._group
        self.records = self.records[:whole]
        if whole < len(lines):
            left = counted(len(lines) - whole, "line")
            say(f"{place}: the last {left} are of a group that was interrupted; it is solved again.")
            with files.atomic(place, "wb") as file:
                file.writelines(lines[:whole])
        if whole:
            say(f"Continuing: {counted(whole, 'attempt')} of {self.path / TRANSCRIPTS} done before.")

    def _unwritable(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"{_FLAG} {self.path}: cannot be written ({error.strerror or error}). The attempts in {TRANSCRIPTS} "
            "are kept; the same command continues after them."
        )


def to_record(attempt: Attempt, number: int, last: bool, shown: Mapping[str, Any]) -> dict[str, Any]:
    """The line of an attempt. `number`: its place among all, from 0; `last` of all; `shown`: further values."""
    verdict = Verdict(False, "") if attempt.answer is None else compare(attempt.answer, attempt.problem.reference)
    wrong = UNDECIDED if verdict.how == "undecided" else WRONG
    runs = [
        {"status": run.status, "output": run.output, **({"error": run.error} if run.error else {})}
        for run in attempt.runs
    ]
    return {
        "attempt": number,
        "place": attempt.problem.place,
        "id": attempt.problem.name or None,
        **shown,
        "problem": attempt.problem.question,
        "turns": [_turn(turn) for turn in attempt.dialogue.turns],
        "code_runs": runs,
        "answer": attempt.answer,
        "reference": attempt.problem.reference,
        "right": verdict.right,
        "reason": RIGHT if verdict.right else attempt.reason or wrong,
        "compared_by": verdict.how or None,
        "groups": dict(attempt.problem.groups),
        "last": last,
    }


def _turn(turn: Any) -> dict[str, str]:
    thought = {"reasoning_content": turn.reasoning} if turn.reasoning else {}
    return {"role": turn.role, **thought, "content": turn.text}
