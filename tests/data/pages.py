"""What the tests of the page share: a browser, pages of some rows, and expressions that ask a page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.chromium import NAMES, Chromium, find_chromium

TOKENS = "[...document.querySelectorAll('#tokens [data-token]')]"
DETAILS = "document.getElementById('details').innerText"


def show(browser: Chromium, page: Path, fragment: str = "") -> None:
    browser.look()
    browser.open(page, fragment)
    assert [entry for entry in browser.log if entry[0] != "request"] == []


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One Chromium for all tests of this file."""
    binary = find_chromium()
    if binary is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    made = Chromium(binary, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def write_page(
    tokenizer_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> Callable[..., Path]:
    """Write the report of some rows."""

    def make(
        rows: list[Any],
        *argv: str,
        kind: str = "metaspace_bos",
        template: str = "vicuna_v1.1",
        model: Path | None = None,
    ) -> Path:
        folder = tmp_path_factory.mktemp("report")
        data, page = folder / "rows.json", folder / "report.html"
        data.write_text(json.dumps(rows), encoding="utf-8")
        named = ["--model_name_or_path", str(model or tokenizer_dir(kind)), "--conv_template", template]
        command = [sys.executable, "-m", "fastchat.data.preview", *named, "--data_path", str(data), "--html", str(page)]
        subprocess.run([*command, *argv], check=True, capture_output=True, timeout=120, cwd=repository)
        return page

    return make


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    return {"conversations": [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)], **more}


@pytest.fixture(scope="session")
def plain(write_page: Callable[..., Path]) -> Path:
    """250 small dialogues; in the third one answer is not to be learned and the other is cut in the middle."""
    rows = [chat(f"What is {i} plus {i}?", f"The answer is {2 * i}.", id=f"sum-{i}") for i in range(250)]
    rows[2] = chat("Hi", "Secret", "And?", "needle " * 80, id="mixed")
    rows[2]["conversations"][1]["train"] = False
    rows[3] = chat("Only a question")
    return write_page(rows, "--model_max_length", "150")
