"""Metadata in image files: it survives writing and reading in every format, and no partial file is ever left."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from diffusette.models.errors import RequestError, ResourceError
from diffusette.runtime.metadata import image_files, infotext, xmp
from diffusette.runtime.metadata.image_files import Record

PIXELS = np.add.outer(np.arange(48) * 4, np.arange(32) * 2).astype(np.uint8)[..., None].repeat(3, 2)
IMAGE = Image.fromarray(PIXELS)
HOSTILE = "a cat\nNegative prompt: none\nSteps: 1, Seed: 5, Sampler: x\n\r\n\t\x00\x1b]0;\x07 <!DOCTYPE> ]]> &amp; \ufffe\uffff 🦊 \u202e"
RECORD = Record(
    prompt="red apple, flat style",
    negative="blurry",
    seed=7,
    steps=20,
    guidance=7.5,
    sampler="dpm++2m",
    schedule="karras",
    width=32,
    height=48,
    model="demo",
    model_hash="0123456789abcdef" * 4,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FORMATS = ("PNG", "JPEG", "WEBP")
ENDINGS = ("picture.png", "picture.jpg", "picture.JPEG", "picture.webp")


@pytest.mark.parametrize("name", ENDINGS)
def test_all_metadata_is_read_back(tmp_path, name):
    image_files.write(IMAGE, tmp_path / name, RECORD)
    found = image_files.read(tmp_path / name)
    assert found.record == RECORD
    assert found.text == infotext.compose(RECORD)
    assert found.ai
    assert found.tool == "Diffusette 0.1.0"
    assert names(tmp_path) == [name]
    with Image.open(tmp_path / name) as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - PIXELS).max() <= (0 if name.endswith("png") else 4)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_hostile_prompt_is_read_back_unchanged(tmp_path, kind):
    record = msgspec.structs.replace(RECORD, prompt=HOSTILE, negative=HOSTILE[::-1], extra={"Steps": HOSTILE})
    (tmp_path / "p").write_bytes(image_files.encode(IMAGE, kind, record))
    assert image_files.read(tmp_path / "p").record == record


@given(
    st.lists(st.sampled_from([*"a<>&\"'\n\r\t\x00\x0b\x85 ]é🦊\u2028\ufeff\ufffe", "]]>", "<!--", "&#0;", "<?xpacket"]), max_size=30).map(
        "".join
    ),
    st.sampled_from(FORMATS),
)
@settings(max_examples=60, deadline=None)
def test_any_prompt_is_read_back_unchanged(tmp_path_factory, text, kind):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    record = msgspec.structs.replace(RECORD, prompt=text, negative=text)
    path.write_bytes(image_files.encode(IMAGE, kind, record))
    assert image_files.read(path).record == record


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_image_and_record_give_the_same_bytes(kind):
    extra = {"b": 1, "a": {"d": 2, "c": 3}}
    first = image_files.encode(IMAGE, kind, msgspec.structs.replace(RECORD, extra=extra))
    second = image_files.encode(IMAGE.copy(), kind, msgspec.structs.replace(RECORD, extra=dict(reversed(extra.items()))))
    assert first == second


@pytest.mark.parametrize("kind", FORMATS)
def test_without_a_record_no_prompt_is_in_the_file_but_the_mark_is(tmp_path, kind):
    data = image_files.encode(IMAGE, kind, None)
    (tmp_path / "p").write_bytes(data)
    found = image_files.read(tmp_path / "p")
    assert (found.record, found.text, found.ai) == (None, None, True)
    assert found.settings() == {}
    for text in (b"apple", "apple".encode("utf-16-be"), b"Steps"):
        assert text not in data


@pytest.mark.parametrize("kind", FORMATS)
def test_the_mark_has_its_own_switch(tmp_path, kind):
    (tmp_path / "marked").write_bytes(image_files.encode(IMAGE, kind, RECORD, ai=False))
    found = image_files.read(tmp_path / "marked")
    assert (found.record, found.ai) == (RECORD, False)
    bare = image_files.encode(IMAGE, kind, None, ai=False)
    for text in (b"xmp", b"trainedAlgorithmicMedia", b"Diffusette", b"parameters", b"http"):
        assert text not in bare


@pytest.mark.parametrize("kind", FORMATS)
def test_other_readers_find_the_marks(kind):
    with Image.open(io.BytesIO(image_files.encode(IMAGE, kind, RECORD))) as image:
        packet = image.info["xmp"]
        if kind == "PNG":
            assert image.text["parameters"] == infotext.compose(RECORD)
            assert msgspec.json.decode(str(image.text["diffusette"]))["prompt"] == RECORD.prompt
        else:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
            assert comment == b"UNICODE\0" + infotext.compose(RECORD).encode("utf-16-be")
    assert b'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"' in packet
    assert b'xmp:CreatorTool="Diffusette 0.1.0"' in packet


@pytest.mark.parametrize("name", ENDINGS)
def test_sd_parsers_reads_prompt_and_settings(tmp_path, name):
    sd_parsers = pytest.importorskip("sd_parsers")
    image_files.write(IMAGE, tmp_path / name, RECORD)
    found = sd_parsers.ParserManager().parse(tmp_path / name)
    assert found.generator.name == "AUTOMATIC1111"
    assert [prompt.value for prompt in found.prompts] == [RECORD.prompt]
    assert [prompt.value for prompt in found.negative_prompts] == [RECORD.negative]
    assert [sampler.name for sampler in found.samplers] == ["DPM++ 2M"]
    assert [model.name for model in found.models] == ["demo"]


def test_an_image_of_the_web_ui_is_read(tmp_path):
    text = "a cat\nNegative prompt: a dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 512x512, Model: v1-5"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    IMAGE.save(tmp_path / "a.png", pnginfo=chunks)
    found = image_files.read(tmp_path / "a.png")
    assert (found.record, found.text, found.ai) == (None, text, False)
    assert found.settings()["sampler"] == "Euler a"
    assert found.facts()["source"] == "parameters"


def test_facts_are_json(tmp_path):
    image_files.write(IMAGE, tmp_path / "a.png", RECORD)
    facts = image_files.read(tmp_path / "a.png").facts()
    assert msgspec.json.decode(msgspec.json.encode(facts)) == facts
    assert (facts["ai"], facts["source"], facts["seed"]) == (True, "record", 7)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_damaged_record_is_ignored(tmp_path, kind):
    data = image_files.encode(IMAGE, kind, RECORD)
    (tmp_path / "a").write_bytes(data.replace(b'"prompt":', b'"prompt";'))
    found = image_files.read(tmp_path / "a")
    assert (found.record, found.ai, found.text) == (None, True, infotext.compose(RECORD))


@pytest.mark.parametrize("record", ["", "{}", '{"prompt": 3}', "[" * 20_000])
def test_a_text_chunk_that_is_not_a_record_is_ignored(tmp_path, record):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("diffusette", record)
    chunks.add_itxt("XML:com.adobe.xmp", "<not xmp")
    IMAGE.save(tmp_path / "a.png", pnginfo=chunks)
    assert image_files.read(tmp_path / "a.png") == image_files.Found(None, None, ai=False, tool=None)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_marks_of_a_truncated_file_are_read_or_refused(tmp_path, kind):
    data = image_files.encode(IMAGE, kind, RECORD)
    for kept in range(0, len(data), 97):
        (tmp_path / "a").write_bytes(data[:kept])
        with suppress(RequestError):
            assert image_files.read(tmp_path / "a").record in (None, RECORD)  # a record cannot be hashed


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xff\xfe",
        b"<x",
        b"<x/>" * 3,
        b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><x>&b;</x>",
        '<?xml version="1.0"?><!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>'.encode("utf-16"),
        b"<x>" * 50_000,
        b"<x>" + b" " * (2 << 20) + b"</x>",
    ],
    ids=lambda packet: ascii(packet[:12]),
)
def test_invalid_xmp_has_no_properties(packet):
    assert xmp.parse(packet) == xmp.Properties()


def test_xmp_written_by_an_editor_is_read():
    packet = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
      <!-- an editor was here -->
      <rdf:Description rdf:about="" xmlns:ext="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
        <ext:DigitalSourceType rdf:resource="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/></rdf:Description>
      <rdf:Description xmlns:a="http://ns.adobe.com/xap/1.0/" a:CreatorTool="Editor"/></rdf:RDF></x:xmpmeta>"""
    assert xmp.parse(packet) == xmp.Properties(xmp.AI_MADE, "Editor", None)


def test_a_prompt_too_long_for_a_jpeg_is_refused_and_fits_into_other_formats(tmp_path):
    record = msgspec.structs.replace(RECORD, prompt="word " * 4_000, negative="日" * 20_000)
    with pytest.raises(RequestError, match="write PNG or WebP"):
        image_files.write(IMAGE, tmp_path / "a.jpg", record)
    for name in ("a.png", "a.webp"):
        image_files.write(IMAGE, tmp_path / name, record)
        assert image_files.read(tmp_path / name).record == record


@pytest.mark.parametrize("name", ["picture", "picture.gif", "picture.png.exe", ".png"])
def test_an_unknown_extension_is_refused(tmp_path, name):
    with pytest.raises(RequestError, match=r"ends in \.png"):
        image_files.write(IMAGE, tmp_path / name, RECORD)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/a.png", "there is not a folder"),
        ("folder.png", "not a file"),
        ("file/a.png", "cannot be written"),
        ("nul\0.png", "cannot be written"),
        ("n" * 300 + ".png", "cannot be written"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_in_one_line(tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=message) as raised:
        image_files.write(IMAGE, tmp_path / name, RECORD)
    assert "\n" not in str(raised.value)
    assert names(tmp_path) == ["file", "folder.png"]


def test_a_device_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RequestError, match="not a file"):
        image_files.write(IMAGE, tmp_path / "pipe.png", RECORD)
    assert (tmp_path / "pipe.png").is_fifo()


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "link.png").symlink_to("target.png")
    image_files.write(IMAGE, tmp_path / "link.png", RECORD)
    assert (tmp_path / "link.png").is_symlink()
    assert image_files.read(tmp_path / "target.png").record == RECORD


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_no_new_file_and_the_old_image_intact(small_disk):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    image_files.write(IMAGE, small_disk / "a.png", RECORD)
    before = (small_disk / "a.png").read_bytes()
    with pytest.raises(ResourceError, match="bytes are needed"):
        image_files.write(noise, small_disk / "a.png", RECORD)
    assert (small_disk / "a.png").read_bytes() == before
    assert names(small_disk) == ["a.png"]


def test_a_file_size_limit_leaves_nothing_behind(tmp_path):
    code = f"""
import resource, signal, sys
import numpy as np
from pathlib import Path
from PIL import Image, PngImagePlugin
from diffusette.models.errors import ResourceError
from diffusette.runtime.metadata import image_files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)
try:
    image_files.write(Image.fromarray(noise), Path({str(tmp_path)!r}) / "a.png", None)
except ResourceError as error:
    sys.exit("needed" not in str(error))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert names(tmp_path) == []


def test_no_reader_ever_sees_half_a_file(tmp_path):
    path = tmp_path / "a.png"
    image_files.write(IMAGE, path, RECORD)
    with path.open("rb") as old:
        image_files.write(IMAGE, path, msgspec.structs.replace(RECORD, seed=8))
        assert b'"seed":7' in old.read()
    assert b'"seed":8' in path.read_bytes()


def test_png_is_compressed_as_well_as_by_pillows_default():
    smooth = np.add.outer(np.sin(np.arange(256) / 20), np.cos(np.arange(256) / 31)) * 60 + 128
    noise = np.random.default_rng(0).normal(0, 3, (256, 256, 3))
    image = Image.fromarray((smooth[..., None] + noise).clip(0, 255).astype(np.uint8))
    plain = io.BytesIO()
    image.save(plain, "PNG")
    assert len(image_files.encode(image, "PNG", None)) < len(plain.getvalue()) * 1.02


def test_text_after_the_pixels_is_found(tmp_path):
    data = image_files.encode(IMAGE, "PNG", None, ai=False)
    body = b"parameters\0behind the pixels"
    chunk = len(body).to_bytes(4, "big") + b"tEXt" + body + zlib.crc32(b"tEXt" + body).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert image_files.read(tmp_path / "a.png").text == "behind the pixels"


def test_a_file_that_is_not_an_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("<html>")
    with pytest.raises(RequestError, match="not a PNG, JPEG or WebP"):
        image_files.read(tmp_path / "a.png")
    with pytest.raises(RequestError, match="no such file"):
        image_files.read(Path(tmp_path / "b.png"))
