"""The flags of the chat: which model, on which devices, in how many bits; and piped lines."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.errors import ResourceError, SettingsError
from fastchat.serve import cli
from fastchat.serve.chat import Chat, load_chat
from fastchat.serve.placement import Placement, choose_placement
from tests.model.adapters import save_random_adapter

HELLO = {"role": "user", "content": "Hello"}


def run_cli(monkeypatch: pytest.MonkeyPatch, words: list[str], text: str = "") -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return cli.main([*words, "--device", "cpu", "--temperature", "0", "--max-new-tokens", "6"])


def test_the_model_is_given_once(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, ["--message", "Hello", str(adapter)]) == 0
    one = capsys.readouterr().out
    assert run_cli(monkeypatch, ["--message", "Hello", "--model-path", str(adapter)]) == 0
    assert capsys.readouterr().out == one
    assert run_cli(monkeypatch, [str(adapter), "--model-path", "other"]) == 2
    assert run_cli(monkeypatch, []) == 2
    err = capsys.readouterr().err
    assert "given twice" in err and "no model is given" in err


def test_upstreams_commands_work_in_piped_lines_and_others_are_messages(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.json"
    lines = ["Hello", "!!regen", f"!!save {path}", "/help", "!!nothing", "!!exit", "more"]
    assert run_cli(monkeypatch, [str(adapter)], "\n".join(lines)) == 0
    out, err = capsys.readouterr()
    first, again, *rest = out.splitlines()
    assert first == again and len(rest) >= 2 and f"(saved {path}" in err
    assert [m["content"] for m in json.loads(path.read_text())[0]["messages"]] == ["Hello", first]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--num-gpus", "2"], "--num-gpus needs a GPU, and --device cpu uses none"),
        (["--max-gpu-memory", "13GiB"], "--max-gpu-memory needs a GPU"),
        (["--max-gpu-memory", "13"], "--max-gpu-memory 13: give a number with its unit"),
        (["--load-8bit", "--load-4bit"], "choose one"),
    ],
)
def test_what_this_machine_does_not_have_is_refused(
    flags: list[str], problem: str, adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, [str(adapter), *flags]) == 2
    assert problem in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_an_error_and_one_that_fits_is_spread(adapter: Path, loaded: Chat) -> None:
    for size, fits in ((10_000, False), (1 << 30, True)):
        placement = Placement({"extra": {"device_map": "auto", "max_memory": {"cpu": size}}})
        if fits:
            chat = load_chat(str(adapter), placement=placement, temperature=0.0, max_new_tokens=6)
            assert chat.reply([HELLO]) == loaded.reply([HELLO])
        else:
            with pytest.raises(ResourceError, match="does not fit"):
                load_chat(str(adapter), placement=placement)


def test_several_gpus_are_filled_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda gpu: (1000 * (gpu + 1), 9000))
    assert choose_placement().devices == {
        "extra": {"device_map": "sequential", "max_memory": {0: 850, 1: 1700, 2: 2550}}
    }
    assert choose_placement(num_gpus=1).devices == {"device": "cuda"}
    assert choose_placement(num_gpus=2, max_gpu_memory="1KiB").devices["extra"] == {
        "device_map": "auto", "max_memory": {0: 1024, 1: 1024},
    }  # fmt: skip
    with pytest.raises(SettingsError, match="finds only 3"):
        choose_placement(num_gpus=4)


@pytest.mark.parametrize(("bits", "kind"), [(8, "Linear8bitLt"), (4, "Linear4bit")])
def test_weights_in_eight_or_four_bits(
    bits: int, kind: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_model_dir("llama", "byte_nobos", hidden=64)
    folder, _ = save_random_adapter(tmp_path / "a", base, template="chatml")
    for path in (folder, base):
        chat = load_chat(str(path), placement=Placement(bits=bits), conv_template="chatml", max_new_tokens=3)
        assert any(type(module).__name__ == kind for module in chat.model.modules())
        chat.reply([HELLO], greedy=True)
    quantised, _ = save_random_adapter(tmp_path / "q", base, template="chatml", q_lora=True)
    if bits == 8:
        with pytest.raises(SettingsError, match="trained on a 4-bit base"):
            load_chat(str(quantised), placement=Placement(bits=8))


def test_upstreams_coloured_chat_needs_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastchat.serve.cli import RichChatIO

    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    chat_io = RichChatIO()
    assert chat_io.prompt_for_input("USER") == "Hello"
    chat_io.prompt_for_output("ASSISTANT")
    assert chat_io.stream_output(iter([{"text": "**a"}, {"text": "**a**"}])) == "**a**"
    chat_io.print_output("b")
    assert capsys.readouterr().out == "USER: ASSISTANT: **a**\nb\n"
