"""A real headless Chromium, driven through a pipe with its own protocol: no driver, no library, no network port."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """One browser with one page. `log` holds what the page said in its console, and every error in it."""

    def __init__(self, binary: str, profile: Path, timeout: float = 60):
        self.timeout, self.log = timeout, []
        commands, self._commands = os.pipe()
        self._replies, replies = os.pipe()
        # The browser reads commands from descriptor 3 and writes replies to 4; copies well above come first, so that
        # neither copy overwrites a pipe end that is still needed.
        wiring = f'exec 3<&{commands} 4>&{replies}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", wiring, "chromium", binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, replies),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(replies)
        self._answers: dict[int, dict[str, Any]] = {}
        self._news = threading.Condition()
        self._last, self._session = 0, ""
        threading.Thread(target=self._read, daemon=True).start()
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file as a fresh page and wait until it has been read."""
        self.visit(path.as_uri() + (f"#{fragment}" if fragment else ""))

    def visit(self, address: str) -> None:
        """The same for any address."""
        self._call("Page.navigate", url="about:blank")
        self.log.clear()
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        reply = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise AssertionError(reply["exceptionDetails"])
        return reply["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        until = time.monotonic() + self.timeout
        while not self.run(condition):
            assert time.monotonic() < until, f"never true: {condition}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, as a person does: "ArrowRight", "Tab", "j"."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Enter": 13, "Escape": 27}
        codes |= {"Home": 36, "End": 35}
        for key in keys:
            text = {} if len(key) > 1 and key != "Enter" else {"text": "\r" if key == "Enter" else key}
            code = codes.get(key, ord(key[0].upper()))
            self._call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def write(self, text: str) -> None:
        """Write a text where the cursor is, as if it were pasted."""
        self._call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click in the middle of the first element of a CSS selector."""
        x, y = self.run(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'center'}); const box = node.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def look(self, width: int = 1280, height: int = 800, dark: bool = False, offline: bool = False) -> None:
        """Set the window's size, the colour scheme, and whether there is a network."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        rate = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._call("Network.emulateNetworkConditions", offline=offline, **rate)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._commands)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        with self._news:
            came = self._news.wait_for(lambda: self._last in self._answers, self.timeout)
        assert came, f"Chromium does not answer {method}"
        reply = self._answers.pop(self._last)
        assert "error" not in reply, (method, reply["error"])
        return reply["result"]

    def _read(self) -> None:
        waiting = b""
        while block := os.read(self._replies, 1 << 16):
            *messages, waiting = (waiting + block).split(b"\0")
            for message in map(json.loads, messages):
                with self._news:
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self._note(message["method"], message["params"])
                    self._news.notify_all()

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.log.append(("console", [a.get("value", a.get("description")) for a in params["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.log.append(("exception", params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.log.append(("log", params["entry"]["text"]))
        elif method == "Network.requestWillBeSent":
            self.log.append(("request", params["request"]["url"]))
