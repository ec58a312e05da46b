"""One environment per rival: a virtual environment with pinned packages, and the weights in the rival's format.

```
FOLDER/<rival>/                     the virtual environment; requirements.txt in it is written last, frozen.txt is what pip chose
FOLDER/models/<rival>-<variant>-…   converted weights; a folder that has its name is whole
FOLDER/logs/<rival>.log             what pip and the converters said
```
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ...models.errors import ResourceError
from ...runtime.engine.graph_cache import default_folder, why_unwritable
from ..measure.worker import Job
from .catalog import RIVALS, Rival

Tick = Callable[[str], None]
"""Progress callback."""
ENGINES = Path(__file__).parent / "engines"
_DONE = "requirements.txt"


class UnavailableError(Exception):
    """A rival cannot run here, with the reason; it becomes a row, never an error of the command."""


def folder_for(chosen: Path | None) -> Path:
    """The folder of the environments: `chosen`, or one in the user's cache.

    Raises:
        ResourceError: it cannot be written.
    """
    base = default_folder()
    folder = chosen or (base / "rivals" if base else None)
    problem = why_unwritable(folder)
    if folder is None or problem:
        raise ResourceError(f"environments: {problem}; or name a folder with --environments")
    return folder.resolve()


def python_of(rival: Rival, folder: Path, tick: Tick) -> Path:
    """The interpreter of `rival`'s environment in `folder`, which is made if it is not there, or is there with other pins.

    Raises:
        UnavailableError: pip could not install it.
    """
    environment = folder / rival.name
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = "\n".join(rival.requirements) + "\n"
    done = environment / _DONE
    if done.is_file() and done.read_text() == wanted:
        return python
    shutil.rmtree(environment, ignore_errors=True)
    tick(f"{rival.name}: making an environment")
    log = _log(folder, rival)
    _call([sys.executable, "-m", "venv", str(environment)], log, rival, tick)
    _call([str(python), "-m", "pip", "install", "--disable-pip-version-check", *rival.requirements], log, rival, tick)
    if rival.without:
        _call([str(python), "-m", "pip", "uninstall", "--yes", *rival.without], log, rival, tick)
    frozen = subprocess.run([str(python), "-m", "pip", "freeze"], capture_output=True, text=True, check=False).stdout
    (environment / "frozen.txt").write_text(frozen)
    done.write_text(wanted)
    return python


def prepared(rival: Rival, python: Path, job: Job, folder: Path, tick: Tick) -> Path | None:
    """The job's weights as `rival` wants them, converted if that was not done before; None where it reads them as they are.

    Raises:
        UnavailableError: its converter failed.
    """
    if rival.preparation == "none":
        return None
    name = "portable-fp32" if rival.preparation == "bundle" else f"{rival.name}-{job.variant}"
    destination = folder / "models" / f"{name}-{fingerprint(Path(job.folder or ''), rival)}"
    if destination.is_dir():
        return destination
    tick(f"{rival.name}: converting the weights ({job.variant})")
    making = destination.with_name(f".{destination.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(ENGINES / rival.script), msgspec.json.encode(job).decode(), str(making)]
    if rival.preparation == "bundle":
        options = ["--target", "portable", "--precision", "fp32"]
        command = [sys.executable, "-m", "diffusette", "export", str(job.folder), str(making), *options]
    _call(command, _log(folder, rival), rival, tick)
    making.replace(destination)
    return destination


def command(rival: Rival, python: Path, job: Job) -> list[str]:
    """The command of the measured process."""
    return [str(python), str(ENGINES / rival.script), msgspec.json.encode(job).decode()]


def fingerprint(source: Path, rival: Rival) -> str:
    """Identifies a set of weights and pins by file sizes and times, not contents."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    facts = [f"{path.relative_to(source)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join([str(source.resolve()), *rival.requirements, *facts]).encode()).hexdigest()[:12]


def versions(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Package → version of everything that is installed for the rivals of `names`, each as "rival: package"."""
    found: dict[str, str] = {}
    for name in names:
        frozen = folder / name / "frozen.txt"
        wanted = {requirement.partition("==")[0].partition("[")[0] for requirement in RIVALS[name].requirements}
        for line in frozen.read_text().splitlines() if frozen.is_file() else ():
            package, _, version = line.partition("==")
            if package in wanted:
                found[f"{name}: {package}"] = version
    return found


def _log(folder: Path, rival: Rival) -> Path:
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return folder / "logs" / f"{rival.name}.log"


def _call(arguments: Sequence[str], log: Path, rival: Rival, tick: Tick) -> None:
    """Run a step; what it says goes into `log` and its last line to `tick`."""
    last = ""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                if line.strip() and not line.startswith("WARNING"):
                    last = line.strip()
                    tick(f"{rival.name}: {last[:60]}")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise UnavailableError(f"{rival.name} could not be set up: {last[:300] or f'code {process.returncode}'} (see {log})")
