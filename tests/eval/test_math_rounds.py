"""What a model might write goes through the whole loop: code that does harm, that never ends, answers that are cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.conversation import Dialogue, Turn
from fastchat.data.encoding.chat_encoder import encode_prompt
from fastchat.data.tools.sandbox import Limits
from fastchat.eval.generation import Sampling
from fastchat.eval.mathematics import rounds
from fastchat.eval.mathematics.problems import MathProblem
from fastchat.eval.mathematics.rounds import Attempt, Method, solve
from fastchat.eval.mathematics.transcripts import to_record
from tests.eval.scripted import scripted


def code(text: str) -> str:
    return f"So:\n```python\n{text}\n```"


ANSWER = "It is \\boxed{42}."
HARMLESS = {
    "right": ([code("print(6*7)"), ANSWER], "right", ["ok"]),
    "at once": ([ANSWER], "right", []),
    "wrong": (["\\boxed{41}"], "wrong answer", []),
    "no box": (["Who knows."], rounds.NO_ANSWER, []),
    "unclosed": (["```python\nprint(5)", ANSWER], "right", ["ok"]),
    "again and again": ([code("print(1)")], rounds.TOO_MANY, ["ok", "ok"]),
    "cut": (["word " * 200 + ANSWER], rounds.CUT, []),
    "failing": ([code("1/0"), ANSWER], "right", ["error"]),
    "control": ([code("print('<' + '/s>')"), ANSWER], "right", ["ok"]),
}
HOSTILE = {
    "endless": ([code("while True: pass"), ANSWER], "right", ["timeout"]),
    "memory": ([code("x = bytearray(1 << 40)"), ANSWER], "right", ["error"]),
    "reading": ([code("print(open('/etc/passwd').read())"), ANSWER], "right", ["error"]),
    "writing": ([code("open('hacked', 'w')"), ANSWER], "right", ["error"]),
    "network": ([code("import socket\nsocket.create_connection(('127.0.0.1', 9))"), ANSWER], "right", ["error"]),
    "fork": ([code("import os\nos.fork()"), ANSWER], "right", ["error"]),
    "programs": ([code("import os\nos.system('touch hacked')"), ANSWER], "right", ["error"]),
    "huge output": ([code("while True: print()"), ANSWER], "right", ["output"]),
    "fills the context": ([code("print('abcdefgh' * 200)"), ANSWER], rounds.NO_ROOM, ["ok"]),
}
SCRIPTS = {**HARMLESS, **HOSTILE}


def attempts(words: list[str]) -> list[Attempt]:
    found = []
    for word in words:
        dialogue = Dialogue((Turn("user", f"How many? ({word})"),), None, "f", 1)
        found.append(Attempt(MathProblem(f"f:{len(found) + 1}", "", dialogue, "42"), word, dialogue))
    return found


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("llama", "metaspace_bos")


def method(batch_size: int) -> Method:
    return Method(Sampling(max_new_tokens=120), rounds=2, batch_size=batch_size, limits=Limits(timeout=1.0), workers=2)


def test_every_attempt_ends_for_its_own_reason(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = scripted(folder, {word: turns for word, (turns, *_) in SCRIPTS.items()})
    all_of_them, finished = attempts(list(SCRIPTS)), []
    solve(all_of_them, loaded, method(16), finished.append)
    for attempt in all_of_them:
        record = to_record(attempt, 0, False, {})
        statuses = [run["status"] for run in record["code_runs"]]
        assert (record["reason"], statuses) == SCRIPTS[attempt.key][1:], attempt.key
        assert all(len(turn["content"]) < 2200 for turn in record["turns"]), "what the model is told is bounded"
    assert sum(finished) == len(SCRIPTS) and not list(tmp_path.iterdir())
    by_key = {attempt.key: attempt for attempt in all_of_them}
    told = {key: attempt.dialogue.turns[2].text for key, attempt in by_key.items() if len(attempt.dialogue.turns) > 2}
    assert told["right"] == "```output\n42\n```" and "ZeroDivisionError" in told["failing"]
    assert "TimeoutError" in told["endless"] and "too much output" in told["huge output"]
    # What code prints is text, never a control token.
    turns = by_key["control"].dialogue.turns[:3]
    ids = encode_prompt(Dialogue(turns, None, "f", 1), loaded.chat_encoder)
    assert "</s>" in told["control"] and ids.count(loaded.model.tokenizer.eos_token_id) == 1

    # One at a time, the same.
    loaded = scripted(folder, {word: turns for word, (turns, *_) in HARMLESS.items()})
    alone = attempts(list(HARMLESS))
    solve(alone, loaded, method(1))
    for attempt in alone:
        assert to_record(attempt, 0, False, {}) == {
            **to_record(by_key[attempt.key], 0, False, {}),
            "place": attempt.problem.place,
        }
