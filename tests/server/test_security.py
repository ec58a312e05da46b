"""Who may ask for what: hosts, origins, token, content types, sizes, paths, against a real server."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.server_process import Server

TOKEN = "a-long-random-token-of-a-test"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server beyond loopback, with a token."""
    with Server(tmp_path_factory.mktemp("closed"), "--host", "0.0.0.0", "--token", TOKEN) as started:
        yield started


def raw(port: int, text: str) -> bytes:
    """The answer to bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text.encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_our_own_names_are_served(server: Server, name: str) -> None:
    for host in (f"{name}:{server.port}", name):
        assert server.client.get("/api/v1/state", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "localhost:1", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.1", ""]
)
@pytest.mark.parametrize("path", ["/", "/api/v1/state", "/sdapi/v1/options", "/v1/models", "/healthz", "/assets/index.html"])
def test_other_names_are_refused_on_every_path(server: Server, host: str, path: str) -> None:
    answer = server.client.get(path, headers={"host": host.format(port=server.port)})
    assert answer.status_code == 403


def test_two_host_headers_and_two_lengths_are_refused(server: Server) -> None:
    host = f"localhost:{server.port}"
    assert raw(server.port, f"GET / HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\nConnection: close\r\n\r\n").startswith(
        (b"HTTP/1.1 403", b"HTTP/1.1 400")
    )
    both = f"POST /api/v1/queue/clear HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    smuggled = raw(server.port, f"{both}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert smuggled.startswith(b"HTTP/1.1 400")
    twice = raw(server.port, f"{both}Content-Length: 4\r\nContent-Length: 5\r\n\r\nnull")
    assert twice.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_other_sites_are_refused(server: Server, headers: dict[str, str]) -> None:
    before = len(server.client.get("/api/v1/jobs").json()["jobs"])
    for method, path in (
        ("GET", "/api/v1/state"),
        ("POST", "/api/v1/jobs"),
        ("POST", "/sdapi/v1/txt2img"),
        ("POST", "/v1/images/generations"),
    ):
        answer = server.client.request(method, path, content=b'{"prompt": "x", "request": {"prompt": "x"}}', headers={**JSON, **headers})
        assert answer.status_code == 403, path
    assert len(server.client.get("/api/v1/jobs").json()["jobs"]) == before


def test_our_own_page_is_served(server: Server) -> None:
    headers = {"origin": server.url, "sec-fetch-site": "same-origin"}
    assert server.client.get("/api/v1/state", headers=headers).status_code == 200
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert server.client.get("/", headers=followed).status_code == 200
    assert server.client.get("/api/v1/state", headers=followed).status_code == 403


def test_an_origin_that_was_allowed_gets_cors_and_no_other_does(server: Server) -> None:
    origin = "https://plugin.example"
    asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    answer = server.client.options("/sdapi/v1/txt2img", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == origin
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert server.client.get("/sdapi/v1/options", headers={"origin": origin}).headers["access-control-allow-origin"] == origin
    assert "access-control-allow-origin" not in server.client.get("/sdapi/v1/options").headers


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/api/v1/jobs", "text/plain"),
        ("/api/v1/jobs", "application/x-www-form-urlencoded"),
        ("/api/v1/queue/clear", "text/plain"),
        ("/sdapi/v1/txt2img", "multipart/form-data; boundary=x"),
        ("/sdapi/v1/interrupt", "text/plain"),
        ("/v1/images/generations", "text/plain"),
        ("/v1/images/edits", "application/json"),
        ("/api/v1/metadata", "image/svg+xml"),
        ("/api/v1/jobs", ""),
    ],
)
def test_other_content_types_are_415(server: Server, path: str, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    assert server.client.post(path, content=b'{"prompt": "x"}', headers=headers).status_code == 415


def test_a_body_that_is_too_large_is_413_announced_or_not(tmp_path: Path) -> None:
    with Server(tmp_path, limits={"body": 100_000}, ready=False) as server:
        body = b'{"request": {"prompt": "' + b"x" * 200_000 + b'"}}'
        assert server.client.post("/api/v1/jobs", content=body, headers=JSON).status_code == 413
        pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
        assert server.client.post("/api/v1/jobs", content=pieces, headers=JSON).status_code == 413
        assert server.client.get("/healthz").status_code == 200


PATHS = [
    "/assets/../serve.py",
    "/assets/..%2fserve.py",
    "/assets/%2e%2e/serve.py",
    "/assets/..%5c..%5cserve.py",
    "/assets//etc/passwd",
    "/assets/%00",
    "/../../etc/passwd",
    "/api/v1/images/..%2f..%2fdiffusette.sqlite3/file",
    "/api/v1/images/../diffusette.sqlite3",
    "/api/v1/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd/thumbnail",
    "/api/v1/jobs/..%2f..%2fx",
    "/api/v1/models/..%2f..%2fetc",
    "/v1/models/..%2f..%2fetc%2fpasswd",
    "/sdapi/v1/..%2f..%2fetc",
    "/file=/etc/passwd",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_what_is_served(server: Server, path: str) -> None:
    answer = raw(server.port, f"GET {path} HTTP/1.1\r\nHost: localhost:{server.port}\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ", 2)[1] in {b"404", b"400"}, answer[:200]
    assert b"root:" not in answer
    assert b"SQLite" not in answer


def test_every_answer_has_the_headers(server: Server) -> None:
    for path in ("/", "/api/v1/state", "/nothing", "/sdapi/v1/options", "/healthz", "/api/v1/docs"):
        headers = server.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_without_the_token_nothing_is_told(closed: Server) -> None:
    for path in ("/", "/api/v1/state", "/sdapi/v1/options", "/v1/models", "/metrics", "/assets/index.html", "/api/v1/events", "/nothing"):
        answer = closed.client.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    assert closed.client.get("/healthz").status_code == 200
    assert closed.client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        f"Bearer {TOKEN}",
        f"bearer {TOKEN}",
        f"Basic {base64.b64encode(f'anyone:{TOKEN}'.encode()).decode()}",
    ],
)
def test_the_token_opens_every_api(closed: Server, given: str) -> None:
    for path in ("/api/v1/state", "/sdapi/v1/options", "/v1/models", "/metrics"):
        assert closed.client.get(path, headers={"authorization": given}).status_code == 200


@pytest.mark.parametrize("given", ["Bearer wrong", "Bearer", "Basic !!!", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \u00e9"])
def test_a_wrong_token_is_401(closed: Server, given: str) -> None:
    answer = closed.client.get("/api/v1/state", headers={"authorization": given.encode("latin-1")})
    assert answer.status_code == 401
    assert TOKEN not in answer.text


def test_a_browser_signs_in_once_and_the_token_leaves_the_address(closed: Server) -> None:
    with httpx.Client(base_url=closed.url) as browser:
        answer = browser.get("/", params={"token": TOKEN})
        assert answer.status_code == 303
        assert answer.headers["location"] == "/"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert TOKEN not in cookie
        assert browser.get("/").status_code == 200
        assert browser.get("/api/v1/state").status_code == 200
        browser.cookies.set(next(iter(browser.cookies)), "forged")
    assert httpx.get(f"{closed.url}/", params={"token": "wrong"}).status_code == 401


def test_beyond_loopback_names_are_still_checked(closed: Server) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert closed.client.get("/api/v1/state", headers={**headers, "host": f"192.168.1.7:{closed.port}"}).status_code == 200
    assert closed.client.get("/api/v1/state", headers={**headers, "host": f"evil.example:{closed.port}"}).status_code == 403


def test_beyond_loopback_an_address_that_asks_too_often_waits(closed: Server) -> None:
    answers = [closed.client.get("/healthz") for _ in range(400)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"


def test_errors_have_the_form_of_their_api(server: Server) -> None:
    answer = server.client.post("/v1/images/generations", content=b"{", headers=JSON)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    answer = server.client.post("/sdapi/v1/txt2img", content=b"{", headers=JSON)
    assert {"error", "detail", "body", "errors"} <= set(answer.json())
    assert set(json.loads(server.client.get("/api/v1/nothing").text)["error"]) == {"code", "message", "field"}


def test_a_browser_without_the_token_gets_a_form_that_asks_for_it(tmp_path: Path) -> None:
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path, wrong in (("/", False), ("/?token=guess", True)):
        with Server(tmp_path / str(wrong), "--host", "0.0.0.0", "--token", TOKEN) as server, httpx.Client(base_url=server.url) as client:
            answer = client.get(path, headers=browser)
        policy = answer.headers["content-security-policy"]
        assert (answer.status_code, answer.headers["content-type"]) == (401, "text/html; charset=utf-8")
        assert '<form action="/" method="get">' in answer.text
        assert "<script" not in answer.text
        assert ("not the token" in answer.text) == wrong
        assert "form-action 'self'" in policy
        assert "unsafe" not in policy
