"""Whether a run, or a preview, has its data tokenised by a process of its own meanwhile, see early.py."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fastchat.data.rows.sources import Source, local_sources
from fastchat.data.tokens.cache import cache_folder
from fastchat.data.tokens.early import EARLY, EarlyRequest
from fastchat.data.tokens.workers import BYTES_PER_WORKER, available_cpus, num_workers
from fastchat.errors import UserError


class _Settings(Protocol):
    """The settings of training by name."""

    def __getitem__(self, name: str, /) -> Any: ...


def start_tokenising(values: _Settings, *, evaluates: bool) -> None:
    """Start the process that tokenises ahead where it gains time: on local files that are large enough, with a second
    CPU, once per machine, and with a `tokenizer.json` that decides the ids. `evaluates`: the data to evaluate on too.
    """
    EARLY.stop()
    with suppress(UserError, OSError):  # reported where the run itself reads the files
        if request := _request(values, evaluates):
            EARLY.start(request)


def _request(values: _Settings, evaluates: bool) -> EarlyRequest | None:
    model = Path(values["model_name_or_path"]).expanduser().resolve()
    ids_by_class = values["use_tokenizer_class"] or values["trust_remote_code"]
    if os.environ.get("LOCAL_RANK", "0") != "0" or ids_by_class or not (model / "tokenizer.json").is_file():
        return None
    template_file = values["conv_template_file"]
    if template_file and Path(template_file).suffix == ".py":
        return None  # a program of the user runs once
    data = _data(values, evaluates)
    num_bytes = sum(os.path.getsize(file) for _, sources in data for source in sources for file in source.files)
    if num_bytes < BYTES_PER_WORKER or available_cpus() == 1:
        return None
    return EarlyRequest(
        model=str(model),
        template=values["conv_template"],
        template_file=str(Path(template_file).expanduser().resolve()) if template_file else None,
        train_on=values["train_on"],
        data=[(name, [(source.name, source.files) for source in sources]) for name, sources in data],
        settings={
            "max_length": values["model_max_length"],
            "overlong": values["overlong"],
            "on_bad_row": values["on_bad_row"],
            "workers": values["preprocessing_num_workers"],
            "overwrite": values["overwrite_cache"],
        },
        columns=(values["data_columns"], values["data_roles"]),
        cache=str(cache_folder(values["output_dir"]).absolute()),
        processes=num_workers(values["preprocessing_num_workers"], num_bytes),
    )


def _data(values: _Settings, evaluates: bool) -> list[tuple[str, list[Source]]]:
    """What will be read, by name; nothing if some of it is on the hub."""
    named = [("train", "data_path", "data_split")]
    if evaluates and values["eval_data_path"] and not values["val_set_size"]:
        named.append(("eval", "eval_data_path", "eval_data_split"))
    found = [(name, local_sources(f"--{flag}", values[flag], split=values[split])) for name, flag, split in named]
    return [(name, sources) for name, sources in found if sources is not None] if all(s for _, s in found) else []
