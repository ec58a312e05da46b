"""SD 1.5's size, random weights: exported to int8 and drawn from. Minutes and gigabytes: `make test-full`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import full_size

CACHE = Path(__file__).parents[1] / "build" / "full-size"
pytestmark = pytest.mark.full


def test_a_model_of_sd15s_size_is_exported_to_int8_and_draws_a_512_pixel_picture() -> None:
    source, bundle, picture = full_size.save(CACHE / "source"), CACHE / "int8", CACHE / "picture.png"
    command = [sys.executable, "-m", "diffusette"]
    subprocess.run([*command, "export", str(source), str(bundle), "--force"], check=True)
    drawing = ["generate", "a red apple", "--model", str(bundle), "--steps", "2", "--seed", "7", "-o", str(picture), "--json"]
    done = subprocess.run([*command, *drawing], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["provider"] == "cpu"
    pixels = np.asarray(Image.open(picture))
    assert pixels.shape == (512, 512, 3)
    assert pixels.std() > 1
    again = CACHE / "again.png"
    subprocess.run([*command, *drawing[:-2], str(again)], check=True)
    assert again.read_bytes() == picture.read_bytes()
