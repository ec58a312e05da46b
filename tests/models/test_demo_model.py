"""The model that ships inside: what it weighs, what it generates, and that exporting its source gives it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from diffusette.export.export import Options, export_model
from diffusette.models.bundle import DEMO, open_bundle, verify
from diffusette.models.formats import onnx_reader
from diffusette.runtime import pipeline
from diffusette.runtime.engine import hardware
from diffusette.runtime.pipeline import Pipeline

SOURCE = Path(__file__).parents[2] / "models" / "demo" / "source"
PROMPTS = ("red apple, flat style, blue background", "fox, noto style, teal background", "ghost", "rocket, black background")


@pytest.fixture(scope="module")
def shipped() -> Iterator[Pipeline]:
    with pipeline.load(provider="cpu") as drawer:
        yield drawer


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("demo") / "fp32"
    export_model(SOURCE, folder, Options(precision="fp32"))
    with pipeline.load(folder, provider="cpu") as drawer:
        yield drawer


def psnr(one: Image.Image, other: Image.Image) -> float:
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return float(10 * np.log10(255**2 / max(1e-9, np.mean(difference**2))))


def test_the_source_is_an_ordinary_diffusers_folder() -> None:
    judge = StableDiffusionPipeline.from_pretrained(SOURCE)
    assert judge.tokenizer("red apple").input_ids[-1] == judge.tokenizer.eos_token_id
    assert judge.unet.config.in_channels == judge.vae.config.latent_channels


def test_the_shipped_bundle_is_whole_and_weighs_at_most_40_megabytes() -> None:
    bundle = open_bundle(DEMO)
    assert verify(bundle) == []
    assert sum(file.size for file in bundle.manifest.files.values()) <= 40e6
    assert "LICENSE.md" in bundle.manifest.files
    assert bundle.manifest.components["unet"].precision == "int8"


def test_every_graph_says_what_the_weights_of_its_feed_forwards_were_multiplied_with_for_loras_to_know() -> None:
    for path in sorted((DEMO / "unet").glob("*.onnx")):
        names = onnx_reader.read(path).initializers.keys()
        layers = {name.removesuffix(".weight_quantized") for name in names if name.endswith(".weight_quantized")}
        second = {layer for layer in layers if layer.endswith(".ff.net.2")}
        assert {f"{layer}.input_factors" for layer in second} == {name for name in names if name.endswith(".ff.net.2.input_factors")}
        first = {layer for layer in layers if layer.endswith(".ff.net.0.proj")}
        assert {f"{layer}.output_factors" for layer in first} == {name for name in names if name.endswith(".proj.output_factors")}
        assert path.name in {"stem.onnx", "shallow.onnx"} or (first and second)


@pytest.mark.parametrize("vnni", [True, False])
def test_the_int8_bundle_draws_what_the_fp32_bundle_draws_with_and_without_vnni(
    vnni: bool, floats: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    if vnni and hardware.saturates():
        pytest.skip("this processor has no VNNI")
    monkeypatch.setattr(hardware, "saturates", lambda: not vnni)  # ONNX Runtime then converts the weights on every x86 processor
    with pipeline.load(provider="cpu") as shipped:
        found = [psnr(shipped.generate(prompt, seed=7).images[0], floats.generate(prompt, seed=7).images[0]) for prompt in PROMPTS]
    assert min(found) >= 30, found


@pytest.mark.parametrize("speed", ["balanced", "fast"])
def test_every_graph_of_the_shipped_bundle_opens_without_vnni(speed: Literal["balanced", "fast"], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "saturates", lambda: True)
    with pipeline.load(provider="cpu") as shipped:
        fast, exact = (shipped.generate(PROMPTS[0], seed=7, speed=one).images[0] for one in (speed, "exact"))
    assert psnr(fast, exact) >= 20


def test_exporting_the_source_again_reproduces_the_shipped_bundle(shipped: Pipeline, tmp_path: Path) -> None:
    export_model(SOURCE, tmp_path / "again", Options(precision="int8", min_snr=31))
    again = open_bundle(tmp_path / "again").manifest
    assert again.files.keys() == shipped.manifest.files.keys()
    assert again.components.keys() == shipped.manifest.components.keys()
    for name, component in again.components.items():
        other = shipped.manifest.components[name]
        assert (component.inputs, component.outputs, component.precision) == (other.inputs, other.outputs, other.precision)
    # Other processors round other ways while the ranges are observed: the images are compared, not the bytes.
    with pipeline.load(tmp_path / "again", provider="cpu") as drawer:
        for prompt in PROMPTS[:2]:
            assert psnr(drawer.generate(prompt, seed=7).images[0], shipped.generate(prompt, seed=7).images[0]) >= 30


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "ddim", "dpm++2m", "unipc", "heun"])
def test_every_common_sampler_draws_the_apple_on_blue(shipped: Pipeline, sampler: str) -> None:
    picture = np.asarray(shipped.generate(PROMPTS[0], seed=7, sampler=sampler).images[0], np.int16)
    corner, middle = picture[:12, :12].mean((0, 1)), picture[56:88, 48:80].mean((0, 1))
    assert np.abs(corner - (52, 116, 226)).max() < 40
    assert middle[0] > 140
    assert max(middle[1], middle[2]) < 120
