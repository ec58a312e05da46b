"""A Chromium for the tests of the page: the machine's own, or else a headless one from npm (70 MB), unpacked into `build/npm`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from playwright.sync_api import Browser, sync_playwright

from tests.support import npm_packages
from tests.support.npm_packages import Missing

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FONTS = '<?xml version="1.0"?><fontconfig><dir>/usr/share/fonts</dir><dir>{0}/fonts</dir><cachedir>{0}/fonts-cache</cachedir></fontconfig>'


@dataclass(frozen=True)
class Chromium:
    """What Playwright needs to start it."""

    path: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


def find() -> Chromium:
    """The machine's Chromium, or npm's, which is installed first where it is missing.

    Raises:
        Missing: there is none, and npm's cannot be had here.
    """
    for name in NAMES:
        if found := shutil.which(name):
            return Chromium(Path(found))
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Missing("needs Chromium: install it, so that `chromium` or `google-chrome` is on the path")
    packed = npm_packages.install("chromium")
    folder = packed / "browser"
    with FileLock(f"{folder}.lock"):
        if not (folder / "chromium").exists():
            _unpack(packed, folder)
    libraries = f"{folder / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    return Chromium(folder / "chromium", {**os.environ, "LD_LIBRARY_PATH": libraries, "FONTCONFIG_FILE": str(folder / "fonts.conf")})


@contextmanager
def launched() -> Iterator[Browser]:
    """It, headless and driven by Playwright. Raises what `find` raises."""
    found = find()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found.path, env=found.environment, args=["--no-sandbox"])
        yield opened
        opened.close()


def _unpack(packed: Path, folder: Path) -> None:
    partly = folder.with_name(f"browser-{os.getpid()}")
    subprocess.run(["node", "unpack.js", str(partly)], cwd=packed, check=True, timeout=300)
    (partly / "fonts.conf").write_text(_FONTS.format(folder))
    partly.rename(folder)
