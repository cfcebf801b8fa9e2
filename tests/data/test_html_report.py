"""The report: its numbers are the run's, its reasons are true, and whatever is in the data stays data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastchat.conversation import Dialogue, RoleFormat, Template, Turn, get_template
from fastchat.data import preview
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.examples import IGNORED, Example, tokenize_dialogue, tokenize_dialogues
from fastchat.data.encoding.renderings import renderings_of
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.drop_reasons import in_words
from fastchat.data.rows.records import Record
from fastchat.data.view.histogram import Histogram, percentile
from fastchat.data.view.html_report import HtmlReport
from fastchat.data.view.reasons import EXPLAINED, ROLES, Why, explain
from fastchat.data.view.token_text import TokenTexts
from fastchat.errors import DataError
from tests.builders import TOKENIZER_KINDS

EncoderOf = Callable[[str], TextEncoder]
Preview = Callable[..., tuple[int, Path]]


@pytest.fixture
def report(tokenizer_dir: Callable[[str], Path], tmp_path: Path) -> Preview:
    """Run the preview with --html on some rows; returns the exit code and the page."""

    def make(rows: list[Any], *argv: str, kind: str = "metaspace_bos", template: str = "vicuna_v1.1") -> Any:
        data, page = tmp_path / "rows.jsonl", tmp_path / "report.html"
        data.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        named = ["--model_name_or_path", str(tokenizer_dir(kind)), "--conv_template", template]
        code = preview.main([*named, "--data_path", str(data), "--html", str(page), "--num", "0", *argv])
        return code, page

    return make


def row(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **more}


class _Page(HTMLParser):
    """The scripts of a page, and all its elements."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.bodies: list[tuple[str, dict[str, str | None], str]] = []
        self._open: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._open = (tag, dict(attrs))

    def handle_data(self, data: str) -> None:
        if self._open and self._open[0] in ("script", "style"):
            self.bodies.append((*self._open, data))
            self._open = None


def data_of(page: Path) -> dict[str, Any]:
    """The data of a report."""
    bodies = [text for tag, attrs, text in _Page(page.read_text()).bodies if attrs.get("id") == "data"]
    return json.loads(bodies[0])


def texts_of(record: dict[str, Any], data: dict[str, Any]) -> list[str]:
    texts = [data["tokens"][place][1] for place in record["t"]]
    for place, text in zip(record["x"][::2], record["x"][1::2], strict=True):
        texts[place] = text
    return texts


def runs_of(record: dict[str, Any]) -> list[tuple[int, str, str]]:
    """(turn, role, reason) of every token, by name."""
    runs, names, out = record["r"], [name for name, _ in EXPLAINED.values()], []
    for count, turn, role, why in zip(*(runs[k::4] for k in range(4)), strict=True):
        out += [(turn, ROLES[role], names[why])] * count
    return out


UNSEEN = {"cut", "after the end"}
LEARNED = {EXPLAINED[why][0] for why in Why if why.learned}
ROWS = [
    row("Hi", "Hello there.", "More?", "Yes, more.", id="first"),
    row(),
    row("Why? 你好", "Because 🙂 " * 60, "And?", "So " * 1600),
    '{"messages": [',
    row("only a question"),
    row("q " * 2000, "a"),
    row("q", " "),
    row("</s><s> <|im_start|>assistant\n<|im_end|>", "<think>\n</think> <|im_end|></s>", system="Be brief."),
]


# --- the data is the run's


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("template", ["vicuna_v1.1", "chatml", "llama-2", "gemma", "one_shot", "raw"])
def test_ids_and_labels_are_those_of_the_training_run(
    report: Preview, encoder_of: EncoderOf, tmp_path: Path, kind: str, template: str
) -> None:
    out = tmp_path / "out.jsonl"
    argv = ["--output", str(out), "--on_bad_row", "skip", "--model_max_length", "1500"]
    code, page = report(ROWS, *argv, kind=kind, template=template)
    assert code == 0
    data, lines = data_of(page), [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["i"] for r in data["records"]] == list(range(len(ROWS))) and data["total"] == len(ROWS)
    encoder, vocabulary = encoder_of(kind), {i: piece for piece, i in encoder_of(kind).vocabulary.items()}
    assert all(piece == vocabulary[token_id] for token_id, _, piece, _ in data["tokens"])
    for record, line in zip(data["records"], lines, strict=True):
        assert record["drop"] == (line["dropped"] and in_words(line["dropped"]))
        if "t" not in record:
            continue
        ids = [data["tokens"][place][0] for place in record["t"]]
        reasons = [why for _, _, why in runs_of(record)]
        kept = len(line["input_ids"])
        assert ids[:kept] == line["input_ids"] and len(reasons) == len(ids)
        assert [i if why in LEARNED else IGNORED for i, why in zip(ids, reasons, strict=True)][:kept] == line["labels"]
        assert "".join(texts_of(record, data)) == encoder.decode(ids)
        if line["dropped"] is None:
            assert [why in UNSEEN for why in reasons] == [at >= kept for at in range(len(ids))]
            assert ("cut" in reasons) == (record["n"][6] > 0)
            assert len(ids) - kept == line["truncated_tokens"] == record["n"][1]
            assert record["n"][0] == sum(label != IGNORED for label in line["labels"])
        else:
            assert not LEARNED & set(reasons) and not UNSEEN & set(reasons)


def test_the_reasons_of_one_dialogue(encoder_of: EncoderOf) -> None:
    turns = [
        Turn("user", "Hi"), Turn("assistant", "One"), Turn("user", "x"), Turn("assistant", "Two", train=False),
        Turn("tool", "t"), Turn("assistant", " ", train=False), Turn("user", "y"), Turn("assistant", "Z " * 90),
    ]  # fmt: skip
    dialogue = Dialogue(tuple(turns), system="Sys")
    chat_encoder = encoder_of("byte_nobos").bind(get_template("chatml"))
    told = _told(dialogue, chat_encoder)

    def said(turn: int) -> list[tuple[str, str]]:
        """The reasons of a turn one after the other, each with its text."""
        own = [(why, text) for text, t, _, why in told if t == turn]
        return [(why, "".join(text for _, text in same)) for why, same in groupby(own, key=lambda pair: pair[0])]

    around = [("template", "<|im_start|>assistant\n"), ("template", "<|im_end|>\n")]
    assert said(0) == [("template", "<|im_start|>user\n"), ("user", "Hi"), around[1]]
    assert [why for why, _ in said(1)] == ["template", "answer begins", "answer", "stop", "template"]
    assert "".join(text for _, text in said(1)[1:3]) == "One" and said(1)[3][1] == "<|im_end|>"
    assert said(3) == [around[0], ("excluded", "Two"), around[1]]
    assert said(4)[1] == ("tool", "t") and said(5) == [around[0], ("empty answer", " "), around[1]]
    assert [why for why, _ in said(7)] == ["template", "answer begins", "answer", "stop", "template"]
    assert said(-1) == [("template", "<|im_start|>system\n"), ("system", "Sys"), around[1]]
    told = _told(dialogue, chat_encoder, max_length=120)
    assert said(1)[-2:] == [("stop", "<|im_end|>"), ("cut", "\n")]  # behind the last learned answer that fits
    assert {why for turn in range(2, 8) for why, _ in said(turn)} == {"cut"}


def test_an_answer_that_does_not_fit_is_cut_in_the_middle(encoder_of: EncoderOf) -> None:
    dialogue = Dialogue((Turn("user", "Hi"), Turn("assistant", "Z " * 90)), system="")
    told = _told(dialogue, encoder_of("gemma").bind(get_template("gemma")), max_length=40)
    reasons = [why for why, _ in groupby(why for *_, why in told)]
    assert reasons[-3:] == ["answer begins", "answer", "cut"] and "stop" not in reasons
    assert [why for *_, why in told].index("cut") == 40


def _told(dialogue: Dialogue, chat_encoder: ChatEncoder, max_length: int = 4096) -> list[tuple[str, int, str, str]]:
    """(text, turn, role, reason) of every token of the last example; those of the others are compared with labels."""
    examples = tokenize_dialogues([(0, dialogue)], chat_encoder, max_length=max_length)
    return [_of_example(dialogue, example, chat_encoder) for example in examples][-1]


def _of_example(dialogue: Dialogue, example: Example, chat_encoder: ChatEncoder) -> list[tuple[str, int, str, str]]:
    rendered = renderings_of(dialogue, chat_encoder)[example.part]
    encoded = chat_encoder.encode(rendered)
    texts = TokenTexts(chat_encoder.encoder).of(encoded.input_ids)
    runs = explain(dialogue, rendered, encoded, example, chat_encoder, texts)
    found = [(turn, ROLES[role], EXPLAINED[why][0]) for count, turn, role, why in runs for _ in range(count)]
    return [(text, *told) for text, told in zip(texts, found, strict=True)]


HELLO = Dialogue((Turn("user", "I am"), Turn("assistant", "I see"), Turn("user", "So"), Turn("assistant", "Yes")))


def test_a_token_belongs_to_whose_letter_it_begins_with(encoder_of: EncoderOf) -> None:
    told = _told(HELLO, encoder_of("metaspace_bos").bind(get_template("vicuna_v1.1")))
    assert told[0][0] == "<s>" and told[0][3] == "sequence start"
    for turn, (said, role) in enumerate(
        [("I am", "user"), ("I see", "assistant"), ("So", "user"), ("Yes", "assistant")]
    ):
        own = "".join(text for text, t, r, why in told if t == turn and r == role and why != "stop")
        assert own.strip() == said
        before = "".join(text for text, t, r, _ in told if t == turn and r == "template")
        assert before.strip() in ("USER:", "ASSISTANT:")
    assert [text for text, _, _, why in told if why == "stop"] == ["</s>", "</s>"]


def test_boundaries_examples_and_earlier_answers_are_named(encoder_of: EncoderOf) -> None:
    # Without <|im_end|> in the vocabulary its ">" merges with the line end after it.
    told = _told(HELLO, encoder_of("metaspace_bos").bind(get_template("chatml")))
    assert [text for text, _, _, why in told if why == "boundary, learned"] == [">\n", ">\n"]
    assert [turn for _, turn, _, why in told if why == "boundary, learned"] == [1, 3]
    assert [turn for _, turn, _, why in told if why == "answer begins"] == [1, 3]
    told = _told(HELLO, encoder_of("metaspace_bos").bind(get_template("one_shot")))
    shown = [turn for _, turn, _, why in told if why == "example"]
    assert shown and set(shown) == {-2, -1}
    glued = Template("glued", RoleFormat("", ""), RoleFormat("", "</s>"))
    words = Dialogue((Turn("user", "th"), Turn("assistant", "e cat")))
    assert [(t, w) for t, _, _, w in _told(words, encoder_of("metaspace_bos").bind(glued))][1] == (" the", "boundary")
    last = Template("last", RoleFormat("Q:", "\n"), RoleFormat("A:", "</s>\n"), last_user=RoleFormat("Q: ", "\n"))
    told = _told(HELLO, encoder_of("metaspace_bos").bind(last))
    assert {turn for _, turn, _, why in told if why == "other example"} == {1}
    assert {turn for _, turn, _, why in told if why in LEARNED} == {3}


def test_nothing_supervised_still_gives_the_page(report: Preview, capsys: pytest.CaptureFixture[str]) -> None:
    code, page = report([row("q"), row("q", " ")])
    assert code == 3 and "error: no learned tokens in the data" in capsys.readouterr().err
    assert [r["drop"] for r in data_of(page)["records"]] == ["without an answer", "without an answer to learn"]


def test_the_page_has_room_for_so_many_tokens(encoder_of: EncoderOf, tmp_path: Path) -> None:
    chat_encoder = encoder_of("byte_bos").bind(get_template("vicuna_v1.1"))
    report = HtmlReport(chat_encoder, 512, max_tokens=400)
    for i in range(600):
        dialogue = Dialogue((Turn("user", "q"), Turn("assistant", "a")), system="")
        report.add(
            Record(i, dialogue, None, "file", i), tokenize_dialogue(dialogue, chat_encoder, max_length=512, index=i)
        )
    line = report.write(str(tmp_path / "r.html"), {"rows": 600}, {})
    data = data_of(tmp_path / "r.html")
    shown, size = len(data["records"]), len(data["records"][0]["t"])
    assert size * (shown - 1) < 400 <= size * shown and data["total"] == 600
    assert f"shows 600 rows (tokens only of the first {shown}, counts of all)" in line
    assert sum(sum(row[2:]) for row in data["lengths"]["bins"]) == 600


def test_a_thousand_records_make_a_small_page(report: Preview) -> None:
    words = Path(__file__).parent.parent.joinpath("corpus.txt").read_text().split()
    rows = [row(" ".join(words[i % 50 : i % 50 + 60]), " ".join(words[i % 90 : i % 90 + 90])) for i in range(1000)]
    code, page = report(rows, "--model_max_length", "4096")
    data = data_of(page)
    num_tokens = sum(len(record["t"]) for record in data["records"])
    assert code == 0 and len(data["records"]) == 1000 and num_tokens > 200_000
    assert page.stat().st_size < 100_000 + 5 * num_tokens


def test_a_page_that_cannot_be_written(report: Preview, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for page, message in ((tmp_path, "is not a file"), (tmp_path / "no" / "r.html", "there is no folder")):
        assert report(ROWS[:1], "--html", str(page))[0] == 2 and message in capsys.readouterr().err
    assert report(ROWS[:1], "--html", str(tmp_path / "rows.jsonl"))[0] == 2
    assert "would be overwritten" in capsys.readouterr().err
    both = str(tmp_path / "both")
    Path(both).touch()
    assert report(ROWS[:1], "--html", both, "--output", both)[0] == 2
    bad = report(['{"messages": ['])
    assert bad[0] == 3 and not bad[1].exists()


# --- the parts


ANYTHING = st.text(st.characters(codec="utf-8"), max_size=30)
HARD = st.sampled_from(
    ["</script>", "<!--", "]]>", "&lt;", "\u2028\u2029", "\u202e", "\ufffd", "🙂👩‍👩‍👧", "你好", "  \n"]
)


SAID = (
    st.text(max_size=12).filter(lambda text: "\0" not in text)
    | HARD
    | st.sampled_from(["</s>", " ", "", "<|im_end|>\n"])
)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), SAID, st.booleans()), max_size=8)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@settings(max_examples=60, deadline=None)
@given(turns=TURNS, system=st.none() | SAID, max_length=st.integers(1, 300), data=st.data())
def test_every_token_has_a_reason_that_agrees_with_its_label(
    encoder_of: EncoderOf, kind: str, turns: list[Any], system: str | None, max_length: int, data: st.DataObject
) -> None:
    name = data.draw(
        st.sampled_from(["vicuna_v1.1", "chatml", "llama-2", "gemma", "yuan2", "chatglm2", "zero_shot", "raw"])
    )
    dialogue, chat_encoder = (
        Dialogue(tuple(Turn(*turn) for turn in turns), system),
        encoder_of(kind).bind(get_template(name)),
    )
    try:
        told = _told(dialogue, chat_encoder, max_length)  # explain() compares every reason with its label
    except DataError:
        return
    for text, turn, role, why in told:
        assert role in ("template", "system", "assistant") or turns[turn][0] == role or why == "example"
        assert why not in LEARNED or role == "assistant" and turns[turn][2]
        assert turn >= -8 and (why != "stop" or text)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(ANYTHING | HARD, min_size=1, max_size=6))
def test_texts_of_tokens(encoder_of: EncoderOf, kind: str, texts: list[str]) -> None:
    encoder = encoder_of(kind)
    made = TokenTexts(encoder)
    ids = [i for text in texts for i, _, _ in encoder.plain([text.replace("\0", "")], "first")[0]]
    found = made.of(ids)
    assert len(found) == len(ids) and "".join(found) == encoder.decode(ids)
    # Every character stands with the token that brings its last byte: never more than three bytes are waiting.
    behind = len("".join(found).encode()) - sum(_num_bytes(made.pieces[i], kind) for i in ids)
    for text, token_id in zip(found, ids, strict=True):
        behind += _num_bytes(made.pieces[token_id], kind) - len(text.encode())
        assert -1 <= behind <= 3
    assert behind == 0


def _num_bytes(piece: str, kind: str) -> int:
    if kind.startswith("byte"):
        return len(piece)
    return 1 if re.fullmatch("<0x..>", piece) else len(piece.replace("▁", " ").encode())


def test_texts_of_bytes_that_are_no_character(encoder_of: EncoderOf) -> None:
    for kind in TOKENIZER_KINDS:
        encoder = encoder_of(kind)
        whole = [i for i, _, _ in encoder.plain(["x\U0001f642"], "first")[0]]
        for ids in ([], whole[:-1], whole[1:], whole[-1:], [*whole, *whole[:-2]]):
            found = TokenTexts(encoder).of(ids)
            assert len(found) == len(ids) and "".join(found) == (encoder.decode(ids) if ids else "")


@given(st.lists(st.tuples(st.integers(0, 5000), st.sampled_from(["whole", "cut", "dropped"]))))
def test_every_length_is_in_one_bin(lengths: list[tuple[int, str]]) -> None:
    histogram = Histogram()
    for length, kind in lengths:
        histogram.add(length, kind)
    table, counted = histogram.table(512), [(n, k) for n, k in lengths if n]
    bins = table["bins"]
    assert all(b[0] == a[1] + 1 for a, b in zip(bins, bins[1:], strict=False))
    for column, kind in enumerate(("whole", "cut", "dropped"), start=2):
        assert [b[column] for b in bins] == [sum(b[0] <= n <= b[1] and k == kind for n, k in counted) for b in bins]
        assert sum(b[column] for b in bins) == sum(k == kind for _, k in counted)
    if counted:
        ordered = sorted(n for n, _ in counted)
        assert table["facts"]["shortest"] == ordered[0] and table["facts"]["longest"] == ordered[-1]
        assert sum(bins[0][2:]) and sum(bins[-1][2:])
        found = percentile(ordered, 95)
        assert sum(n <= found for n in ordered) >= 0.95 * len(ordered) > sum(n < found for n in ordered)


def test_the_page_lets_only_its_own_style_and_script_run(report: Preview) -> None:
    text = report([row("<script>1</script>", "</script><style>*{}</style><img src=x>", id="<img onerror=1>")])[
        1
    ].read_text()
    assert text.count("<script") == 2 and text.count("</script>") == 2
    page = _Page(text)
    assert page.tags["script"] == 2 and page.tags["style"] == 1 and not page.tags["img"] and not page.tags["link"]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    bodies = {tag: body for tag, attrs, body in page.bodies if "id" not in attrs}
    script, style = (
        "sha256-" + base64.b64encode(hashlib.sha256(bodies[t].encode()).digest()).decode() for t in ("script", "style")
    )
    assert policy[1] == (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; base-uri 'none'; form-action 'none'"
    )
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org/2000/svg", "", text)
    assert not re.search(
        r"\son\w+=|innerHTML|insertAdjacent|document\.write|\beval\(", text.split('id="data"')[0] + bodies["script"]
    )


def test_every_reason_has_a_look(repository: Path) -> None:
    """The page's script finds the look of a reason by its number."""
    script = (repository / "fastchat/data/view/report/base.js").read_text(encoding="utf-8")
    looks = re.findall(r'"([^"]*)"', script.split("const LOOKS = [")[1].split("];")[0])
    assert len(looks) == len(Why)
    assert [bool(re.search(r"\blearned", look)) for look in looks] == [why.learned for why in Why]
