"""Whole images by the page's modules and ONNX Runtime Web's WASM, under Node, against the runtime's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

import diffusette
from diffusette.cli.main import cli
from diffusette.models.bundle import DEMO, open_bundle, read_manifest
from diffusette.models.manifest import fingerprint
from diffusette.runtime.metadata import image_files, infotext
from diffusette.runtime.metadata.record import tool
from diffusette.runtime.result import Step
from diffusette.shipping.browser import fit
from tests.shipping.browser.conftest import Node, floats

REQUESTS: list[dict[str, Any]] = [
    {"prompt": "red apple, flat style, blue background", "seed": "7"},
    {"prompt": "(fox:1.2), noto style", "negative": "blue", "seed": str(2**64 - 1), "sampler": "euler_a", "steps": 6, "guidance": 4},
    {"prompt": 'a "moon" & <star>, ☾', "seed": "1", "sampler": "ddim", "schedule": "karras", "steps": 4, "width": 64, "height": 96},
]
LEAST = 40.0
"""dB. The kernels round int8 differently; measured 42 to 46. In float, latents are 120 dB from the runtime's."""


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def snr(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.sum(wanted.astype(np.float64) ** 2) / np.sum((wanted.astype(np.float64) - found) ** 2)))


def run(pipeline: diffusette.Pipeline, request: dict[str, Any]) -> tuple[NDArray[np.float32], Image.Image, list[Any]]:
    """The last latents, the image, and the denoised latents of each step."""
    asked = diffusette.Request(**{**request, "seed": int(request["seed"])})
    events = list(pipeline.steps(asked))
    steps = [event for event in events if isinstance(event, Step)]
    (picture,) = [event for event in events if isinstance(event, diffusette.Picture)]
    return steps[-1].latents, picture.image, [picture.record, *(step.denoised for step in steps)]


@pytest.fixture(scope="module")
def drawn(node: Node, ort_web: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The images of `REQUESTS` with the demo model, and what else came."""
    folder = tmp_path_factory.mktemp("drawn")
    model_hash = fingerprint(read_manifest(DEMO))
    return folder, node("draw", ort=str(ort_web), bundle=str(DEMO), requests=REQUESTS, png=str(folder), tool=tool(), hash=model_hash)


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_the_int8_bundle_gives_the_runtimes_image(drawn: tuple[Path, list[Any]], number: int) -> None:
    folder, answers = drawn
    with diffusette.load(provider="cpu") as pipeline:
        _, image, (_, *denoised) = run(pipeline, REQUESTS[number])
        assert psnr(Image.open(folder / f"{number}.png"), image) >= LEAST
        assert len(answers[number]["steps"]) == len(denoised)


@pytest.mark.parametrize("family", ["sd1", "sd1-lcm", "sd2-v"])
def test_a_float_bundle_gives_the_runtimes_latents(
    node: Node, ort_web: Path, bundle_of: Callable[[str], tuple[Path, Path]], tmp_path: Path, family: str
) -> None:
    bundle = bundle_of(family)[1]
    fit.check(open_bundle(bundle))
    requests = [
        {"prompt": "a cat AND a dog:0.7", "seed": "3", "steps": 5, "sampler": name, "width": 32, "height": 24}
        for name in ("euler", "euler_a", "heun", "ddim", "ddpm", "dpm++2m", "lcm")
    ]
    answers = node("draw", ort=str(ort_web), bundle=str(bundle), requests=requests, png=str(tmp_path), tool=tool(), hash="0")
    with diffusette.load(bundle, provider="cpu") as pipeline:
        for request, answer in zip(requests, answers, strict=True):
            latents, _, _ = run(pipeline, request)
            assert snr(latents.ravel(), floats(answer["latents"])) >= 80.0, request["sampler"]


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_the_file_says_what_the_runtime_would_have_written(drawn: tuple[Path, list[Any]], number: int) -> None:
    folder, _ = drawn
    found = image_files.read(folder / f"{number}.png")
    with diffusette.load(provider="cpu") as pipeline:
        _, image, (record, *_) = run(pipeline, REQUESTS[number])
    expected = image_files.read(image_files.encode(image, "PNG", record))
    assert found.ai
    assert (found.tool, found.source_type, found.disclosure) == (expected.tool, expected.source_type, expected.disclosure)
    assert found.record is not None
    assert {**found.settings(), "extra": {}} == {**expected.settings(), "extra": {}}
    assert found.record.extra == {"memory": "resident", "provider": "wasm"}
    assert infotext.parse(found.text or "") == infotext.parse(expected.text or "")


def test_the_command_line_reads_the_file_and_makes_the_image_again(drawn: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder, _ = drawn
    shown = CliRunner().invoke(cli, ["metadata", str(folder / "1.png"), "--json"])
    assert shown.exit_code == 0
    assert "(fox:1.2), noto style" in shown.stdout
    again = CliRunner().invoke(cli, ["generate", "--from", str(folder / "0.png"), "-o", str(tmp_path / "again.png")])
    assert again.exit_code == 0, again.output
    assert psnr(Image.open(folder / "0.png"), Image.open(tmp_path / "again.png")) >= LEAST


def test_previews_are_the_runtimes(drawn: tuple[Path, list[Any]]) -> None:
    import base64

    _, answers = drawn
    with diffusette.load(provider="cpu") as pipeline:
        _, _, (_, *denoised) = run(pipeline, REQUESTS[0])
        for step, own in zip(answers[0]["steps"], denoised, strict=True):
            small = pipeline.preview(own, cheap=True)
            pixels = np.frombuffer(base64.b64decode(step["preview"]), np.uint8).reshape(small.height, small.width, 4)
            assert psnr(Image.fromarray(np.ascontiguousarray(pixels[..., :3])), small) > 35
