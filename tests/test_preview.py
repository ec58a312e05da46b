"""Cheap previews: factors that are found agree with what the autoencoder does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusette.models.bundle import DEMO
from diffusette.runtime import pictures, pipeline, preview, vae
from diffusette.runtime.pipeline import Step
from diffusette.runtime.request import Request


def test_factors_of_a_linear_encoder_are_found_exactly() -> None:
    weights = np.random.default_rng(1).standard_normal((5, 3))

    def encode(picture: np.ndarray) -> np.ndarray:
        return np.einsum("ck,nkhw->nchw", weights, picture[..., ::4, ::4]).astype(np.float32) + np.float32(0.5)

    colours = np.random.default_rng(2).uniform(-1, 1, (1, 3, 6, 4)).astype(np.float32)
    latents = encode(colours.repeat(4, 2).repeat(4, 3))
    found = np.asarray(preview.linear(latents, preview.fit(encode, 4)), np.int16)
    assert np.abs(found - np.asarray(pictures.to_image(colours), np.int16)).max() <= 1


def test_a_cheap_preview_has_the_colours_of_the_picture_at_a_pixel_a_latent_pixel() -> None:
    with pipeline.load(DEMO, provider="cpu") as drawer:
        *_, step, picture = drawer.steps(Request("red apple, flat style, blue background", seed=7, steps=6))
        assert isinstance(step, Step)
        found = drawer.preview(step.denoised, cheap=True)
        whole = vae.decode(drawer.components.get("vae_decoder"), step.denoised, drawer.manifest.latent)
    assert found.size == (step.latents.shape[3], step.latents.shape[2])
    wanted = pictures.to_image(whole).resize(found.size, 4)
    assert np.abs(np.asarray(found, np.int16) - np.asarray(wanted, np.int16)).mean() < 24
    assert picture.image.size == pictures.to_image(whole).size


def test_the_known_factors_are_for_four_channels() -> None:
    for architecture in ("sd1", "sdxl"):
        factors = preview.known(architecture, 4)
        assert factors is not None
        assert factors.shape == (5, 3)
    assert preview.known("sd1", 8) is None


def test_broken_latents_give_a_preview_all_the_same(tmp_path: Path) -> None:
    factors = preview.known("sd1", 4)
    assert factors is not None
    assert preview.linear(np.full((1, 4, 3, 5), np.nan, np.float32), factors).size == (5, 3)
