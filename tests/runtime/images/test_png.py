"""PNG chunks: text is read apart from facts, and an animation's claims cost nothing."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffusette.models.errors import RequestError
from diffusette.runtime.images import image_io, png

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def image_with(*extra: bytes) -> bytes:
    """A sound PNG with more chunks before its pixels."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    data = buffer.getvalue()
    at = data.index(b"IDAT") - 4
    return data[:at] + b"".join(extra) + data[at:]


def test_an_animation_that_claims_two_billion_frames_is_read_at_once() -> None:
    raw = zlib.compress((b"\0" + bytes(12)) * 4)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    animation = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    data = png.SIGNATURE + head + animation + chunk(b"IDAT", b"") + chunk(b"IDAT", raw) + chunk(b"IEND", b"")
    started = time.monotonic()
    assert image_io.read_info(data).texts == {}
    assert image_io.read(data).size == (4, 4)
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("key", [b"exif", b"transparency", b"icc_profile", b"interlace", b"bbox", b"dpi", b"gamma", b"xmp"])
def test_a_text_chunk_named_like_a_fact_changes_no_pixel(key: bytes) -> None:
    data = image_with(chunk(b"tEXt", key + b"\0hello"))
    np.testing.assert_array_equal(np.asarray(image_io.read(data)), PIXELS)
    info = image_io.read_info(data)
    assert info.texts[key.decode()] == "hello"
    assert info.exif == b""


def test_every_kind_of_text_is_read_and_of_equal_keywords_the_first() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("plain", "caf\u00e9")
    info.add_text("packed", "x" * 5000, zip=True)
    info.add_itxt("unicode", "\u72d0")
    info.add_itxt("both", "\u72d0" * 999, zip=True)
    info.add_text("plain", "second")
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=info)
    assert png.texts(buffer.getvalue()) == {"plain": "caf\u00e9", "packed": "x" * 5000, "unicode": "\u72d0", "both": "\u72d0" * 999}


def test_a_text_that_inflates_without_end_is_cut_at_the_limit() -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    found = png.texts(image_with(chunk(b"zTXt", b"bomb\0\0" + bomb), chunk(b"zTXt", b"second\0\0" + bomb)))
    assert sum(map(len, found.values())) <= png.MAX_TEXT


@pytest.mark.parametrize("content", [b"", b"key", b"key\0", b"key\0\1x", b"key\0\0not zlib", b"\0\0\0"])
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_damaged_text_is_left_out_and_the_image_is_read(kind: bytes, content: bytes) -> None:
    data = image_with(chunk(kind, content))
    np.testing.assert_array_equal(np.asarray(image_io.read(data)), PIXELS)
    png.texts(data)


def test_transparency_and_colours_that_belong_to_the_image_stay() -> None:
    image = Image.fromarray(PIXELS).convert("P")
    image.info["transparency"] = 0
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    assert b"tRNS" in png.still(buffer.getvalue())


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_a_chunk_with_a_wrong_checksum_is_refused(kind: bytes) -> None:
    """Pillow relies on zlib's own checksum for IDAT."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert("P").save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    at = data.index(kind)
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    data[end] ^= 1
    with pytest.raises(RequestError, match=r"cannot be decoded \(broken PNG"):
        image_io.read(bytes(data))
