"""Arrow -> rows: both formats of an `.arrow` file, and the folders that `save_to_disk` of `datasets` writes.

    Dataset       state.json (which files, in which order), dataset_info.json, data-00000-of-00002.arrow, ...
    DatasetDict   dataset_dict.json ({"splits": ["train", "test"]}) and a folder of the first kind for each split

Files are mapped into memory and read batch by batch; see tables.py for what a row is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from fastchat.data.rows.columns import AS_THEY_ARE, Columns
from fastchat.data.rows.tables import BATCH, NumberedRow, columns_to_read, rows_of
from fastchat.errors import DataError, brief, nearest
from fastchat.files import JsonError, read_object

ARROW_FILE = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"
_END_OF_STREAM = ARROW_STREAM + b"\0\0\0\0"
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def arrow_rows(path: str, whole: bool = False, columns: Columns = AS_THEY_ARE) -> Iterator[tuple[NumberedRow, float]]:
    """Every row of a file in order, each with the share of the file that has been read, from 0 to 1.

    Raises:
        DataError: the file is damaged or cut off.
    """
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(path) as file:
            is_stream = file.read(len(ARROW_STREAM)) == ARROW_STREAM
            if is_stream and not _ends(file):
                raise pyarrow.ArrowInvalid("it ends before the end of the stream")
            file.seek(0)
            reader = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
            wanted, unread = columns_to_read(reader.schema, whole, columns)
            size, position = max(file.size(), 1), 0.0

            def pieces() -> Iterator[Any]:
                nonlocal position
                for number, batch in enumerate(_batches(reader, is_stream), start=1):
                    position = file.tell() / size if is_stream else number / reader.num_record_batches
                    _check(batch)
                    kept = batch.select(wanted)
                    yield from (kept.slice(at, BATCH) for at in range(0, kept.num_rows, BATCH))

            for row in rows_of(pieces(), unread, whole):
                yield row, min(position, 1.0)
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        reason = brief(error)
        raise DataError(f"{path}: cannot be read as Arrow ({reason}); copy it or save it again.") from None


def saved_files(folder: str, split: str, flag: str = "--data_split") -> list[str] | None:
    """The data files of a folder that `save_to_disk` wrote, in order; None for any other folder.

    Args:
        split: of a DatasetDict, which of its splits; a Dataset has none. `flag` chooses it.

    Raises:
        DataError: there is no such split, a file is missing or outside the folder, or rows were selected, not written.
    """
    if os.path.isfile(os.path.join(folder, _SPLITS)):
        splits = _read(folder, _SPLITS).get("splits")
        known = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        if split not in known:
            near = nearest(split, known, n=1) or known[:1]
            hint = f"its splits are {', '.join(known)}; choose one: {flag} {near[0]}" if near else "it has no split"
            raise DataError(f"{folder}: there is no split {split!r} in it; {hint}")
        folder = _inside(folder, split, _SPLITS)
    if not os.path.isfile(os.path.join(folder, _STATE)):
        return None
    state = _read(folder, _STATE)
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder}: its rows are a selection of those in the files ({_STATE}: _indices_data_files); "
            "save them with flatten_indices() and save_to_disk()."
        )
    entries = state.get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if entries == []:
        raise DataError(f"{folder}: the saved dataset has no rows.")
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{os.path.join(folder, _STATE)}: it lists no data files; save the dataset again.")
    files = [_inside(folder, str(name), _STATE) for name in names]
    if missing := [file for file in files if not os.path.isfile(file)]:
        raise DataError(f"{missing[0]}: no such file, although {_STATE} lists it; copy or save the dataset again.")
    return files


def _check(batch: Any) -> None:
    """Raises ArrowInvalid for an inconsistent batch. Text that is not UTF-8 passes: it is reported later, with its
    row."""
    import pyarrow

    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid:
        for column in batch.columns:
            column.view(_bytes_for_text(column.type)).validate(full=True)


def _bytes_for_text(kind: Any) -> Any:
    """The type with the same buffers, but bytes in place of text."""
    import pyarrow
    from pyarrow import types

    plain = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_bytes_for_text(field.type)) for field in kind])
    for is_list, make in ((types.is_list, pyarrow.list_), (types.is_large_list, pyarrow.large_list)):
        if is_list(kind):
            return make(kind.value_field.with_type(_bytes_for_text(kind.value_type)))
    if types.is_dictionary(kind):
        return pyarrow.dictionary(kind.index_type, _bytes_for_text(kind.value_type))
    return plain.get(kind, kind)


def _ends(file: Any) -> bool:
    size = file.size()
    file.seek(max(size - len(_END_OF_STREAM), 0))
    return file.read() == _END_OF_STREAM


def _batches(reader: Any, is_stream: bool) -> Iterator[Any]:
    return iter(reader) if is_stream else map(reader.get_batch, range(reader.num_record_batches))


def _read(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    try:
        return read_object(path, constants=True)
    except (OSError, JsonError) as error:
        raise DataError(f"{path}: cannot be read ({brief(error)}).") from None


def _inside(folder: str, name: str, where: str) -> str:
    if os.path.basename(name) != name or name in ("", ".", ".."):
        raise DataError(f"{os.path.join(folder, where)} names {name[:200]!r}, which is not in its folder.")
    return os.path.join(folder, name)
