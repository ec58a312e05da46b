"""A real server process with a data folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

_LIMITED = """
import sys
from pathlib import Path
from diffusette.server.limits import Limits
from diffusette.server.serve import Setup, serve
serve(Setup(Path(sys.argv[1]), port=0, browser=False, limits=Limits(**{limits})), lambda url: print('{{"url": "' + url + '"}}', flush=True))
"""
ENDED = {"done", "failed", "cancelled"}


class Server:
    """`diffusette serve` on a free port, or the same with other limits than the command line offers."""

    def __init__(self, data: Path, *arguments: str, limits: dict[str, Any] | None = None, ready: bool = True) -> None:
        self.data = data
        command = [sys.executable, "-m", "diffusette", "serve", "--port", "0", "--no-browser", "--json", "--data", str(data), *arguments]
        if limits is not None:
            command = [sys.executable, "-c", _LIMITED.format(limits=limits), str(data)]
        data.mkdir(parents=True, exist_ok=True)
        self.log = data / "stderr.txt"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        text = ""
        for line in self.process.stdout:
            text += line
            with contextlib.suppress(ValueError):
                json.loads(text)
                break
        assert text, f"the server did not start: {self.log.read_text()}"
        self.url: str = json.loads(text)["url"].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])
        self.client = httpx.Client(base_url=self.url, timeout=60)
        if ready:
            self.until(lambda: self.client.get("/readyz").status_code == 200)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.send_signal(signal.SIGKILL)
        self._reap()

    def _reap(self) -> int:
        self.client.close()
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    @staticmethod
    def until(condition: Any, seconds: float = 30.0) -> Any:
        """The first true value of `condition`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError("it did not happen in time")

    def submit(self, prompt: str = "red apple", *, client: str = "", live: bool = False, front: bool = False, **fields: Any) -> str:
        """The id of a new job."""
        body = {"request": {"prompt": prompt, "seed": 7, **fields}, "client": client, "live": live, "front": front}
        answer = self.client.post("/api/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["job"]["id"]

    def job(self, identifier: str) -> dict[str, Any]:
        """The job now."""
        return self.client.get(f"/api/v1/jobs/{identifier}").json()["job"]

    def ended(self, identifier: str, seconds: float = 60.0) -> dict[str, Any]:
        """The job when it has ended."""
        return self.until(lambda: job if (job := self.job(identifier))["status"] in ENDED else None, seconds)

    def running(self, identifier: str) -> dict[str, Any]:
        """The job once it denoises."""
        return self.until(lambda: job if (job := self.job(identifier))["progress"] and job["progress"]["step"] else None)

    def images(self, **query: Any) -> list[dict[str, Any]]:
        """The gallery."""
        return self.client.get("/api/v1/images", params=query).json()["images"]

    def files(self) -> set[str]:
        """Names of the files in the gallery's folder."""
        return {path.name for path in (self.data / "images").iterdir()}

    def memory(self) -> int:
        """Bytes of memory that the process holds (Linux)."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def processor(self) -> float:
        """Seconds of processor time that the process took (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def events(self, after: int | None = None) -> Iterator[Iterator[dict[str, Any]]]:
        """Events of the stream as {"id", "event", "data"}."""
        query = {} if after is None else {"after": str(after)}
        with self.client.stream("GET", "/api/v1/events", params=query, timeout=30) as answer:
            assert answer.status_code == 200
            yield parsed(answer.iter_lines())


def parsed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Server-sent events."""
    event: dict[str, Any] = {}
    for line in lines:
        if not line:
            if "data" in event:
                yield {**event, "data": json.loads(event["data"])}
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value
