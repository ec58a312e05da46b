"""One server for all tests that leave it as it was; others start their own."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.support.server_process import Server

pytest.importorskip("starlette", reason="needs the extra serve")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), "--allow-origin", "https://plugin.example") as started:
        yield started


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """128 × 128, with colours that run."""
    ramp = np.linspace(0, 255, 128, dtype=np.uint8)
    return Image.fromarray(np.stack([np.tile(ramp, (128, 1)), np.tile(ramp[:, None], (1, 128)), np.full((128, 128), 90, np.uint8)], -1))


@pytest.fixture(scope="session")
def mask() -> Image.Image:
    found = Image.new("L", (128, 128), 0)
    found.paste(255, (32, 0, 96, 64))
    return found


@pytest.fixture(scope="session")
def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
