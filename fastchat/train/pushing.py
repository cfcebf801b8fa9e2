"""`--push_to_hub`: login and name checked before the first step, the result uploaded after the last.

A failed upload never makes a run fail: the result is on the disk, and the command that repeats the upload is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastchat.checkpoint.hub import check_login, check_name, push, repeat_command
from fastchat.errors import SettingsError, UserError, say
from fastchat.processes import on_main_process, rank
from fastchat.settings.values import Values

_SETTINGS = ("hub_model_id", "hub_private_repo", "hub_token")


def checked_push(values: Values) -> Callable[[], None]:
    """Checks name and login now; the returned function uploads the result of the run. Every process calls both.

    Raises SettingsError for a bad name, a missing or rejected token, or a hub setting without `--push_to_hub`.
    """
    if not values["push_to_hub"]:
        if given := [name for name in _SETTINGS if values[name] is not None]:
            raise SettingsError(f"--{given[0]} is for an upload: add --push_to_hub True, or leave it out")
        return lambda: None
    folder = Path(values["output_dir"]).expanduser()
    name = values["hub_model_id"] or folder.resolve().name
    token, private = values["hub_token"], values["hub_private_repo"]

    def check() -> None:
        try:
            check_name(name)
            unreachable = check_login(token)
        except SettingsError as problem:
            raise SettingsError(f"--push_to_hub: {problem}") from None
        if unreachable:
            say(f"WARNING: --push_to_hub: {unreachable}. The upload to {name} is tried after the run.")

    def upload() -> None:
        if rank() != 0:
            return
        try:
            say(f"uploaded to {push(folder, name, private=private, token=token)}")
        except (UserError, OSError) as problem:
            say(f"WARNING: {problem}. The result is complete; upload it with: {repeat_command(folder, name, private)}")

    on_main_process(check)
    return upload
