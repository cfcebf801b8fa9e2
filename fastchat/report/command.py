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

from fastchat.errors import EXIT_DONE, ResourceError, SettingsError, UserError, say, show
from fastchat.report.reading import PAGE_NAME, RunFiles, read_run
from fastchat.report.writing import write_charts, write_page
from fastchat.streams import kept_output

COMPARISON = "comparison.html"


@kept_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 2 not the folder of a run, 6 the page cannot be written."""
    parser = argparse.ArgumentParser(
        prog="fastchat report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="+", help="the --output_dir of a run; with several, they are compared")
    parser.add_argument(
        "--output", help=f"the page to write; by default {PAGE_NAME} in the run's folder, for several runs {COMPARISON}"
    )
    given = parser.parse_args(argv)
    try:
        _write(given.run, given.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def _write(folders: Sequence[str], output: str | None) -> None:
    runs = [read_run(folder) for folder in folders]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise SettingsError("the same run is given twice; name each run once")
    _name_apart(runs)
    for run in runs:
        for problem in run.problems:
            say(f"{run.folder}: {problem}")
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
    for run, name in zip(runs, names, strict=True):
        run.name = name


if __name__ == "__main__":
    sys.exit(main())
