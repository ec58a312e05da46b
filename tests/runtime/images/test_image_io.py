"""User images: read completely, upright and within limits, or refused."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusette.models.errors import NumericalError, RequestError
from diffusette.runtime.images import image_io

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (6, 4, 3), np.uint8)
SMOOTH = np.stack([np.add.outer(np.arange(48) * 4, np.arange(32) * 2)] * 3, -1).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG with that size in its header and no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.fromarray(SMOOTH), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of_size(width: int, height: int, kind: str) -> bytes:
    if kind == "VP8X":
        body = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    else:
        body = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + b"\0" * 5
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("as_path", [False, True])
def test_a_png_is_read_pixel_by_pixel(tmp_path, as_path):
    data = saved(Image.fromarray(PIXELS))
    (tmp_path / "image.txt").write_bytes(data)  # the file name does not matter
    image = image_io.read(tmp_path / "image.txt" if as_path else data)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("WEBP", {"lossless": True})])
def test_jpeg_and_webp_are_read(kind, options):
    image = image_io.read(saved(Image.fromarray(SMOOTH), kind, **options))
    assert np.abs(np.asarray(image).astype(int) - SMOOTH).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.array([[0, 255, 255], [255, 0, 0]], np.uint8))
    image = image_io.read(saved(grey.convert("RGB").convert(mode), "JPEG" if mode == "CMYK" else "PNG"))
    expected = np.array([[0, 255, 255], [255, 0, 0]])[..., None].repeat(3, 2)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= (60 if mode == "CMYK" else 0)


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert np.asarray(image_io.read(saved(Image.fromarray(values))))[..., 0].tolist() == [[0, 1, 128, 255]]


def test_transparent_parts_become_white():
    image = Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [10, 20, 30, 128]]], np.uint8))
    assert np.asarray(image_io.read(saved(image))).tolist() == [[[10, 20, 30], [255, 255, 255], [132, 137, 142]]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert np.asarray(image_io.read(saved(palette, transparency=1))).tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    image = Image.fromarray(PIXELS)
    stored = image.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(image_io.read(saved(stored, exif=exif))), PIXELS)


def test_damaged_exif_is_ignored():
    data = saved(Image.fromarray(PIXELS), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(np.asarray(image_io.read(data)), PIXELS)


def test_exif_of_which_pillow_warns_is_ignored_or_refused_where_warnings_are_errors():
    data = saved(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0MM\0*\0\0\x80\x08")
    with warnings.catch_warnings(action="ignore"):
        assert image_io.read(data).size == Image.fromarray(PIXELS).size
    with pytest.raises(RequestError, match="Corrupt EXIF"):
        image_io.read(data)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_read(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    image = image_io.read(saved(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})))
    assert np.asarray(image)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [3, 12, 40, 0.5, 0.9])
def test_a_truncated_file_is_refused(kind, kept):
    data = saved(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    cut = data[: kept if isinstance(kept, int) else int(len(data) * kept)]
    with pytest.raises(RequestError, match="init image: "):
        image_io.read(cut, "init image")


def jpeg(**options):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_jpeg_whose_parts_would_cost_minutes_is_refused(tmp_path):
    exif = b"\xff\xe1\x00\x0aExif\0\0\0\0"
    many, scans = jpeg(), jpeg(progressive=True)
    last = scans.rindex(b"\xff\xda")
    for data, said in (
        (many[:2] + exif * 400_000 + many[2:], "400,000 EXIF segments"),
        (scans[:-2] + scans[last:-2] * 15_000 + scans[-2:], "scans, expected at most 100"),
    ):
        (tmp_path / "x.jpg").write_bytes(data)
        started = time.perf_counter()
        with pytest.raises(RequestError, match=said):
            image_io.read(tmp_path / "x.jpg")
        assert time.perf_counter() - started < 2
    assert image_io.read(scans).size == (64, 64)


def test_a_giant_image_is_refused_before_decoding(tmp_path):
    giants = [
        png_of_size(50_000, 50_000),
        jpeg_of_size(50_000, 50_000),
        webp_of_size(16_000, 16_000, "VP8L"),
        webp_of_size(16_000_000, 16_000_000, "VP8X"),
    ]
    for number, data in enumerate(giants):
        (tmp_path / str(number)).write_bytes(data)
    code = f"""
import resource
from pathlib import Path
from diffusette.runtime.images import image_io
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (resource.getpagesize() * pages + (64 << 20),) * 2)
for number in range({len(giants)}):
    try:
        image_io.read(Path({str(tmp_path)!r}) / str(number))
    except image_io.RequestError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.count("pixels, expected at most") == len(giants), done.stderr
    assert not done.stderr


def test_large_transparent_images_are_put_on_white_in_bands_like_small_ones(monkeypatch):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 7, 4), dtype=np.uint8))
    whole = np.asarray(image_io.as_image(image))
    monkeypatch.setattr(image_io, "_BAND", 40)
    np.testing.assert_array_equal(np.asarray(image_io.as_image(image)), whole)


@pytest.mark.parametrize("read", [image_io.read_mask, image_io.read_holes])
def test_a_mask_with_an_opaque_palette_is_brightness(read):
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([0, 0, 0, 200, 200, 200])
    mask = np.asarray(read(saved(palette, transparency=b"\xff\xff"))).tolist()
    assert mask == ([[0, 200]] if read is image_io.read_mask else [[255, 55]])


@pytest.mark.parametrize("read", [image_io.read, image_io.read_mask, image_io.read_holes])
@pytest.mark.parametrize("options", [{}, {"transparency": 0}])
def test_a_palette_image_without_a_palette_is_refused(read, options):
    data = saved(Image.new("P", (4, 4)), **options)
    start = data.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    with pytest.raises(RequestError, match="it has no palette"):
        read(data[:start] + data[end:])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux counts it")
@pytest.mark.parametrize("read", ["read", "read_mask", "read_holes"])
def test_the_largest_image_with_transparency_takes_little_more_memory_than_its_pixels(tmp_path, read):
    image = Image.new("P", (8192, 8192))
    image.putpalette([value for grey in range(256) for value in (grey, grey, grey)])
    image.save(tmp_path / "large.png", transparency=0)
    script = f"""if True:
        import sys
        from pathlib import Path
        from diffusette.runtime.images import image_io
        image_io.{read}(Path(sys.argv[1]))
        print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "large.png")], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 640  # MB; getrusage would count the process that started this one


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + b"\0" * 50,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"BM" + b"\0" * 60,
        b"II*\0" + b"\0" * 60,
        b"%!PS-Adobe",
        b"\0" * 100,
        saved(Image.fromarray(PIXELS), "GIF"),
        saved(Image.fromarray(PIXELS), "TIFF"),
    ],
    ids=ascii,
)
def test_another_format_is_refused_by_its_first_bytes(data):
    with pytest.raises(RequestError, match="not a PNG, JPEG or WebP"):
        image_io.read(data)


@pytest.mark.parametrize("what", ["missing", "folder", "fifo", "large", "nul"])
def test_an_unreadable_file_is_refused(tmp_path, what):
    path = tmp_path / "image.png"
    match what:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "large":
            path.touch()
            os.truncate(path, image_io.MAX_BYTES + 1)
        case "nul":
            path = tmp_path / "a\0b.png"
        case _:
            pass
    with pytest.raises(RequestError, match=r"init image .*png"):
        image_io.read(path, "init image")


@given(st.binary(max_size=64), st.integers(0, 60), st.sampled_from(["PNG", "JPEG", "WEBP"]))
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_are_read_as_an_image_or_refused(junk, place, kind):
    data = bytearray(saved(Image.fromarray(SMOOTH), kind))
    data[place : place + len(junk)] = junk
    with suppress(RequestError):
        assert image_io.read(bytes(data)).mode == "RGB"


def test_a_mask_is_brightness_or_alpha():
    grey = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    assert np.asarray(image_io.read_mask(saved(grey))).tolist() == [[0, 128, 255]]
    opaque = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    assert np.asarray(image_io.read_mask(saved(opaque))).tolist() == [[0, 128, 255]]
    assert image_io.how_read(image_io.read_mask(saved(opaque))) == ""
    strokes = Image.merge("LA", (Image.new("L", grey.size, 7), grey))
    assert np.asarray(image_io.read_mask(saved(strokes))).tolist() == [[0, 128, 255]]
    assert "strokes" in image_io.how_read(image_io.read_mask(saved(strokes)))
    erased = Image.fromarray(SMOOTH).convert("RGBA")
    erased.paste((0, 0, 0, 0), (8, 8, 16, 16))
    holes = np.asarray(image_io.read_mask(saved(erased)))
    assert (holes[8:16, 8:16] == 255).all()
    assert holes.sum() == 255 * 64
    assert "transparent parts" in image_io.how_read(image_io.read_mask(saved(erased)))


def test_a_mask_is_inverted_and_softened():
    mask = Image.new("L", (64, 8), 0)
    mask.paste(255, (0, 0, 32, 8))
    assert image_io.soften(mask) is mask
    assert np.asarray(image_io.soften(mask, invert=True))[0, [0, 63]].tolist() == [0, 255]
    row = np.asarray(image_io.soften(mask, 4.0))[4].astype(int)
    assert (np.diff(row) <= 0).all()
    assert row[0] == 255
    assert row[63] == 0
    assert 100 < row[31] < 160
    with pytest.raises(RequestError, match="blur"):
        image_io.soften(mask, float("nan"))


def test_resizing_stretches_crops_or_fills():
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    stretched, cut, filled = (np.asarray(image_io.fit(image, 16, 32, how)) for how in ("stretch", "crop", "pad"))
    assert stretched.shape == cut.shape == filled.shape == (32, 16, 3)
    for array in (stretched, cut, filled):
        assert array[16, 2].tolist() == [255, 0, 0]
        assert array[16, 13].tolist() == [0, 0, 255]
    np.testing.assert_array_equal(filled[0], filled[12])
    assert image_io.fit(image, 40, 20) is image


def test_cropping_keeps_the_centre():
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 2, dtype=np.uint8), (8, 1)))
    row = np.asarray(image_io.fit(ramp, 8, 8, "crop"))[4].astype(int)
    assert np.abs(row - (np.arange(112, 128, 2))).max() <= 2


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 3)])
def test_any_shape_fits(how, size):
    assert image_io.fit(Image.new("RGB", size, "red"), 24, 16, how).size == (24, 16)
    assert image_io.fit(Image.new("L", size, 9), 24, 16, how).getextrema() == (9, 9)


def test_sizes_snap_to_multiples_of_eight():
    assert image_io.snap(515, 508) == (512, 512)
    assert image_io.snap(3, 20, 8) == (8, 16)


def test_pixels_survive_conversion_to_an_array_and_back():
    everything = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, 2)
    array = image_io.to_array(Image.fromarray(everything))
    assert (array.dtype, array.shape, array.min(), array.max()) == (np.float32, (1, 3, 16, 16), -1.0, 1.0)
    np.testing.assert_array_equal(np.asarray(image_io.to_image(array)), everything)
    over = np.full((1, 3, 1, 2), [[[[-7.0, 7.0]]]], np.float32)
    assert np.asarray(image_io.to_image(over))[..., 0].tolist() == [[0, 255]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_pixels_are_an_error_and_never_a_black_image(value):
    array = np.zeros((1, 3, 8, 8), np.float32)
    array[0, 1, 2, 3] = value
    with pytest.raises(NumericalError, match="NaN or Inf"):
        image_io.to_image(array)
