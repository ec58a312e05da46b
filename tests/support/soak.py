"""Hours of use in minutes: `make soak`, and two minutes of it in the tests.

One process opens the demo model again and again under every memory plan, and generates images of many sizes and samplers, with LoRAs, with
cancels and errors in between. Memory, threads, open files and temporary files must not grow, and every image must be the one that a fresh
process makes.

A process of its own runs it, so that nothing else counts: `python -m tests.support.soak SECONDS`.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusette.models.errors import Cancelled, DiffusetteError
from diffusette.runtime.pipeline import Pipeline, load
from diffusette.runtime.request import Request
from diffusette.runtime.sampling.samplers import SAMPLERS
from tests.support.demo_adapters import save_lora

PLANS = ("resident", "sequential", "streamed")
SIZES = ((128, 128), (128, 192), (192, 128), (64, 256), (256, 256))
JOBS = 24
ROUND = 8
"""Requests of a pipeline before it is closed."""
WRONG: tuple[Mapping[str, Any], ...] = (
    {"sampler": "none"},
    {"width": 100_000},
    {"guidance": float("nan")},
    {"loras": (("nowhere.safetensors", 1.0),)},
    {"prompt": "<lora:nowhere:1>"},
)


@dataclasses.dataclass
class Report:
    """What a soak left behind."""

    rounds: int = 0
    images: int = 0
    cancelled: int = 0
    refused: int = 0
    memory: list[float] = dataclasses.field(default_factory=list[float])
    """Resident memory after each round, in MB."""
    growth: float = 0.0
    """Of the median of the last third over that of the third after the first tenth."""
    threads: tuple[int, int] = (0, 0)
    """After the first tenth, and at the end; so are the others."""
    files: tuple[int, int] = (0, 0)
    temporary: list[str] = dataclasses.field(default_factory=list[str])
    """Files in the folder for temporary files at the end."""
    wrong: list[str] = dataclasses.field(default_factory=list[str])
    """Images that differ from those of a fresh process, and errors that are not ours."""


def fields_of(number: int, lora: Path) -> dict[str, Any]:
    """The request of job `number`, the same in every process."""
    chance = random.Random(number)
    width, height = chance.choice(SIZES)
    return {
        "prompt": chance.choice(("red apple, flat style", "fox, noto style", "[fox|rocket], blue background", "(star:1.3) AND moon")),
        "width": width,
        "height": height,
        "steps": chance.randint(1, 6),
        "seed": chance.randrange(2**32),
        "guidance": chance.choice((1.0, 4.0, 7.5)),
        "sampler": chance.choice(sorted(SAMPLERS)),
        "speed": chance.choice(("exact", "balanced", "fast")),
        "loras": ((lora, 0.8),) if chance.random() < 0.3 else (),
        "hires": 2.0 if chance.random() < 0.1 and width == 128 else 1.0,
    }


def plan_of(number: int) -> str:
    """Its memory plan."""
    return PLANS[number % len(PLANS)]


def digest(pipeline: Pipeline, number: int, lora: Path) -> str:
    """The pixels of job `number`, as a hash."""
    return hashlib.sha256(pipeline.generate(**fields_of(number, lora)).images[0].tobytes()).hexdigest()


def soak(seconds: float, lora: Path, seed: int = 0) -> tuple[Report, dict[int, str]]:
    """Use the demo model for `seconds`; returns the report, and the hash of each job."""
    chance, report, hashes = random.Random(seed), Report(), dict[int, str]()
    started, early = time.monotonic(), False
    first = (0, 0)
    while (spent := time.monotonic() - started) < seconds:
        plan = chance.choice(PLANS)
        with load(provider="cpu", memory=plan) as pipeline:
            for _ in range(ROUND):
                _one(pipeline, chance, plan, lora, report, hashes)
        del pipeline
        gc.collect()
        report.rounds += 1
        if spent >= seconds / 10:
            if not early:
                early, first = True, (threads(), files())
            report.memory.append(resident())
    third = max(1, len(report.memory) // 3)
    report.growth = median(report.memory[-third:]) / median(report.memory[:third]) - 1
    report.threads, report.files = (first[0], threads()), (first[1], files())
    return report, hashes


def _one(pipeline: Pipeline, chance: random.Random, plan: str, lora: Path, report: Report, hashes: dict[int, str]) -> None:
    kind = chance.random()
    try:
        if kind < 0.15:
            pipeline.generate(**{"prompt": "fox", **chance.choice(WRONG)})
            report.wrong.append("a wrong request was accepted")
        elif kind < 0.3:
            _cancelled(pipeline, chance.uniform(0, 0.3))
            report.wrong.append("a cancelled request went on")
        elif kind < 0.4:
            for event in pipeline.steps(_left()):  # left in the middle
                del event
                break
            report.cancelled += 1
        else:
            number = chance.choice([job for job in range(JOBS) if plan_of(job) == plan])
            found = digest(pipeline, number, lora)
            report.images += 1
            if hashes.setdefault(number, found) != found:
                report.wrong.append(f"job {number} gave another image than before")
    except Cancelled:
        report.cancelled += 1
    except DiffusetteError:
        report.refused += 1
    except Exception as error:  # noqa: BLE001  # told in the report
        report.wrong.append(repr(error))


def _cancelled(pipeline: Pipeline, seconds: float) -> None:
    """A request that another thread cancels, `seconds` after its first event."""
    timer = threading.Timer(seconds, pipeline.cancel)

    def begun(_event: object) -> None:
        if timer.ident is None:
            timer.start()

    pipeline.watch(Request("fox", steps=500, seed=1), begun)


def _left() -> Request:
    """A request that is left after its first step."""
    return Request("fox", steps=20, seed=1)


def fresh(number: int, lora: Path) -> str:
    """The hash of job `number` in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from tests.support import soak; "
        f"print(soak.digest(soak.load(provider='cpu', memory=soak.plan_of({number})), {number}, Path(sys.argv[1])))"
    )
    return subprocess.run([sys.executable, "-c", code, str(lora)], capture_output=True, text=True, check=True).stdout.strip()


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def resident() -> float:
    """Resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def threads() -> int:
    return len([*Path("/proc/self/task").iterdir()])


def files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def run(seconds: float) -> Report:
    """Soak, and compare every image with that of a fresh process."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("tmp", "cache"):
            (folder / name).mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        lora = save_lora(folder / "style.safetensors")
        report, hashes = soak(seconds, lora)
        report.temporary = sorted(path.name for path in (folder / "tmp").iterdir())
        for number, found in sorted(hashes.items()):
            if fresh(number, lora) != found:
                report.wrong.append(f"job {number} differs from that of a fresh process")
        return report


if __name__ == "__main__":
    made = run(float(sys.argv[1]) if len(sys.argv) > 1 else 1200.0)
    print(json.dumps(dataclasses.asdict(made), indent=1))
    sys.exit(bool(made.wrong or made.temporary or made.growth > 0.05))
