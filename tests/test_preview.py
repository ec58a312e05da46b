"""Cheap previews: factors that are found agree with what the autoencoder does."""

from __future__ import annotations

import numpy as np

from diffusette.models.bundle import DEMO
from diffusette.runtime import pictures, pipeline, preview
from diffusette.runtime.pipeline import Picture, Step
from diffusette.runtime.request import Request


def test_factors_of_a_linear_decoder_are_found_exactly() -> None:
    weights = np.random.default_rng(1).standard_normal((3, 5)) * 0.1

    def decode(latents: np.ndarray) -> np.ndarray:
        picture = np.einsum("kc,nchw->nkhw", weights, latents) + 0.1
        return picture.repeat(4, 2).repeat(4, 3).astype(np.float32)

    factors = preview.fit(decode, 5)
    np.testing.assert_allclose(factors, np.vstack([weights.T, np.full(3, 0.1)]), atol=1e-6)
    latents = np.random.default_rng(2).standard_normal((1, 5, 6, 4)).astype(np.float32)
    found = np.asarray(preview.linear(latents, factors), np.int16)
    assert np.abs(found - np.asarray(pictures.to_image(decode(latents)), np.int16)[::4, ::4]).max() <= 1


def test_a_cheap_preview_shows_the_picture_at_a_pixel_a_latent_pixel() -> None:
    with pipeline.load(DEMO, provider="cpu") as drawer:
        for prompt in ("red apple, flat style, blue background", "rocket, flat style, white background"):
            *_, step, picture = drawer.steps(Request(prompt, seed=7, steps=5))
            assert isinstance(step, Step)
            assert isinstance(picture, Picture)
            found = drawer.preview(step.denoised, cheap=True)
            assert found.size == (step.latents.shape[3], step.latents.shape[2])
            whole = drawer.preview(step.denoised)
            assert whole.size == picture.image.size
            wanted = np.asarray(whole.resize(found.size, 4), np.float64)
            assert np.corrcoef(np.asarray(found, np.float64).ravel(), wanted.ravel())[0, 1] > 0.85
            assert np.abs(np.asarray(found) - wanted).mean() < 32


def test_the_shipped_bundle_says_the_factors_so_that_a_cheap_preview_opens_nothing() -> None:
    with pipeline.load(DEMO, provider="cpu") as drawer:
        latent = drawer.manifest.latent
        latents = np.random.default_rng(3).standard_normal((1, latent.channels, 6, 4)).astype(np.float32)
        drawer.preview(latents, cheap=True)
        assert drawer.components.seconds == {}
        # They were found on the decoder in float32; this one is in 8 bit.
        found = preview.factors(drawer.components.get("vae_decoder"), latent)
        np.testing.assert_allclose(preview.stated(drawer.manifest), found, atol=0.02)


def test_broken_latents_give_a_preview_all_the_same() -> None:
    assert preview.linear(np.full((1, 4, 3, 5), np.nan, np.float32), np.ones((5, 3))).size == (5, 3)
