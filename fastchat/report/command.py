"""Makes the report of a run again from its folder, or compares several runs:

    fastchat report RUN                          RUN/report.html, and PNGs of its charts in RUN/report-charts
    fastchat report RUN RUN2 --output diff.html  their curves on top of one another, figures and settings side by side

Also of a run that is going on, that failed or that was killed. Neither torch nor transformers is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastchat.data.tools.command import Parser, run
from fastchat.errors import ResourceError, SettingsError, say, show
from fastchat.report.reading import PAGE_NAME, RunFiles, read_run
from fastchat.report.writing import write_charts, write_page

COMPARISON = "comparison.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 2 not the folder of a run, 6 the page cannot be written."""
    return run(_write, build_parser(), argv)


def build_parser() -> Parser:
    """The command line."""
    about = "Make the report of a run again from the files in its folder, or one page that compares several runs."
    parser = Parser(["fastchat report out", "fastchat report out other"], prog="fastchat report", description=about)
    parser.add_argument("run", nargs="+", metavar="RUN", help="the --output_dir of a run; several are compared")
    page = f"the page to write (default: {PAGE_NAME} in the folder of the run; for several runs {COMPARISON})"
    parser.add_argument("--output", metavar="FILE", help=page)
    return parser


def _write(given: argparse.Namespace) -> None:
    folders, output = given.run, given.output
    runs = [read_run(folder) for folder in folders]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise SettingsError("the same run is given twice; name each run once")
    _name_apart(runs)
    for one in runs:
        for problem in one.problems:
            say(f"{one.folder}: {problem}")
    page = Path(output).expanduser() if output else runs[0].folder / PAGE_NAME if len(runs) == 1 else Path(COMPARISON)
    if page.is_dir():
        raise SettingsError(f"--output {page} is a folder; name a file in it, such as {page / PAGE_NAME}")
    if not page.parent.is_dir():
        raise SettingsError(f"--output {page}: there is no folder {page.parent}; create it first")
    try:
        write_page(runs, page)
    except OSError as error:
        raise ResourceError(f"{page} cannot be written: {error.strerror or error}") from None
    show(f"report: {page}")
    say(write_charts(runs, page))


def _name_apart(runs: Sequence[RunFiles]) -> None:
    """Runs in folders of the same name are named by more of their paths."""
    parts = [run.folder.resolve().parts for run in runs]
    for size in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-size:]) for one in parts]
        if len(set(names)) == len(names):
            break
    for one, name in zip(runs, names, strict=True):
        one.name = name


if __name__ == "__main__":
    sys.exit(main())
