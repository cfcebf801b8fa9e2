"""The commands of a chat, saved chats, the comparison with the base, and where a model is loaded."""

from __future__ import annotations

import io
import json
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastchat.checkpoint.trained_model import find_trained
from fastchat.conversation import Dialogue, ToolCall, Turn, get_template
from fastchat.data.encoding.chat_encoder import encode_prompt
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.formats import parse_row
from fastchat.errors import DataError, SettingsError
from fastchat.model import apply_lora
from fastchat.model.tokenizer import load_tokenizer
from fastchat.serve import cli, saved_chat
from fastchat.serve.chat import Chat, load_chat
from fastchat.serve.commands import Exit, Front, answer, attempt, command_of, names_of_commands, run_command
from fastchat.serve.compare import with_base
from fastchat.serve.input_history import MAX_BYTES, InputHistory, without_tokens
from fastchat.serve.placement import Placement
from fastchat.serve.session import Session
from tests.builders import make_tokenizer

HELLO = {"role": "user", "content": "Hello"}


class Seen:
    """A view that records, and may do something at a piece."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.lines: list[str] = []
        self.at_piece: Callable[[], None] = lambda: None

    def begin(self, label: str, chat: Chat) -> None:
        self.answers.append("")

    def piece(self, text: str) -> None:
        self.answers[-1] += text
        self.at_piece()

    def end(self) -> None:
        pass

    def close(self) -> None:
        pass

    def type(self, session: Session, line: str) -> list[str]:
        """Type a line; returns the lines that the chat then says about itself."""
        self.lines.clear()
        front = Front(
            self,
            self.lines.append,
            lambda dialogue: self.answers.extend(turn.text for turn in dialogue.turns),
            lambda pairs: self.lines.extend(f"{term}: {meaning}" for term, meaning in pairs),
        )
        command = command_of(line)
        if command:
            attempt(lambda: run_command(*command, session, front), self.lines.append)
        else:
            attempt(lambda: answer(session, line, front), self.lines.append)
        return list(self.lines)


@pytest.fixture
def session(loaded: Chat) -> Iterator[Session]:
    yield Session({"": replace(loaded)})


def texts(session: Session) -> list[str]:
    return [turn.text for turn in session.dialogue.turns]


def test_a_conversation_and_its_commands(session: Session) -> None:
    seen = Seen()
    assert seen.type(session, "Hello") == ["(cut at --max-new-tokens 6)"]
    first = seen.answers[-1]
    seen.type(session, "And?")
    said = [HELLO, {"role": "assistant", "content": first}, {"role": "user", "content": "And?"}]
    assert texts(session) == ["Hello", first, "And?", session.chat.reply(said)]
    assert seen.type(session, "/undo") == ["(taken back: And?)"] and texts(session) == ["Hello", first]
    session.chats[""].temperature = 50.0
    seen.type(session, "!!regen")
    assert texts(session)[0] == "Hello" and texts(session)[1] == seen.answers[-1] != first
    assert seen.type(session, "!!remove") and texts(session) == []
    for nothing in ("/undo", "/retry", "/save x.json"):
        assert seen.type(session, nothing)[0].startswith("error: There is n")
    seen.type(session, "Hello")
    assert seen.type(session, "!!reset") == ["(new conversation)"] and texts(session) == []
    with pytest.raises(Exit):
        seen.type(session, "/exit")


def test_statistics_count_the_tokens(session: Session) -> None:
    seen = Seen()
    assert seen.type(session, "/stats") == ["There is no answer yet."]
    seen.type(session, "Hello")
    num = len(encode_prompt(Dialogue((Turn("user", "Hello"),)), session.chat.chat_encoder))
    (line,) = seen.type(session, "/stats")
    assert line.startswith(f"prompt {num} tokens, answer 6 tokens at ")
    assert f"context used: {num + 6} of 512 tokens ({100 * (num + 6) / 512:.0f} %)" in line


def test_the_system_message_is_shown_changed_and_reset(session: Session) -> None:
    seen = Seen()
    session.chats[""].system = "Be brief."
    session.reset()
    assert seen.type(session, "/system") == ["Be brief."]
    seen.type(session, "/system Shout.\nAlways.")
    seen.type(session, "Hello")
    system = {"role": "system", "content": "Shout.\nAlways."}
    assert seen.answers[-1] == session.chat.reply([system, HELLO]) != session.chat.reply([HELLO])
    seen.type(session, "/reset")
    assert session.dialogue.system == "Be brief."


def test_what_the_template_refuses_changes_nothing(tmp_path: Path) -> None:
    jinja = (
        "{% for m in messages %}{% if m['role'] not in ('user', 'assistant') %}"
        "{{ raise_exception('no system message here') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer, _ = load_tokenizer(str(make_tokenizer("byte_nobos", tmp_path, chat_template=jinja)))
    encoder = TextEncoder.from_tokenizer(tokenizer)
    chat: Any = Chat(None, encoder.bind(encoder.choose("tokenizer")), 0)
    session, seen = Session({"": chat}), Seen()
    assert seen.type(session, "/system") == ["the template's own, if it has one"]
    assert "no system message here" in seen.type(session, "/system Be brief.")[0]
    assert session.dialogue == Dialogue(())
    saved_chat.save(Dialogue((Turn("user", "a"), Turn("assistant", "b")), system="S."), tmp_path / "s.json")
    assert "no system message here" in seen.type(session, f"/load {tmp_path / 's.json'}")[0]
    assert session.dialogue == Dialogue(())
    saved_chat.save(Dialogue((Turn("user", "a"), Turn("assistant", "b"))), tmp_path / "t.json")
    assert seen.type(session, f"/load {tmp_path / 't.json'}")[0].startswith("(loaded")


def test_unknown_commands_are_told_with_the_nearest(session: Session) -> None:
    seen = Seen()
    for wrong, right in {"/rest": "/reset", "/quit": "/exit", "!!save_": "!!save", "/regen": "!!regen"}.items():
        (line,) = seen.type(session, wrong)
        assert line.startswith(f"error: unknown command {wrong}; did you mean {right}?")
    for other in ("/xyzzy", "/foo"):
        (line,) = seen.type(session, other)
        assert "/help lists" in line and "did you mean" not in line
    assert "usage: /save FILE" in seen.type(session, "/save")[0]
    assert "takes no argument" in seen.type(session, "/undo 3")[0]
    listed = "\n".join(seen.type(session, "/help"))
    assert all(name in listed for name in names_of_commands())
    assert not seen.answers and not session.dialogue.turns
    for message in ("/home/me/a.py fails", "/ 2", "!! wow", "/usr\nand more", "what is /help"):
        assert command_of(message) is None


def test_ctrl_c_keeps_what_was_said(session: Session) -> None:
    seen = Seen()
    session.chats[""].max_new_tokens = 400
    seen.at_piece = lambda: signal.raise_signal(signal.SIGINT) if len(seen.answers[-1]) > 5 else None
    before = signal.getsignal(signal.SIGINT)
    assert seen.type(session, "Hello") == ["(stopped)"]
    assert signal.getsignal(signal.SIGINT) is before
    turn = session.dialogue.turns[-1]
    assert turn.text == seen.answers[-1] and 5 < len(turn.text) < 40 and not turn.train
    seen.at_piece = lambda: None
    session.chats[""].max_new_tokens = 3
    assert seen.type(session, "Go on") == ["(cut at --max-new-tokens 3)"], "the chat goes on"


def test_ctrl_c_before_the_first_word_takes_the_message_back(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> str:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setattr(session.chats[""], "reply", interrupted)
    assert "taken back" in Seen().type(session, "Hello")[0] and session.dialogue.turns == ()


def test_an_error_leaves_the_conversation_as_it_was(session: Session) -> None:
    seen = Seen()
    seen.type(session, "Hello")
    before = session.dialogues
    session.chats[""].context = 10
    for line in ("More", "/retry"):
        assert "the model's context is 10: start a new one (/reset)." in seen.type(session, line)[0]
        assert session.dialogues == before


# --- files


def test_a_saved_chat_is_training_data_and_is_loaded_again(session: Session, tmp_path: Path) -> None:
    seen = Seen()
    seen.type(session, "/system Be brief.")
    seen.type(session, "Hello 数学")
    told = seen.type(session, f"/save {tmp_path / 'mine'}")
    assert told == [f'(saved {tmp_path / "mine.json"}: 1 answer, unfinished: saved with "train": false)']
    (row,) = json.loads((tmp_path / "mine.json").read_text())
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][-1]["train"] is False
    assert parse_row(row).dialogue == session.dialogue
    saved = session.dialogue
    seen.type(session, "More")
    assert not seen.type(session, f"!!save {tmp_path / 'mine.json'}")[0].startswith("error"), "the same chat"
    seen.type(session, "/reset")
    seen.type(session, f"/load {tmp_path / 'mine'}")
    assert session.dialogue.before(2) == saved and len(session.dialogue.turns) == 4 and "More" in seen.answers
    seen.type(session, f"/save {tmp_path / 'l.jsonl'}")
    assert parse_row(json.loads((tmp_path / "l.jsonl").read_text())).dialogue == session.dialogue


def test_calls_tools_and_reasoning_are_saved(session: Session, tmp_path: Path) -> None:
    schema = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    call = Turn("assistant", "", calls=(ToolCall("f", {"x": [1, None]}, "c1"),), reasoning="Hm.")
    result = Turn("tool", "3", name="f", call_id="c1")
    turns = (Turn("user", "a"), call, result, Turn("assistant", "b", train=False))
    dialogue = Dialogue(turns, "S.", system_role="developer", tools=(schema,))
    dialogue = replace(dialogue, template_arguments={"enable_thinking": False})
    saved_chat.save(dialogue, tmp_path / "a.json")
    assert saved_chat.load(tmp_path / "a.json") == (dialogue, [])
    session.chats[""].chat_encoder = bound = copy(session.chat.chat_encoder)
    bound.template = get_template("vicuna_v1.1")
    assert "tools that the template does not show" in Seen().type(session, f"/load {tmp_path / 'a.json'}")[0]
    assert session.dialogue.turns == ()


def test_a_file_of_something_else_is_not_replaced(session: Session, tmp_path: Path) -> None:
    seen, other = Seen(), tmp_path / "notes.json"
    other.write_text("mine")
    seen.type(session, "Hello")
    assert f"{other} exists" in seen.type(session, f"/save {other}")[0] and other.read_text() == "mine"
    assert "No such file" in seen.type(session, f"/save {tmp_path / 'no' / 'a.json'}")[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        ("", "not valid JSON"),
        ("3", "not a JSON object"),
        ("[]", "has 0 rows"),
        ('{"messages": []}\n{"messages": []}', "has 2 rows"),
        ('{"messages": [{"role": "alien", "content": "x"}]}', "alien"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no dialogue with an answer"),
        ('{"text": "without turns"}', "no dialogue with an answer"),
        ('{"template_name": "vicuna", "roles": ["A", "B"], "messages": [["C", "x"]]}', "malformed conversation"),
        ('{"template_name": "vicuna", "roles": ["A", "B"], "messages": 3}', "malformed conversation"),
    ],
)
def test_files_that_cannot_be_loaded(tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=problem):
        saved_chat.load(path)


def test_what_is_not_read_of_a_row_is_said(session: Session, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "colour": "red"}
    row["messages"] += [{"role": "user", "content": "unanswered"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    said = Seen().type(session, f"/load {tmp_path / 'a.jsonl'}")
    assert said[0].startswith("(loaded") and texts(session) == ["a", "b"]
    assert said[1:] == [
        "(user or tool turns after the last answer, removed: 1)", "(not read: the key 'colour' of the row)",
    ]  # fmt: skip


def test_what_fastchat_saved_is_loaded(tmp_path: Path) -> None:
    former = {"template_name": "vicuna_v1.1", "system_message": "S.", "roles": ["USER", "ASSISTANT"], "offset": 1}
    former["messages"] = [["USER", "example"], ["USER", "Hi"], ["ASSISTANT", "Hello"], ["ASSISTANT", None]]
    (tmp_path / "a.json").write_text(json.dumps(former))
    dialogue, notes = saved_chat.load(tmp_path / "a.json")
    assert notes == [] and dialogue.system == "S." and [turn.text for turn in dialogue.turns] == ["Hi", "Hello"]


def test_the_history_is_private_bounded_and_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "very-secret-value")
    path = tmp_path / "state" / "chat_history"
    kept = InputHistory(path)
    for entry in ("one", "two\nlines 数学", "use very-secret-value, hf_abcdefghijklmnopq and password: hunter2"):
        kept.store_string(entry)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(InputHistory(path).load_history_strings()) == [
        "use ***, *** and password: ***", "two\nlines 数学", "one",
    ]  # fmt: skip
    path.write_text("broken\n" + '"x"\n' * (MAX_BYTES // 4 + 9))
    kept.store_string("last")
    assert path.stat().st_size < MAX_BYTES and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert next(iter(InputHistory(path).load_history_strings())) == "last"
    assert without_tokens("a risk-aware token of thanks") == "a risk-aware token of thanks"


def test_a_history_that_cannot_be_kept_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    kept = InputHistory(tmp_path / "file" / "chat_history")
    assert list(kept.load_history_strings()) == []
    kept.store_string("a")
    kept.store_string("b")
    assert capsys.readouterr().err.count("history of messages is not kept") == 1


# --- base and tuned


def run_cli(monkeypatch: pytest.MonkeyPatch, words: list[str], text: str = "") -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return cli.main([*words, "--device", "cpu", "--temperature", "0", "--max-new-tokens", "6"])


def test_the_base_is_compared_with_the_adapter_and_with_the_merged_model(
    adapter: Path, loaded: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = find_trained(str(adapter)).base
    alone = load_chat(base, device="cpu", temperature=0.0, max_new_tokens=6, conv_template="chatml")
    left = [alone.reply([HELLO])]
    left.append(alone.reply([HELLO, {"role": "assistant", "content": left[0]}, HELLO]))
    right = [loaded.reply([HELLO])]
    right.append(loaded.reply([HELLO, {"role": "assistant", "content": right[0]}, HELLO]))
    assert left[0] != right[0]
    expected = "".join(f"base: {a}\ntuned: {b}\n" for a, b in zip(left, right, strict=True))
    assert run_cli(monkeypatch, [str(adapter), "--compare"], "Hello\nHello\n") == 0
    assert capsys.readouterr().out == expected
    merged = tmp_path / "merged"
    assert apply_lora.main(["--lora-path", str(adapter), "--target-model-path", str(merged)]) == 0
    capsys.readouterr()
    for words in ([], ["--base-model-path", base]):  # the base is in its training record
        assert run_cli(monkeypatch, [str(merged), "--compare", *words], "Hello\nHello\n") == 0
        assert capsys.readouterr().out == expected
    assert run_cli(monkeypatch, [base, "--compare"]) == 2
    assert "does not say which base" in capsys.readouterr().err
    assert saved_base_stays_tuned(loaded, tmp_path) == right[0]


def saved_base_stays_tuned(loaded: Chat, tmp_path: Path) -> str:
    """The answer in the saved file of a comparison."""
    session = Session(with_base(loaded, None, Placement()))
    session.ask("Hello", Seen())
    assert session.dialogues["base"] != session.dialogues["tuned"] and len(session.stats()) == 2
    return saved_chat.load(session.save(str(tmp_path / "c.json")))[0].turns[-1].text


def test_a_base_with_a_smaller_vocabulary_is_refused(loaded: Chat, tiny_model_dir: Callable[..., Path]) -> None:
    small = tiny_model_dir("llama", "byte_nobos", hidden=16, vocab_size=300, pad_token_id=None, eos_token_id=None)
    with pytest.raises(SettingsError, match="has 300 tokens in its vocabulary"):
        with_base(loaded, str(small), Placement())


def test_only_the_main_thread_handles_ctrl_c(session: Session) -> None:
    said: list[Any] = []
    thread = threading.Thread(target=lambda: said.append(session.ask("Hello", Seen())))
    thread.start()
    thread.join()
    assert said == [["cut at --max-new-tokens 6"]]
