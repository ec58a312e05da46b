"""Device memory of a process on NVIDIA GPUs, from `nvidia-smi` in a child process, ten times a second.

The output asked for is documented by `nvidia-smi --help-query-compute-apps`: one line a process and sample, "PID, MiB". Where the
driver does not tell it by process (Windows in WDDM mode says [N/A], containers hide process ids), there is no figure: a guess from
what the whole card uses would count the desktop too.
"""

from __future__ import annotations

import shutil
import subprocess
import threading

COMMAND = ("--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits", "--loop-ms=100")


class Device:
    """Follows the memory of process `pid` in the lines that `command` prints."""

    def __init__(self, command: tuple[str, ...], pid: int) -> None:
        self._pid = pid
        self._peak: int | None = None
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def peak(self) -> int | None:
        """Bytes; None where the process was never named."""
        return self._peak

    def close(self) -> None:
        """End the command."""
        self._process.kill()
        self._thread.join()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                used = used_by(line, self._pid)
                if used is not None:
                    self._peak = max(used, self._peak or 0)


def used_by(line: str, pid: int) -> int | None:
    """Bytes that `line` names for `pid`: "4242, 1530" means 1530 MiB; None for another process, or where there is not a number."""
    owner, _, used = (part.strip() for part in line.partition(","))
    if owner != str(pid) or not used.removesuffix(" MiB").isdecimal():
        return None
    return int(used.removesuffix(" MiB")) << 20


def watch(pid: int) -> Device | None:
    """Follow `pid` on this machine's NVIDIA cards; None where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    return None if program is None else Device((program, *COMMAND), pid)
