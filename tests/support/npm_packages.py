"""Packages from npm, pinned by a lock file in `tests/support/npm`, installed into `build/npm` when a test first wants them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
PINNED = Path(__file__).parent / "npm"
INSTALLED = ROOT / "build" / "npm"


class Missing(Exception):  # noqa: N818  # a reason to skip
    """Why there is no such package here."""


def install(name: str) -> Path:
    """The folder with the `node_modules` of `tests/support/npm/NAME`, and the scripts beside its lock file.

    Raises:
        Missing: no Node, no npm, or npm could not install it.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Missing(f"needs {program}: install Node.js 20 or newer")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    folder, pinned = INSTALLED / name, PINNED / name
    with FileLock(INSTALLED / f"{name}.lock"):
        wanted = (pinned / "package-lock.json").read_bytes()
        done = folder / "done.json"
        if not done.exists() or done.read_bytes() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(pinned, folder)
            _npm_ci(folder)
            done.write_bytes(wanted)
        shutil.copytree(pinned, folder, dirs_exist_ok=True)  # scripts may have changed
    return folder


def _npm_ci(folder: Path) -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired as error:
        raise Missing("npm took more than 300 s to install the packages") from error
    if done.returncode:
        raise Missing(f"npm could not install the packages, perhaps for want of a network: {(done.stderr or done.stdout).strip()[-300:]}")
