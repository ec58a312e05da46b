"""Inpainting: the area that is regenerated, and how it is pasted back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw

from diffusette.models.errors import RequestError
from diffusette.runtime.images import inpaint


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


def noisy(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def masked(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


@pytest.mark.parametrize("box", [(40, 30, 70, 50), (0, 0, 10, 10), (90, 60, 120, 80), (10, 35, 110, 45)])
@pytest.mark.parametrize("padding", [0, 8])
@pytest.mark.parametrize("size", [(64, 64), (64, 32)])
def test_the_area_equals_that_of_diffusers_to_the_pixel(box: tuple[int, int, int, int], padding: int, size: tuple[int, int]) -> None:
    mask = masked(120, 80, box)
    expected = VaeImageProcessor().get_crop_region(mask, *size, pad=padding)
    found = inpaint.area(mask, padding, size[0] / size[1])
    assert max(abs(one - other) for one, other in zip(found, expected, strict=True)) <= 1


def test_the_area_is_inside_the_image_contains_the_mask_and_has_the_aspect_ratio_if_there_is_room() -> None:
    left, top, right, bottom = inpaint.area(masked(200, 150, (180, 10, 200, 20)), 12, 2.0)
    assert left <= 168
    assert (top, right) == (0, 200)
    assert bottom >= 32
    assert abs((right - left) / (bottom - top) - 2.0) < 0.05


def test_a_black_mask_is_refused() -> None:
    with pytest.raises(RequestError, match="all black"):
        inpaint.scene(noisy(32, 32), Image.new("L", (32, 32)), 16, 16, padding=4)


def test_only_the_masked_area_is_generated_and_the_rest_keeps_its_pixels_and_size() -> None:
    init, mask = noisy(120, 80), masked(120, 80, (40, 30, 70, 50))
    scene = inpaint.scene(init, mask, 64, 64, blur=2.0, padding=8)
    assert scene.picture.size == (64, 64)
    generated = scene.finished(Image.new("RGB", (64, 64), (255, 0, 0)))
    assert generated.size == init.size
    changed = np.argwhere((pixels(generated) != pixels(init)).any(axis=2))
    assert changed.min(axis=0).tolist() >= [22, 32]
    assert changed.max(axis=0).tolist() <= [58, 78]
    assert pixels(generated)[40, 55].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(16, 200), (200, 16)])
def test_a_narrow_image_is_not_stretched_but_extended_at_its_edges_and_cropped_again(size: tuple[int, int]) -> None:
    centre = (size[0] // 2 - 5, size[1] // 2 - 5, size[0] // 2 + 5, size[1] // 2 + 5)
    init = Image.new("RGB", size, (9, 9, 9))
    init.paste((250, 0, 0), centre)  # a square
    scene = inpaint.scene(init, masked(*size, centre), 64, 64, padding=20)
    seen = pixels(scene.picture)[..., 0] > 128
    width, height = int(seen.any(axis=0).sum()), int(seen.any(axis=1).sum())
    assert abs(width - height) <= 1
    assert scene.mask is not None
    assert np.array_equal(pixels(scene.mask) > 128, seen)
    assert np.abs(pixels(scene.finished(scene.picture)) - pixels(init)).mean() < 4
    assert scene.finished(scene.picture).size == size


def test_the_generated_area_fades_into_the_image_over_the_blur() -> None:
    init, mask = Image.new("RGB", (64, 64)), masked(64, 64, (0, 0, 32, 64))
    for blur, mixed in ((0.0, 0), (4.0, 8)):
        red = pixels(inpaint.scene(init, mask, 64, 64, blur=blur).finished(Image.new("RGB", (64, 64), (255, 0, 0))))[32, :, 0]
        assert ((red > 12) & (red < 243)).sum() >= mixed
        assert (red[:8].min(), red[-8:].max()) == (255, 0)
        assert ((red > 0) & (red < 255)).any() == bool(blur)


def test_an_image_without_a_mask_is_regenerated_everywhere() -> None:
    scene = inpaint.scene(noisy(40, 30), None, 16, 24)
    generated = noisy(16, 24, 1)
    assert scene.finished(generated) is generated
    assert scene.picture.size == (16, 24)


def test_an_inpainting_unet_receives_the_mask_subsampled_as_in_diffusers() -> None:
    mask = (np.random.default_rng(3).uniform(size=(1, 1, 32, 24)) > 0.5).astype(np.float32)
    latents = np.zeros((1, 4, 4, 3), np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask), size=(4, 3)).numpy()
    np.testing.assert_array_equal(inpaint.channels(mask, latents)[:, :1], expected)


def test_a_latent_pixel_that_the_mask_touches_is_regenerated() -> None:
    mask = np.zeros((1, 1, 16, 16), np.float32)
    mask[0, 0, 7, 8] = 1
    assert np.argwhere(inpaint.latent_mask(mask, 8)[0, 0]).tolist() == [[0, 1]]
