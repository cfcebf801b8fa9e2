"""The report in a real browser, as a reader uses it: from counts to rows, reading, keys, and on a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.chromium import Chromium
from tests.data.own_templates import KINDS, with_tokens
from tests.data.pages import TOKENS, chat, show
from tests.data.test_html_report import data_of

pytestmark = pytest.mark.slow


def test_counts_lead_to_the_rows_that_they_count(browser: Chromium, plain: Path) -> None:
    links = "[...document.querySelectorAll('#counts button')]"
    show(browser, plain)
    said = browser.run(f"{links}.map(link => link.innerText)")
    assert said == ["249 used", "1 dropped", "1 not", "1 dialogue"]
    for i, text in enumerate(said):
        show(browser, plain, "search=nothing&tokens=user")
        browser.run(f"{links}[{i}].click()")
        assert browser.run("document.getElementById('found').innerText") == f"{text.split()[0]} of 250 rows"
        assert browser.run("document.querySelector('#list [aria-current=true]') !== null")


def test_every_count_of_rows_has_its_filter(browser: Chromium, write_page: Callable[..., Path]) -> None:
    rows = [chat("Hi", "Yes."), chat("Say </s>", "No <s> and </s>."), chat("And?", "a </s>")]
    page = write_page(rows)
    show(browser, page)
    said = "[...document.querySelectorAll('#counts button')].map(b => b.innerText)"
    assert "4 special-token strings" in browser.run(said)
    browser.run("[...document.querySelectorAll('#counts button')].find(b => b.innerText.startsWith('4 spe')).click()")
    assert browser.run("document.getElementById('found').innerText") == "2 of 3 rows"
    known = set(browser.run("Object.keys(STATES)"))
    assert {name for _, parts in data_of(page)["counts"] for _, name in parts if name} <= known


CURRENT = "document.querySelector('#list [aria-current=true]')"
IN_SIGHT = (
    f"(() => {{ const box = document.getElementById('rows').getBoundingClientRect(), row = {CURRENT}"
    ".getBoundingClientRect(); return row.top >= box.top - 1 && row.bottom <= box.bottom + 1; })()"
)


def test_the_list_follows_the_row_and_marks_it(browser: Chromium, plain: Path) -> None:
    show(browser, plain, "record=240")
    assert browser.run(f"{CURRENT}.innerText").startswith("240") and browser.run(IN_SIGHT)
    browser.press(*"jjjj")
    assert browser.run(f"{CURRENT}.innerText").startswith("244") and browser.run(IN_SIGHT)
    browser.click("#earlier-records")
    assert browser.run("document.querySelector('#list button').dataset.record") == "115"
    show(browser, plain, "record=99")
    browser.press("j")  # the first one that was not in the list
    assert browser.run(f"{CURRENT}.innerText").startswith("100") and browser.run(IN_SIGHT)
    browser.look(width=400)
    browser.open(plain, "record=200")
    assert browser.run(f"{CURRENT}.innerText").startswith("200") and browser.run(IN_SIGHT)


def test_sorting_and_jumping(browser: Chromium, plain: Path) -> None:
    data = data_of(plain)
    order = "[...document.querySelectorAll('#list button')].map(b => Number(b.dataset.record))"
    sizes = [len(record.get("t", ())) for record in data["records"]]
    learned = [
        record["n"][0] / max(size - record["n"][1], 1) for record, size in zip(data["records"], sizes, strict=True)
    ]
    for sort, value in (("longest", [-size for size in sizes]), ("least", learned), ("most", [-x for x in learned])):
        show(browser, plain)
        browser.run(
            f"const s = document.getElementById('sort'); s.value = '{sort}'; s.dispatchEvent(new Event('change'))"
        )
        assert browser.run(order) == sorted(range(250), key=lambda i: value[i])[:100]
        assert f"sort={sort}" in browser.run("location.hash")
    show(browser, plain, "records=cut")
    browser.press("g", *"231", "Enter")
    assert browser.run("document.querySelector('#record h2').innerText") == "Row 231: sum-231"
    assert browser.run(f"{CURRENT}.innerText").startswith("231") and browser.run(IN_SIGHT)
    browser.run("document.getElementById('row').value = '999'; document.getElementById('jump').requestSubmit()")
    assert "no row 999 on this page" in browser.run("document.getElementById('found').innerText")
    assert "record=231" in browser.run("location.hash")


# --- reading


def test_prose_can_be_read_and_edges_are_a_switch(browser: Chromium, plain: Path) -> None:
    looks = (
        f"{TOKENS}.filter(t => t.matches('.learned:not(.hit, .at, .stop, .first)'))"
        ".map(t => getComputedStyle(t).backgroundColor)"
    )
    show(browser, plain, "record=0")
    assert len(set(browser.run(looks))) == 1  # neighbours with the same reason are one
    prose = browser.run("getComputedStyle(document.querySelector('#tokens .tokens')).fontFamily")
    browser.click("#edges")
    assert len(set(browser.run(looks))) == 2 and "edges=on" in browser.run("location.hash")
    assert browser.run("document.getElementById('edges').getAttribute('aria-pressed')") == "true"
    edges = browser.run("getComputedStyle(document.querySelector('#tokens .tokens')).fontFamily")
    assert "mono" in edges and "mono" not in prose
    browser.press("j", "e")
    assert len(set(browser.run(looks))) == 1 and "edges" not in browser.run("location.hash")


def test_cut_is_one_rule_and_only_where_something_to_learn_is_lost(
    browser: Chromium, plain: Path, write_page: Callable[..., Path]
) -> None:
    show(browser, plain, "record=2")
    rules = "[...document.querySelectorAll('.rule')].map(r => r.innerText)"
    (rule,), lost = browser.run(rules), data_of(plain)["records"][2]["n"][6]
    assert rule.startswith("cut at 150: ") and f"with {lost} tokens to learn" in rule
    assert f"{lost} lost" in browser.run("document.querySelector('#list li:nth-child(3)').innerText")
    page = write_page([chat("Hi", "Yes.", "And then? " * 50, "")], "--model_max_length", "150")
    show(browser, page, "record=0")
    (rule,) = browser.run(rules)
    assert rule.startswith("end of the example (limit 150): nothing to learn in the next ")
    assert "lost" not in browser.run("document.getElementById('list').innerText")
    assert browser.run(f"{TOKENS}.some(t => t.classList.contains('after'))")
    assert "no answer is cut off" in browser.run("document.getElementById('verdict').innerText")
    assert browser.run("document.querySelectorAll('.chart .cut').length") == 0


def test_calls_reasoning_and_system_text_look_different(
    browser: Chromium, write_page: Callable[..., Path], tmp_path: Path
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    turns = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": "", "reasoning_content": "A sum.", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "3"}, {"role": "assistant", "content": "3."},
    ]  # fmt: skip
    model = with_tokens(KINDS["DROPPING"], tmp_path)
    page = write_page([{"messages": turns, "tools": [tool]}], model=model, template="tokenizer")
    show(browser, page, "record=0")
    parts = dict(browser.run("[...document.querySelectorAll('.part')].map(p => [p.className, p.innerText])"))
    assert '{"name": "add", "arguments": {' in parts["part is-tool-call"] and "A sum." in parts["part is-reasoning"]
    assert parts["part is-tool-call"].startswith("tool call") and parts["part is-reasoning"].startswith("reasoning")
    turns_of = "[...document.querySelectorAll('.turn')]"
    colours = dict(
        browser.run(f"{turns_of}.map(t => [t.className, getComputedStyle(t.querySelector('.who b')).color])")
    )
    spoken = [colours[f"turn is-{role}"] for role in ("system", "user", "assistant", "tool")]
    assert len(set(spoken)) == 4


# --- for everybody


def test_keys_work_at_once_and_escape_closes(browser: Chromium, plain: Path) -> None:
    at = "Number(document.querySelector('.at')?.dataset.token ?? -1)"
    show(browser, plain, "record=1")
    browser.press("ArrowRight")  # nothing has the focus
    assert browser.run(at) == 0
    browser.run("document.querySelector('#list button').focus()")
    browser.press("ArrowRight")
    assert browser.run(at) == 1
    browser.press("?")
    assert browser.run("document.getElementById('help').open")
    assert {"/", "g", "j", "k", "n", "p", "e", "o", "?", "Esc"} <= set(
        browser.run("[...document.querySelectorAll('#help kbd')].map(k => k.innerText)")
    )
    browser.press("j", "Escape")  # only the list of keys is closed
    assert not browser.run("document.getElementById('help').open") and browser.run(at) == 1
    browser.press("Escape")
    assert browser.run("document.getElementById('details').hidden") and "record=1" in browser.run("location.hash")
    browser.press("Escape")
    assert not browser.run("document.getElementById('overview').hidden")
    show(browser, plain, "record=1&token=3")
    browser.click("#close-details")
    assert browser.run("document.getElementById('details').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_everything_large_enough(browser: Chromium, plain: Path, dark: bool) -> None:
    browser.look(width=400, dark=dark)
    for fragment in ("", "record=2&token=40"):
        browser.open(plain, fragment)
        small = browser.run(
            "[...document.querySelectorAll('button, input, select')].filter(e => e.checkVisibility())"
            ".map(e => [e.getBoundingClientRect(), e]).filter(([b]) => b.height < 30 || b.width < 24)"
            ".map(([b, e]) => e.outerHTML)"
        )
        assert small == []
        beyond = browser.run(
            "[...document.querySelectorAll('main *, header *, #details *')].filter(e => e.checkVisibility())"
            ".filter(e => { const b = e.getBoundingClientRect(); return b.width && (b.right > 401 || b.left < -1); })"
            ".map(e => e.outerHTML.slice(0, 90))"
        )
        assert beyond == []
    browser.open(plain)
    texts = browser.run(
        "[...document.querySelectorAll('.chart text')].map(t => { const b = t.getBoundingClientRect();"
        " return [t.textContent, b.left, b.top, b.right, b.bottom]; })"
    )
    assert all(bottom - top >= 12 and 0 <= left < right <= 400 for _, left, top, right, bottom in texts)
    for i, (_, left, top, right, bottom) in enumerate(texts):
        for _, x, y, to_x, to_y in texts[:i]:
            assert right <= x or to_x <= left or bottom <= y + 2 or to_y <= top + 2, "texts of the chart overlap"


def test_a_finger_and_keys_read_the_bars(browser: Chromium, plain: Path) -> None:
    browser.look(width=400)
    browser.open(plain)
    reading = "document.getElementById('bin').innerText"
    assert "median" in browser.run(reading)
    browser.click(".chart rect.cut")
    bins = data_of(plain)["lengths"]["bins"]
    first, last, *_ = next(bin_ for bin_ in bins if bin_[3])
    assert browser.run(reading) == f"{first} to {last} tokens: 1 cut"
    browser.run("document.querySelector('.chart').focus()")
    browser.press(*["ArrowLeft"] * len(bins))
    assert browser.run(reading).startswith(f"{bins[0][0]} to {bins[0][1]} tokens: ")
