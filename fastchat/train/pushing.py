"""`--push_to_hub`: login and name checked before the first step, the result uploaded after the last.

A failed upload loses nothing: the result is on the disk and the run is done, as `status.json` says; the exit code and
the message, with the command that repeats the upload, say that it was not uploaded.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastchat.checkpoint.hub import check_login, check_name, push, repeat_command
from fastchat.errors import EXIT_DONE, NotUploaded, SettingsError, UserError, brief, say, without_secrets
from fastchat.processes import on_main_process, rank
from fastchat.settings.values import Values

if TYPE_CHECKING:
    from fastchat.train.status import RunStatus

_SETTINGS = ("hub_model_id", "hub_private_repo", "hub_token")


def checked_push(values: Values) -> Callable[[RunStatus], None]:
    """Checks name and login now; the returned function uploads the result of the run. Every process calls both.

    Raises SettingsError for a bad name, a token that cannot upload there, or a hub setting without `--push_to_hub`;
    the returned function raises NotUploaded.
    """
    if not values["push_to_hub"]:
        if given := [name for name in _SETTINGS if values[name] is not None]:
            raise SettingsError(f"--{given[0]} is for an upload: add --push_to_hub True, or leave it out")
        return lambda status: None
    folder = Path(values["output_dir"]).expanduser()
    name = values["hub_model_id"] or folder.resolve().name
    token, private = values["hub_token"], values["hub_private_repo"]

    def check() -> None:
        try:
            check_name(name)
            _, unreachable = check_login(name, token, private=private)
        except SettingsError as problem:
            raise SettingsError(f"--push_to_hub: {problem}") from None
        if unreachable:
            say(f"WARNING: --push_to_hub: {unreachable}. The upload to {name} is tried after the run.")

    def upload(status: RunStatus) -> None:
        if rank() != 0:
            return
        status.end(EXIT_DONE, "done", "")  # whatever happens to the upload
        try:
            say(f"uploaded to {push(folder, name, private=private, token=token)}")
        except Exception as problem:  # noqa: BLE001 - also a bug of ours must not make the run a failed one
            if not isinstance(problem, UserError | OSError):
                print(without_secrets(traceback.format_exc()), file=sys.stderr, flush=True)
            raise NotUploaded(
                f"{brief(problem, 400)}. The run is done and its result complete, only the upload is missing: "
                f"{repeat_command(folder, name, private)}"
            ) from problem

    on_main_process(check)
    return upload
