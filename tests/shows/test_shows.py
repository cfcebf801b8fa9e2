"""From one run to its use: its report in a browser, its merged model, its GGUF file, its API, its score."""

from __future__ import annotations

import io
import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fastchat.report import svg
from tests.data.chromium import Chromium
from tests.serve.serving import Server
from tests.shows.conftest import NAME, Trained

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shows")]
# The curves as they are drawn, and the numbers of the axes: {key: [[[x, y], ...] of every curve]}.
DRAWN = """Object.fromEntries([...document.querySelectorAll('figure.chart')].map(figure => [figure.dataset.key,
  [...figure.querySelectorAll('.curves polyline')].map(line => [...line.points].map(({x, y}) => [x, y]))]))"""
SETTINGS = """[...document.querySelectorAll('#all-settings tbody tr')].map(row =>
  [...row.children].map(cell => cell.textContent))"""
CURVES = {"loss": ["loss", "eval_loss"], "learning_rate": ["learning_rate"], "grad_norm": ["grad_norm"]}
CURVES |= {"tokens_per_second": ["tokens_per_second"], "memory": ["memory_measured", "memory_predicted"]}


def test_the_report_has_the_logged_points_and_asks_for_nothing(browser: Chromium, trained: Trained) -> None:
    page = trained.folder / "report.html"
    browser.look(offline=True)
    browser.open(page)
    assert browser.log == [("request", page.as_uri())], "no other request, nothing in the console"
    drawn = browser.run(DRAWN)
    assert drawn.keys() == CURVES.keys()
    for key, names in CURVES.items():
        logged = [[(row["step"], row[name]) for row in trained.rows if name in row] for name in names]
        size = 2**20 if key == "memory" else 1
        every = [(step, value / size) for points in logged for step, value in points]
        x, y = svg.axis([step for step, _ in every], whole=True), svg.axis([value for _, value in every])
        assert [len(line) for line in drawn[key]] == [len(points) for points in logged] and len(logged[0]) == 24
        for line, points in zip(drawn[key], logged, strict=True):
            for (across, down), (step, value) in zip(line, points, strict=True):
                assert x.low + across / svg.SIZE * (x.high - x.low) == pytest.approx(step, abs=1e-2)
                size_of_axis = y.high - y.low
                shown = y.low + (1 - down / svg.SIZE) * size_of_axis
                assert shown == pytest.approx(value / size, abs=2e-3 * size_of_axis)
    assert len(logged_losses := [row for row in trained.rows if "eval_loss" in row]) == 4, logged_losses
    browser.run("document.querySelector('#chart-loss .curves').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('#chart-loss .reading').textContent").startswith("Step 0: evaluation ")
    browser.look()


def test_every_setting_of_the_run_is_in_its_report(browser: Chromium, trained: Trained) -> None:
    browser.open(trained.folder / "report.html")
    shown = {name: (value, origin) for name, value, _, origin in browser.run(SETTINGS)}
    recorded = trained.record["settings"]
    assert shown.keys() == recorded.keys() and len(recorded) > 100
    for name, entry in recorded.items():
        assert shown[name][1] == entry["from"], name
    assert shown["lora_r"] == ("32", "command line") and shown["learning_rate"] == ("0.01", "command line")
    assert shown["lora_modules_to_save"][0] == "embed_tokens, lm_head"
    own = browser.run("document.querySelector('#settings').innerText")
    for flag in ("model_name_or_path", "eval_steps", "lora_r", "lora_dropout", "max_steps", "run_report"):
        assert flag in own
    text = browser.run("document.body.innerText")
    for question in json.loads((trained.folder / "answers.jsonl").read_text().splitlines()[0])["prompt"].split("\n"):
        assert question.strip() in text


@pytest.fixture(scope="module")
def merged(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fastchat.model import apply_lora

    folder = tmp_path_factory.mktemp("merged") / "model"
    assert apply_lora.main(["--lora-path", str(trained.folder), "--target-model-path", str(folder)]) == 0
    return folder


def test_the_merged_model_is_the_adapter_on_its_base(trained: Trained, merged: Path) -> None:
    import torch

    from fastchat.data.encoding.chat_encoder import encode_prompt
    from fastchat.serve.chat import load_chat, to_dialogue

    chats = [load_chat(str(path), device="cpu") for path in (trained.folder, merged)]
    for question in trained.questions:
        dialogue = to_dialogue([{"role": "user", "content": question}])
        ids = [encode_prompt(dialogue, chat.chat_encoder) for chat in chats]
        assert ids[0] == ids[1]
        with torch.no_grad():
            adapted, whole = (chat.model(input_ids=torch.tensor([ids[0]])).logits for chat in chats)
        torch.testing.assert_close(whole, adapted, atol=1e-3, rtol=1e-4)
        assert torch.equal(whole.argmax(-1), adapted.argmax(-1))


def test_the_gguf_file_is_the_merged_model(merged: Path, llama_cpp: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    from safetensors.torch import load_file

    from fastchat.export import command

    words = ["gguf", str(merged), "--out", str(tmp_path / "out"), "--llama_cpp", str(llama_cpp)]
    assert command.main(words) == 0
    (file,) = (tmp_path / "out").glob("*.gguf")
    reader = gguf.GGUFReader(file)
    weights = load_file(merged / "model.safetensors")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    assert len(stored) == len(weights)
    wanted = weights["model.embed_tokens.weight"].float().numpy()
    found = gguf.quants.dequantize(stored["token_embd.weight"].data, stored["token_embd.weight"].tensor_type)
    assert abs(found - wanted).max() < 0.02 * abs(wanted).max()
    template = json.loads((merged / "tokenizer_config.json").read_text()).get("chat_template")
    template = template or (merged / "chat_template.jinja").read_text()
    assert reader.get_field("tokenizer.chat_template").contents() == template
    assert "TEMPLATE" in (tmp_path / "out" / "Modelfile").read_text()


def said_by_chat(folder: Path, question: str, capsys: Any, monkeypatch: Any) -> str:
    """What `fastchat chat` prints."""
    from fastchat.serve import cli

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    words = [str(folder), "--temperature", "0", "--max-new-tokens", "20", "--message", question]
    assert cli.main(words) == 0
    return capsys.readouterr().out.removesuffix("\n")


def test_the_official_client_gets_what_chat_says(
    server: Server, trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 requests, 16 at once; 10 of them are streams that the client gives up."""
    openai = pytest.importorskip("openai")
    questions = trained.questions[:4]
    wanted = [said_by_chat(trained.folder, question, capsys, monkeypatch) for question in questions]
    assert len(set(wanted)) == 4 and all(answer.startswith("```python\nprint(") for answer in wanted)
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0, timeout=300) as client:

        def ask(number: int) -> str | None:
            asked = [{"role": "user", "content": questions[number % 4]}]
            ask_for = {"model": NAME, "messages": asked, "temperature": 0, "max_tokens": 20}
            if number % 10 == 3:
                with client.chat.completions.create(**ask_for, stream=True) as stream:
                    next(iter(stream))
                return None
            if number % 2:
                return client.chat.completions.create(**ask_for).choices[0].message.content
            parts = client.chat.completions.create(**ask_for, stream=True)
            return "".join(part.choices[0].delta.content or "" for part in parts)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(100)))
        assert answers.count(None) == 10
        assert all(answer in (None, wanted[number % 4]) for number, answer in enumerate(answers))
        assert is_free(server)
        assert ask(1) == wanted[1]


def is_free(server: Server, seconds: float = 120) -> bool:
    """Whether all slots of the engine become free."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{server.root}/health", timeout=60) as response:
            state = json.loads(response.read())
        if state["running"] == state["waiting"] == state["in_engine"] == 0:
            return True
        time.sleep(0.05)
    return False


def test_it_solves_problems_that_its_base_does_not(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With code that the sandbox runs, on sums that it has not seen."""
    from fastchat.eval.mathematics import command

    scores = []
    for name, model in (("base", trained.base), ("tuned", trained.folder)):
        words = ["--model", str(model), "--data-path", str(trained.problems), "--output-dir", str(tmp_path / name)]
        words += ["--conv-template", "vicuna_v1.1", "--num", "10", "--max-new-tokens", "24", "--workers", "2"]
        assert command.main(words) == 0, capsys.readouterr().err
        results = json.loads((tmp_path / name / "results.json").read_text())
        scores.append(results["accuracy"])
    assert "accuracy" in capsys.readouterr().out
    assert scores[0] == 0 and scores[1] >= 0.7
