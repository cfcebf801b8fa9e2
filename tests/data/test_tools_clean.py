"""clean_sharegpt: pages become Markdown, everything else stays, and every conversation left out is counted."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat.data import clean_sharegpt
from fastchat.data.clean_sharegpt import Cleaner, clean_text
from fastchat.data.tools.html_markdown import html_to_markdown
from fastchat.data.tools.row_tool import Dropped, Tally
from tests.data.test_tools import chat, run, write

CODE = (
    '<pre><div class="bg-black mb-4"><div class="flex"><span>python</span><button class="ml-auto"><svg><path d="M1"/>'
    '</svg>Copy code</button></div><div class="p-4"><code class="!whitespace-pre hljs language-python">'
    '<span class="hljs-k">def</span> f(a_b):\n    <span>return</span> a_b &lt; 3  # *ok*\n\n\n\nf(2)\n'
    "</code></div></div></pre>"
)
MATH = (
    '<span class="katex"><span class="katex-mathml"><math><mrow><mi>e</mi></mrow>'
    '<annotation encoding="application/x-tex">e^{i\\pi}</annotation></math></span>'
    '<span class="katex-html">eiπ</span></span>'
)


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("", ""),
        ("plain &amp; simple", "plain & simple"),
        ("<p>one\n   two</p>\n<p>three<br>four<br/>five</p>", "one two\n\nthree\nfour\nfive"),
        ("<div><div>a</div>b<span>c</span></div>", "a\n\nbc"),
        ("<p>a <strong> b </strong>c <em>d</em><b></b> <i> </i>e <del>f</del></p>", "a **b** c *d* e ~~f~~"),
        ("<p>snake_case 2*3*4 [x] #1</p>", "snake_case 2*3*4 [x] #1"),
        ("<h1>A</h1><h3>B <code>c</code></h3><h7>D</h7>", "# A\n\n### B `c`\n\nD"),
        ("<p><code>a_b</code> <code>`</code> <code>a``b</code><code></code></p>", "`a_b` `` ` `` ```a``b```"),
        (CODE, "```python\ndef f(a_b):\n    return a_b < 3  # *ok*\n\n\n\nf(2)\n```"),
        ("<pre><code>a\n```\nb</code></pre>", "````\na\n```\nb\n````"),
        ("<pre>bashCopy code\nls -l</pre>", "```bash\nls -l\n```"),
        ("<ul><li>a<li>b<ul><li>c</ul></ul>d", "- a\n- b\n  - c\n\nd"),
        ("<ol><li><p>a</p></li><li>b</li></ol><p>x</p><ol start=3><li>c</li></ol>", "1. a\n2. b\n\nx\n\n3. c"),
        ("<ol><li value='7'>a</li><li>b<ol><li>c</li></ol></li></ol>", "7. a\n8. b\n   1. c"),
        ("<ol><li><p>a</p><pre><code>x\ny</code></pre></li></ol>", "1. a\n\n   ```\n   x\n   y\n   ```"),
        ("<ul>stray<li></li></ul>", "stray\n-"),
        ("<blockquote><p>a</p><p>b</p></blockquote><hr>", "> a\n>\n> b\n\n---"),
        (
            "<table><thead><tr><th>A</th><th>B|C</th></tr></thead><tbody><tr><td>1<td><b>2</b><tr><td>3</tbody></table>",
            "| A | B\\|C |\n| --- | --- |\n| 1 | **2** |\n| 3 |  |",
        ),
        ("<a href='https://x/?a=1&amp;b'>l</a> <a href='javascript:a(1)'>m</a><a>n</a>", "[l](https://x/?a=1&b) mn"),
        ("<b>x<p>one</p><p>two</p></b><span><pre>a\n b</pre></span>", "x\n\none\n\ntwo\n\n```\na\n b\n```"),
        ("<table>a<caption>b</caption><tr><td>c<td>d</table>", "ab\n\n| c | d |\n| --- | --- |"),
        ("<table><tr><td>a<table><tr><td>b</table>", "| a \\| b \\| \\| --- \\| |\n| --- |"),
        ("<p>x<img alt='A' src='https://i/j.png'><img src='data:x'></p>", "x![A](https://i/j.png)"),
        (f"<p>Euler: {MATH}.</p>", "Euler: $e^{i\\pi}$."),
        (f"<span class='katex-display'>{MATH}</span>", "$$e^{i\\pi}$$"),
        ("<div class='x whitespace-pre-wrap'>a\n  b &lt;c&gt;\n</div>", "a\n  b <c>"),
        ("<p>a<script>alert('</p>')</script><style>p{}</style>b<!-- c --></p>", "ab"),
        ("</div>a</p><b>b</li></b>", "a**b**"),
        ("<p>open <b>bold", "open **bold**"),
        ("a < b and b > c & d", "a < b and b > c & d"),
    ],
)  # fmt: skip
def test_html_to_markdown(html: str, markdown: str) -> None:
    assert html_to_markdown(html) == markdown


WORDS = st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=8)


@given(st.recursive(
    WORDS.map(" ".join),
    lambda inner: st.builds(
        lambda tag, parts: f"<{tag}>{''.join(parts)}</{tag}>",
        st.sampled_from(["p", "div", "ul", "ol", "li", "blockquote", "span", "b", "table", "tr", "td", "h2", "a", "i"]),
        st.lists(inner, max_size=4),
    ),
    max_leaves=12,
))  # fmt: skip
def test_no_word_is_lost(html: str) -> None:
    """Nor moved, but that a page shows what stands in a table and in no cell above the table."""
    words = "".join(re.findall("[a-z]+", re.sub("<[^>]*>", " ", html)))
    made = "".join(re.findall("[a-z]+", html_to_markdown(html)))
    assert sorted(words) == sorted(made) if "<table>" in html else words == made


TAGS = ["div", "li", "ol", "pre", "code", "td", "svg", "br", "<p>", "</p>", "<li>", "<pre>", "</pre>", "<!--", "-->"]
PIECES = [*TAGS, *"<>/=\"' \n&;#!-`|*_1.é"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_text_is_survived(html: str) -> None:
    assert html_to_markdown(html).count("\0") == 0
    clean_text("assistant", html)


def test_pages_that_are_made_to_hurt() -> None:
    begin = time.monotonic()
    for html in (
        "<div>" * 50_000 + "x",
        "<p>" * 20_000,
        "<li>" * 20_000,
        "<b>" * 20_000 + "x",
        "<!--" * 50_000,
        "&" * 200_000,
    ):
        html_to_markdown(html)
    for text in ("```" + "x" * 300_000, "```" * 50_000, "1 / " * 50_000, "<div>" * 20_000, "Copy" + "1" * 300_000):
        clean_text("assistant", text)
        clean_text("user", text)
    assert time.monotonic() - begin < 30


PAGE = '<div class="markdown prose w-full"><p>Use <code>a_b</code>:</p>' + CODE + "</div>"


@pytest.mark.parametrize(
    ("role", "text", "clean"),
    [
        ("assistant", "1 / 2" + PAGE, "Use `a_b`:\n\n" + html_to_markdown(CODE)),
        ("assistant", PAGE + "\n", "Use `a_b`:\n\n" + html_to_markdown(CODE)),
        ("user", "Why is <div> here, and <b>this</b> *there*?", "Why is <div> here, and <b>this</b> *there*?"),
        ("user", "<p>Explain this page</p>", "<p>Explain this page</p>"),
        ("user", '<div class="whitespace-pre-wrap">Hi\nyou &amp; me</div>', "Hi\nyou & me"),
        ("assistant", "It is 1 / 2 of it", "It is 1 / 2 of it"),
        ("assistant", "1 / 2 of it", "1 / 2 of it"),
        ("assistant", "2 / 3\n\nHello", "Hello"),
        ("user", "2 / 3\nis what?", "2 / 3\nis what?"),
        ("assistant", "text Copy12 chars / 3 words", "text"),
        ("assistant", "```pythonCopy codeprint(1)\n```", "```python\nprint(1)\n```"),
        ("assistant", "a\n```\nCopy code\n```\nb", "a\n\nb"),
        ("assistant", "Already\n\n\n\n*marked* with <p>tags</p> in.", "Already\n\n\n\n*marked* with <p>tags</p> in."),
        ("assistant", "<div></div>", ""),
    ],
)  # fmt: skip
def test_clean_text(role: str, text: str, clean: str) -> None:
    assert clean_text(role, text) == clean


LONG = "an answer that is long enough"


def said(*roles: str) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": LONG} for role in roles]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat(), "too short"),
        (chat("only a question that is long enough"), "too short"),
        (chat("hi", "yo"), "too short"),
        (chat("hi", "<div></div>"), "too short"),
        (said("human", "gpt", "gpt", "human", "gpt"), "with turns in a wrong order"),
        (said("human", "human", "gpt"), "with turns in a wrong order"),
        (said("human", "observation", "gpt"), "with turns in a wrong order"),
        (said("human", "function_call", "gpt"), "with turns in a wrong order"),
        (said("human", "function_call", "observation", "human", "gpt"), "with turns in a wrong order"),
        (said("human", "function_call", "observation", "gpt", "gpt"), "with turns in a wrong order"),
        (chat("who?", "I am ChatGPT, by nobody."), "with blocked words"),
        (chat("what of <b>OpenAI</b>?", LONG), "with blocked words"),
        (chat("q", LONG, plugins=["x"]), "with plugins"),
    ],
)  # fmt: skip
def test_what_is_left_out(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Dropped) as caught:
        Cleaner().clean(row, Tally())
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "roles",
    [
        ("human", "function_call", "observation", "gpt", "human", "gpt"),
        ("system", "human", "gpt", "human", "function_call", "observation", "function_call", "observation", "gpt"),
        ("human", "function_call", "function_call", "observation", "tool", "gpt"),  # two calls at once
        ("human", "gpt", "function_call", "observation", "gpt"),  # words before the call
        ("human", "gpt", "observation", "gpt"),  # the call as the text of an answer
        ("human", "function_call", "human", "function_call"),  # calls that nobody runs
    ],
)
def test_calls_and_their_outputs_stay(roles: tuple[str, ...]) -> None:
    row = {**said(*roles), "tools": "[{}]"}
    assert Cleaner().clean(row, Tally()) == row


def test_what_a_tool_says_is_no_page() -> None:
    html = '  <div class="x"><p>Copy12 chars / 3 words</p></div>\n'
    row = chat("q", LONG)
    row["conversations"][1:1] = [{"from": "function_call", "value": html}, {"from": "observation", "value": html}]
    assert Cleaner().clean(row, Tally())["conversations"][1:3] == row["conversations"][1:3]


def test_an_empty_message_ends_a_conversation_before_its_round_of_calls() -> None:
    cleaner, tally = Cleaner(), Tally()
    names = ("human", "gpt", "human", "function_call", "observation", "gpt")
    for empty, num_kept in ((4, 6), (5, 2), (3, 2), (2, 2)):
        row = {"conversations": [{"from": n, "value": f"{LONG} {empty}" * (i != empty)} for i, n in enumerate(names)]}
        assert cleaner.clean(row, tally)["conversations"] == row["conversations"][:num_kept]
    assert tally.notes["turns from the first empty message onward, removed"] == 12


def test_a_first_round_of_calls_is_the_same_only_with_its_output_and_answer() -> None:
    cleaner = Cleaner()
    names = ("human", "function_call", "observation", "gpt", "human", "gpt")
    for changed in range(4):
        row = {"conversations": [{"from": n, "value": LONG + "!" * (i == changed)} for i, n in enumerate(names)]}
        cleaner.clean(row, Tally())
    row["conversations"][4]["value"] = "another question"
    with pytest.raises(Dropped, match="with the first round of another"):
        cleaner.clean(row, Tally())


def test_shared_dialogues_with_tools_are_kept(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(shared / "data" / "glaive_toolcall_en_demo.json")
    assert run(clean_sharegpt, "--in", data, "--out", str(tmp_path / "o.jsonl")) == 0
    said = capsys.readouterr().out
    assert said == "#in: 300, #out: 253\ndropped: 47 (47 with the first round of another)\n"


def test_what_is_removed_from_a_conversation() -> None:
    tally, cleaner = Tally(), Cleaner()
    entries = [
        {"from": "system", "value": "S"}, {"from": "gpt", "value": "before"}, {"from": "human", "value": "<q>"},
        {"from": "chatgpt", "value": "<p>A</p>" * 12, "x": 1}, {"from": "human", "value": "more"},
        {"from": "gpt", "value": "<div></div>"}, {"from": "human", "value": "r"}, {"from": "gpt", "value": "s"},
        {"from": "human", "value": "behind"},
    ]  # fmt: skip
    made = cleaner.clean({"id": "a", "items": entries, "model": "m", "plugins": None}, tally)
    expected = [entries[0], entries[2], {**entries[3], "value": "\n\n".join("A" * 12)}]
    assert made == {"id": "a", "items": expected, "model": "m", "plugins": None}
    assert [n for n in tally.notes.values() if n] == [2, 4]
    kept = [cleaner.clean(chat("q", LONG, "q2", str(i), id=name), tally) for i, name in ((0, "b"),)]
    assert len(kept) == 1 and entries[3]["value"] == "<p>A</p>" * 12
    for row, reason in (
        (chat("other", LONG, id="b"), "with the id of another"),
        (chat("q", LONG, "else", "x"), "with the first round of another"),
    ):
        with pytest.raises(Dropped, match=reason):
            cleaner.clean(row, tally)
    assert cleaner.clean(chat("b", LONG), tally) and cleaner.clean(chat("c", LONG), tally)  # rows without an id


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        chat("q", PAGE, id="a\x1b[31m"),
        chat("q", "no", id="b"),
        chat("q2", PAGE, id="a\x1b[31m"),
        chat("x", LONG, id="c"),
    ]
    data, out = write(tmp_path / "a.jsonl", rows), tmp_path / "o.jsonl"
    assert run(clean_sharegpt, "--in", data, "--out", str(out), "--debug") == 0
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in made] == ["a\x1b[31m", "c"] and "Copy code" not in out.read_text()
    said = capsys.readouterr()
    assert "#in: 4, #out: 2\ndropped: 2 (1 too short, 1 with the id of another)" in said.out
    assert "row 1 (id 'b'): too short" in said.err and "row 2 (id 'a\\x1b[31m'): with the id of another" in said.err
    assert run(clean_sharegpt, "--in", data, "--out", str(out), "--begin", "3") == 0
    assert len(out.read_text().splitlines()) == 1 and "row" not in capsys.readouterr().err
    assert run(clean_sharegpt, "--in", write(tmp_path / "b.jsonl", [{"messages": 1}]), "--out", str(out)) == 3
