"""The page's modules under Node, and ONNX Runtime Web from npm."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import npm_packages
from tests.support.npm_packages import Missing

ROOT = Path(__file__).parents[3]
SITE = ROOT / "shipping" / "browser" / "site"
Node = Callable[..., Any]


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Ask `node_side.mjs`: node(what, field=…) returns its answer."""
    if shutil.which("node") is None:
        pytest.skip("needs node: install Node.js 20 or newer")
    folder = tmp_path_factory.mktemp("modules")
    for path in SITE.glob("*.js"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def ask(what: str, **request: Any) -> Any:
        command = ["node", str(Path(__file__).with_name("node_side.mjs")), str(folder)]
        text = json.dumps({"what": what, **request})
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="session")
def ort_web() -> Path:
    """The folder of the npm package."""
    try:
        return npm_packages.install("onnxruntime-web") / "node_modules" / "onnxruntime-web"
    except Missing as error:
        pytest.skip(str(error))


def floats(text: str) -> NDArray[np.float32]:
    """What `node_side.mjs` packed."""
    return np.frombuffer(base64.b64decode(text), np.float32)


def packed(array: NDArray[np.float32]) -> str:
    return base64.b64encode(array.astype(np.float32).tobytes()).decode()
