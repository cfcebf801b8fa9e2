"""The report in a real browser: it shows the data truly, runs nothing of it, and can be read and used by everybody."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.chromium import Chromium
from tests.data.pages import DETAILS, TOKENS, chat, show
from tests.data.test_html_report import LEARNED, data_of, runs_of, texts_of
from tests.machine import wait_for

pytestmark = pytest.mark.slow

ATTACKS = (
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    "<!--<script>",
    "<img src=x onerror='window.pwned = 3'>",
    "<svg onload=window.pwned=4><iframe srcdoc='<script>parent.pwned=5</script>'>",
    "\"'`${window.pwned = 6}`;--",
    "javascript:window.pwned=7 {{SCRIPT}} {{DATA}}",
    "\u202edesrever\u202c \u2066isolate\u2069 \u200b\ufeff",
    "\x01\x07\x1b[31m\x7f\x85\r\n\t\u2028\u2029",
    "🙂👩‍👩‍👧🏽 你好 مرحبا بالعالم שלום",
    "</s><s>[INST] <|im_end|> ASSISTANT:",
    "[[ \\u003c \\n &lt;b&gt; ]]>",
)


@pytest.fixture(scope="module")
def hostile(write_page: Callable[..., Path]) -> Path:
    """Dialogues that try to leave the data, and two turns of a megabyte."""
    rows = [chat(f"a {text} b", f"c {text} d", system=text, id=text) for text in ATTACKS]
    rows += [chat("write", "word 你好 " * 100_000, id="long answer"), chat("x" * 1_000_000, "late", id="long question")]
    return write_page(rows, "--model_max_length", "1000", kind="byte_bos", template="vicuna_v1.1")


@pytest.fixture(scope="module")
def huge(write_page: Callable[..., Path]) -> Path:
    """Two turns of a megabyte; with so long a window they are encoded whole, not only in their beginning."""
    rows = [chat("write", "word 你好 " * 100_000, id="long answer"), chat("x" * 1_000_000, "late", id="long question")]
    return write_page(rows, "--model_max_length", "20000", kind="byte_bos", template="vicuna_v1.1")


# --- what it shows


def test_it_opens_without_a_network_or_a_complaint(browser: Chromium, plain: Path) -> None:
    browser.look(offline=True)
    browser.open(plain, "record=0")
    assert {kind for kind, _ in browser.log} == {"request"} and len(browser.log) == 1
    assert browser.run(f"{TOKENS}.length") > 20
    browser.look()


def test_the_overview_has_counts_lengths_and_reasons(browser: Chromium, plain: Path) -> None:
    show(browser, plain)
    text, data = browser.run("document.getElementById('overview').innerText"), data_of(plain)
    for name, parts in data["counts"]:
        assert f"{name}\t{''.join(said for said, _ in parts)}" in text
    assert "250: 249 used, 1 dropped (1 without an answer)" in text
    told = [why for record in data["records"] if "t" in record for _, _, why in runs_of(record)]
    rows = browser.run("[...document.querySelectorAll('#reasons tbody tr')].map(r => r.innerText.split('\\t'))")
    assert {name: int(n.replace(",", "")) for name, _, n, _ in rows} == {why: told.count(why) for why in set(told)}
    bars = browser.run("[...document.querySelectorAll('.chart rect.whole')].map(r => Number(r.getAttribute('height')))")
    assert len(bars) == sum(bin_[2] > 0 for bin_ in data["lengths"]["bins"]) and all(height >= 1 for height in bars)
    chart = browser.run("document.querySelector('.chart').textContent")
    assert "--model_max_length 150" in chart and "Dialogues" in chart and "Tokens per dialogue" in chart
    verdict = browser.run("document.querySelector('header').innerText")
    assert data["verdict"] in verdict
    assert re.search(r"\d % of the tokens are learned; 1 dialogue lost .* keeps all", verdict)


def test_every_token_is_shown_as_the_data_has_it(browser: Chromium, plain: Path) -> None:
    data = data_of(plain)
    looks = {"answer": "learned", "answer begins": "first", "stop": "stop", "excluded": "unlearned", "cut": "cut"}
    for record in (data["records"][0], data["records"][2]):
        show(browser, plain, f"record={record['i']}")
        shown = browser.run(f"{TOKENS}.map(t => [t.textContent, t.className])")
        told = zip(texts_of(record, data), runs_of(record), shown, strict=True)
        for text, (_, _, why), (seen, look) in told:
            assert seen.replace("↵", "") == text
            assert ("learned" in look.split()) == (why in ("answer", "answer begins", "stop"))
            assert why not in looks or looks[why] in look.split()
    who = browser.run("[...document.querySelectorAll('.who')].map(w => w.innerText.replace(/\\s+/g, ' '))")
    assert [said.split(" turn")[0] for said in who] == ["template"] + ["user", "assistant"] * 2
    assert "excluded" in who[2] and "learned cut" in who[4]


def test_a_token_tells_all_about_itself(browser: Chromium, plain: Path) -> None:
    data = data_of(plain)
    record = data["records"][2]
    entries = [data["tokens"][place] for place in record["t"]]
    told_of = runs_of(record)
    reasons = {why: next(i for i, run in enumerate(told_of) if run[2] == why) for _, _, why in told_of}
    assert set(reasons) == {"sequence start", "template", "user", "excluded", "answer begins", "answer", "cut"}
    for why, token in reasons.items():
        show(browser, plain, f"record=2&token={token}")
        told, (turn, role, _), entry = " ".join(browser.run(DETAILS).split()), told_of[token], entries[token]
        learned = f"{entry[0]}, its own id" if why in LEARNED else "−100, not learned"
        assert told.startswith(f"token {token} text") and f"id {entry[0]} in the vocabulary" in told
        assert f"role {role}{'' if turn < 0 else f', turn {turn + 1}'} label" in told
        assert f"label {'none, training does not see it' if why == 'cut' else learned} {why}" in told
        assert ("control token" in told) == (entry[3] == 1)


def test_records_without_tokens_say_why(browser: Chromium, plain: Path) -> None:
    show(browser, plain, "record=3")
    assert "dropped: without an answer" in browser.run("document.getElementById('record').innerText")
    assert browser.run(f"{TOKENS}.length") == 0


# --- what it must not do


def test_what_is_in_the_data_stays_text(browser: Chromium, hostile: Path) -> None:
    assert hostile.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0].isascii()
    for i, text in enumerate(ATTACKS):
        show(browser, hostile, f"record={i}&search={i}")
        browser.wait("document.querySelectorAll('#tokens .turn').length > 0")
        assert browser.run("typeof window.pwned") == "undefined"
        assert browser.run("document.querySelectorAll('script').length") == 2
        assert browser.run("document.querySelectorAll('main img, main iframe, main script, svg[onload]').length") == 0
        assert browser.run("document.title") == "Preview of learned tokens"
        shown = browser.run(
            "document.getElementById('tokens').innerText + document.querySelector('#record h2').innerText"
        )
        assert not set(shown) & set("\u202e\u2066\u2028\x07\x1b\x7f\u200b\ufeff")
        if text.isascii() and text.isprintable():
            assert f"a {text} b" in shown and f"Row {i}: {text}" in shown
    show(browser, hostile, "record=7")
    assert "\\u{202e}desrever" in browser.run("document.getElementById('tokens').innerText")


def test_the_policy_blocks_a_script_that_is_not_its_own(browser: Chromium, plain: Path) -> None:
    show(browser, plain)
    put = "const s = document.createElement('script'); s.textContent = 'window.pwned = 9'; document.body.append(s);"
    browser.run(put + "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i); 0")

    def said(*words: str) -> bool:
        return any(word in str(entry) for kind, entry in browser.log if kind == "log" for word in words)

    def refused() -> bool:  # what the browser logs comes with the answer to a later question
        assert browser.run("typeof window.pwned") == "undefined"
        return said("script-src") and said("img-src", "default-src")

    wait_for(refused, 60)


def test_a_turn_of_a_megabyte_is_shown_in_parts(browser: Chromium, huge: Path) -> None:
    data = data_of(huge)
    for i in (0, 1):
        size = len(data["records"][i]["t"])
        show(browser, huge, f"record={i}")
        assert size > 200_000 and browser.run(f"{TOKENS}.length") == 2000
        assert browser.run("document.getElementById('later').innerText") == f"Show more: {size - 2000:,} tokens after"
        browser.click("#later")
        assert browser.run(f"{TOKENS}.length") == 4000
        show(browser, huge, f"record={i}&token={size - 1}")
        assert browser.run(f"{TOKENS}.length") == 501 and browser.run("document.getElementById('later').hidden")
        assert browser.run("document.querySelector('.at').dataset.token") == str(size - 1)
        browser.click("#earlier")
        assert browser.run(f"{TOKENS}.length") == 2501
    show(browser, huge, "record=0&search=word")
    assert "1 of 20,000 or more hits" in browser.run("document.getElementById('hits').innerText")


# --- finding


def test_searching_as_a_person_does(browser: Chromium, plain: Path) -> None:
    show(browser, plain)
    assert browser.run("document.getElementById('found').innerText") == "250 rows"
    browser.press("/", *"NEEDLE", "Enter")
    browser.wait("document.getElementById('found').innerText === '1 of 250 rows'")
    assert "record=2" in browser.run("location.hash") and "search=NEEDLE" in browser.run("location.hash")
    assert "1 of 80 hits" in browser.run("document.getElementById('hits').innerText")
    hit = browser.run(f"{TOKENS}.filter(t => t.classList.contains('hit')).map(t => t.textContent).join('')")
    assert hit.strip() == ("needle " * 80).strip()
    browser.run("document.activeElement.blur()")
    browser.press("n", "n", "p")
    assert "2 of 80 hits" in browser.run("document.getElementById('hits').innerText")
    browser.press("/", "Escape")
    assert browser.run("document.getElementById('found').innerText") == "250 rows"
    for query, number in (("sum-17", 11), ("id:1", 249), ("id:999999", 0), ("a.*b(", 0), ("without an answer", 1)):
        show(browser, plain, f"search={query}")
        found = browser.run("document.getElementById('found').innerText")
        assert found == f"{number} of 250 rows", query


def test_filters_by_fate_and_by_reason(browser: Chromium, plain: Path) -> None:
    for fragment, found in (
        ("records=dropped", "1 of 250"), ("records=cut", "1 of 250"), ("records=complete", "248 of 250"),
        ("records=trained", "249 of 250"),
        ("records=untrained", "1 of 250"), ("tokens=excluded", "1 of 250"), ("tokens=cut&records=cut", "1 of 250"),
        ("tokens=nonsense&records=toString", "250"),
    ):  # fmt: skip
        show(browser, plain, fragment)
        assert browser.run("document.getElementById('found').innerText") == f"{found} rows"
    show(browser, plain)
    browser.click("#reasons .unlearned")
    assert browser.run("document.querySelector('#record h2').innerText") == "Row 2: mixed"
    show(browser, plain, "record=2")
    browser.click(".legend .unlearned")
    assert browser.run("document.getElementById('reason').value") == "excluded"
    assert "1 of 1 hit" in browser.run("document.getElementById('hits').innerText")
    assert "Secret" in browser.run(
        f"{TOKENS}.filter(t => t.classList.contains('hit')).map(t => t.textContent).join('')"
    )


def test_the_list_grows_on_demand(browser: Chromium, plain: Path) -> None:
    show(browser, plain)
    rows = "document.querySelectorAll('#list li').length"
    seen = [browser.run(rows)]
    for _ in range(2):
        browser.click("#more-records")
        seen.append(browser.run(rows))
    assert seen == [100, 200, 250] and browser.run("document.getElementById('more-records').hidden")
    browser.click("#list li:nth-child(230) button")
    assert browser.run("document.querySelector('#record h2').innerText") == "Row 229: sum-229"


# --- for everybody


def test_keys_move_through_records_turns_and_tokens(browser: Chromium, plain: Path) -> None:
    show(browser, plain, "record=1")
    browser.press("j")
    assert "record=2" in browser.run("location.hash")
    browser.run("document.getElementById('tokens').focus()")
    at = "Number(document.querySelector('.at').dataset.token)"
    browser.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")
    assert browser.run(at) == 1 and browser.run("document.activeElement.id") == "tokens"
    assert browser.run("document.getElementById('tokens').getAttribute('aria-activedescendant')") == "token-at"
    turns = [turn for turn, _, _ in runs_of(data_of(plain)["records"][2])]
    for turn in (0, 1, 2):
        browser.press("ArrowDown")
        assert browser.run(at) == turns.index(turn)
    browser.press("ArrowRight", "ArrowUp")
    assert browser.run(at) == turns.index(2)
    browser.press("ArrowUp")
    assert browser.run(at) == turns.index(1)
    browser.press("End")
    assert browser.run(at) == len(turns) - 1
    browser.press("ArrowRight", "Home", "ArrowLeft")
    assert browser.run(at) == 0 and browser.run(DETAILS).split()[:2] == ["token", "0"]
    browser.run("document.getElementById('next').focus()")
    browser.press("Enter")
    assert "record=3" in browser.run("location.hash") and browser.run("document.activeElement.id") == "next"
    browser.press("k", "o")
    assert browser.run("location.hash") in ("", "#") and not browser.run("document.getElementById('overview').hidden")


def test_everything_can_be_reached_and_has_a_name(browser: Chromium, plain: Path) -> None:
    show(browser, plain, "record=2&search=needle")
    seen = []
    for _ in range(24):
        browser.press("Tab")
        seen.append(browser.run("document.activeElement.id || document.activeElement.tagName"))
    assert {"query", "state", "reason", "sort", "row", "to-overview", "open-help"} <= set(seen)
    nameless = browser.run(
        "[...document.querySelectorAll('button, input, select')].filter(e => !e.hidden && !(e.innerText.trim()"
        " || e.getAttribute('aria-label') || (e.labels && e.labels.length))).map(e => e.outerHTML)"
    )
    assert nameless == [] and browser.run("document.documentElement.lang") == "en"


CONTRAST = """
(() => {
  const rgb = (c) => { const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number); return { c: [r, g, b], a }; };
  const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => { const { c, a } = rgb(getComputedStyle(e).backgroundColor);
    return a ? c : behind(e.parentElement); };
  return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && e.closest('svg') === null
      && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
    const [a, b] = [light(rgb(getComputedStyle(e).color).c), light(behind(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.className + ' ' + e.tagName + ' ' + e.textContent.slice(0, 20)]; });
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_can_be_read(browser: Chromium, plain: Path, hostile: Path, dark: bool) -> None:
    browser.look(dark=dark)
    for page, fragment in (
        (plain, ""),
        (plain, "record=2&token=40&search=needle"),
        (plain, "record=3"),
        (hostile, "record=10"),
    ):
        browser.open(page, fragment)
        found = browser.run(CONTRAST)
        assert len(found) > 40 and [entry for entry in found if entry[0] < 4.5 and "OPTION" not in entry[1]] == []
    red, green, blue = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue < 200) == dark


@pytest.mark.parametrize("width", [360, 400, 700, 1000, 1600])
def test_it_fits_the_window(browser: Chromium, plain: Path, hostile: Path, width: int) -> None:
    for page, fragment in ((plain, ""), (plain, "record=2&token=40"), (hostile, "record=3"), (hostile, "record=13")):
        browser.look(width=width)
        browser.open(page, fragment)
        assert browser.run("document.documentElement.scrollWidth") <= width
