"""Size conditioning: the numbers that SDXL and its refiner receive, as diffusers has them."""

from __future__ import annotations

import numpy as np

from diffusette.models.families import FAMILIES
from diffusette.runtime.conditioning import SizeConditioning, size_conditioning
from diffusette.runtime.request import Request
from diffusette.runtime.resolve import Pass

ONE = Pass(8, 16, np.array([1.0, 0.0]))


def test_sdxl_receives_original_size_crop_and_target_heights_first() -> None:
    request = Request("fox", original_size=(32, 24), crop=(3, 2))
    found = size_conditioning(request, ONE, FAMILIES["sdxl"])
    assert found == SizeConditioning(original=(24, 32), target=(16, 8), crop=(2, 3))
    # diffusers: original_size + crops_coords_top_left + target_size
    np.testing.assert_array_equal(found.time_ids(), [[24, 32, 2, 3, 16, 8]])
    assert found.time_ids().dtype == np.float32


def test_the_original_size_is_the_images_own_by_default() -> None:
    found = size_conditioning(Request("fox"), ONE, FAMILIES["sdxl"])
    assert found is not None
    np.testing.assert_array_equal(found.time_ids(negative=True), [[16, 8, 0, 0, 16, 8]])


def test_the_refiner_receives_an_aesthetic_score_and_a_lower_one_for_the_negative_prompt() -> None:
    found = size_conditioning(Request("fox", original_size=(32, 24), crop=(3, 2)), ONE, FAMILIES["sdxl-refiner"])
    assert found is not None
    assert found.time_ids().tolist() == [[24.0, 32.0, 2.0, 3.0, 6.0]]
    assert found.time_ids(negative=True).tolist() == [[24.0, 32.0, 2.0, 3.0, 2.5]]


def test_other_families_receive_no_sizes() -> None:
    assert size_conditioning(Request("fox"), ONE, FAMILIES["sd1"]) is None
