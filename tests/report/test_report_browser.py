"""The report in a real Chromium: it asks for nothing, runs nothing of its data, and can be read everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastchat.report import command
from tests.data.chromium import Chromium
from tests.data.pages import browser, show
from tests.data.test_html_browser import ATTACKS
from tests.machine import wait_for
from tests.report.folders import ROWS, STATUS, answers, begun, record, write_run

__all__ = ["browser"]  # a fixture
pytestmark = pytest.mark.slow
PATHS = "'' + [...document.querySelectorAll('figure.chart')].map(f => f.dataset.key)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a plain run, of one whose every text attacks it, and a comparison of both."""
    folder = tmp_path_factory.mktemp("pages")
    attack = " ".join(ATTACKS)
    settings: dict[str, Any] = {f"attack_{i}": text for i, text in enumerate(ATTACKS)} | {"run_name": attack}
    made = record(**settings) | {"base_model": attack, "engine": attack, "versions": {attack: attack}}
    made["data"]["train"] = {**made["data"]["train"], "sources": [{"name": attack}]}
    found = {
        "plain": write_run(folder / "plain"),
        "hostile": write_run(
            folder / "a <b> run",
            training=made,
            status=STATUS | {"status": "failed", "message": attack},
            answers=answers(*ATTACKS),
            report=begun(attack),
            metrics=[{**row, f"eval_{attack}": row["step"] + 0.5} for row in ROWS],
            log="".join(f"WARNING: {text}\n" for text in ATTACKS),
        ),
    }
    paths = {name: folder / f"{name}.html" for name in (*found, "compared")}
    for name, run in found.items():
        assert command.main([str(run), "--output", str(paths[name])]) == 0
    assert command.main([*map(str, found.values()), "--output", str(paths["compared"])]) == 0
    return paths


@pytest.mark.parametrize("name", ["plain", "hostile", "compared"])
def test_it_asks_for_nothing_and_runs_nothing(browser: Chromium, pages: dict[str, Path], name: str) -> None:
    browser.look(offline=True)
    browser.open(pages[name])
    assert [kind for kind, _ in browser.log] == ["request"], browser.log
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.querySelectorAll('img, iframe, object, a, form, [onload], [onerror]').length") == 0
    shown = browser.run("document.body.innerText")
    assert not set(shown) & set("\u202e\u2066\u2028\x07\x1b\x7f\u200b\ufeff")
    if name != "plain":
        for text in filter(lambda text: text.isascii() and text.isprintable(), ATTACKS):
            assert f"Q {text}" in shown and f"21 {text}" in shown
    browser.look()


def test_the_policy_blocks_what_is_not_its_own(browser: Chromium, pages: dict[str, Path]) -> None:
    show(browser, pages["plain"])
    put = "const s = document.createElement('script'); s.textContent = 'window.pwned = 9'; document.body.append(s);"
    browser.run(put + "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i); 0")

    def refused() -> bool:
        assert browser.run("typeof window.pwned") == "undefined"
        said = " ".join(str(entry) for kind, entry in browser.log if kind == "log")
        return "script-src" in said and ("img-src" in said or "default-src" in said)

    wait_for(refused, 60)


def test_curves_are_drawn_and_read(browser: Chromium, pages: dict[str, Path]) -> None:
    show(browser, pages["plain"])
    assert browser.run(PATHS).split(",")[:3] == ["loss", "learning_rate", "grad_norm"]
    logged = [row for row in ROWS if "loss" in row]
    assert browser.run("document.querySelector('#chart-loss polyline').points.numberOfItems") == len(logged)
    colours = browser.run(
        "[...document.querySelectorAll('#chart-loss polyline')].map(line => getComputedStyle(line).stroke)"
    )
    assert len(set(colours)) == 2 and "none" not in colours
    browser.run("document.querySelector('#chart-loss .curves').focus()")
    readings = []
    for _ in range(3):
        browser.press("ArrowRight")
        readings.append(browser.run("document.querySelector('#chart-loss .reading').textContent"))
    assert readings == ["Step 0: evaluation 1.362", "Step 3: training 1.2", "Step 6: training 0.6"]
    browser.click("#chart-learning_rate .curves")
    assert browser.run("document.querySelector('#chart-learning_rate .reading').textContent").startswith("Step ")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["plain", "hostile", "compared"])
def test_nothing_is_wider_than_the_window_and_texts_do_not_overlap(
    browser: Chromium, pages: dict[str, Path], name: str, width: int
) -> None:
    for dark in (False, True):
        browser.look(width, dark=dark)
        browser.open(pages[name])
        assert browser.run("document.documentElement.scrollWidth") <= width
        # Labels of an axis: none covers another, and none is squeezed by the stretched curves.
        overlapping = browser.run("""[...document.querySelectorAll('.plot svg')].flatMap(svg => {
          const boxes = [...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect());
          return boxes.filter((a, i) => a.height < 9 || boxes.some((b, j) => j > i && a.left < b.right
            && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1));
        }).length""")
        assert overlapping == 0
        shades = browser.run("['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])")
        page, text = (int(shade.partition("(")[2].partition(",")[0]) for shade in shades)
        assert (page > text) != dark, "light or dark as the user has it"
    browser.look()
