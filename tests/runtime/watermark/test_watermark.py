"""Our own watermark: what it survives, where it is not found, and how it comes into files."""

from __future__ import annotations

import io
import random
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusette.models.errors import RequestError
from diffusette.runtime.detector import examine
from diffusette.runtime.metadata import image_files
from diffusette.runtime.metadata.record import Record
from diffusette.runtime.provenance.marks import Marks
from diffusette.runtime.result import Picture
from diffusette.runtime.saving import ImageWriter
from diffusette.runtime.watermark import decode, pattern, settings
from diffusette.runtime.watermark.detect import detect
from diffusette.runtime.watermark.embed import embed
from tests.support.watermark_images import ATTACKS, samples, synthetic

SAMPLES = [one for one in samples(12, seed=3, sizes=((256, 256), (320, 256)), all_kinds=False) if one.kind != "text"]
"""Synthetic ones alone; `make watermark` has photographs too."""


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_mark_is_found_again_in_nearly_all_images_after(attack: str) -> None:
    found = 0
    for number, sample in enumerate(SAMPLES):
        marked = Image.fromarray(embed(np.asarray(sample.image), 1000 + number))
        mark = detect(np.asarray(ATTACKS[attack](marked, random.Random(number))))
        assert mark is None or mark.identifier == 1000 + number
        found += mark is not None
    assert found >= len(SAMPLES) - 2


def test_the_change_is_small_and_smaller_on_flat_areas() -> None:
    for sample in SAMPLES:
        pixels = np.asarray(sample.image)
        change = embed(pixels, 7).astype(float) - pixels
        assert 10 * np.log10(255**2 / np.mean(change**2)) >= 42
    grey = np.full((256, 256, 3), 128, np.uint8)
    assert np.abs(embed(grey, 7).astype(int) - 128).max() <= 3


def test_images_without_a_mark_and_with_another_key_show_none() -> None:
    for number in range(12):
        _, image = synthetic(number, random.Random(number), 256, 256)
        assert detect(np.asarray(image)) is None
    marked = embed(np.asarray(SAMPLES[0].image), 7, key="a host's own")
    assert detect(marked) is None
    mark = detect(marked, "a host's own")
    assert mark is not None
    assert mark.identifier == 7
    assert mark.chance < 1e-6


def test_the_threshold_keeps_the_promise_of_one_in_a_million() -> None:
    assert 2.0**32 * decode.PLACES * np.exp(-(decode.THRESHOLD**2) / 2) == pytest.approx(1e-6)
    assert decode.chance(decode.THRESHOLD) == pytest.approx(1e-6)


def test_scores_of_images_without_a_mark_stay_below_the_bound_of_the_calculation() -> None:
    values = np.random.default_rng(0).normal(size=(200, 64)) + 1j * np.random.default_rng(1).normal(size=(200, 64))
    codes = pattern.pattern_of("some key").symbols[0][:, :64]
    scores = (values @ codes.conj().T).real / np.sqrt(0.5 * np.sum(np.abs(values) ** 2, axis=1, keepdims=True))
    for height in (1.0, 2.0, 3.0):
        assert np.mean(scores > height) <= np.exp(-(height**2) / 2)


@pytest.mark.parametrize("identifier", [0, 1, 0x1A2B3C4D, 2**32 - 1])
def test_every_identifier_of_32_bits_comes_back(identifier: int) -> None:
    mark = detect(embed(np.asarray(SAMPLES[0].image), identifier))
    assert mark is not None
    assert mark.identifier == identifier


@pytest.mark.parametrize("size", [(95, 400), (1, 1), (3, 5000)])
def test_images_that_are_too_small_hold_no_mark(size: tuple[int, int]) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    assert detect(pixels) is None
    with pytest.raises(RequestError, match="expected 256 pixels a side"):
        embed(pixels, 7)


def test_black_and_white_images_carry_a_mark() -> None:
    for level in (0, 255):
        mark = detect(embed(np.full((256, 256, 3), level, np.uint8), 9))
        assert mark is not None
        assert mark.identifier == 9


def picture(size: int = 256, **extra: str) -> Picture:
    _, image = synthetic(3, random.Random(3), size, size)
    record = Record(prompt="a", seed=1, steps=1, guidance=1.0, sampler="euler", schedule="model", width=size, height=size, extra=extra)
    return Picture(image, 1, record)


def test_files_carry_the_mark_and_their_record_names_it_and_small_ones_do_not() -> None:
    writer = ImageWriter(Marks(watermark_id=77))
    data = writer.encode(picture(), "PNG")
    assert data == writer.encode(picture(), "PNG")
    report, found = examine(data)
    (mark,) = [one for one in report.findings if one.mark == "watermark"]
    assert mark.details["identifier"] == 77
    assert found.record is not None
    assert found.record.watermark == writer.watermark == "diffusette.lattice.1:0000004d"
    small = image_files.read(writer.encode(picture(128), "PNG")).record
    assert small is not None
    assert small.watermark == writer.watermark == ""
    with pytest.raises(RequestError, match="128×128 pixels; expected at least 256 a side"):
        ImageWriter(Marks(watermark="on")).encode(picture(128), "PNG")


def test_an_editor_that_saves_a_signed_image_again_loses_the_signature_and_not_the_mark() -> None:
    data = ImageWriter(Marks(sign="on", keys=None, watermark_id=77)).encode(picture(), "PNG")
    assert examine(data)[0].verdict == "signed"
    again = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(again, "JPEG", quality=90)
    report, _ = examine(again.getvalue())
    signature, mark, *_ = report.findings
    assert (signature.state, signature.says) == ("absent", "no C2PA manifest")
    assert mark.details["identifier"] == 77
    assert (report.verdict, report.ai) == ("marked", True)


def test_off_leaves_the_pixels_alone_and_the_record_says_so() -> None:
    for writer, ai in ((ImageWriter(Marks(watermark="off")), True), (ImageWriter(Marks()), False)):
        data = writer.encode(picture(), "PNG", ai=ai)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture().image))
        assert not [one for one in examine(data)[0].findings if one.mark == "watermark" and one.state == "present"]
    off = image_files.read(ImageWriter(Marks(watermark="off")).encode(picture(), "PNG")).record
    assert off is not None
    assert off.watermark == "off"


def test_a_mark_is_not_written_over_the_one_of_the_input() -> None:
    parent = ImageWriter(Marks(watermark_id=5)).encode(picture(), "PNG")
    kept = Picture(Image.open(io.BytesIO(parent)).convert("RGB"), 1, picture(init="…").record)
    writer = ImageWriter(Marks(watermark_id=6))
    data = writer.encode(kept, "PNG", parent=parent)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(kept.image))
    assert writer.watermark == "diffusette.lattice.1:00000005"
    data = writer.encode(picture(init="…"), "PNG", parent=parent)  # an image in which the input's mark is gone
    record = image_files.read(data).record
    assert record is not None
    assert (record.watermark, record.input_watermark) == ("diffusette.lattice.1:00000006", "diffusette.lattice.1:00000005")


def test_the_identifier_is_the_one_given_or_the_applications_or_this_installations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFUSETTE_WATERMARK_ID")
    assert settings.settings_of(Marks(watermark_id="0x10")).identifier == 16
    named = settings.settings_of(Marks(issuer="Example Ltd", system="Paint")).identifier
    assert named == settings.application_id("Example Ltd", "Paint") != settings.application_id("Example Ltd", "Draw")
    own = settings.settings_of(Marks(keys=tmp_path / "keys")).identifier
    assert own == settings.settings_of(Marks(keys=tmp_path / "keys")).identifier
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / "keys" / settings.FILE).stat().st_mode) == 0o600
    assert settings.settings_of(Marks(keys=None)).identifier == settings.UNNAMED
    (tmp_path / "keys" / settings.FILE).write_text("none")
    damaged = settings.settings_of(Marks(keys=tmp_path / "keys"))
    assert damaged.identifier == settings.UNNAMED
    assert "is damaged" in damaged.notes[0]
    for wrong in ("-1", "4294967296", "cat"):
        with pytest.raises(RequestError, match="expected a number from 0 to 4294967295"):
            settings.settings_of(Marks(watermark_id=wrong))
    with pytest.raises(RequestError, match="expected auto, on, off or trustmark=DIR"):
        Marks(watermark="maybe")
