"""The page in a real Chromium, in front of the real server."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

from tests.data.chromium import NAMES, Chromium, find_chromium  # noqa: E402
from tests.serve.serving import ASKED, SAID, Server, train_tiny  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("page")]
NAME = "sums<b>"
STRANGER = "Something <b>never</b> learned &amp; `<i>` <img src=x onerror=document.title='hit'>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = train_tiny(tmp_path_factory.mktemp("trained") / "model")
    log = tmp_path_factory.mktemp("log") / "log.txt"
    made = Server(model, log, "--web", "--model-name", NAME, "--compare", "--base-model-path", str(model))
    yield made
    assert made.stop() == 0
    assert "Traceback" not in made.log.read_text()


@pytest.fixture(scope="module")
def browser(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    binary = find_chromium()
    if binary is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    made = Chromium(binary, tmp_path_factory.mktemp("profile"))
    made.look(1280, 900)
    made.visit(f"{server.root}/")
    made.wait(_shown("#send"))
    yield made
    made.close()


def _shown(selector: str) -> str:
    return f"(node => !!node && node.offsetParent !== null)(document.querySelector({json.dumps(selector)}))"


def _fill(browser: Chromium, selector: str, text: str) -> None:
    browser.run(f"(node => {{ node.focus(); node.select(); }})(document.querySelector({json.dumps(selector)}))")
    browser.write(text)


def _texts(browser: Chromium, role: str, chat: int = 0) -> list[str]:
    found = browser.run(f"[...document.querySelectorAll('#chat-{chat} .message-row.{role}-row')].map(n => n.innerText)")
    return [text.replace("\N{WORD JOINER}", "").strip() for text in found]


def _wait_status(browser: Chromium, part: str, chat: int = 0) -> None:
    browser.wait(
        f"document.querySelector('#status-{chat} textarea').value.includes({json.dumps(part)}) && {_shown('#send')}"
    )


def _curl(browser: Chromium) -> str:
    """What the copy button of the command gives; the editor itself renders only the lines in sight."""
    if not browser.run(_shown("#curl")):
        browser.run("document.querySelector('#request button').click()")
        browser.wait(_shown("#curl button"))
    browser.run("window.copied = ''; navigator.clipboard.writeText = async text => { window.copied = text; }; 0")
    browser.run("document.querySelector('#curl button').click()")
    browser.wait("window.copied !== ''")
    return browser.run("window.copied")


def test_a_conversation(server: Server, browser: Chromium) -> None:
    _fill(browser, "#temperature input[type=number]", "0")
    browser.press("Tab")
    _fill(browser, "#message textarea", ASKED)
    browser.click("#send")
    for chat in (0, 1):
        _wait_status(browser, "tokens in", chat)
        assert _texts(browser, "user", chat) == [ASKED] and _texts(browser, "bot", chat) == [SAID]
    # Every parameter is in the next request, and the command of it works.
    _fill(browser, "#system textarea", "Be brief.")
    _fill(browser, "#max_tokens textarea, #max_tokens input", "4")
    _fill(browser, "#seed textarea, #seed input", "9007199254740993")
    _fill(browser, "#stops textarea", "never")
    _fill(browser, "#message textarea", STRANGER)
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#chat-0 .user-row').length === 2")
    browser.wait(_shown("#send"))
    assert _texts(browser, "user")[1] == STRANGER.replace("`", "")
    assert browser.run("document.title") != "hit" and not browser.run("!!document.querySelector('#chat-0 img')")
    command = _curl(browser).split("\n\ncurl")[0]
    body = json.loads(command.split("-d '")[1].rstrip().removesuffix("'").replace("'\"'\"'", "'"))
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": SAID},
        {"role": "user", "content": STRANGER},
    ]
    assert body["seed"] == 9007199254740993 and body["max_tokens"] == 4 and body["stop"] == ["never"]
    assert body["temperature"] == 0 and body["model"] == NAME
    made = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(made.stdout)["usage"]["completion_tokens"] <= 4

    # An error of the API is text.
    _fill(browser, "#max_tokens textarea, #max_tokens input", "<b>x</b>")
    browser.click("#regenerate")
    _wait_status(browser, "Error: 'max_tokens' is '<b>x</b>'; expected a whole number")
    # Editing the first message continues from there; without it the failed message would be left out.
    _fill(browser, "#max_tokens textarea, #max_tokens input", "900")
    _fill(browser, "#stops textarea", "")
    _fill(browser, "#system textarea", "")
    browser.click("#chat-0 [title=Edit]")
    browser.wait(_shown("#chat-0 .edit-textarea"))
    _fill(browser, "#chat-0 .edit-textarea", "Count.")
    browser.click("#chat-0 [title=Submit]")
    _wait_status(browser, "tokens in")
    assert _texts(browser, "user") == _texts(browser, "user", 1) == ["Count."]
    before = _texts(browser, "bot")
    assert before[0].startswith("one two three")
    browser.click("#regenerate")
    browser.wait(_shown("#stop"))
    _wait_status(browser, "tokens in")
    assert _texts(browser, "bot") == before and _texts(browser, "user") == ["Count."]


def test_stop_ends_the_generation(server: Server, browser: Chromium) -> None:
    _fill(browser, "#temperature input[type=number]", "2")
    _fill(browser, "#message textarea", "Talk on and on.")
    browser.click("#send")
    browser.wait(_shown("#stop"))
    browser.click("#stop")
    _wait_status(browser, "Stopped.")
    browser.wait(f"fetch('{server.root}/health').then(r => r.json()).then(s => s.running + s.in_engine === 0)")
    browser.click("#new")
    browser.wait("document.querySelectorAll('#chat-0 .message-row').length === 0")


def test_nothing_leaves_the_machine(server: Server, browser: Chromium) -> None:
    requests = [text for kind, text in browser.log if kind == "request"]
    assert len(requests) > 10
    assert [one for one in requests if not one.startswith((f"{server.root}/", "data:", "blob:", "about:"))] == []
    assert [entry for entry in browser.log if entry[0] in ("exception", "console")] == []


def test_who_may_see_the_page(server: Server) -> None:
    def get(path: str, **headers: str) -> int:
        return httpx.get(server.root + path, headers=headers, trust_env=False).status_code

    assert get("/") == 200
    assert get("/", host="evil.example") == 403
    assert get("/config", origin="http://evil.example") == 403
    assert get("/config", **{"sec-fetch-site": "cross-site"}) == 403
    for path in ("/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://x", "/docs", "/login"):
        assert get(path) == 404
    policy = httpx.get(server.root, trust_env=False).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self' 'sha256-" in policy
    assert "unsafe-eval" not in policy


@pytest.mark.parametrize(("password", "status"), [("a-secret-key", 200), ("other", 401), (None, 401)])
def test_a_key_is_the_password(password: str | None, status: int) -> None:
    import asyncio

    from starlette.responses import PlainTextResponse

    from fastchat.serve.web.guard import Guard

    given = base64.b64encode(f"me:{password}".encode()).decode()
    headers = {"authorization": f"Basic {given}"} if password else {}

    async def ask() -> int:
        transport = httpx.ASGITransport(Guard(PlainTextResponse("page"), "a-secret-key"))
        async with httpx.AsyncClient(transport=transport, base_url="http://far.example") as client:
            return (await client.get("/", headers=headers)).status_code

    assert asyncio.run(ask()) == status
