"""Writes the report of a run, or of several: the page, and the charts as PNGs in a folder next to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastchat.errors import SettingsError, brief, values_without_secrets
from fastchat.files import write_text
from fastchat.report import png
from fastchat.report.charts import charts_of
from fastchat.report.html import page_of
from fastchat.report.reading import PAGE_NAME, RunFiles, read_run
from fastchat.security import special_kind

_MARK, _HEAD = b'<meta name="generator" content="fastchat report">', 2048  # in the first bytes of a page


def write_page(runs: Sequence[RunFiles], path: Path) -> None:
    """Writes the page of `runs`, whole or not at all. Raises OSError; SettingsError if `path` is another file, such as
    the page of a preview, which would be lost."""
    if path.exists() and not is_report(path):
        raise SettingsError(f"{path} is not the report of a run and is not replaced: name another file with --output")
    write_text(path, page_of(runs), durable=False)


def is_report(path: Path) -> bool:
    """Whether a file was written by `write_page`."""
    if special_kind(path) or path.is_dir():
        return False
    with open(path, "rb") as file:
        return _MARK in file.read(_HEAD)


def charts_folder(page: Path) -> Path:
    """Where the PNGs of a page are.

    >>> charts_folder(Path("out/report.html"))
    PosixPath('out/report-charts')
    """
    return page.with_name(f"{page.stem}-charts")


def write_charts(runs: Sequence[RunFiles], page: Path) -> str:
    """Writes the PNGs of a page's charts; says in a line where they are, or why there are none."""
    if not png.installed():
        return f"no PNGs of the charts: matplotlib is not installed ({png.PIP_LINE})"
    folder = charts_folder(page)
    try:
        number = png.write_pngs(charts_of(runs), folder)
    except Exception as error:  # noqa: BLE001 - of a library that nothing else needs
        return f"WARNING: no PNGs of the charts: {type(error).__name__}: {brief(error)}"
    return f"{number} charts as PNGs in {folder}" if number else "no PNGs of the charts: no step has been logged"


def rewrite(folder: Path, *, running: bool, status: dict[str, Any] | None = None) -> RunFiles:
    """Reads a run folder and writes its page; returns what was read. Raises OSError and SettingsError.

    `running`: whether its run is going on. `status`: what its status.json is about to say.
    """
    run = read_run(folder, running=running)
    run.status |= values_without_secrets(status or {})
    write_page([run], folder / PAGE_NAME)
    return run
