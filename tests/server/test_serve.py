"""The command: what it refuses, what it prints, how it stops, what it survives."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.support.guarded_bundles import guarded
from tests.support.server_process import Server

SECRET = "a very private prompt"


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffusette", "serve", "--no-browser", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "DIFFUSETTE_TOKEN": ""})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_beyond_loopback_without_a_token_it_refuses_to_start(tmp_path: Path, host: str) -> None:
    done = refused("--host", host, "--data", str(tmp_path / "data"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "DIFFUSETTE_TOKEN" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = refused("--port", str(taken.getsockname()[1]), "--data", str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "in use" in done.stderr


def test_a_second_server_on_the_same_data_is_refused_in_one_line(server: Server) -> None:
    done = refused("--port", "0", "--data", str(server.data))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "another server" in done.stderr


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    done = refused("--port", "0", "--model", str(tmp_path), "--data", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "no model in this folder" in done.stderr


def test_a_damaged_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "diffusette.sqlite3").write_bytes(b"not a database, but long enough to be taken for one" * 100)
    done = refused("--port", "0", "--data", str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "move it away" in done.stderr


def test_sigterm_ends_it_within_seconds_and_its_job_goes_on_at_the_next_start(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        running = server.submit("running", steps=40, width=256, height=256)
        waiting = server.submit("waiting", steps=2)
        answers: list[httpx.Response] = []
        body = {"prompt": "held", "steps": 2, "width": 128, "height": 128}
        held = threading.Thread(target=lambda: answers.append(httpx.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=30)))
        held.start()
        server.running(running)
        server.until(lambda: len(server.client.get("/api/v1/jobs").json()["jobs"]) == 4)
        started = time.monotonic()
        with server.events() as stream:
            server.process.send_signal(signal.SIGTERM)
            assert {event["event"] for event in stream} <= {"job", "progress", "preview", "queue"}
        assert server.stop() == 0
        assert time.monotonic() - started < 5
        held.join()
        assert answers[0].status_code == 503
    assert list((tmp_path / "images").iterdir()) == []
    with Server(tmp_path) as server:
        assert server.ended(running)["status"] == "done"
        assert server.ended(waiting)["status"] == "done"
        assert {job["prompt"]: job["status"] for job in server.client.get("/api/v1/jobs").json()["jobs"]}["held"] == "cancelled"


def test_after_a_crash_nothing_finished_is_lost_and_the_queue_goes_on(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        finished = server.ended(server.submit("finished", steps=2, count=2))
        running = server.submit("running", steps=30, count=4, seed=50)
        waiting = [server.submit(f"waiting {number}", steps=1, client="b") for number in range(3)]
        server.client.post(f"/api/v1/jobs/{waiting[2]}/move", json={"before": waiting[0]})
        server.client.put("/api/v1/settings", json={"settings": {"theme": "dark"}})
        server.until(lambda: server.job(running)["images"])
        done = server.job(running)["images"]
        event = server.client.get("/api/v1/state").json()["event"]
        server.kill()
    (tmp_path / "images" / f"{'0' * 25}.png").write_bytes(b"half")
    (tmp_path / "images" / f".{'0' * 16}.part").write_bytes(b"half")
    (tmp_path / "images" / "mine.png").write_bytes(b"somebody's own")
    with Server(tmp_path, ready=False) as server:
        state = server.client.get("/api/v1/state").json()
        assert state["event"] > event
        assert state["settings"] == {"theme": "dark"}
        assert [job["id"] for job in state["jobs"] if job["status"] in {"queued", "running"}] == [running, waiting[2], *waiting[:2]]
        job = server.ended(running)
        assert [image["seed"] for image in job["images"]] == [50, 51, 52, 53]
        assert job["images"][: len(done)] == done
        for identifier in waiting:
            assert server.ended(identifier)["status"] == "done"
        assert server.job(finished["id"])["images"] == finished["images"]
        assert server.files() - {"mine.png"} == {f"{image['id']}.png" for image in server.images()}
        assert len(server.images()) == 9


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    with Server(tmp_path, "--queue", "25") as server:
        long = server.submit("long", steps=400, width=256, height=256)
        server.running(long)
        answers = [server.client.post("/api/v1/jobs", json={"request": {"prompt": f"{number}", "steps": 1}}) for number in range(150)]
        assert [answer.status_code for answer in answers] == [202] * 25 + [429] * 125
        assert answers[-1].json()["error"]["code"] == "queue_full"
        assert int(answers[-1].headers["retry-after"]) > 0
        assert server.client.post("/sdapi/v1/txt2img", json={"prompt": "x"}).status_code == 429
        assert server.client.post("/v1/images/generations", json={"prompt": "x"}).status_code == 429
        server.client.post("/api/v1/queue/clear")
        server.client.delete(f"/api/v1/jobs/{long}")
        assert server.ended(server.submit("after", steps=1))["status"] == "done"


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 3 MB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    return folder


def test_a_full_disk_is_507_and_the_server_lives(small_disk: Path) -> None:
    try:
        with Server(small_disk) as server:
            kept = server.ended(server.submit("kept", steps=1))
            filler = small_disk / "filler"
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(b"x" * 4096)
            statuses = {server.client.post("/sdapi/v1/txt2img", json={"prompt": "x" * 9000, "steps": 1}).status_code for _ in range(5)}
            assert 507 in statuses
            assert statuses <= {507, 200}
            assert server.client.get("/api/v1/state").status_code == 200
            assert not [name for name in server.files() if name.endswith(".part")]
            filler.unlink()
            assert server.ended(server.submit("again", steps=1))["status"] == "done"
            assert server.client.get(kept["images"][0]["url"]).status_code == 200
            assert len(server.files()) == len(server.images())
    finally:
        subprocess.run(["umount", "-l", small_disk], check=True)


def test_prompts_stay_out_of_the_log_unless_asked(tmp_path: Path) -> None:
    for arguments, told in (((), False), (("--log-prompts",), True)):
        with Server(tmp_path / str(told), *arguments) as server:
            server.ended(server.submit(SECRET, steps=1))
            server.images(q=SECRET)
            server.client.post("/sdapi/v1/txt2img", json={"prompt": SECRET, "steps": 1})
        log = server.log.read_text()
        assert "POST /sdapi/v1/txt2img 200" in log
        assert ("very%20private" in log or "very+private" in log) == told
        assert (SECRET in log) == told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--provider", "cpu", "--device", "3"), "device 3: cpu has no such device"), (("--provider", "qnn"), "'qnn' runs 'portable'")],
)
def test_a_provider_or_device_that_is_not_there_ends_the_start(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    command = [sys.executable, "-m", "diffusette", "serve", "--port", "0", "--no-browser", "--data", str(tmp_path / "data"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr


def test_models_tell_whether_images_are_checked_and_flagged_ones_are_blurred_if_asked(tmp_path: Path) -> None:
    from diffusette.models.bundle import DEMO

    checked = guarded(DEMO, tmp_path / "checked", threshold=-2.0)
    with Server(tmp_path / "data", "--model", str(DEMO), "--model", str(checked), "--flagged", "blur") as server:
        plain, other = server.client.get("/api/v1/models").json()["models"]
        assert (plain["safety"], other["safety"]) == ("none", "on")
        told = [line for line in server.log.read_text().splitlines() if "not checked" in line]
        assert told == [f"images of {plain['id']} are not checked: it has no safety checker"]
        body = {"model": other["id"], "request": {"prompt": "x", "steps": 1}}
        job = server.ended(server.client.post("/api/v1/jobs", json=body).json()["job"]["id"])
        (made,) = job["images"]
        assert made["flagged"]
        assert "so it is blurred" in " ".join(job["notes"])
        with Image.open(io.BytesIO(server.client.get(f"/api/v1/images/{made['id']}/file").content)) as image:
            assert max(high for _, high in image.convert("RGB").getextrema()) > 0
    with Server(tmp_path / "other", "--model", str(checked), "--no-safety-filter") as server:
        assert server.client.get("/api/v1/models").json()["models"][0]["safety"] == "off"
        assert server.log.read_text().count("are not checked: its safety checker is turned off") == 1


def test_two_models_take_turns_by_way_of_the_queue(tmp_path: Path) -> None:
    from diffusette.models.bundle import DEMO

    shutil.copytree(DEMO, tmp_path / "other")
    manifest = json.loads((DEMO / "manifest.json").read_text())
    manifest["source"]["name"] = "other"
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    with Server(tmp_path / "data", "--model", str(DEMO), "--model", str(tmp_path / "other")) as server:
        demo, other = (model["id"] for model in server.client.get("/api/v1/models").json()["models"])
        assert server.client.get("/api/v1/state").json()["resident"] == demo
        job = server.client.post("/api/v1/jobs", json={"model": other, "request": {"prompt": "x", "steps": 1}}).json()["job"]
        assert server.ended(job["id"])["status"] == "done"
        assert server.client.get("/api/v1/state").json()["resident"] == other
        titles = {one["title"]: one["model_name"] for one in server.client.get("/sdapi/v1/sd-models").json()}
        title = next(title for title in titles if title.startswith("diffusette-demo"))
        assert server.client.post("/sdapi/v1/options", json={"sd_model_checkpoint": title}).text == "null"
        server.until(lambda: server.client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0)
        assert server.client.get("/api/v1/state").json()["resident"] == demo
        assert server.client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == title
