"""A hub on this machine: as much of the Hugging Face hub's HTTP interface as an upload needs, for tests.

It keeps what is uploaded in `files`, and every request's path in `asked`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

TOKEN = "hf_aTokenThatNobodyMaySee"


class Hub:
    """`refuses`: a part of a path that is answered with 403. `role`: of the token. It is that of "me", of "team"."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.created: dict[str, Any] = {}
        self.refuses = "nothing"
        self.role = "write"
        self.existing: dict[str, bool] = {}  # repository -> whether it is private
        self.url = ""
        self._stored: dict[str, bytes] = {}

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if token != f"Bearer {TOKEN}" and not path.startswith("/lfs/"):
            return 401, {"error": "Invalid user token"}
        if self.refuses in path:
            return 403, {"error": "You have no right to do that"}
        if path == "/api/whoami-v2":
            auth = {"type": "access_token", "accessToken": {"displayName": "x", "role": self.role}}
            return 200, {"name": "me", "type": "user", "orgs": [{"name": "team"}], "auth": auth}
        if method == "GET" and path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/")
            if name not in self.existing:
                return 404, {"error": "Repository not found"}
            return 200, {"id": name, "private": self.existing[name], "siblings": [], "tags": []}
        if method == "PUT":
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            self._stored[oid] = body
            return 200, {}
        given = [json.loads(line) for line in body.splitlines() if line.strip()]
        if path == "/api/repos/create":
            self.created = given[0]
            return 200, {"url": f"{self.url}/{given[0].get('organization') or 'me'}/{given[0]['name']}"}
        if path == "/api/validate-yaml":
            head = given[0]["content"].split("---\n")[1]
            return 200, {
                "warnings": [],
                "errors": [] if isinstance(yaml.safe_load(head), dict) else [{"message": "no"}],
            }
        if "/preupload/" in path:
            mode = lambda name: "lfs" if name.endswith(".safetensors") else "regular"  # noqa: E731
            asked = given[0]["files"]
            return 200, {
                "files": [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in asked]
            }
        if path.endswith("/objects/batch"):
            wanted = given[0]["objects"]
            upload = lambda oid: {"upload": {"href": f"{self.url}/lfs/{oid}"}}  # noqa: E731
            return 200, {"objects": [{**o, "actions": upload(o["oid"])} for o in wanted], "transfer": "basic"}
        if "/commit/" in path:
            for line in given:
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self._stored[value["oid"]]
            return 200, {"commitUrl": f"{self.url}/me/x/commit/0", "commitOid": "0" * 40}
        return 404, {"error": f"no {path}"}


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve `hub` on a free port; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            status, value = hub.answer(self.command, path, body, self.headers.get("Authorization", ""))
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
