"""What ended a run, as a user is told: exit code, status and one message for any exception."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastchat.checkpoint.space import FULL, is_environment
from fastchat.errors import (
    EXIT_DONE,
    EXIT_PREEMPTED,
    EXIT_RESOURCE,
    EXIT_SETTINGS,
    NotUploaded,
    PeerFailed,
    UserError,
    is_out_of_memory,
)
from fastchat.machines import here
from fastchat.train.lifeline import LIFELINE, SILENT_S, Ended
from fastchat.train.stopping import Preempted

EXIT_BUG = 1


def describe(error: BaseException, advise: Callable[[], str], folder: Path | None = None) -> tuple[int, str, str]:
    """(exit code, status, message) of whatever ended a run. `advise` says what to do where memory was short; `folder`
    is the run's own."""
    if isinstance(error, Preempted):
        return error.exit_code, "preempted", str(error)
    if isinstance(error, UserError):
        return error.exit_code, "done" if isinstance(error, NotUploaded) else "failed", str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_PREEMPTED, "preempted", "interrupted"
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else EXIT_DONE if error.code is None else EXIT_BUG
        return code, "failed" if code else "done", str(error)
    if lost_another_process(error):
        return EXIT_RESOURCE, "failed", lost_line(LIFELINE.ended, advise)
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's, of any of the paths
        return EXIT_SETTINGS, "failed", "a path begins with ~ and the name of a user whom this machine does not know"
    if is_out_of_memory(error):
        return EXIT_RESOURCE, "failed", f"out of memory ({_first_line(error)}); {advise()}"
    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or "--output_dir"
        return EXIT_RESOURCE, "failed", f"the disk is full: {where}; what was saved before is kept"
    if isinstance(error, OSError) and (is_environment(error) or _within(error.filename, folder)):
        what = f"{error.strerror}: {error.filename}" if error.filename else _first_line(error)
        return EXIT_RESOURCE, "failed", f"the disk or the machine failed ({what}); what was saved before is kept"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        line = f"a process that loads data was killed ({_first_line(error)}); lower --dataloader_num_workers"
        return EXIT_RESOURCE, "failed", f"{line}. The same command resumes from the last checkpoint"
    return (
        EXIT_BUG,
        "bug",
        f"{type(error).__name__}: {_first_line(error)} (this is a bug in the program, please report it)",
    )


def _within(name: Any, folder: Path | None) -> bool:
    """Whether the file of an error is in the run's folder: somebody has deleted or replaced it there."""
    return folder is not None and isinstance(name, (str, Path)) and Path(name).is_relative_to(folder)


LESS_MEMORY = (
    "lower --per_device_train_batch_size (and raise --gradient_accumulation_steps by as much), "
    "lower --model_max_length, set --gradient_checkpointing True, --q_lora True for LoRA, "
    "or use a ZeRO-3 configuration with --deepspeed"
)


def lost_line(ended: Ended | None, advise: Callable[[], str]) -> str:
    """What is said when a process of the run does not answer: `ended` is the one known to be gone without a word."""
    if ended is None:
        return "another process of this run did not answer within --ddp_timeout, or ended without an error message"
    who = ended.place.seen_from(here())
    if ended.silent:
        return (
            f"{who} went silent: {ended.place.host} has not answered for {SILENT_S} s. The host is down or suspended, "
            "or the network to it is interrupted; the same command resumes from the last checkpoint"
        )
    return f"{who} ended without an error message (killed, perhaps for memory: {advise()})"


def lost_another_process(error: BaseException) -> bool:
    """Whether a collective operation failed because its partner is gone."""
    if isinstance(error, PeerFailed):
        return True
    words = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")
    words += ("timed out waiting", "collective operation timeout", "application timeout caused pair closure")
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
