"""A model hub on this machine: what huggingface_hub asks, answered from memory, faults included."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1 << 15  # bytes from which on a file is stored as the hub stores weights: with a SHA-256


@dataclass
class FakeRepo:
    """`files` as they are; the rest is what the hub says of them, or does wrong."""

    files: dict[str, bytes]
    licence: str = "apache-2.0"
    commit: str = COMMIT
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)  # told instead of the real ones
    damaged: bool = False  # one byte of each large file is another one than the checksum says
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers break off


class FakeHub:
    """`repos` by id. `requests` logs (method, path, first byte asked for) of every one, `tokens`
    what each was authorized with."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.repos: dict[str, FakeRepo] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.tokens: list[str | None] = []
        self.down = False
        self.ranges = True  # False: whatever part is asked for, all of it comes
        self.elsewhere = ""  # another hub, to which everything is redirected
        self.pause = threading.Event()  # cleared: weights wait before they are sent
        self.pause.set()

    def starts(self, path: str) -> list[int]:
        """From which byte on `path` was asked for, each time."""
        return [
            start for _, p, start in self.requests if p.startswith("/cdn/") and p.endswith(path)
        ]


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A hub for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            asked, begin = (asked, start) if hub.ranges else (None, 0)
            hub.requests.append((self.command, path, start))
            hub.tokens.append(self.headers.get("Authorization"))
            kind = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
            place = re.fullmatch(r"(/cdn)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            repo = hub.repos.get(kind[1] if kind else place[2] if place else "")
            data = repo.files.get(place[4]) if repo and place else None
            if hub.down:
                self.fail(503, "")
            elif hub.elsewhere:
                self.answer(307, b"", {"Location": hub.elsewhere + self.path})
            elif repo is None:
                self.fail(401, "RepoNotFound")
            elif kind and kind[2] not in ("main", repo.commit):
                self.fail(404, "RevisionNotFound")
            elif kind:
                self.describe(kind[1], repo)
            elif data is None or place is None or place[3] != repo.commit:
                self.fail(404, "EntryNotFound")
            elif repo.gated:
                self.fail(401, "GatedRepo")
            elif len(data) >= LARGE and not place[1]:
                self.answer(302, b"", {"Location": f"{hub.endpoint}/cdn{path}"})
            else:
                self.send(repo, data, begin, bool(asked))

        do_HEAD = do_GET

        def describe(self, name: str, repo: FakeRepo) -> None:
            files: list[dict[str, Any]] = []
            for path, data in repo.files.items():
                size = repo.sizes.get(path, len(data))
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                files.append({"rfilename": path, "size": size, "blobId": blob})
                if len(data) >= LARGE:
                    sha = hashlib.sha256(data).hexdigest()
                    files[-1]["lfs"] = {"size": size, "sha256": sha, "pointerSize": 134}
            about = {
                "_id": "1", "id": name, "modelId": name, "sha": repo.commit, "private": False,
                "gated": "auto" if repo.gated else False, "tags": [], "siblings": files,
                "cardData": {"license": repo.licence},
            }  # fmt: skip
            self.answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

        def send(self, repo: FakeRepo, data: bytes, start: int, partial: bool) -> None:
            large = len(data) >= LARGE
            if repo.damaged and large:
                data = data[:-1] + bytes([data[-1] ^ 1])
            headers = {"ETag": '"x"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
            if partial:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = repo.cuts.pop(0) if repo.cuts and large else None
            self.answer(206 if partial else 200, data[start:], headers, cut)

        def fail(self, status: int, code: str) -> None:
            self.answer(status, b"{}", {"X-Error-Code": code} if code else {})

        def answer(
            self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                if len(body) >= LARGE:
                    hub.pause.wait(300)
                self.wfile.write(body[:cut])
            self.close_connection = self.close_connection or cut is not None

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.pause.set()
        server.shutdown()
        server.server_close()
        thread.join()
