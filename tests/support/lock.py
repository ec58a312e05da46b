"""Pin what CI installs, with hashes, for every platform: `make lock` writes `.ci/requirements.txt`.

The versions are those of `.venv`, where the tests ran: update it, run the tests, then lock. uv resolves the extras `dev` and `docs` again
within these versions, and adds the hashes.
torch is left out, with NVIDIA's libraries and Triton, which only its CUDA build needs: its CPU build and PyPI's are different files of one
version, and `pyproject.toml` pins that version.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = ROOT / ".ci" / "requirements.txt"
COMPILE = ["pip", "compile", "pyproject.toml", "--extra", "dev", "--extra", "docs"]
EVERYWHERE = ["--universal", "--python-version", platform.python_version()]
TORCH = re.compile(r"(nvidia|cuda)-|(torch|triton)==")
HEAD = "# Written by `make lock`. CI installs these versions, and nothing whose hash differs. torch is pinned in pyproject.toml.\n"


def locked() -> str:
    """The lock's text."""
    installed = _output(str(ROOT / ".venv" / "bin" / "python"), "-m", "pip", "list", "--format=freeze", "--exclude-editable")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as versions:
        versions.write(re.sub(r"\+cpu$", "", installed, flags=re.MULTILINE))
        versions.flush()
        hashed = (*EVERYWHERE, "--generate-hashes", "--no-annotate", "--no-header", "--quiet", "--constraint", versions.name)
        blocks = re.split(r"^(?=[a-z0-9])", _output(sys.executable, "-m", "uv", *COMPILE, *hashed), flags=re.MULTILINE)
    return HEAD + "".join(block for block in blocks if not TORCH.match(block))


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    text = locked()
    LOCK.with_suffix(".new").write_text(text, "utf-8")
    LOCK.with_suffix(".new").replace(LOCK)
    print(f"{LOCK.relative_to(ROOT)}: {len(re.findall(r'^[a-z0-9]', text, re.MULTILINE))} packages")
