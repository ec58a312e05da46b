"""Upscaling latents, compared with torch and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffusette.models.errors import RequestError
from diffusette.runtime.images import hires
from diffusette.runtime.images.hires import UPSCALERS

LATENTS = np.random.default_rng(0).standard_normal((1, 4, 8, 6)).astype(np.float32)


@pytest.mark.parametrize("size", [(16, 12), (13, 9), (8, 6)])
@pytest.mark.parametrize(("name", "mode"), [("latent", "bilinear"), ("latent_bicubic", "bicubic"), ("latent_nearest", "nearest")])
def test_latents_are_upscaled_as_in_torch(name: str, mode: str, size: tuple[int, int]) -> None:
    more = {} if mode == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(torch.from_numpy(LATENTS), size=size, mode=mode, **more).numpy()
    np.testing.assert_allclose(hires.resize(LATENTS, *size, UPSCALERS[name]), expected, rtol=1e-5, atol=2e-6)


def test_lanczos_equals_pillow_away_from_the_border() -> None:
    found = hires.resize(LATENTS, 16, 12, UPSCALERS["latent_lanczos"])
    for channel, latents in zip(found[0], LATENTS[0], strict=True):
        expected = np.asarray(Image.fromarray(latents).resize((12, 16), Image.Resampling.LANCZOS))
        np.testing.assert_allclose(channel[6:-6, 5:-5], expected[6:-6, 5:-5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(UPSCALERS) - {"lanczos"}))
def test_a_constant_latent_stays_unchanged(name: str) -> None:
    even = np.full((1, 4, 5, 7), 0.75, np.float32)
    np.testing.assert_allclose(hires.resize(even, 9, 14, UPSCALERS[name]), 0.75, rtol=1e-6)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("Latent", "latent"),
        ("latent (nearest-exact)", "latent_nearest"),
        ("Latent (bicubic antialiased)", "latent_bicubic"),
        ("Lanczos", "lanczos"),
    ],
)
def test_upscalers_are_found_by_the_names_people_use(asked: str, name: str) -> None:
    assert hires.find_upscaler(asked).name == name


def test_an_unknown_upscaler_is_refused_with_the_list() -> None:
    with pytest.raises(RequestError, match=r"hires_upscaler 'ESRGAN' is not known.*latent_bicubic"):
        hires.find_upscaler("ESRGAN")
