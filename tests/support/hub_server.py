"""A hub on the loopback that speaks Hugging Face's protocol, as far as downloads need it, and can be made to fail.

`/api/models/ID[/revision/REV]` says the commit and lists the files (with `blobs=true` their sizes and hashes too),
`/ID/resolve/REV/PATH` gives a small file or redirects to a large one on another host under `/cdn/`, which understands Range.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Hub:
    """What the server has, does, and was asked."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Commit → path → content."""
    refs: dict[str, str] = field(default_factory=dict)
    """Branch or tag → commit."""
    name: str = "owner/model"
    gated: bool = False
    token: str = ""
    """If set, nothing is given without it."""
    cut: dict[str, int] = field(default_factory=dict)
    """Path → after how many bytes the connection breaks, once."""
    hang: dict[str, int] = field(default_factory=dict)
    """Path → after how many bytes nothing more comes."""
    flip: set[str] = field(default_factory=set)
    """Paths of which a byte is wrong."""
    linked_size: dict[str, int] = field(default_factory=dict)
    """Path → a size that is not the file's."""
    on_listing: Any = None
    """Called after a listing was given."""
    shown: list[str] = field(default_factory=list)
    """Credentials that the other host was shown."""
    log: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range) of each request."""
    endpoint: str = ""
    elsewhere: str = ""
    """Where large files lie: the same server by another name, as a hub has its files on another host."""
    released: threading.Event = field(default_factory=threading.Event)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Adds a commit; gives its id."""
        sha = hashlib.sha1(repr(sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[branch] = sha
        return sha

    def fetched(self, path: str) -> list[str]:
        """The ranges in which the content of `path` was asked for; "" is the whole."""
        return [ranges for method, where, ranges in self.log if method == "GET" and where.endswith(f"/{path}") and "/api/" not in where]


def oid(data: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".onnx"))


class Handler(BaseHTTPRequestHandler):
    """Answers for `hub`, a class attribute of the class that `serving` makes."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.log.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}" and not path.startswith("/cdn/"):
            self.fail(401, "RepoNotFound", "Invalid username or password.")
        elif path.startswith("/api/models/"):
            self.api(path.removeprefix("/api/models/"), parse_qs(url.query))
        elif path.startswith("/cdn/"):
            self.hub.shown += self.headers.get_all("Authorization", [])
            commit, _, inside = path.removeprefix("/cdn/").partition("/")
            self.content(inside, self.hub.commits[commit][inside], {})
        elif "/resolve/" in path:
            self.resolve(*path[1:].split("/resolve/", 1))
        else:
            self.fail(404, "", "nothing here")

    def api(self, path: str, query: dict[str, list[str]]) -> None:
        if path != self.hub.name and not path.startswith(f"{self.hub.name}/"):
            self.fail(401, "RepoNotFound", "Repository not found")
            return
        revision = path.removeprefix(self.hub.name).removeprefix("/revision/") or "main"
        sha = self.sha(revision)
        if sha is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        detailed = "blobs" in query
        siblings = [self.listed(path, data) if detailed else {"rfilename": path} for path, data in self.hub.commits[sha].items()]
        self.json({"id": self.hub.name, "modelId": self.hub.name, "sha": sha, "siblings": siblings, "private": False, "tags": []})
        if detailed and self.hub.on_listing:
            self.hub.on_listing()

    def listed(self, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": oid(data)}
        if is_large(path):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def resolve(self, name: str, rest: str) -> None:
        revision, _, path = rest.partition("/")
        sha = self.sha(revision)
        if name != self.hub.name or sha is None:
            self.fail(404, "RevisionNotFound" if name == self.hub.name else "RepoNotFound", "not here")
            return
        if self.hub.gated:
            self.fail(403, "GatedRepo", "Access to model owner/model is restricted")
            return
        if path not in self.hub.commits[sha]:
            self.fail(404, "EntryNotFound", "Entry not found")
            return
        data = self.hub.commits[sha][path]
        headers = {"X-Repo-Commit": sha}
        if not is_large(path):
            self.content(path, data, headers | {"ETag": f'"{oid(data)}"'})
            return
        size = self.hub.linked_size.get(path, len(data))
        headers |= {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"'}
        self.answer(302, b"", headers | {"Location": f"{self.hub.elsewhere}/cdn/{sha}/{path}"})

    def sha(self, revision: str) -> str | None:
        return self.hub.refs.get(revision) or (revision if revision in self.hub.commits else None)

    def content(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        if path in self.hub.flip:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, status = 0, 200
        if ranges := self.headers.get("Range"):
            start, status = int(ranges.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        stop = self.hub.cut.pop(path, None) if self.command == "GET" else None
        hang = self.hub.hang.get(path) if self.command == "GET" else None
        self.answer(status, data[start:], headers, stop if hang is None else hang)
        if hang is not None:
            self.wfile.flush()
            self.hub.released.wait(60)
        self.close_connection = self.close_connection or stop is not None or hang is not None

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def fail(self, status: int, code: str, message: str) -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def answer(self, status: int, body: bytes, headers: dict[str, str], stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if stop is None else body[:stop])


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves `hub` on the loopback while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint, hub.elsewhere = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
