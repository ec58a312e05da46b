"""Cheap previews: the fitted factors agree with the autoencoder."""

from __future__ import annotations

import numpy as np

from diffusette.models.bundle import DEMO
from diffusette.runtime import pipeline
from diffusette.runtime.images import image_io, preview
from diffusette.runtime.pipeline import Picture, Step
from diffusette.runtime.request import Request


def test_factors_of_a_linear_decoder_are_fitted_exactly() -> None:
    weights = np.random.default_rng(1).standard_normal((3, 5)) * 0.1

    def decode(latents: np.ndarray) -> np.ndarray:
        picture = np.einsum("kc,nchw->nkhw", weights, latents) + 0.1
        return picture.repeat(4, 2).repeat(4, 3).astype(np.float32)

    factors = preview.fit(decode, 5)
    np.testing.assert_allclose(factors, np.vstack([weights.T, np.full(3, 0.1)]), atol=1e-6)
    latents = np.random.default_rng(2).standard_normal((1, 5, 6, 4)).astype(np.float32)
    found = np.asarray(preview.linear(latents, factors), np.int16)
    assert np.abs(found - np.asarray(image_io.to_image(decode(latents)), np.int16)[::4, ::4]).max() <= 1


def test_a_cheap_preview_shows_the_image_with_one_pixel_per_latent_pixel() -> None:
    with pipeline.load(DEMO, provider="cpu") as opened:
        for prompt in ("red apple, flat style, blue background", "rocket, flat style, white background"):
            *_, step, picture = opened.steps(Request(prompt, seed=7, steps=5))
            assert isinstance(step, Step)
            assert isinstance(picture, Picture)
            found = opened.preview(step.denoised, cheap=True)
            assert found.size == (step.latents.shape[3], step.latents.shape[2])
            whole = opened.preview(step.denoised)
            assert whole.size == picture.image.size
            wanted = np.asarray(whole.resize(found.size, 4), np.float64)
            assert np.corrcoef(np.asarray(found, np.float64).ravel(), wanted.ravel())[0, 1] > 0.85
            assert np.abs(np.asarray(found) - wanted).mean() < 32


def test_the_shipped_bundle_has_the_factors_so_a_cheap_preview_opens_no_session() -> None:
    with pipeline.load(DEMO, provider="cpu") as opened:
        latent = opened.manifest.latent
        latents = np.random.default_rng(3).standard_normal((1, latent.channels, 6, 4)).astype(np.float32)
        opened.preview(latents, cheap=True)
        assert opened.components.seconds == {}
        # They were fitted to the float32 decoder; this one is int8.
        found = preview.factors(opened.components.get("vae_decoder"), latent)
        np.testing.assert_allclose(preview.stated(opened.manifest), found, atol=0.02)


def test_broken_latents_still_give_a_preview() -> None:
    assert preview.linear(np.full((1, 4, 3, 5), np.nan, np.float32), np.ones((5, 3))).size == (5, 3)
