"""Manifests whose lengths lie are found before the C2PA library sees them."""

from __future__ import annotations

import time

import pytest

from diffusette.runtime.detector import examine
from diffusette.runtime.provenance import c2pa_reader, cbor, jumbf
from diffusette.runtime.provenance.marks import Marks
from diffusette.runtime.saving import ImageWriter
from tests.fuzz.targets import _with_checksums
from tests.support.signed import PICTURE

KINDS = ("PNG", "JPEG", "WEBP")


@pytest.mark.parametrize(
    ("data", "fine"),
    [
        ("00", True),
        ("a1616101", True),
        ("9f0102ff", True),
        ("5f4101ff", True),
        ("c074323032362d30312d30315430303a30303a30305a", True),
        ("f97e00", True),
        ("", False),
        ("ff", False),
        ("4201", False),
        ("7a44696666", False),
        ("7b7fffffffffffffff", False),
        ("9b00000000ffffffff", False),
        ("bb7fffffffffffffff", False),
        ("a2616101", False),
        ("1c", False),
        ("19ff", False),
        ("9f01", False),
        ("81" * 65 + "00", False),
        ("c0" * 100_000, False),
    ],
)
def test_lengths_are_those_of_the_content_or_it_is_no_cbor(data: str, fine: bool) -> None:
    assert cbor.is_well_formed(bytes.fromhex(data)) is fine


def test_millions_of_items_end_in_bounded_time() -> None:
    start = time.process_time()
    assert not cbor.is_well_formed(b"\x9f" + bytes(8 << 20))
    assert time.process_time() - start < 2


def with_false_length(kind: str) -> bytes:
    """A signed image in which the name of its system claims to be a gigabyte long."""
    data = ImageWriter(Marks(sign="on", keys=None)).encode(PICTURE, kind)
    assert data.count(b"fsystemjDiffusette") == 1
    return _with_checksums(data.replace(b"fsystemjDiffusette", b"fsystemzDiffusette"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_image_is_sound_and_one_with_a_false_length_is_damaged_and_never_given_to_the_library(kind: str) -> None:
    assert jumbf.is_sound(ImageWriter(Marks(sign="on", keys=None)).encode(PICTURE, kind))
    hostile = with_false_length(kind)
    found = c2pa_reader.read(hostile)
    assert found is not None
    assert (found.state, found.problems) == ("damaged", ("boxes or CBOR whose lengths are not those of their content",))
    assert examine(hostile)[0].verdict == "altered"


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_image_with_a_false_length_is_not_attached(kind: str) -> None:
    signed = ImageWriter(Marks(sign="on", keys=None)).encode(PICTURE, "PNG", parent=with_false_length(kind))
    found = c2pa_reader.read(signed)
    assert found is not None
    assert (found.state, found.ingredients) == ("intact", ())
