"""A hub of one repository on this machine, as far as huggingface_hub asks one."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

_COMMIT = "0" * 39 + "1"


class Hub:
    """What was uploaded, and where.

    Attributes:
        files: by name.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def answer(self, content: Any, status: int = 200, **headers: str) -> None:
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if "/preupload/" in self.path:
                    asked = json.loads(body)["files"]
                    self.answer(
                        {"files": [{"path": f["path"], "uploadMode": "regular",
                                    "shouldIgnore": False} for f in asked]}
                    )  # fmt: skip
                elif "/commit/" in self.path:
                    for line in body.splitlines():
                        entry = json.loads(line)
                        if entry["key"] == "file":
                            value = entry["value"]
                            hub.files[value["path"]] = base64.b64decode(value["content"])
                    self.answer(
                        {"commitUrl": f"{hub.url}/me/fit/commit/{_COMMIT}", "commitOid": _COMMIT,
                         "success": True}
                    )  # fmt: skip
                else:
                    self.answer({"url": f"{hub.url}/me/fit", "name": "me/fit"})

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                content = hub.files.get(self.path.rpartition("/")[2])
                if "/resolve/" not in self.path:
                    self.answer({"id": "me/fit", "sha": _COMMIT, "siblings": []})
                elif content is None:
                    self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
                else:
                    etag = hashlib.sha256(content).hexdigest()
                    self.answer(content, ETag=f'"{etag}"', X_Repo_Commit=_COMMIT)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
