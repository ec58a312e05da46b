"""What Python callers may get wrong, at every door: each ends in an error of ours that names the argument, or is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diffusette
from diffusette.models.bundle import DEMO, open_bundle
from diffusette.models.errors import MAX_LETTERS, BundleError, DiffusetteError, NumericalError, ProviderError, RequestError
from diffusette.runtime.normalize import normalize
from diffusette.runtime.pipeline import load
from diffusette.runtime.request import Request
from diffusette.runtime.resolve import resolve


class Unprintable:
    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __hash__(self) -> int:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise ZeroDivisionError


STRANGE = (5, 1.5, b"fox", [], {}, object(), np.array([1, 2]), ["x"], Unprintable(), 10**5000, "")


@pytest.mark.parametrize("strange", STRANGE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    ("argument", "said"), [*((name, name) for name in ("folder", "refiner", "provider", "cache")), ("memory", "memory plan")]
)
def test_load_names_the_argument_of_a_wrong_type(argument: str, said: str, strange: Any) -> None:
    with pytest.raises((RequestError, ProviderError), match=f"^{said}[: ]"):
        diffusette.load(**{argument: strange})


def test_load_takes_no_text_for_yes_or_no() -> None:
    with pytest.raises(RequestError, match="safety: 'off' is of type str, expected true or false"):
        diffusette.load(safety="off")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "\ud800"], ids=["NUL", "long", "surrogate"])
def test_a_folder_that_no_system_can_name_is_refused(name: str) -> None:
    with pytest.raises(BundleError):
        diffusette.load(name)


def test_a_file_in_place_of_a_bundle_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.safetensors: not a folder; .*diffusette export"):
        diffusette.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("strange", [None, 5, b"fox", ["fox"], Unprintable()], ids=lambda value: type(value).__name__)
def test_a_prompt_of_a_wrong_type_is_refused(strange: Any) -> None:
    with diffusette.load() as pipeline:
        with pytest.raises(RequestError, match="prompt: "):
            pipeline.generate(strange, steps=1)
        with pytest.raises(RequestError, match="expected a Request"):
            list(pipeline.steps(strange))


@pytest.mark.parametrize("strange", [np.array([1, 2]), Unprintable(), True, "x"], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("field", ["seed", "variation_seed"])
def test_a_seed_of_a_wrong_type_is_refused(field: str, strange: Any) -> None:
    with pytest.raises(RequestError, match=f"{field}: "):
        normalize(Request("fox", **{field: strange}))


def test_latents_that_cannot_be_shown_are_refused() -> None:
    with diffusette.load() as pipeline:
        channels = pipeline.manifest.latent.channels
        for wrong in (None, np.zeros((3, 3)), np.zeros((1, channels + 1, 8, 8)), np.zeros((1, channels, 0, 0))):
            with pytest.raises(RequestError, match="latents: "):
                pipeline.preview(wrong, cheap=True)  # pyright: ignore[reportArgumentType]
        with pytest.raises(NumericalError, match="NaN"):
            pipeline.preview(np.full((1, channels, 8, 8), np.nan, np.float32), cheap=True)


def test_options_of_samplers_may_be_numbers_of_numpy() -> None:
    given: Any = {"order": np.int64(2), "lower_order_final": np.True_}
    found = resolve(Request("fox", sampler="dpm++2m", sampler_options=given), open_bundle(DEMO).manifest).solver_options
    assert {name: (type(value), value) for name, value in found.items()} == {"order": (int, 2), "lower_order_final": (bool, True)}


def test_a_pil_image_is_read_as_its_file_would_be(tmp_path: Path) -> None:
    deep, clear = Image.fromarray(np.full((8, 8), 30000, np.uint16)), Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((10, 20, 30, 255), (0, 0, 8, 4))
    for number, image in enumerate((deep, clear)):
        image.save(path := tmp_path / f"{number}.png")
        for field in ("init", "mask"):
            asked: list[dict[str, Any]] = [{field: image}, {field: path}]
            given, read = (getattr(normalize(Request("fox", **fields)), field) for fields in asked)
            np.testing.assert_array_equal(np.asarray(given), np.asarray(read))


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 5)), Image.new("F", (8, 8)), Image.new("L", (1, 1)).resize((8200, 8200))])
def test_a_pil_image_without_usable_pixels_is_refused(image: Image.Image) -> None:
    with pytest.raises(RequestError, match="init: "):
        normalize(Request("fox", init=image))


@pytest.mark.parametrize("which", ["nowhere", "file"])
def test_a_folder_of_loras_that_is_none_is_refused(which: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"lora_folder: .*no(t a| such) folder"):
        normalize(Request("fox", lora_folder=tmp_path / which))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"strength": 0.3}, "strength: has no effect without init"),
        ({"fit": "pad"}, "fit: has no effect without init"),
        ({"mask_padding": 9}, "mask_padding: has no effect without only_masked"),
        ({"hires_upscaler": "latent"}, "hires_upscaler: has no effect without hires"),
        ({"variation_seed": 9}, "variation_seed: has no effect without variation"),
        ({"negative": "blue", "guidance": 1}, "negative: has no effect at guidance 1"),
        ({"rescale": 0.7, "guidance": 0}, "rescale: has no effect at guidance 0"),
    ],
)
def test_what_was_asked_for_and_has_no_effect_is_said(fields: Any, said: str) -> None:
    notes = resolve(Request("fox", **fields), open_bundle(DEMO).manifest).notes
    assert [note[: len(said)] for note in notes] == [said]


def test_distilled_guidance_has_no_negative_and_says_so(bundle_of: Callable[[str], tuple[Path, Path]]) -> None:
    pipeline = load(bundle_of("sd1-lcm")[1], provider="cpu")
    notes = pipeline.generate("fox", negative="blue", rescale=0.5, guidance=8, steps=1, seed=1).notes
    said = "has no effect, since guidance is distilled into this model"
    assert [note for note in notes if "no effect" in note] == [f"negative: {said}", f"rescale: {said}"]


@pytest.mark.parametrize(("speed", "steps", "said"), [("balanced", 7, True), ("balanced", 8, False), ("fast", 5, True), ("fast", 6, False)])
def test_a_speed_that_skips_no_step_is_noted(speed: Any, steps: int, said: bool) -> None:
    notes = load(DEMO, provider="cpu").generate("red apple", speed=speed, steps=steps, seed=1).notes
    assert [note for note in notes if note.startswith(f"speed {speed}: no step is skipped in {steps} steps")] == [*notes][: int(said)]


def test_a_mask_without_white_is_said() -> None:
    request = Request("fox", init=Image.new("RGB", (64, 64)), mask=Image.new("L", (64, 64)))
    (note,) = resolve(request, open_bundle(DEMO).manifest).notes
    assert note.startswith("mask: nothing in it is white")


def test_timesteps_that_do_not_fall_are_called_timesteps() -> None:
    with pytest.raises(RequestError, match=r"timesteps: \[1.0, 2.0\].*smaller than the one before"):
        resolve(Request("fox", timesteps=[1, 2]), open_bundle(DEMO).manifest)


def test_a_message_is_short_whatever_it_cites() -> None:
    assert len(str(DiffusetteError("x" * 10**6))) < MAX_LETTERS + 10
