"""What stands before the page: who may see it, and what a browser may do with it."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response

from fastchat.pages import policy_hash
from fastchat.serve.api.app import is_local

MOST_BYTES = 8 * 2**20  # of a request, as in the API
# What the page needs of gradio's addresses. The others (uploads, files, proxies, ...) are not there.
PATHS = re.compile(
    r"/|/config|/theme\.css|/manifest\.json|/favicon\.ico|/(assets|static)/.*"
    r"|/gradio_api/(info|startup-events|theme\.css|app_id|cancel|reset|queue/(join|data)|heartbeat/\w+)"
)
_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.S)
_POLICY = (
    "default-src 'none'; script-src 'self'{}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; manifest-src 'self'; worker-src 'self' blob:; base-uri 'self'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_Send = Callable[[Any], Awaitable[None]]


class Guard:
    """An ASGI application around that of the page.

    Without a key, only requests that are addressed to this machine are answered. With one, the browser asks for a
    name, which may be any, and a password, which is the key.
    """

    def __init__(self, page: Any, key: str | None):
        self._page = page
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Any, receive: Any, send: _Send) -> None:
        if scope["type"] != "http":
            await self._page(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["path"] == "/":
            await self._with_policy(scope, receive, send)
        else:
            await self._page(scope, receive, _with_headers(send, _POLICY.format("")))

    def _refusal(self, scope: Any) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._key is None and not is_local(host):
            return _refused(403, f"The host {host[:100]!r} is not this machine; --api-key allows other names.")
        if self._key is not None and not hmac.compare_digest(_password(headers), self._key):
            ask = {"WWW-Authenticate": 'Basic realm="fastchat: any name; the password is the API key"'}
            return _refused(401, "The password is the key of --api-key.", ask)
        if _is_foreign(headers, scope["method"]):
            return _refused(403, "The request comes from a page of another site.")
        if not PATHS.fullmatch(scope["path"]):
            return _refused(404, f"There is nothing at {scope['path'][:200]}.")
        if scope["method"] not in ("GET", "HEAD"):
            length = headers.get("content-length", "")
            if not length.isdigit():
                return _refused(411, "The request has no Content-Length.")
            if int(length) > MOST_BYTES:
                return _refused(413, f"The request has more than {MOST_BYTES:,} bytes.")
        return None

    async def _with_policy(self, scope: Any, receive: Any, send: _Send) -> None:
        """The page itself: the policy allows the scripts in it by their hashes, and no others."""
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        begun: list[Any] = []
        body = bytearray()

        async def collect(message: Any) -> None:
            if message["type"] == "http.response.start":
                begun.append(message)
            else:
                body.extend(message.get("body", b""))

        await self._page({**scope, "headers": plain}, receive, collect)
        hashes = "".join(f" '{policy_hash(found.decode())}'" for found in _SCRIPT.findall(bytes(body)))
        sending = _with_headers(send, _POLICY.format(hashes))
        await sending(begun[0])
        await sending({"type": "http.response.body", "body": bytes(body)})


def _with_headers(send: _Send, policy: str) -> _Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = policy
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
        await send(message)

    return sending


def _is_foreign(headers: Headers, method: str) -> bool:
    """Whether a page of another site makes this request; a link to the page is none."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return site not in ("same-origin", "none") and not is_link
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _password(headers: Headers) -> bytes:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    try:
        return base64.b64decode(given.strip(), validate=True).partition(b":")[2] if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(message + "\n", status, headers)
