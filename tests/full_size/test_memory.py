"""Memory and start of a model of SD 1.5's size, random weights, 512×512: `make test-full`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusette.benchmarks.measure.memory import Peak, Sampler
from diffusette.runtime.engine import providers
from diffusette.runtime.engine.session import SessionOptions, open_session
from tests.full_size import test_export

pytestmark = [pytest.mark.full, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and sets limits")]
GB = 1e9


@pytest.fixture(scope="module")
def bundle() -> Path:
    """The int8 bundle; exported if it is not there."""
    found = test_export.CACHE / "int8"
    if not (found / "manifest.json").exists():
        test_export.export(test_export.full_size.save(test_export.CACHE / "source"), "int8")
    return found


def drawn(bundle: Path, picture: Path, *options: str, limit: str = "") -> tuple[dict[str, object], Peak]:
    """What `generate` says, and the peak of its memory from prompt to PNG; `limit` is run before it."""
    code = f"import resource; {limit}\nfrom diffusette.__main__ import main; main()"
    command = ["generate", "a red apple", "--model", str(bundle), "--steps", "2", "--seed", "7", "-o", str(picture), "--json"]
    process = subprocess.Popen([sys.executable, "-c", code, *command, *options], stdout=subprocess.PIPE, text=True)
    with Sampler(process.pid) as sampler:
        said, _ = process.communicate()
    assert process.returncode == 0
    with Image.open(picture) as image:
        assert image.size == (512, 512)
        assert np.asarray(image).std() > 1
    return json.loads(said), sampler.peak()


def test_streamed_draws_in_little_memory_and_next_to_nothing_is_done_beside_the_model(bundle: Path, tmp_path: Path) -> None:
    said, peak = drawn(bundle, tmp_path / "a.png", "--memory", "streamed")
    assert peak.anonymous is not None
    assert peak.anonymous < 0.7 * GB
    timings = said["timings"]
    assert isinstance(timings, dict)
    total = timings.pop("total")
    assert total - sum(timings.values()) < 0.01 * total


def test_resident_draws_in_1_6_gigabytes(bundle: Path, tmp_path: Path) -> None:
    drawn(bundle, tmp_path / "a.png", "--memory", "resident")  # where the optimized graph is not there yet, it is made in more
    _, peak = drawn(bundle, tmp_path / "a.png", "--memory", "resident")
    assert peak.rss < 1.6 * GB


def test_sequential_draws_in_1_2_gigabytes(bundle: Path, tmp_path: Path) -> None:
    drawn(bundle, tmp_path / "a.png", "--memory", "sequential")  # likewise
    _, peak = drawn(bundle, tmp_path / "a.png", "--memory", "sequential")
    assert peak.rss < 1.2 * GB


def test_a_picture_comes_out_under_a_hard_limit_of_one_and_a_half_gigabytes(bundle: Path, tmp_path: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_DATA, (1_500_000_000, resource.RLIM_INFINITY))"
    said, _ = drawn(bundle, tmp_path / "a.png", "--memory", "auto", "--no-cache", limit=limit)
    notes = said["notes"]
    assert isinstance(notes, list)
    assert any(note.startswith("not enough memory for the plan") for note in notes)


def test_the_second_start_is_fast_and_takes_a_fraction_of_the_memory(bundle: Path, tmp_path: Path) -> None:
    options = SessionOptions(cache=tmp_path / "cache")
    seconds: list[float] = []
    for _ in range(2):
        started = time.perf_counter()
        open_session(bundle / "unet/model.onnx", providers.resolve("cpu"), options).close()
        seconds.append(time.perf_counter() - started)
    assert seconds[1] < 0.4 * seconds[0]


def test_the_first_step_begins_soon_after_a_second_start(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\nstarted = time.perf_counter()\nfrom diffusette.runtime import pipeline\n"
        "drawer = pipeline.load(sys.argv[1], memory='resident')\n"
        "seen = []\n"
        "for event in drawer.steps(pipeline.Request('a red apple', seed=7, steps=2, guidance=1.0)):\n"
        "    seen.append(time.perf_counter() - started)\n"
        "    if len(seen) == 2: break\n"
        "print(seen[0] - (seen[1] - seen[0]))"  # the second step is a step alone
    )
    environment = os.environ | {"DIFFUSETTE_CACHE": str(tmp_path)}
    begun: list[float] = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True, env=environment)
        begun.append(float(done.stdout))
    assert min(begun[1:]) < 5.0  # on a quiet machine with two cores: under 3
