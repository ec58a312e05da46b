"""Whether a provider works on this machine: a process of its own, which a broken driver may crash, runs a small graph on it (`probe.py`).

The answer is kept in `providers.json` in the cache folder, as long as the packages, the driver and the environment are the same; a failure
is kept for a day at most. On a machine with the CPU provider alone, nothing is asked.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec

from ...models.errors import BundleError, DiffusetteError
from ...models.formats.atomic_file import replace_file
from ...models.formats.small_file import read_json
from .devices import Device
from .graph_cache import default_folder, why_unwritable
from .ort_library import distributions
from .provider_table import Provider

FILE = "providers.json"
TIMEOUT = 120.0
"""Seconds after which a probe counts as failed: some providers compile kernels first."""
_FAILURES_LAST = 24 * 3600.0


class Answer(msgspec.Struct, frozen=True):
    """What a probe found."""

    works: bool
    why: str = ""
    """Why it does not, and what to do."""
    devices: tuple[Device, ...] = ()
    placement: dict[str, int] = {}
    """ORT's name of each execution provider → how many nodes of the small graph it ran."""
    snr_db: float = 0.0
    """Signal-to-noise ratio of the result against the CPU provider's."""
    opened: float = 0.0
    """Seconds to open the graph and run it once."""
    run: float = 0.0
    """Seconds of a later run, the fastest."""
    gflops: float = 0.0
    """Billions of floating-point operations a second in that run."""


class _Kept(msgspec.Struct, frozen=True):
    key: str
    time: float
    answer: Answer


_known: dict[str, Answer] = {}
"""Answers of this process."""


def ask(provider: Provider, *, again: bool = False) -> Answer:
    """Return whether `provider`, whose packages are installed, works here; `again` asks even if the answer is known."""
    if not again and provider.name in _known:
        return _known[provider.name]
    key = fingerprint(provider)
    kept = _read().get(provider.name)
    fresh = kept is not None and kept.key == key and (kept.answer.works or 0 <= time.time() - kept.time < _FAILURES_LAST)
    if not again and kept is not None and fresh:
        answer = kept.answer
    else:
        answer = probe(provider)
        _write(provider.name, _Kept(key, time.time(), answer))
    _known[provider.name] = answer
    return answer


def probe(provider: Provider, number: int = 0, *, large: bool = False) -> Answer:
    """Run a small graph on device `number` of `provider` in a process of its own; a `large` one takes seconds and measures the speed."""
    if not _has_python():
        from .probe import examine  # in this process

        return examine(provider, number, large=large)
    import subprocess  # needed only where there is something to ask

    command = [sys.executable, "-P", "-m", f"{__package__}.probe", provider.name, str(number), *(["large"] if large else [])]
    try:
        done = subprocess.run(  # noqa: S603  # this Python, and names from our table
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TIMEOUT,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except subprocess.TimeoutExpired:
        return Answer(False, _failed(provider, f"did not answer within {TIMEOUT:.0f} s"))
    except OSError as error:
        return Answer(False, _failed(provider, f"cannot be tried ({error})"))
    with suppress(msgspec.MsgspecError, IndexError):
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Answer)
    return Answer(False, _failed(provider, f"crashed with exit code {done.returncode} while it was tried"))


def _failed(provider: Provider, what: str) -> str:
    return f"{provider.name} is installed, but {what}: install or update {provider.driver or 'its driver'}, or use another provider"


def _has_python() -> bool:
    """Whether `sys.executable` is a Python that can run a module: in packed and in embedding applications it is something else."""
    return bool(sys.executable) and not getattr(sys, "frozen", False) and Path(sys.executable).stem.lower().startswith(("python", "pypy"))


def fingerprint(provider: Provider) -> str:
    """Return a hash of everything that the answer depends on: versions, file times, drivers, and the environment that drivers read."""
    libraries = [name for name in ("onnxruntime", provider.plugin) if name]
    files = [path for name in libraries for path in _libraries_of(name)]
    parts = [
        distributions(),
        provider.name,
        dict(provider.options),
        [platform.system(), platform.release(), platform.version(), platform.machine()],  # platform.platform() may start a process
        [_stamp(path) for path in (*files, *_drivers())],
        {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    ]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


_VARIABLES = ("CUDA_", "HIP_", "ROCR_", "VK_", "ORT_WEBGPU_", "ZE_", "DISPLAY", "LD_LIBRARY_PATH", "WAYLAND_DISPLAY")
_ENDINGS = (".so", ".dll", ".dylib", ".pyd")


def _libraries_of(module: str) -> Iterator[Path]:
    """Yield the shared libraries of a package and of the folders in it."""
    spec = find_spec(module)
    for place in () if spec is None or spec.origin is None else (Path(spec.origin).parent,):
        for folder in (place, *sorted(path for path in place.iterdir() if path.is_dir())):
            yield from sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS or ".so." in path.name)


def _drivers() -> Iterator[Path]:
    """Yield the files and folders that change with a driver or a card."""
    if sys.platform == "win32":
        system = Path(os.environ.get("SYSTEMROOT", "C:/Windows")) / "System32"
        yield from (system / name for name in ("nvcuda.dll", "vulkan-1.dll", "D3D12.dll", "DriverStore/FileRepository"))
        return
    yield from map(Path, ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version", "/dev/dri", "/dev/kfd", "/dev/accel"))
    yield from map(Path, ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/etc/OpenCL/vendors", "/dev/nvidia0", "/dev/dxg"))
    folders = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib")
    yield from (Path(folder) / "libcuda.so.1" for folder in folders)


def _stamp(path: Path) -> tuple[str, str, int, int]:
    """Return what tells a file's versions apart: a link's target, which has the version of a driver, size and time."""
    try:
        found = path.stat()
        if path.is_char_device() or str(path).startswith("/proc/"):
            return str(path), path.read_text("utf-8", "replace") if path.is_file() else "device", 0, 0
        return str(path), str(path.resolve()), found.st_size, found.st_mtime_ns
    except OSError:
        return str(path), "", 0, 0


def _read() -> dict[str, _Kept]:
    folder = default_folder()
    try:
        return {} if folder is None else read_json(folder / FILE, dict[str, _Kept])
    except BundleError:
        return {}


def _write(name: str, kept: _Kept) -> None:
    """Keep the answer; a folder that cannot be written only means that the next start asks again."""
    folder = default_folder()
    if folder is None or why_unwritable(folder):
        return
    with suppress(DiffusetteError):
        replace_file(folder / FILE, msgspec.json.format(msgspec.json.encode({**_read(), name: kept}), indent=2))
