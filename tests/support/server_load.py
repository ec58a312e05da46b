"""Many clients at once against a real server: `make test-server-load`, and a small one in the tests.

Clients use all three APIs, cancel at random, and go away at random. The report says what was lost, how fair the order was, how much the
memory grew, and how the throughput compares with the bare pipeline's on the same machine.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from tests.support.server_process import Server

FIELDS = {"steps": 4, "width": 128, "height": 128}


@dataclass
class Report:
    """What a load left behind."""

    asked: int = 0
    done: int = 0
    cancelled: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    """Jobs and images that should be there and are not."""
    most_waiting: int = 0
    unfairness: int = 0
    """The most jobs by which one client was ahead of another that waited all the while."""
    memory_before: int = 0
    memory_after: int = 0
    seconds: float = 0.0


class Client(threading.Thread):
    """One client with requests of its own."""

    def __init__(self, server: Server, name: str, requests: int, seed: int) -> None:
        super().__init__()
        self.server = server
        self.label = name
        self.requests = requests
        self.chance = random.Random(seed)
        self.kept: list[str] = []
        """Jobs that must end well."""
        self.dropped: list[str] = []
        self.images = 0
        self.refused = 0
        self.failures: list[str] = []

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self.server.url, timeout=120) as client:
                for number in range(self.requests):
                    self.ask(client, number)
        except Exception as error:  # noqa: BLE001  # told in the report
            self.failures.append(f"{self.label}: {error!r}")

    def ask(self, client: httpx.Client, number: int) -> None:
        kind = self.chance.random()
        prompt = f"{self.label} number {number}"
        if kind < 0.1:  # goes away in the middle
            with suppress(httpx.TimeoutException):
                answer = client.post(
                    "/sdapi/v1/txt2img", json={"prompt": f"gone {prompt}", **FIELDS}, timeout=self.chance.uniform(0.05, 0.5)
                )
                self.images += len(answer.json().get("images", ()))
        elif kind < 0.2:
            answer = client.post("/v1/images/generations", json={"prompt": prompt, "size": "128x128", "steps": 4})
            self.count(answer, len(answer.json().get("data", ())))
        elif kind < 0.3:
            answer = client.post("/sdapi/v1/txt2img", json={"prompt": prompt, **FIELDS})
            self.count(answer, len(answer.json().get("images", ())))
        else:
            answer = client.post("/api/v1/jobs", json={"request": {"prompt": prompt, **FIELDS}, "client": self.label})
            if answer.status_code != 202:
                self.refused += 1
                return
            identifier = answer.json()["job"]["id"]
            if self.chance.random() < 0.2:
                time.sleep(self.chance.uniform(0, 0.5))
                client.delete(f"/api/v1/jobs/{identifier}")
                self.dropped.append(identifier)
            else:
                self.kept.append(identifier)

    def count(self, answer: httpx.Response, images: int) -> None:
        if answer.status_code == 200:
            self.images += images
        else:
            self.refused += 1


def load(server: Server, clients: int, requests: int, seed: int = 0) -> Report:
    """Let `clients` make `requests` in all, and check everything afterwards."""
    report = Report(asked=requests, memory_before=server.memory())
    started = time.monotonic()
    every = [Client(server, f"client-{number}", requests // clients, seed * 1000 + number) for number in range(clients)]
    for one in every:
        one.start()
    for one in every:
        one.join()
    jobs = {identifier: server.ended(identifier, 600) for one in every for identifier in (*one.kept, *one.dropped)}
    server.until(
        lambda: not [job for job in server.client.get("/api/v1/jobs").json()["jobs"] if job["status"] in {"queued", "running"}], 600
    )
    report.seconds = time.monotonic() - started
    report.memory_after = server.memory()
    report.refused = sum(one.refused for one in every)
    for one in every:
        report.lost += one.failures
        report.lost += [
            f"job {identifier} is {jobs[identifier]['status']}" for identifier in one.kept if jobs[identifier]["status"] != "done"
        ]
        report.lost += [
            f"job {identifier} is {jobs[identifier]['status']}"
            for identifier in one.dropped
            if jobs[identifier]["status"] not in {"done", "cancelled"}
        ]
    statuses = Counter(job["status"] for job in jobs.values())
    report.done, report.cancelled = statuses["done"], statuses["cancelled"]
    for job in jobs.values():
        for image in job["images"]:
            answer = server.client.get(image["url"])
            if not (answer.status_code == 200 and answer.content.endswith(b"IEND\xaeB`\x82")):
                report.lost.append(f"image {image['id']}")
    strays = server.files() - {f"{image['id']}.png" for image in all_images(server)}
    report.lost += [f"stray file {name}" for name in strays]
    report.unfairness = unfairness([job for job in jobs.values() if job["status"] == "done"])
    return report


def all_images(server: Server) -> list[dict[str, object]]:
    """The whole gallery."""
    found: list[dict[str, object]] = []
    while True:
        answer = server.client.get("/api/v1/images", params={"limit": 500, **({"before": found[-1]["id"]} if found else {})}).json()
        found += answer["images"]
        if not answer["more"]:
            return found


def unfairness(jobs: list[dict[str, object]]) -> int:
    """The most jobs of one client that began while one job of another, which came before them, waited, beyond one each."""
    worst = 0
    for job in jobs:
        between = [
            other["client"]
            for other in jobs
            if other["client"] != job["client"] and job["created"] < other["created"] and other["started"] < job["started"]  # type: ignore[operator]
        ]
        mine = sum(
            one["client"] == job["client"] and job["created"] > one["created"] and one["ended"] > job["created"]  # type: ignore[operator]
            for one in jobs
        )
        worst = max(worst, max(Counter(between).values(), default=0) - mine - 1)
    return worst


def throughput(server: Server, images: int, rounds: int) -> tuple[list[float], list[float]]:
    """Images a second, and images a second of processor time, over those of the bare pipeline; in turns, since machines are busy."""
    import diffusette

    ratios: list[float] = []
    processor: list[float] = []
    with diffusette.load() as pipeline:
        request = diffusette.Request("fox", seed=1, count=1)
        for _ in range(rounds):
            bare, busy = time.perf_counter(), time.process_time()
            for seed in range(images):
                pipeline.generate(request, seed=seed)
            bare, busy = time.perf_counter() - bare, time.process_time() - busy
            before = server.processor()
            jobs = [server.submit("fox", seed=seed, client=str(seed % 7)) for seed in range(images)]
            while server.job(jobs[-1])["status"] != "done":  # seldom, since asking takes time too
                time.sleep(0.5)
            ended = [server.ended(identifier, 600) for identifier in jobs]
            processor.append(busy / (server.processor() - before))
            served = max(job["ended"] for job in ended) - min(job["started"] for job in ended)
            ratios.append(bare / served)
    return ratios, processor


def crashes(data: Path, times: int, seed: int = 0) -> list[str]:
    """Kill a working server `times` times at random moments; what was lost."""
    chance, lost = random.Random(seed), list[str]()
    known: dict[str, dict[str, object]] = {}
    pending: set[str] = set()
    for _ in range(times):
        server = Server(data, ready=False)
        for _ in range(chance.randint(1, 6)):
            pending.add(server.submit("survivor", seed=None, steps=chance.randint(1, 12), count=chance.randint(1, 3)))
        deadline = time.monotonic() + chance.uniform(0.1, 4.0)
        while time.monotonic() < deadline:
            for identifier in list(pending):
                job = server.job(identifier)
                known |= {image["id"]: image for image in job["images"]}
                if job["status"] == "done":
                    pending.discard(identifier)
            time.sleep(0.05)
        server.kill()
    with Server(data) as server:
        for identifier in pending:
            job = server.ended(identifier, 300)
            known |= {image["id"]: image for image in job["images"]}
            if job["status"] != "done" or len(job["images"]) != job["request"].get("count", 1):
                lost.append(f"job {identifier} is {job['status']} with {len(job['images'])} images")
        for identifier, image in known.items():
            answer = server.client.get(str(image["url"]))
            if answer.status_code != 200 or not answer.content.endswith(b"IEND\xaeB`\x82"):
                lost.append(f"image {identifier}")
        there = {f"{image['id']}.png" for image in all_images(server)}
        lost += [f"stray file {name}" for name in server.files() ^ there]
    return lost


def main(requests: int = 500, clients: int = 40, kills: int = 20) -> int:
    """The full load; exit code 1 if anything was lost or is out of bounds."""
    with tempfile.TemporaryDirectory() as folder:
        with Server(Path(folder, "load"), "--quiet", "--queue", "1000") as server:
            load(server, clients, clients * 2, seed=1)  # warm: arenas, caches
            report = load(server, clients, requests)
            ratios, processor = throughput(server, 40, 5)
        lost = crashes(Path(folder, "crashes"), kills)
    growth = report.memory_after / report.memory_before - 1
    found = {
        **asdict(report),
        "growth": round(growth, 4),
        "throughput": round(statistics.median(ratios), 3),
        "ratios": ratios,
        "processor": processor,
        "crashes": lost,
    }
    print(json.dumps(found, indent=2))
    return int(bool(report.lost or lost or growth > 0.05 or statistics.median(ratios) < 0.95 or report.unfairness > 0))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
