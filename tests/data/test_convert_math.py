"""Question/answer rows become the multi-round form, checked by running the code."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from fastchat.data import convert_math
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.records import load_dialogues
from fastchat.data.tools.math_rows import agree, number, read_problem
from tests.builders import write_rows

CLIPS = {
    "question": "Natalia sold clips to 48 of her friends in April, and half as many in May. How many altogether?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
}
TICKETS = {
    "question": "How many dollars more did the adults' tickets cost?",
    "code": "adult = 11 * 9\nchild = 7 * 7\nadult - child",
    "output": "50",
    "answer": "Thus the adults' tickets cost \\boxed{50} dollars more.",
}


def convert(tmp_path, rows, *flags):
    source, target = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    status = convert_math.main(["--in", str(source), "--out", str(target), "--workers", "2", *flags])
    lines = target.read_text(encoding="utf-8").splitlines() if target.exists() else []
    return status, [json.loads(line) for line in lines]


def test_annotations_become_code_whose_output_is_checked(tmp_path):
    status, (made,) = convert(tmp_path, [CLIPS])
    assert status == 0
    assert made == {
        "idx": "rows-0",
        "messages": [
            {"role": "user", "content": CLIPS["question"]},
            {
                "role": "assistant",
                "content": "Let's solve this problem using Python code.\n"
                "```python\nstep_1 = 48/2\nstep_2 = 48+24\nprint(round(step_2, 4))\n```",
            },
            {"role": "user", "content": "```output\n72\n```"},
            {
                "role": "assistant",
                "content": "Natalia sold 48/2 = 24 clips in May.\n"
                "Natalia sold 48+24 = 72 clips altogether in April and May.\nThe answer is \\boxed{72}.",
            },
        ],
    }


def test_code_is_run_and_its_output_filled_in(tmp_path):
    without = {key: value for key, value in TICKETS.items() if key != "output"} | {"id": 7}
    bare = {"problem": "6 * 7?", "code": "```python\nprint('so:')\nprint(6 * 7)\n```"}
    status, made = convert(tmp_path, [TICKETS, without, bare])
    assert status == 0 and [row["idx"] for row in made] == ["rows-0", "7", "rows-2"]
    contents = [[message["content"] for message in row["messages"]] for row in made]
    assert contents[0] == contents[1]
    assert contents[0][1].endswith("```python\nadult = 11 * 9\nchild = 7 * 7\nadult - child\n```")
    assert contents[0][2:] == ["```output\n50\n```", TICKETS["answer"]]
    assert contents[2][2:] == ["```output\nso:\n42\n```", "The answer is \\boxed{42}."]


def test_the_result_loads_as_training_data(tmp_path):
    convert(tmp_path, [CLIPS, TICKETS])
    loaded = load_dialogues([str(tmp_path / "out.jsonl")])
    for record in loaded.records:
        assert [turn.role for turn in record.dialogue.turns] == ["user", "assistant"] * 2


def test_rows_that_fail_are_named_and_counted(tmp_path, capsys):
    rows = [
        CLIPS,
        {**CLIPS, "answer": CLIPS["answer"].replace("#### 72", "#### 73")},
        {**CLIPS, "answer": "No annotation.\n#### 72"},
        {**CLIPS, "answer": "It is <<48/2=24>>24 clips."},
        {**CLIPS, "answer": "<<x/2=24>>24\n#### 24"},
        {**CLIPS, "answer": "<<48/2=24>>24\n#### many"},
        {"answer": "#### 1"},
        {"question": 5, "answer": "#### 1"},
        {"question": "?"},
        {**TICKETS, "output": "51"},
        {**TICKETS, "answer": "\\boxed{51}"},
        {**TICKETS, "code": "1/0"},
        {**TICKETS, "code": "x = 1"},
        {**TICKETS, "code": "while True: pass"},
        {**TICKETS, "code": "print('x' * 100000)"},
        {**TICKETS, "code": "print(chr(96) * 3)"},
        {**TICKETS, "code": "open('/etc/passwd').read()"},
        TICKETS,
    ]
    status, made = convert(tmp_path, rows, "--timeout", "5")
    assert status == 0 and [row["idx"] for row in made] == ["rows-0", "rows-17"]
    said = capsys.readouterr().err
    assert "2 of 18 rows converted" in said
    for line, reason in {
        2: "the output differs from the final answer: '72' instead of '73'",
        3: "no calculator annotation",
        4: "no final answer",
        5: "an annotation is not arithmetic: 'x/2=24'",
        6: "the final answer is not a number: 'many'",
        7: "no question",
        8: 'wrong type: "question" is a JSON number',
        9: "no answer and no code",
        10: "the output differs from the row's: '50' instead of '51'",
        11: "the output differs from the final answer: '50' instead of '51'",
        12: "the code fails: ZeroDivisionError: division by zero",
        13: "the code prints nothing",
        14: "the code takes too long",
        15: "the code prints too much",
        16: "the output contains ```",
        17: "the code fails: PermissionError",
    }.items():
        assert f"rows.jsonl:{line}: {reason}" in said
    assert "the output differs from the final answer × 2" in said and "code runs" in said


def test_malformed_rows_are_counted_too(tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(CLIPS) + "\n{broken\n[1]\n" + json.dumps(CLIPS) + "\n", encoding="utf-8")
    assert convert_math.main(["--in", str(source), "--out", str(tmp_path / "out.jsonl")]) == 0
    said = capsys.readouterr().err
    assert "2 of 4 rows converted" in said and "rows.jsonl:2: broken JSON" in said
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_order_and_max_rows_and_gzip(tmp_path):
    rows = [{"id": i, "question": "?", "answer": f"<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(30)]
    status, made = convert(tmp_path, rows, "--max-rows", "25", "--workers", "3")
    assert status == 0 and [row["idx"] for row in made] == [str(i) for i in range(25)]
    with gzip.open(tmp_path / "rows.json.gz", "wt") as file:
        json.dump(rows[:2], file)
    words = ["--in", str(tmp_path / "rows.json.gz"), "--out", str(tmp_path / "b.jsonl")]
    assert convert_math.main(words) == 0
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--in", "{tmp}/no.jsonl", "--out", "{tmp}/out.jsonl"], 3, "no such file"),
        (["--in", "{tmp}/rows.jsonl", "--out", "{tmp}/rows.jsonl"], 2, "would be overwritten"),
        (["--in", "{tmp}/rows.jsonl", "--out", "{tmp}/no/out.jsonl"], 2, "create it first"),
        (["--in", "{tmp}/rows.jsonl", "--out", "{tmp}/out.jsonl", "--max-rows", "0"], 2, "at least 1"),
        (["--in", "{tmp}/rows.jsonl", "--out", "{tmp}/out.jsonl", "--timeout", "0"], 2, "above 0"),
        (["--in", "{tmp}/rows.jsonl", "--out", "{tmp}/out.jsonl"], 3, "none of 1 row could be converted"),
    ],
)
def test_bad_requests(tmp_path, capsys, flags, status, message):
    write_rows(tmp_path / "rows.jsonl", [{"question": "?", "answer": "?"}])
    before = (tmp_path / "rows.jsonl").read_bytes()
    assert convert_math.main([flag.format(tmp=tmp_path) for flag in flags]) == status
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"] and (tmp_path / "rows.jsonl").read_bytes() == before


def test_what_was_there_stays_when_nothing_can_be_converted(tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    assert convert_math.main(
        ["--in", str(write_rows(tmp_path / "r.jsonl", [{}])), "--out", str(tmp_path / "out.jsonl")]
    )
    assert (tmp_path / "out.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("annotation", "step"),
    [
        ("48/2=24", "48/2"),
        ("1,000*2=2000", "1000*2"),
        ("20%*50=10", "(20/100)*50"),
        ("17%5=2", "17%5"),
        (".5*10=5", ".5*10"),
        ("$5*2=10", "5*2"),
        ("05+10=15", "5+10"),
        ("100*0.05=5", "100*0.05"),
        ("3×4÷2=6", "3*4/2"),
        ("(1+2)*3=9", "(1+2)*3"),
        ("2**3=8", "2**3"),
        ("32=32", "32"),
        ("32", "32"),
    ],
)
def test_annotations(annotation, step):
    code = read_problem({"question": "?", "answer": f"<<{annotation}>>\n#### 1"}, "n").code
    assert code == f"step_1 = {step}\nprint(round(step_1, 4))"


@pytest.mark.parametrize(
    "annotation", ["x=1", "=5", "f(2)=1", "'a'*3=aaa", "2=a=3", "1_0+__import__('os')=1", "True+1=2"]
)
def test_annotations_that_are_no_arithmetic(annotation):
    with pytest.raises(BadRow, match="not arithmetic"):
        read_problem({"question": "?", "answer": f"<<{annotation}>>\n#### 1"}, "n")


def test_final_answers():
    finals = {
        "text\n#### 1,200": "1200",
        "text\n#### -3.": "-3",
        "so \\boxed{\\frac{1}{2}} it is": "\\frac{1}{2}",
        "72": "72",
        "a whole sentence": None,
    }
    for answer, final in finals.items():
        assert read_problem({"question": "?", "code": "1", "answer": answer}, "n").final == final


def test_numbers():
    texts = {"72": 72, " $1,200.50 ": 1200.5, "20%": 20, "1/4": 0.25, "-\\frac{1}{4}": -0.25, "1e3": 1000}
    assert {text: number(text) for text in texts} == texts
    assert [number(text) for text in ("x", "", "nan", "1/0", "12 apples")] == [None] * 5
    assert agree("72.0", "72") and agree("a  b", "a b") and not agree("72.01", "72") and not agree("a", "b")


def test_equals_the_shared_dialogues(tmp_path, shared):
    """Annotations put back into real dialogues give those dialogues again, byte for byte."""
    with open(shared / "data" / "gsm8k_multiturn.jsonl", encoding="utf-8") as file:
        real = [json.loads(next(file)) for _ in range(40)]
    rows = []
    for row in real:
        code, answer = row["messages"][1]["content"], row["messages"][3]["content"]
        text, _, final = answer.rpartition("\nThe answer is \\boxed{")
        marks = "".join(f"<<{step}=0>>" for step in re.findall(r"step_\d+ = (.*)", code))
        question = row["messages"][0]["content"]
        rows.append({"idx": row["idx"], "question": question, "answer": f"{text}{marks}\n#### {final[:-2]}"})
    status, made = convert(tmp_path, rows)
    assert status == 0 and made == real
