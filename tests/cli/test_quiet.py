"""A run is quiet and private: no socket of the internet, no file outside the folders of output, cache and data."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = "socket,connect,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate"
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|\b(?:creat|mkdir(?:at)?|rename\w*|link(?:at)?|symlink(?:at)?|truncate)\(")
PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')


@pytest.fixture
def rooms(tmp_path: Path) -> dict[str, str]:
    """An environment with empty folders of its own, signatures and watermark as users have them."""
    folders = {"HOME": "home", "XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "TMPDIR": "temporary"}
    for name in (*folders.values(), "out"):
        (tmp_path / name).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIFFUSETTE_", "ORT_", "XDG_"))}
    return kept | {name: str(tmp_path / folder) for name, folder in folders.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}


def drawing(tmp_path: Path) -> list[str]:
    return [sys.executable, "-m", "diffusette", "generate", "fox", "--seed", "1", "--steps", "2", "-o", str(tmp_path / "out/fox.png")]


def files(tmp_path: Path) -> set[str]:
    return {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_a_run_opens_no_socket_of_the_internet_and_writes_only_to_output_cache_and_data(tmp_path: Path, rooms: dict[str, str]) -> None:
    log = tmp_path / "calls"
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={CALLS}", *drawing(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=rooms, cwd=tmp_path, check=False)
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("may not trace processes")
    assert done.returncode == 0, done.stderr
    calls = log.read_text(errors="replace").splitlines()
    assert not [call for call in calls if "AF_INET" in call]
    written = [call for call in calls if WRITES.search(call) and "= -1 " not in call]
    allowed = (*(str(tmp_path / name) for name in ("out", "cache", "data")), "/dev/null", "/dev/tty")
    assert written
    assert not [call for call in written if any(not path.startswith(allowed) for path in PATH.findall(call))]
    assert files(tmp_path) - {"calls"} <= {"out", "cache", "data"}


def test_a_run_needs_no_network_at_all(tmp_path: Path, rooms: dict[str, str]) -> None:
    without = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*without, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make an empty network")
    done = subprocess.run([*without, *drawing(tmp_path)], capture_output=True, text=True, env=rooms, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/fox.png").stat().st_size > 1000
    assert files(tmp_path) <= {"out", "cache", "data"}
