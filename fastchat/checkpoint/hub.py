"""Uploading a result to the Hugging Face hub: its own files, with the card, and without paths of this machine."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from fastchat.checkpoint.card import (
    CARD,
    is_hub_name,
    is_ours,
    license_of,
    public_name,
    set_license,
    without_paths,
    write_card,
)
from fastchat.checkpoint.digests import result_problems
from fastchat.checkpoint.discover import shorten
from fastchat.checkpoint.manifest import describe_files
from fastchat.checkpoint.record import (
    RECORD_NAME,
    STATUS_NAME,
    TrainingRecord,
    read_status,
    read_training_record,
    write_values,
)
from fastchat.errors import EXIT_DONE, CheckpointError, ResourceError, SettingsError, brief, say
from fastchat.files import read_object, write_json
from fastchat.streams import LOG_NAME

# Of a result without recorded digests, whatever is not the run's own bookkeeping is uploaded.
_OF_THE_RUN = (STATUS_NAME, LOG_NAME, "metrics.jsonl", "samples.jsonl")
_NAMES_A_FOLDER = ("base_model_name_or_path", "_name_or_path", "name_or_path")  # keys of configurations
_RECORDED_PATHS = ("base_model", "settings", "data", "deepspeed")  # keys of a training record
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def check_name(name: str) -> None:
    """Raise SettingsError unless `name` can be a repository of the hub: user/name, or name alone for one's own."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as problem:
        raise SettingsError(f"{name!r} cannot be the name of a repository on the hub: {brief(problem)}") from None


def check_login(name: str, token: str | None = None, *, private: bool | None = None) -> tuple[str, str]:
    """Ask the hub whether the owner of the token can upload to `name`.

    Returns (the name with its owner, a warning if the hub cannot be reached now, else ""). Raises SettingsError if
    there is no token, it is rejected or can only read, `name` is another owner's, HF_HUB_OFFLINE is set, or the
    repository shall be `private` and is public.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise SettingsError("HF_HUB_OFFLINE is set, so nothing can be uploaded to the hub; unset it")
    api = _api(token)
    try:
        owner = api.whoami()
    except LocalTokenNotFoundError:
        raise SettingsError(f"there is no token for the hub: {_LOG_IN}") from None
    except Exception as problem:  # noqa: BLE001 - whatever the network's libraries raise
        if _status(problem) in (401, 403):
            raise SettingsError(f"the hub rejects the token ({_status(problem)}): {_LOG_IN}") from None
        return name, _unreachable(problem)
    full = _full_name(name, owner)
    try:
        if private and not api.repo_info(full, repo_type="model").private:
            raise SettingsError(
                f"{full} exists and is public, and only a new repository can be created as a private one: make it "
                "private in its settings on the hub, or choose another name"
            )
    except SettingsError:
        raise
    except Exception as problem:  # noqa: BLE001
        if _status(problem) != 404:
            return full, _unreachable(problem)
    return full, ""


def _full_name(name: str, owner: dict[str, Any]) -> str:
    """`name` with its owner. Raises SettingsError if the token, by what `whoami` says of it, cannot write there."""
    user = str(owner.get("name") or "")
    role = ((owner.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise SettingsError(f"the token of {user} can only read: make one that can write, and {_LOG_IN}")
    if "/" not in name:
        return f"{user}/{name}" if user else name
    mine = [user, *(str(one.get("name")) for one in owner.get("orgs") or [])]
    if user and name.partition("/")[0] not in mine:
        raise SettingsError(
            f"{name}: the token belongs to {user}, who can upload to {', '.join(f'{one}/...' for one in mine)}"
        )
    return name


def _status(problem: Exception) -> int:
    """The HTTP status of an error; 0 if it has none."""
    response = getattr(problem, "response", None)
    return response.status_code if response is not None else 0


def _unreachable(problem: Exception) -> str:
    status = _status(problem)
    return f"the hub answered {status}" if status else f"the hub cannot be reached ({brief(problem)})"


def push(
    folder: Path, name: str, *, private: bool | None = None, token: str | None = None, license: str | None = None
) -> str:
    """Upload the result in `folder` to the repository `name`, which is created if it does not exist; returns its URL.
    The status of a run whose own upload failed becomes that of a run without an error.

    `private`: of a new repository; None for the default of its owner. `license` goes into the card, also in `folder`.
    Raises CheckpointError if the folder has no training record or its files are not those that were saved,
    SettingsError for a bad name, token or licence, ResourceError if the upload fails.
    """
    check_name(name)
    record = _checked(folder)
    if license:
        set_license(folder, record, license)
    name, unreachable = check_login(name, token, private=private)
    if unreachable:
        raise ResourceError(f"{unreachable}: nothing was uploaded")
    if license_of(folder / CARD) is None:
        say("The model card has no licence, so others may not use the model: see --license.")
    if record.base_model and not is_hub_name(record.base_model) and (folder / "adapter_config.json").is_file():
        say(
            f"The base is a folder of this machine, {public_name(record.base_model)}: who downloads the adapter needs "
            "it too."
        )
    with tempfile.TemporaryDirectory(prefix="fschat-push-") as stage:
        prepare(folder, Path(stage), record, name)
        url = _upload(Path(stage), name, private=private, token=token)
    _upload_is_not_missing(folder)
    return url


def _upload_is_not_missing(folder: Path) -> None:
    """Take back what the status of a run says of an upload that failed: the run is done, and now nothing is missing.

    The times stay those of the run.
    """
    status = read_status(folder)
    if status.get("status") != "done" or status.get("exit_code") == EXIT_DONE:
        return
    try:
        write_json(folder / STATUS_NAME, {**status, "exit_code": EXIT_DONE, "message": ""})
    except OSError as problem:
        say(f"WARNING: {folder / STATUS_NAME} still says that the upload is missing: {problem.strerror}")


def prepare(folder: Path, stage: Path, record: TrainingRecord, name: str) -> None:
    """Fill `stage` with what is uploaded as `name`: links to the files of the result, rewritten ones where they have
    paths; and the card, which, if it is ours, shows how to load `name`."""
    changed = []
    for file in files_of(folder, record):
        (stage / file).parent.mkdir(parents=True, exist_ok=True)
        config = _without_folder_names(folder / file)
        if config is None:
            (stage / file).symlink_to((folder / file).resolve())
        else:
            write_json(stage / file, config, indent=2, constants=True)
            changed.append(file)
    values = read_object(folder / RECORD_NAME)
    values |= {key: without_paths(values[key]) for key in _RECORDED_PATHS if key in values}
    if values.get("files"):
        values["files"] |= describe_files(stage, changed)
    write_values(stage, values)
    if is_ours(folder / CARD):
        write_card(folder, record, into=stage, name=name)


def files_of(folder: Path, record: TrainingRecord) -> list[str]:
    """The names of the files of a result as they are: without its record, and without a card of ours.

    Of a result without digests, whatever is directly in it.
    """
    recorded = [name for name in record.files if name != RECORD_NAME]
    if not recorded:
        left_out = (RECORD_NAME, *_OF_THE_RUN)
        found = (path.name for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
        recorded = [name for name in found if name not in left_out and not name.endswith(".html")]
    return sorted(set(recorded) - {CARD} if is_ours(folder / CARD) else {*recorded, CARD})


def repeat_command(folder: Path, name: str, private: bool | None) -> str:
    """The command that uploads a result again."""
    return shlex.join(["fastchat", "push", str(folder), name, *(["--private"] if private else [])])


def _checked(folder: Path) -> TrainingRecord:
    record = read_training_record(folder)
    if record is None:
        raise CheckpointError(
            f"{folder} has no {RECORD_NAME}, so it is not a result of this project: upload it with hf"
        )
    if problems := result_problems(folder, record):
        raise CheckpointError(f"{folder} is not what was saved: {shorten(problems)}. Nothing was uploaded.")
    return record


def _without_folder_names(path: Path) -> dict[str, Any] | None:
    """A configuration without the absolute paths of models; None if it has none."""
    if path.suffix != ".json" or path.name == "tokenizer.json" or path.stat().st_size > 1 << 24:
        return None
    try:
        config = read_object(path, constants=True)
    except ValueError:
        return None
    clean = {key: without_paths(value) if key in _NAMES_A_FOLDER else value for key, value in config.items()}
    return clean if clean != config else None


def _upload(stage: Path, name: str, *, private: bool | None, token: str | None) -> str:
    api = _api(token)
    try:
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=stage, commit_message="Upload a result of FastChat", repo_type="model"
        )
    except Exception as problem:  # noqa: BLE001 - whatever the network's libraries raise
        if status := _status(problem):
            error = SettingsError if status in (401, 403) else ResourceError
            raise error(f"the hub refuses the upload to {name} ({status}): {brief(problem, 300)}") from None
        raise ResourceError(f"the upload to {name} failed: {type(problem).__name__}: {brief(problem, 300)}") from None
    return str(made)


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
