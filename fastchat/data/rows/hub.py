"""Datasets of the Hugging Face hub: the files of one split, through the hub's own libraries and the usual login.

The `datasets` library decides which files make up a split, from their names alone: it is given a copy of the
repository with empty files. So only the files of that split are downloaded, and the result is the same offline. The
files are then read like any others, row by row and strictly.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastchat.errors import DataError, brief, say

_CARD = "README.md"  # may say which files make up a split
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)+")
_READABLE = (".json", ".jsonl", ".parquet", ".json.gz", ".jsonl.gz")


def download(flag: str, name: str, split: str, revision: str | None, cache_dir: str | None) -> tuple[str, list[str]]:
    """The files of one split of the dataset `name`, from the hub or from its library's cache.

    Returns: their commit, and their paths in the order in which they are read.
    Raises: DataError, saying what to do: no such dataset, gated, no such revision or split, no network.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{flag} {name}"
    more: dict[str, Any] = {"repo_type": "dataset", "cache_dir": cache_dir}
    try:
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision)
        commit, names = str(info.sha), [file.rfilename for file in info.siblings or []]
        card = huggingface_hub.hf_hub_download(name, _CARD, revision=commit, **more) if _CARD in names else None
        wanted = _files_of(where, split, names, card)
        # By branch, which the library then caches: offline, the branch is what is looked up.
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted, **more)
    except errors.GatedRepoError:
        raise DataError(
            f"{where}: this dataset is gated: the hub requires you to accept its terms. Accept them at "
            f"{_address(name)}, then log in with the same account: run `hf auth login` or set HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{where}: the dataset has no revision {revision!r} (--data_revision).") from None
    except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
            raise DataError(
                f"{where}: no such file or folder here, and no dataset of this name on the hub. If it is private, run "
                "`hf auth login` or set HF_TOKEN."
            ) from None
        return _from_cache(where, name, split, revision, more, error)
    return os.path.basename(folder), [os.path.join(folder, file) for file in wanted]


def _from_cache(
    where: str, name: str, split: str, revision: str | None, more: dict[str, Any], reason: Exception
) -> tuple[str, list[str]]:
    """The same from the cache, if the hub does not respond. Raises DataError if the cache lacks a part of the split."""
    import huggingface_hub
    from huggingface_hub import errors

    offline = isinstance(reason, errors.OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else f"the hub does not respond ({brief(reason, 120)})"
    chosen = f" --revision {revision}" if revision else ""
    way_out = f"With network access, run `hf download {name} --repo-type dataset{chosen}`; or pass files instead."
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=[_CARD], local_files_only=True, **more
        )
        names = [p.relative_to(folder).as_posix() for p in sorted(Path(folder).rglob("*")) if p.is_file()]
        card = os.path.join(folder, _CARD) if _CARD in names else None
        wanted = _files_of(where, split, names, card)
        huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True, **more)
    except (OSError, errors.EntryNotFoundError):
        raise DataError(
            f"{where}: no such file or folder here; {why}, and the dataset is not in the cache. {way_out}"
        ) from None
    missing = _missing_shards(wanted)
    if missing:
        raise DataError(f"{where}: {why}, and the cached dataset lacks {', '.join(missing[:3])}. {way_out}")
    commit = os.path.basename(folder)
    if not offline:
        say(f"{where}: {why}: using the copy of {commit[:12]} in the cache")
    return commit, [os.path.join(folder, file) for file in wanted]


def _files_of(where: str, split: str, names: Iterable[str], card: str | None) -> list[str]:
    """The names of the files that make up a split, according to the `datasets` library. Raises DataError."""
    import datasets

    with tempfile.TemporaryDirectory(prefix="fschat-") as scratch:
        folder = Path(scratch) / "dataset"
        for name in names:
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"{where}: the dataset lists a file outside its own folder ({name!r}); it is not read.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if card is not None:
            shutil.copyfile(card, folder / _CARD)
        try:
            builder = datasets.load_dataset_builder(str(folder), cache_dir=scratch)
        except (ValueError, FileNotFoundError) as error:
            reason = str(error).splitlines()[-1 if "Config name" not in str(error) else 1].replace(str(folder), "it")
            raise DataError(
                f"{where}: {reason.strip()}. Download the files you want (`hf download`) and pass their paths."
            ) from None
        files = {str(key): [os.path.relpath(f, folder) for f in value] for key, value in _splits(builder)}
    if split not in files:
        raise DataError(f"{where}: the dataset has no split {split!r}; it has {', '.join(sorted(files)) or 'none'}.")
    unreadable = [file for file in files[split] if not file.endswith(_READABLE)]
    if unreadable:
        raise DataError(f"{where}: its file {unreadable[0]} is neither JSON nor parquet ({', '.join(_READABLE)}).")
    return files[split]


def _splits(builder: Any) -> Iterable[tuple[Any, Any]]:
    return (builder.config.data_files or {}).items()


def _missing_shards(files: Iterable[str]) -> list[str]:
    """Shards that are missing: `train-00001-of-00002.parquet` if there is only `train-00000-of-00002.parquet`."""
    there = set(files)
    wanted = set()
    for match in filter(None, map(_SHARD.fullmatch, there)):
        stem, _, total, ending = match.groups()
        wanted |= {f"{stem}-{number:05d}-of-{total}{ending}" for number in range(int(total))}
    return sorted(wanted - there)


def _address(name: str) -> str:
    from huggingface_hub.constants import ENDPOINT

    return f"{ENDPOINT}/datasets/{name}"
