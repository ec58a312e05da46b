"""EXIF: Orientation and UserComment, read from any data and written for other programs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusette.runtime.images import exif


@pytest.mark.parametrize("text", ["", "a cat", "日本語 🦊\nline", "x" * 100_000])
def test_a_comment_survives_writing_and_reading(text):
    written = exif.comment(text)
    assert exif.read_comment(written) == text
    assert exif.orientation(written) == 1
    judge = Image.Exif()
    judge.load(written)
    assert judge.get_ifd(0x8769)[0x9286] == b"UNICODE\0" + text.encode("utf-16-be")


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("value", [1, 3, 6, 8])
def test_pillows_own_exif_is_read(endian, value):
    made = Image.Exif()
    made.endian = endian
    made[0x0112] = value
    made[0x010F] = "a maker with a long name"
    made.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0plain words"
    for data in (made.tobytes(), made.tobytes().removeprefix(b"Exif\0\0")):
        assert exif.orientation(data) == value
        assert exif.read_comment(data) == "plain words"


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_impossible_orientation_counts_as_upright(value):
    assert exif.orientation(b"Exif\0\0MM" + struct.pack(">HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, value, 0, 0)) == 1


@given(st.binary(max_size=80), st.integers(0, 80))
@settings(max_examples=200, deadline=None)
def test_damaged_exif_counts_as_missing_and_raises_nothing(junk, place):
    good = exif.comment("some words")
    for data in (junk, b"Exif\0\0MM\0*" + junk, good[:place], good[:place] + junk + good[place:]):
        assert 1 <= exif.orientation(data) <= 8
        exif.read_comment(data)
