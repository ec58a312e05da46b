"""What Python callers may pass: paths, PIL images, arrays, single files; wrong types name their field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusette.models.bundle import DEMO, open_bundle
from diffusette.models.errors import RequestError
from diffusette.runtime.normalize import MAX_FILES, normalize
from diffusette.runtime.request import Request
from diffusette.runtime.resolve import resolve


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 24), (200, 40, 90)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_an_image_may_be_a_path_a_pil_image_or_an_array(photo: Path) -> None:
    image = Image.open(photo)
    pixels = np.asarray(image)
    given: list[Any] = [photo, str(photo), image, pixels, pixels.astype(np.float32) / 255]
    found = [normalize(Request("fox", init=one)).init for one in given]
    for one in found:
        assert one is not None
        np.testing.assert_array_equal(np.asarray(one.convert("RGB")), pixels)


def test_a_mask_may_be_an_array_of_true_and_false() -> None:
    mask = np.zeros((24, 40), bool)
    mask[:, 20:] = True
    found = normalize(Request("fox", mask=mask)).mask
    assert found is not None
    np.testing.assert_array_equal(np.asarray(found), mask * np.uint8(255))


@pytest.mark.parametrize(
    "given",
    ["a.safetensors", Path("a.safetensors"), ["a.safetensors"], ("a.safetensors", 1.0), [("a.safetensors", 1)], (("a.safetensors", 1.0),)],
    ids=repr,
)
def test_loras_may_be_a_path_a_pair_or_a_list(given: Any) -> None:
    assert normalize(Request("fox", loras=given)).loras == ((Path("a.safetensors"), 1.0),)


def test_two_paths_in_a_tuple_are_two_loras() -> None:
    assert normalize(Request("fox", loras=("a.safetensors", "b.safetensors"))).loras == (
        (Path("a.safetensors"), 1.0),
        (Path("b.safetensors"), 1.0),
    )


def test_no_negative_prompt_may_be_none_and_an_embedding_a_path() -> None:
    found = normalize(Request("fox", negative=None, embeddings="word.safetensors"))
    assert (found.negative, found.embeddings) == ("", (Path("word.safetensors"),))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("prompt", None, "prompt: None is of type NoneType, expected text"),
        ("prompt", 5, "prompt: 5 is of type int, expected text"),
        ("negative", ["a"], "negative: "),
        ("sampler", 5, "sampler: 5 is of type int, expected text"),
        ("schedule", b"karras", "schedule: "),
        ("speed", None, "speed: None"),
        ("speed", "warp", "speed 'warp' is not known"),
        ("fit", "squeeze", "fit 'squeeze' is not known"),
        ("only_masked", "yes", "only_masked: 'yes'"),
        ("init", 3, "init: of type int, expected a path, a PIL image or an array"),
        ("init", np.zeros((4, 4, 7), np.uint8), r"init: an array of uint8 and shape \(4, 4, 7\)"),
        ("init", np.full((4, 4), np.nan), "init: an array of float64"),
        ("init", "nowhere.png", "init image nowhere.png: no such file|nowhere.png"),
        ("loras", 3, "loras: 3 is of type int"),
        ("loras", [("a", 1.0, 2.0)], "loras: "),
        ("loras", ["a.safetensors"] * (MAX_FILES + 1), f"loras: {MAX_FILES + 1} files, expected at most {MAX_FILES}"),
        ("lora_folder", 3, "lora_folder: 3 is of type int"),
        ("embeddings", {"a": 1}, "embeddings: "),
        ("sigmas", "abc", "sigmas: 'abc', expected a list of numbers"),
        ("timesteps", [None], "timesteps: "),
        ("sampler_options", [1], "sampler_options: "),
        ("width", "64", "width: '64'"),
    ],
)
def test_a_wrong_type_is_refused_with_its_field(field: str, value: Any, said: str) -> None:
    fields = {"prompt": "fox"} | {field: value}
    with pytest.raises(RequestError, match=said):
        normalize(Request(**fields))


# --- sizes of image to image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "fields", "size", "noted"),
    [
        ((128, 64), {}, (128, 64), False),
        ((60, 40), {}, (64, 40), False),  # the nearest multiples of 8, Python rounding 7.5 to 8
        ((512, 256), {}, (184, 88), True),  # about the model's 128 × 128 pixels
        ((512, 256), {"width": 128}, (128, 64), False),
        ((512, 256), {"height": 128}, (256, 128), False),
        ((512, 256), {"width": 128, "height": 128}, (128, 128), False),
        ((4, 4096), {}, (8, 4096), False),
    ],
)
def test_image_to_image_keeps_the_shape_of_its_image(
    init: tuple[int, int], fields: dict[str, int], size: tuple[int, int], noted: bool
) -> None:
    found = resolve(Request("fox", init=Image.new("RGB", init), **fields), open_bundle(DEMO).manifest)
    assert (found.width, found.height) == size
    assert bool(found.notes) == noted


@pytest.mark.parametrize(("fit", "disc"), [("crop", (1.0, 1.0)), ("pad", (1.0, 1.0)), ("stretch", (0.5, 1.0))])
def test_an_image_of_another_shape_is_cut_padded_or_stretched(fit: str, disc: tuple[float, float]) -> None:
    from PIL import ImageDraw

    from diffusette.runtime.conditioning import scene_of

    photo = Image.new("RGB", (512, 256), "white")
    ImageDraw.Draw(photo).ellipse((160, 32, 352, 224), fill="red")
    mask = photo.getchannel("G").point(lambda value: 255 - value)
    request = resolve(Request("fox", init=photo, mask=mask, fit=fit, width=128, height=128), open_bundle(DEMO).manifest)
    scene = scene_of(request, 128, 128)
    assert scene is not None
    assert scene.mask is not None
    for picture in (scene.picture.getchannel("G").point(lambda value: 255 - value), scene.mask):  # the mask follows the image
        left, top, right, bottom = picture.point(lambda value: 255 * (value > 127)).getbbox() or (0, 0, 0, 0)
        assert (right - left) / (bottom - top) == pytest.approx(disc[0] / disc[1], abs=0.06)


def test_the_seed_of_the_web_uis_for_a_random_one_is_random() -> None:
    found = normalize(Request("fox", seed=-1, variation_seed=-1))
    assert (found.seed, found.variation_seed) == (None, None)
