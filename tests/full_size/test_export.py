"""SD 1.5's size, random weights: exported to int8 and drawn from. Minutes and gigabytes: `make test-full`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusette.models.bundle import read_manifest
from tests.support import full_size

CACHE = Path(__file__).parents[2] / "build" / "full-size"
pytestmark = pytest.mark.full


COMMAND = [sys.executable, "-m", "diffusette"]


def export(source: Path, name: str, *options: str) -> tuple[Path, full_size.Run]:
    bundle = CACHE / name
    return bundle, full_size.measured([*COMMAND, "export", str(source), str(bundle), "--force", *options])


def test_sd15s_size_is_exported_to_plain_onnx_in_little_memory_and_90_seconds() -> None:
    bundle, run = export(full_size.save(CACHE / "source"), "portable", "--target", "portable")
    assert run.rss < 1.2e9
    assert run.anonymous < 0.8e9
    assert run.seconds < 90
    assert all(component.parity_db >= 100 for component in read_manifest(bundle).components.values())


def test_sdxls_size_is_exported_to_half_precision_in_little_memory() -> None:
    bundle, run = export(full_size.save_xl(CACHE / "source-xl"), "xl-fp16", "--target", "cuda")
    assert run.anonymous < 2.5e9
    assert read_manifest(bundle).components["unet"].precision == "fp16"


def test_a_model_of_sd15s_size_is_exported_to_int8_and_draws_a_512_pixel_picture() -> None:
    bundle, run = export(full_size.save(CACHE / "source"), "int8")
    assert run.rss < 4e9
    assert read_manifest(bundle).components["unet"].parity_db >= 24
    picture = CACHE / "picture.png"
    drawing = ["generate", "a red apple", "--model", str(bundle), "--steps", "2", "--seed", "7", "-o", str(picture), "--json"]
    done = subprocess.run([*COMMAND, *drawing], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["provider"] == "cpu"
    pixels = np.asarray(Image.open(picture))
    assert pixels.shape == (512, 512, 3)
    assert pixels.std() > 1
    again = CACHE / "again.png"
    subprocess.run([*COMMAND, *drawing[:-2], str(again)], check=True)
    assert again.read_bytes() == picture.read_bytes()
