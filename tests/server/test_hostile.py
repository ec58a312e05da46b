"""Requests and clients that mean harm, or have bad luck, against one real server."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.server_process import Server

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose queue takes many jobs."""
    with Server(tmp_path_factory.mktemp("busy"), "--quiet", "--queue", "2000") as started:
        yield started


def opened(server: Server, head: str = "GET /api/v1/events") -> socket.socket:
    """A connection whose request was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(f"{head} HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode())
    return connection


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/sdapi/v1/txt2img", "/v1/images/generations", "/api/v1/tokens"])
@pytest.mark.parametrize("piece", [b"[],", b"0,", b'{"":[]},'])
def test_a_body_of_brackets_and_commas_is_413_before_it_is_parsed(busy: Server, path: str, piece: bytes) -> None:
    body = b'{"prompt": "x", "more": [' + piece * (6_000_000 // len(piece)) + b"0]}"
    before = busy.memory()
    answer = busy.client.post(path, content=body, headers=JSON)
    assert answer.status_code == 413
    assert "commas and brackets" in answer.text
    assert busy.memory() - before < 60 << 20


def test_numbers_and_depths_without_end_are_refused(busy: Server) -> None:
    for text in ('{"request": ' + "[" * 100_000, '{"request": ' + "9" * 1_000_000 + "}", '{"request": 1e999999}', '{"a": "\\ud800"}'):
        answer = busy.client.post("/api/v1/jobs", content=text, headers=JSON)
        assert answer.status_code == 400, text[:40]


def test_with_1000_jobs_in_the_queue_every_request_is_quick(busy: Server) -> None:
    held = busy.submit("long", steps=400, width=256, height=256)
    busy.running(held)

    def submit(number: int) -> str:
        return busy.submit(f"number {number}", client=f"client {number % 10}", steps=1)

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(submit, range(1000)))
    order = [job["id"] for job in busy.client.get("/api/v1/jobs").json()["jobs"] if job["status"] == "queued"]
    assert sorted(order) == sorted(ids)
    assert [job["position"] for job in busy.client.get("/api/v1/jobs").json()["jobs"] if job["status"] == "queued"] == list(range(1000))
    calls = {
        "jobs": lambda: busy.client.get("/api/v1/jobs"),
        "state": lambda: busy.client.get("/api/v1/state"),
        "job": lambda: busy.client.get(f"/api/v1/jobs/{order[-1]}"),
        "move": lambda: busy.client.post(f"/api/v1/jobs/{order[-1]}/move", json={"before": order[500]}),
        "submit": lambda: busy.client.post("/api/v1/jobs", json={"request": {"prompt": "one more", "steps": 1}}),
        "progress": lambda: busy.client.get("/sdapi/v1/progress"),
    }
    took: dict[str, float] = {}
    for name, call in calls.items():
        times: list[float] = []
        for _ in range(7):
            started = time.perf_counter()
            assert call().status_code < 300
            times.append(time.perf_counter() - started)
        took[name] = statistics.median(times)
    assert max(took.values()) < 0.25, took  # seconds; quadratic work took several
    started = time.perf_counter()
    assert busy.client.post("/api/v1/queue/clear").json() == {"jobs": []}
    assert time.perf_counter() - started < 3
    busy.client.delete(f"/api/v1/jobs/{held}")
    assert busy.ended(held)["status"] == "cancelled"


def threads(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux, to count threads")
def test_a_hundred_cancels_of_one_job_make_no_threads(busy: Server) -> None:
    job = busy.submit("cancelled by many", steps=400, width=256, height=256)
    busy.running(job)
    before = threads(busy)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: httpx.delete(f"{busy.url}/api/v1/jobs/{job}").status_code, range(100)))
    assert threads(busy) <= before + 1
    assert set(answers) == {200}
    assert busy.ended(job)["status"] == "cancelled"
    assert busy.ended(busy.submit("the next one", steps=2))["status"] == "done"


def test_fill_under_a_mask_takes_a_large_image_and_keeps_the_rest(busy: Server) -> None:
    init = Image.new("RGB", (4096, 4096), (200, 40, 40))
    mask = Image.new("L", init.size, 0)
    mask.paste(255, (1024, 1024, 3072, 3072))
    body = {
        "prompt": "x",
        "steps": 2,
        "width": 128,
        "height": 128,
        "init_images": [encoded(init)],
        "mask": encoded(mask),
        "inpainting_fill": 0,
        "inpaint_full_res": False,
        "denoising_strength": 0.1,
    }
    answer = busy.client.post("/sdapi/v1/img2img", json=body)
    assert answer.status_code == 200, answer.text[:300]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]))).convert("RGB"), np.float32)
    assert np.abs(image[:16] - (200, 40, 40)).mean() < 24  # outside the mask


def test_phases_are_told_as_they_happen(busy: Server) -> None:
    busy.until(lambda: busy.client.get("/readyz").status_code == 200)
    seen: list[tuple[str, int, int]] = []
    with busy.events() as stream:
        job = busy.submit("phases", steps=4, count=2, width=192, height=192)
        for event in stream:
            if event["event"] == "progress":
                seen.append((event["data"]["phase"], event["data"]["image"], event["data"]["step"]))
            if event["event"] == "job" and event["data"]["job"]["status"] == "done" and event["data"]["job"]["id"] == job:
                break
    assert ("denoising", 0, 0) in seen  # said before the first step ended
    assert {phase for phase, _, _ in seen} <= {"encoding", "denoising", "decoding", "saving"}
    first = list(dict.fromkeys(phase for phase, image, _ in seen if image == 0))
    assert first == [phase for phase in ("encoding", "denoising", "decoding", "saving") if phase in first]  # some may be missed
    assert "decoding" in first


def test_just_128_streams_open_and_the_next_is_503_until_one_ends(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Server(tmp_path_factory.mktemp("streams"), "--quiet") as server:
        started = threading.Barrier(30)

        def several(_: int) -> list[socket.socket]:
            started.wait()
            return [opened(server) for _ in range(7)]

        with ThreadPoolExecutor(30) as pool:
            connections = [one for some in pool.map(several, range(30)) for one in some]
        heads = [connection.recv(65536) for connection in connections]
        assert sum(head.startswith(b"HTTP/1.1 200") for head in heads) == 128
        refused = [head for head in heads if not head.startswith(b"HTTP/1.1 200")]
        assert all(head.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in head for head in refused)
        for connection in connections[:100]:
            connection.close()
        server.until(lambda: "diffusette_event_streams 128" not in server.client.get("/metrics").text)
        with opened(server) as again:
            assert again.recv(65536).startswith(b"HTTP/1.1 200")
        for connection in connections[100:]:
            connection.close()


def test_at_sigterm_twenty_streams_of_each_kind_end_whole_within_five_seconds(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Server(tmp_path_factory.mktemp("sigterm"), "--quiet") as server:
        connections = [opened(server) for _ in range(20)]
        body = json.dumps({"prompt": "x", "stream": True, "steps": 400, "size": "256x256"})
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: application/json\r\n"
        for _ in range(20):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            connections.append(connection)
        answers = [connection.recv(65536) for connection in connections]
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        server.until(lambda: "diffusette_queue_jobs 19" in server.client.get("/metrics").text)
        deaf = opened(server)  # reads nothing, and does not hold the others up
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for number, connection in enumerate(connections):
            while data := connection.recv(65536):
                answers[number] += data
            connection.close()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
        deaf.close()
    assert [answer.endswith(b"0\r\n\r\n") for answer in answers] == [True] * 40
    assert all(b'"code":"stopping"' in answer for answer in answers[20:])


ROUTES = [
    "/api/v1/jobs/{}",
    "/api/v1/images/{}",
    "/api/v1/images/{}/file",
    "/api/v1/images/{}/thumbnail",
    "/api/v1/models/{}",
    "/v1/models/{}",
]
ROUTES += ["/assets/{}", "/{}", "/sdapi/v1/{}"]


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_leaves_its_folder(busy: Server, route: str) -> None:
    for way in (
        "../../../../etc/passwd",
        "..%2f..%2fdiffusette.sqlite3",
        "%2e%2e/%2e%2e/etc/passwd",
        "....//etc/passwd",
        "%00",
        "%c0%ae%c0%ae/x",
    ):
        with opened(busy, f"GET {route.format(way)}") as connection:
            answer = connection.recv(65536)
        assert answer.split(b" ")[1] in {b"400", b"404", b"403"}, (route, way, answer[:100])
        assert b"root:" not in answer
        assert b"SQLite" not in answer


def test_small_files_that_unpack_to_huge_images_are_refused_in_little_memory(busy: Server) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    text = zlib.compress(bytes(200 << 20), 9)
    noted = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    noted += chunk(b"zTXt", b"parameters\x00\x00" + text) + chunk(b"IDAT", zlib.compress(bytes(72))) + chunk(b"IEND", b"")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><!DOCTYPE x [<!ENTITY a "aaaa">]><text>&a;</text></svg>'
    before = busy.memory()
    for data, statuses in ((bomb, {400}), (noted, {200, 202, 400}), (svg, {400})):
        answer = busy.client.post("/api/v1/metadata", content=data, headers={"content-type": "image/png"})
        assert answer.status_code in {200, 400}, answer.text
        body = {"request": {"prompt": "x", "steps": 1, "init": base64.b64encode(data).decode()}}
        assert busy.client.post("/api/v1/jobs", json=body).status_code in statuses
    assert busy.memory() - before < 120 << 20


@pytest.mark.parametrize(
    "body",
    [
        {"batch_size": 1e308, "n_iter": 1e308},
        {"enable_hr": True, "hr_resize_x": 8, "width": 10**400, "height": 64},
        {"override_settings": {"sd_model_checkpoint": 5}},
        {"override_settings": [1]},
        {"sampler_name": "\x00"},
        {"seed": 1e30},
        {"clip_skip": 1e308},
    ],
)
def test_values_that_arithmetic_cannot_take_are_refused(busy: Server, body: dict[str, object]) -> None:
    answer = busy.client.post("/sdapi/v1/txt2img", json={"prompt": "x", "steps": 1, **body})
    assert 400 <= answer.status_code < 500, answer.text
