"""Faults of the disk, of the database, and of jobs that kill the server, caused for real."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.server.test_serve import refused
from tests.support.server_process import Server

resource = pytest.importorskip("resource", reason="needs Unix")


def execute(data: Path, *statements: str) -> None:
    """Change the database of a server that does not run."""
    with sqlite3.connect(data / "diffusette.sqlite3") as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def test_damaged_rows_are_skipped_and_named_and_a_deadly_job_is_set_aside(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        images = [server.ended(server.submit(f"image {number}", steps=1))["images"][0]["id"] for number in range(6)]
        server.client.put("/api/v1/settings", json={"settings": {"theme": "dark", "size": 3}})
        jobs = [
            server.submit("deadly", steps=400, width=256, height=256),
            *(server.submit(f"after {number}", steps=1) for number in range(3)),
        ]
        server.running(jobs[0])
        server.kill()
    with sqlite3.connect(tmp_path / "diffusette.sqlite3") as db:
        assert db.execute("SELECT job, times FROM begun").fetchall() == [(jobs[0], 1)]
    db.close()
    execute(
        tmp_path,
        "UPDATE begun SET times = 5",  # four more deaths
        f"UPDATE images SET data = '{{\"half\": ' WHERE id = '{images[0]}'",
        f"UPDATE images SET settings = 17 WHERE id = '{images[1]}'",
        f"UPDATE images SET file = '../diffusette.sqlite3' WHERE id = '{images[2]}'",
        f"UPDATE images SET file = '' WHERE id = '{images[3]}'",
        f"UPDATE images SET prompt = CAST(x'ff80' AS TEXT), number = 'x' WHERE id = '{images[4]}'",
        f"UPDATE jobs SET data = CAST('[1, 2]' AS BLOB) WHERE id = '{jobs[1]}'",
        f"UPDATE jobs SET place = 'nowhere' WHERE id = '{jobs[2]}'",
        "INSERT INTO jobs VALUES (NULL, 'queued', 0, x'', x'')",
        "INSERT INTO jobs VALUES ('zzzz', 'done', 0, 5, 5)",
        "INSERT INTO images VALUES ('~', 'j', 0, 'f', 'm', 'p', 1.0, x'ff', x'ff')",
        "UPDATE settings SET value = '{' WHERE name = 'size'",
    )
    with Server(tmp_path) as server:
        assert server.ended(jobs[2])["status"] == "done"
        assert server.ended(jobs[3])["status"] == "done"
        aside = server.job(jobs[0])
        assert (aside["status"], aside["error"]["code"]) == ("failed", "model_error")
        assert "5 times" in aside["error"]["message"]
        shown = server.client.get("/api/v1/images", params={"limit": 3}).json()
        assert {image["prompt"] for image in shown["images"]} == {"after 2", "after 1", "image 5"}
        assert shown["more"] is False
        assert server.client.get("/api/v1/state").json()["settings"] == {"theme": "dark"}
        for image in images[:5]:
            assert server.client.get(f"/api/v1/images/{image}").status_code == 404
            assert server.client.delete(f"/api/v1/images/{image}").status_code == 404
        assert server.client.get(f"/api/v1/jobs/{jobs[1]}").status_code == 404
        assert (tmp_path / "images").is_dir()
    log = server.log.read_text()
    for row in (*images[:5], jobs[1], "zzzz", "size"):
        assert f"'{row}': the row is damaged" in log
    assert log.count(f"'{images[0]}'") == 1
    assert "Traceback" not in log


def test_a_job_counts_as_deadly_only_without_an_image_and_only_if_it_was_not_stopped(tmp_path: Path) -> None:
    from diffusette.server.jobs.events import EventLog
    from diffusette.server.jobs.queue import MAX_BEGUN, Queue
    from diffusette.server.jobs.records import Identifiers, Image, Job, Options
    from diffusette.server.jobs.store import Store
    from diffusette.server.limits import Limits

    identifier = Identifiers().new()
    job = Job(id=identifier, kind="generate", status="queued", model="m", created=time.time())
    image = Image(id="i", job=identifier, url="", thumbnail="", width=8, height=8, seed=1, prompt="", negative="", model="m", created=0.0)

    def run(times: int, *, stopped: bool = False, with_image: bool = False) -> int:
        for _ in range(times):
            store = Store(tmp_path / "db")
            queue = Queue(store, EventLog(0), Limits())
            queue.restore(store.waiting())
            if not queue.current():
                if store.job(identifier) is not None:
                    store.close()
                    break
                queue.submit(job, Options(seed=1, variation_seed=1))
            entry = queue.take()
            assert entry is not None
            if with_image:
                queue.add_image(entry, image)
            if stopped:
                queue.put_back(entry)
            store.close()  # as the end of the process does
        store = Store(tmp_path / "db")
        begun = sum(entry.begun for entry in store.waiting())
        store.close()
        return begun

    assert run(8, stopped=True) == 0
    assert run(8, with_image=True) == 0
    assert run(MAX_BEGUN) == MAX_BEGUN
    run(1)
    store = Store(tmp_path / "db")
    ended = store.job(identifier)
    store.close()
    assert ended is not None
    assert ended.status == "failed"


@pytest.mark.parametrize("name", ["diffusette.sqlite3", "images", "inputs", "trash"])
def test_a_folder_or_file_in_the_wrong_place_is_one_line_with_its_path(tmp_path: Path, name: str) -> None:
    if name.endswith("sqlite3"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("a file")
    done = refused("--port", "0", "--data", str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(tmp_path / name) in done.stderr


def test_a_read_only_data_folder_is_one_line_with_the_reason(tmp_path: Path) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system")
    for filled in (False, True):
        folder = tmp_path / str(filled)
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "none", folder], check=False, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
        try:
            if filled:
                for name in ("images", "inputs", "trash", "thumbnails"):
                    (folder / name).mkdir()
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            done = refused("--port", "0", "--data", str(folder))
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert str(folder) in done.stderr


def test_disk_errors_at_run_time_are_5xx_and_pass(tmp_path: Path) -> None:
    (tmp_path / "inputs" / ("0" * 25 + "-init")).mkdir(parents=True)
    (tmp_path / "images" / ("0" * 25 + ".png")).mkdir(parents=True)
    with Server(tmp_path, ready=False) as server:
        opening = next(job for job in server.client.get("/api/v1/jobs").json()["jobs"] if job["kind"] == "open")
        cancelled = time.monotonic()
        server.client.delete(f"/api/v1/jobs/{opening['id']}")
        assert server.ended(opening["id"])["status"] in {"cancelled", "done"}
        assert time.monotonic() - cancelled < 5
        kept = server.ended(server.submit("kept", steps=1))["images"][0]
        shutil.move(tmp_path / "images", tmp_path / "elsewhere")
        failed = server.ended(server.submit("no folder", steps=1))
        assert (failed["status"], failed["error"]["code"]) == ("failed", "disk_error")
        assert server.client.post("/sdapi/v1/txt2img", json={"prompt": "x", "steps": 1}).status_code == 500
        shutil.move(tmp_path / "elsewhere", tmp_path / "images")
        shutil.move(tmp_path / "inputs", tmp_path / "elsewhere")
        body = {"request": {"prompt": "x", "steps": 1, "init": {"image": kept["id"]}}}
        answer = server.client.post("/api/v1/jobs", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "disk_error")
        assert str(tmp_path) not in answer.text
        shutil.move(tmp_path / "elsewhere", tmp_path / "inputs")
        pid, before = server.process.pid, resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, before[1]))  # no file of this process may grow
        answer = server.client.post("/api/v1/jobs", json={"request": {"prompt": "x" * 9000, "steps": 1}})
        assert (answer.status_code, answer.json()["error"]["code"]) in {(507, "disk_full"), (500, "disk_error")}
        assert server.client.get("/api/v1/state").status_code == 200
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        assert server.ended(server.submit("again", steps=1))["status"] == "done"
    assert "Traceback" not in server.log.read_text()
