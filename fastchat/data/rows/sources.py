"""Values of `--data_path` -> the files to read: a file, a pattern, a folder (of files, or one that `save_to_disk` of
`datasets` wrote), or a dataset of the hub.

An existing path always takes precedence over a pattern or a hub name that is spelled the same.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastchat.data.rows.arrow import saved_files
from fastchat.data.rows.hub import download
from fastchat.data.rows.no_file import refuse_special, unreadable
from fastchat.errors import DataError, counted, say

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".arrow")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WILD = re.compile(r"[*?\[]")
_MAX_NAMED = 5


@dataclass(frozen=True)
class Source:
    """One value of `--data_path`.

    Attributes:
        name: as it was given.
        files: absolute paths, in the order in which they are read.
        revision: the commit of a dataset of the hub, None for local files.
    """

    name: str
    files: tuple[str, ...]
    revision: str | None = None


def check_source(flag: str, name: str, split: str = "train") -> None:
    """Check what can be checked without reading or downloading anything. Raises DataError as `find_sources` does."""
    if not _on_hub(name):
        _local(flag, name, split)


def local_sources(flag: str, names: Sequence[str], *, split: str = "train") -> list[Source] | None:
    """What `find_sources` gives, without its messages; None if a dataset of the hub is among them. Raises DataError."""
    if any(_on_hub(name) for name in names):
        return None
    return [Source(name, _absolute(_local(flag, name, split))) for name in names]


def find_sources(
    flag: str, names: Sequence[str], *, split: str = "train", revision: str | None = None, cache_dir: str | None = None
) -> list[Source]:
    """The files of every source; hub datasets are downloaded. Logs repeated files and other files in a folder.

    Args:
        flag: for messages, `--data_path`.
        split: which split to read of datasets of the hub and of saved datasets that have splits.
        revision: of the datasets of the hub; None is the main branch.
        cache_dir: where the hub's library caches them, None for its default.

    Raises:
        DataError: a path does not exist, a pattern matches nothing, a folder has no data; or the hub denies access.
    """
    found = []
    for name in names:
        if _on_hub(name):
            commit, files = download(flag, name, split, revision, cache_dir)
            say(f"{flag} {name}: split {split} of the hub dataset at commit {commit[:12]}, {_num_files(files)}")
            found.append(Source(name, tuple(files), commit))
        else:
            found.append(Source(name, _absolute(_local(flag, name, split, tell=True))))
    twice = [file for file, n in Counter(file for source in found for file in source.files).items() if n > 1]
    if twice:
        say(f"{flag}: {_listed(twice)} given more than once, so its dialogues count more than once")
    return found


def _path(name: str) -> str:
    return str(Path(name).expanduser())


def _on_hub(name: str) -> bool:
    return _is_hub_name(name) and not os.path.exists(_path(name))


def _absolute(files: Sequence[str]) -> tuple[str, ...]:
    return tuple(os.path.abspath(file) for file in files)


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not name.endswith(ENDINGS)


def _local(flag: str, name: str, split: str, tell: bool = False) -> list[str]:
    path = _path(name)
    refuse_special(path)
    if os.path.isdir(path):
        return _saved(flag, name, path, split, tell) or _files_in(flag, name, path, tell)
    if os.path.exists(path):
        return [path]
    if "://" in name:
        raise DataError(
            f"{flag} {name} is a URL; download the file and pass its path. (A dataset of the hub is named OWNER/NAME.)"
        )
    if not _WILD.search(name):
        reason = str(unreadable(path, FileNotFoundError())).removeprefix(f"{path}: ")
        raise DataError(f"{flag} {name}: {reason} (A dataset of the hub is named OWNER/NAME.)")
    matched = sorted(glob.glob(path, recursive=True))
    files = [match for match in matched if os.path.isfile(match)]
    if not files:
        raise DataError(f"{flag} {name}: the pattern matches no file.")
    folders = [match for match in matched if os.path.isdir(match)]
    if folders and tell:
        say(f"{flag} {name}: folders skipped: {_listed(folders)}")
    return files


def _saved(flag: str, name: str, folder: str, split: str, tell: bool) -> list[str] | None:
    """The files of a folder that `save_to_disk` wrote; None for any other."""
    found = saved_files(folder, split, flag.replace("_path", "_split"))
    if found and tell:
        of = f"split {split} of " if os.path.dirname(found[0]) != os.path.normpath(folder) else ""
        say(f"{flag} {name}: {of}a saved dataset, {_num_files(found)}")
    return found


def _files_in(flag: str, name: str, folder: str, tell: bool) -> list[str]:
    entries = sorted(os.listdir(folder))
    files = [entry for entry in entries if entry.endswith(ENDINGS) and os.path.isfile(os.path.join(folder, entry))]
    others = [entry for entry in entries if entry not in set(files)]
    if not files:
        raise DataError(
            f"{flag} {name}: the folder has no data file ({', '.join(ENDINGS)}); "
            f"it contains: {_listed(others) or 'nothing'}."
        )
    if tell:
        left_out = f"; left out: {_listed(others)}" if others else ""
        say(f"{flag} {name}: {_num_files(files)}{left_out}")
    return [os.path.join(folder, entry) for entry in files]


def _num_files(files: Sequence[str]) -> str:
    return counted(len(files), "file")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
