"""`make watermark`: how many of 500 varied images keep their watermark through what, and 5,000 without one. Writes docs/watermark.json.

It resumes where it stopped: each finished image is a line of build/watermark/*.jsonl.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusette.runtime.watermark.detect import detect
from diffusette.runtime.watermark.embed import embed
from tests.support.watermark_images import ATTACKS, DRAWN, ROOT, Sample, samples

MARKED, UNMARKED = 500, 5000
SMALL = ((256, 256), (256, 256), (320, 256), (256, 384))
"""Sizes of the unmarked images: chance does not depend on them, time does."""
_WORK = ROOT / "build" / "watermark"


def attacked(number: int, sample: Sample, attacks: Iterable[str] = ATTACKS) -> dict[str, Any]:
    """Mark one image and find the mark again after each of `attacks`."""
    pixels = np.asarray(sample.image)
    identifier = random.Random(number).getrandbits(32)
    started = time.perf_counter()
    marked = embed(pixels, identifier)
    seconds = time.perf_counter() - started
    error = float(np.mean((pixels.astype(float) - marked) ** 2))
    found: dict[str, Any] = {}
    for name in attacks:
        image = ATTACKS[name](Image.fromarray(marked), random.Random(number))
        began = time.perf_counter()
        mark = detect(np.asarray(image))
        found[name] = {
            "ok": mark is not None and mark.identifier == identifier,
            "wrong": mark is not None and mark.identifier != identifier,
        }
        found[name] |= {"score": round(mark.score, 2) if mark else 0, "seconds": round(time.perf_counter() - began, 3)}
    facts = {"number": number, "kind": sample.kind, "name": sample.name, "size": list(sample.image.size)}
    return {**facts, "psnr": round(10 * np.log10(255**2 / error), 2), "seconds": round(seconds, 4), "attacks": found}


def unmarked(number: int, sample: Sample) -> dict[str, Any]:
    """Look for a mark where there is none."""
    began = time.perf_counter()
    mark = detect(np.asarray(sample.image))
    return {"number": number, "name": sample.name, "found": mark is not None, "seconds": round(time.perf_counter() - began, 3)}


def _part(
    share: int, shares: int, path: Path, make: Callable[[], Iterable[Sample]], judge: Callable[[int, Sample], dict[str, Any]]
) -> None:
    """Judge every `shares`-th sample that has no line in `path` yet."""
    lines = path.with_suffix(f".{share}.jsonl")
    done = {json.loads(line)["number"] for line in lines.read_text().splitlines()} if lines.exists() else set()
    with lines.open("a") as out:
        for number, sample in enumerate(make()):
            if number % shares == share and number not in done:
                out.write(json.dumps(judge(number, sample)) + "\n")
                out.flush()


def _run(name: str, make: Callable[[], Iterable[Sample]], judge: Callable[[int, Sample], dict[str, Any]]) -> list[dict[str, Any]]:
    shares = min(2, os.cpu_count() or 1)
    workers = [multiprocessing.Process(target=_part, args=(share, shares, _WORK / name, make, judge)) for share in range(shares)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            sys.exit(worker.exitcode)
    lines = [line for path in sorted(_WORK.glob(f"{name}.*.jsonl")) for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda one: one["number"])


def summary(marked: list[dict[str, Any]], free: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates, misses and times."""
    rows = {}
    for name in ATTACKS:
        missed = [one for one in marked if not one["attacks"][name]["ok"]]
        rows[name] = {
            "found": round(1 - len(missed) / len(marked), 4),
            "wrong": sum(one["attacks"][name]["wrong"] for one in marked),
            "missed": [f"{one['name']} {one['size'][0]}×{one['size'][1]}" for one in missed],
        }
    psnr = [one["psnr"] for one in marked]
    return {
        "images": len(marked),
        "kinds": {kind: sum(one["kind"] == kind for one in marked) for kind in sorted({one["kind"] for one in marked})},
        "psnr": {"least": min(psnr), "median": float(np.median(psnr))},
        "attacks": rows,
        "unmarked": {"images": len(free), "found": [one["name"] for one in free if one["found"]]},
    }


def draw_demo_images() -> None:
    """Sixty images of the demo model, 256 to 512 pixels a side."""
    import diffusette
    from diffusette.models.bundle import DEMO

    subjects = [line.split(":")[0].strip().replace("-", " ") for line in (DEMO.parent / "subjects.txt").read_text().splitlines()[1:]]
    grounds = ["white", "black", "gray", "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown"]
    ways: list[dict[str, Any]] = [{"hires": 2}, {"width": 256, "height": 256}, {"hires": 4}, {"hires": 3}]
    DRAWN.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    with diffusette.load() as pipeline:
        for number in range(60):
            prompt = f"{rng.choice(subjects)}, {rng.choice(['noto', 'flat'])} style, {grounds[number % 12]} background"
            path = DRAWN / f"{number:02d}.png"
            if not path.exists():
                pipeline.generate(prompt, seed=number, steps=8, **ways[number % 4]).images[0].save(path)


def main() -> None:
    """Everything, and docs/watermark.json."""
    draw_demo_images()
    marked = _run("marked", partial(samples, MARKED), attacked)
    free = _run("unmarked", partial(samples, UNMARKED, 1, SMALL), unmarked)
    result = summary(marked, free)
    (ROOT / "docs" / "watermark.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for name, row in result["attacks"].items():
        print(f"{name:34s} {row['found']:.1%}  {row['wrong']} wrong")


if __name__ == "__main__":
    main()
