"""The detector: every mark is named with what it proves, and nothing is proven that is not."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path

import msgspec
import pytest
from PIL import Image, PngImagePlugin

from diffusette.models.errors import RequestError
from diffusette.runtime import detector
from diffusette.runtime.detector import examine
from diffusette.runtime.images import exif
from diffusette.runtime.provenance import jumbf
from diffusette.runtime.provenance.marks import Marks
from diffusette.runtime.provenance.soft_binding import Mark
from diffusette.runtime.saving import ImageWriter, save
from tests.support.signed import PICTURE, PIXELS

IMAGE = Image.fromarray(PIXELS)


def encoded(kind: str = "PNG", **more: object) -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, kind, **more)
    return buffer.getvalue()


@pytest.fixture
def signed(tmp_path: Path) -> bytes:
    return ImageWriter(Marks(sign="on", keys=tmp_path / "keys")).encode(PICTURE, "PNG")


def test_a_signed_image_is_intact_and_its_signer_unknown(signed: bytes) -> None:
    report, found = examine(signed)
    assert (report.verdict, report.ai) == ("signed", True)
    signature, watermark, xmp, *settings = report.findings
    assert signature.state == "intact"
    assert "signer unknown" in signature.says
    assert "no time stamp" in signature.limits
    assert "who holds the key" in signature.limits
    assert watermark.state == "absent"
    assert (xmp.mark, xmp.state, xmp.details["system"]) == ("xmp", "present", "Diffusette")
    assert [one.mark for one in settings] == ["record", "parameters"]
    assert found.record == PICTURE.record
    assert json.loads(msgspec.json.encode(report))["verdict"] == "signed"


def test_a_changed_image_is_said_to_be_changed(signed: bytes) -> None:
    changed = bytearray(signed)
    changed[signed.rfind(b"IDAT") + 300] ^= 1
    report, _ = examine(bytes(changed))
    assert report.verdict == "altered"
    assert "assertion.dataHash.mismatch" in report.findings[0].says


def test_a_damaged_manifest_is_described(signed: bytes) -> None:
    at = signed.find(b"caBX")
    damaged = signed[: at + 40] + bytes(200) + signed[at + 240 :]
    report, _ = examine(damaged)
    assert report.verdict == "altered"
    assert report.findings[0].state in {"damaged", "altered"}


def test_an_unsigned_image_of_ours_is_marked_and_proves_nothing() -> None:
    report, _ = examine(ImageWriter(Marks(sign="off")).encode(PICTURE, "JPEG"))
    assert (report.verdict, report.ai) == ("marked", True)
    assert report.findings[0].state == "absent"
    assert all("nothing" in one.proves or one.mark == "record" for one in report.findings)


def test_a_bare_image_proves_neither_the_one_nor_the_other() -> None:
    report, _ = examine(encoded())
    assert (report.verdict, report.ai) == ("unmarked", False)
    assert "does not show whether AI made" in report.summary


def test_the_texts_of_the_web_ui_and_of_comfyui_are_named() -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 512x512")
    report, _ = examine(encoded(pnginfo=chunks))
    assert [(one.mark, one.ai) for one in report.findings if one.state == "present"] == [("parameters", True)]
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("prompt", json.dumps({"1": {"class_type": "KSampler", "inputs": {}}}))
    report, _ = examine(encoded(pnginfo=chunks))
    assert [one.says for one in report.findings if one.mark == "tool"] == ["the settings of ComfyUI"]
    assert report.ai


def test_the_program_in_exif_is_named() -> None:
    tags = Image.Exif()
    tags[0x0131] = "Example Editor 3"
    report, _ = examine(encoded("JPEG", exif=tags))
    assert [(one.says, one.ai) for one in report.findings if one.mark == "exif"] == [("EXIF names the program Example Editor 3", False)]
    assert (report.verdict, report.ai) == ("marked", False)
    for data in (b"", b"II*\0", b"MM\0*\0\0\0\x08", tags.tobytes()[:20], struct.pack("<2sHIHHHII", b"II", 42, 8, 1, 0x131, 2, 9, 1 << 31)):
        assert exif.read_software(data) in (None, "")


def test_a_watermark_is_reported_through_its_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "_watermarks_of", lambda _data: (Mark(alg="example", value=b"\1\2", details={"bits": 16}),))
    report, _ = examine(encoded())
    assert report.verdict == "marked"
    assert report.ai
    assert report.findings[1].details == {"alg": "example", "value": "0102", "bits": 16}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_manifest_is_found_without_the_library_and_truncated_files_are_survived(tmp_path: Path, kind: str) -> None:
    data = ImageWriter(Marks(sign="on", keys=tmp_path)).encode(PICTURE, kind)
    assert 2000 < jumbf.size_of(data) < 4096
    assert jumbf.size_of(encoded(kind)) == 0
    for kept in range(0, len(data), 997):
        jumbf.size_of(data[:kept])
        try:
            examine(data[:kept])
        except RequestError:
            continue
    store = data.find(b"jumb")  # the manifest has padding, which nothing covers
    for at in (at for at in range(0, min(len(data), 9000), 61) if not store - 40 < at < store + 4096):
        spoilt = bytearray(data)
        spoilt[at] ^= 0xFF
        try:
            assert examine(bytes(spoilt))[0].verdict != "signed"
        except RequestError:
            continue


def test_random_bytes_behind_every_signature_are_survived() -> None:
    for head in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xeb", b"RIFF\0\0\0\0WEBPC2PA", b""):
        for _ in range(50):
            jumbf.size_of(head + os.urandom(200))


def test_save_keeps_the_signature_of_its_parent(tmp_path: Path) -> None:
    marks = Marks(sign="on", keys=tmp_path / "keys")
    save(PICTURE, tmp_path / "a.png", marks=marks)
    save(PICTURE, tmp_path / "b.webp", marks=marks, parent=tmp_path / "a.png")
    report, _ = examine(tmp_path / "b.webp")
    assert report.findings[0].details["ingredients"] == ({"title": "input", "relationship": "parentOf", "signed": True},)
    with pytest.raises(RequestError, match="no such file"):
        save(PICTURE, tmp_path / "c.webp", marks=marks, parent=tmp_path / "none.png")
    assert not (tmp_path / "c.webp").exists()
