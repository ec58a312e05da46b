"""Search every target for inputs that break its rule: `make fuzz`. Prints a table, and each such input; keeps nothing."""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from .targets import MAX_INPUT, TARGETS

ROOT = Path(__file__).parents[2]
MAX_MEMORY = 768
"""MB of the whole process; a third is usual."""
MEMORY = Path("/dev/shm")
"""A folder in memory on Linux: inputs are written to files."""
HANG = 30
"""Seconds after which an input that does not end is given up; slow ones are told by `SECONDS`."""


class Outcome(NamedTuple):
    """What became of a target."""

    inputs: int
    memory: int
    """MB at most."""
    trouble: str
    """Empty if nothing was found."""


def main() -> int:
    """Return 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=1800, help="in all, shared by the targets (1800)")
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=f"of {', '.join(TARGETS)}; all by default")
    asked = parser.parse_args()
    print(f"{'target':12} {'inputs':>10} {'MB':>6}  found", flush=True)
    outcomes = [_shown(name, _fuzz(name, max(1, asked.seconds // len(asked.targets)))) for name in asked.targets]
    return int(any(outcome.trouble for outcome in outcomes))


def _shown(name: str, outcome: Outcome) -> Outcome:
    print(f"{name:12} {outcome.inputs:10,} {outcome.memory:6}  {outcome.trouble or 'nothing'}", flush=True)
    return outcome


def _fuzz(name: str, seconds: int) -> Outcome:
    """Search one target in a process of its own, in a folder that is removed."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        for number, seed in enumerate(TARGETS[name].seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        words.write_text("".join(map(_quoted, TARGETS[name].words)))
        options = {"max_total_time": seconds, "timeout": HANG, "rss_limit_mb": MAX_MEMORY, "max_len": MAX_INPUT, "dict": words}
        options |= {"print_final_stats": 1, "artifact_prefix": f"{folder}/"}
        command = [sys.executable, "-m", "tests.fuzz.one", name, str(corpus), *(f"-{option}={value}" for option, value in options.items())]
        environment = os.environ | {"TMPDIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT, env=environment, check=False)
        found = next((path.read_bytes() for path in sorted(Path(folder).glob("*-*")) if path.is_file()), None)
    said = done.stderr + done.stdout
    trouble = "" if done.returncode == 0 else _trouble(said, found)
    return Outcome(_number("number_of_executed_units", said), _number("peak_rss_mb", said), trouble)


def _quoted(word: bytes) -> str:
    """A line of libFuzzer's dictionary."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


def _number(name: str, text: str) -> int:
    found = re.search(rf"stat::{name}:\s*(\d+)", text)
    return int(found[1]) if found else 0


def _trouble(said: str, found: bytes | None) -> str:
    """The end of the traceback, and the input."""
    start = max(said.find("Uncaught Python exception"), said.find("Traceback (most"), said.find("ERROR: libFuzzer"), 0)
    lines = said[start:].partition("INFO: Instrumenting")[0].splitlines()[:40]
    shown = "" if found is None else f"\n    input, in base64: {base64.b64encode(found).decode()}"
    return "\n    ".join(lines) + shown


if __name__ == "__main__":
    sys.exit(main())
