"""Two minutes of the long haul, in a process of its own; `make soak` takes twenty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_threads_and_files_stay_and_images_are_those_of_fresh_processes() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.support.soak", "90"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["temporary"] == []
    assert report["growth"] <= 0.05
    assert report["threads"][1] <= report["threads"][0]
    assert report["files"][1] <= report["files"][0]
    assert min(report["images"], report["cancelled"], report["refused"]) >= 5
