"""Signed images: c2pa's own reader confirms what is written, and what cannot be signed is refused before anything is generated."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from PIL import Image, PngImagePlugin

from diffusette.models.errors import RequestError
from diffusette.runtime.metadata import image_files
from diffusette.runtime.provenance import c2pa_reader, jumbf
from diffusette.runtime.provenance.c2pa_signer import Signer, open_signer
from diffusette.runtime.provenance.claim import Claim, manifest
from diffusette.runtime.provenance.credentials import credentials_of
from diffusette.runtime.provenance.marks import Callback, Marks
from diffusette.runtime.provenance.soft_binding import Mark
from diffusette.runtime.saving import ImageWriter, save
from tests.support.signed import PICTURE, PIXELS, RECORD, TYPES, active, assertion, c2pa_reads, certificate

KINDS = ("PNG", "JPEG", "WEBP")
EDITED = replace(PICTURE, record=msgspec.structs.replace(RECORD, extra={"init": "ab" * 32, "strength": 0.6}))


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(sign="on", keys=tmp_path / "keys")


@pytest.mark.parametrize("kind", KINDS)
def test_c2pas_reader_finds_an_intact_image_made_by_ai(marks: Marks, kind: str) -> None:
    plain = ImageWriter(Marks(sign="off")).encode(PICTURE, kind)
    data = ImageWriter(marks).encode(PICTURE, kind)
    found = c2pa_reads(data, kind)
    assert found["validation_state"] == "Valid"
    assert [one["code"] for one in found["validation_status"]] == ["signingCredential.untrusted"]
    (action,) = assertion(found, "c2pa.actions.v2")["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert action["softwareAgent"] == {"name": "Diffusette", "version": "0.1.0"}
    said = assertion(found, "diffusette.generation")
    assert (said["model"], said["modelSha256"], said["system"]) == ("demo", RECORD.model_hash, "Diffusette")
    assert said["timeStamp"].startswith("none: ")
    assert said["identifier"].startswith("urn:uuid:")
    assert not {"prompt", "provider"} & said.keys()
    assert len(data) - len(plain) < 4096
    assert image_files.read(data).record == RECORD
    pixels = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in (data, plain)]
    assert np.array_equal(*pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_pixel_or_prompt_is_noticed(marks: Marks, kind: str) -> None:
    data = ImageWriter(marks).encode(PICTURE, kind)
    start = {"PNG": data.rfind(b"IDAT") + 400, "JPEG": len(data) - 300, "WEBP": len(data) - 4600}[kind]
    for at in (start, data.find(b"trainedAlgorithmicMedia", data.find(b"xmpmeta"))):
        changed = bytearray(data)
        changed[at] ^= 1
        assert c2pa_reads(bytes(changed), kind)["validation_state"] == "Invalid"
        assert c2pa_reader.read(bytes(changed)).state == "altered"


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_is_the_parent_and_keeps_its_own_manifest(marks: Marks, kind: str) -> None:
    writer = ImageWriter(marks)
    parent = writer.encode(PICTURE, kind)
    found = c2pa_reads(writer.encode(EDITED, "PNG", parent=parent))
    assert found["validation_state"] == "Valid"
    (ingredient,) = active(found)["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    assert ingredient["active_manifest"] == c2pa_reads(parent, kind)["active_manifest"]
    opened, edited = assertion(found, "c2pa.actions.v2")["actions"]
    assert (opened["action"], edited["action"]) == ("c2pa.opened", "c2pa.edited")
    assert "ingredient" in opened["parameters"]["ingredients"][0]["url"]
    assert edited["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
    assert len(found["manifests"]) == 2


def test_an_input_without_a_signature_is_the_parent_too(marks: Marks) -> None:
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, "JPEG")
    data = ImageWriter(marks).encode(EDITED, "WEBP", parent=plain.getvalue())
    found = c2pa_reads(data, "WEBP")
    assert found["validation_state"] == "Valid"
    assert [one.get("active_manifest") for one in active(found)["ingredients"]] == [None]
    assert c2pa_reader.read(data).ingredients == (c2pa_reader.Ingredient("input", "parentOf", signed=False),)


@pytest.mark.parametrize("parent", [None, b"junk", "truncated", "oversized"])
def test_an_input_that_cannot_be_attached_leaves_a_signed_composite(marks: Marks, parent: bytes | str | None) -> None:
    writer = ImageWriter(marks)
    whole = writer.encode(PICTURE, "PNG")
    given = {"truncated": whole[:2000], "oversized": whole[:33] + _chunk(b"caBX", b"x" * (2 << 20)) + whole[33:]}.get(str(parent), parent)
    found = c2pa_reads(writer.encode(EDITED, "PNG", parent=given))
    (action,) = assertion(found, "c2pa.actions.v2")["actions"]
    assert (found["validation_state"], action["action"]) == ("Valid", "c2pa.created")
    assert action["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")


def _chunk(kind: bytes, body: bytes) -> bytes:
    import zlib

    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def test_a_tampered_input_is_said_to_be_tampered(marks: Marks) -> None:
    writer = ImageWriter(marks)
    parent = bytearray(writer.encode(PICTURE, "JPEG"))
    parent[-300] ^= 1
    found = c2pa_reads(writer.encode(EDITED, "PNG", parent=bytes(parent)))
    (ingredient,) = active(found)["ingredients"]
    failures = [one["code"] for one in ingredient["validation_results"]["activeManifest"]["failure"]]
    assert "assertion.dataHash.mismatch" in failures


def test_the_names_of_the_host_and_the_prompt_are_signed_where_they_are_asked_for(marks: Marks) -> None:
    named = replace(marks, issuer="Example Ltd", system="Example Paint", system_version="3.1", sign_prompt=True, prompt_writer="A. Writer")
    data = ImageWriter(named).encode(PICTURE, "PNG")
    said = assertion(c2pa_reads(data), "diffusette.generation")
    assert (said["provider"], said["system"], said["systemVersion"]) == ("Example Ltd", "Example Paint", "3.1")
    assert (said["prompt"], said["negativePrompt"], said["promptWriter"]) == (RECORD.prompt, "blurry", "A. Writer")
    found = image_files.read(data).disclosure
    assert (found.provider, found.system, found.version) == ("Example Ltd", "Example Paint", "3.1")
    assert (found.identifier, found.time) == (said["identifier"], said["time"])
    assert found.prompt == "red apple\ufffd <b>\nNegative prompt: blurry"
    assert found.prompt_writer == "A. Writer"
    private = ImageWriter(named).encode(PICTURE, "PNG", metadata=False)
    assert b"apple" not in private
    assert "prompt" not in assertion(c2pa_reads(private), "diffusette.generation")


def test_xmp_has_the_names_of_the_standard() -> None:
    named = Marks(
        sign="off", issuer="Example & Co", system="Example Paint", system_version="3.1", sign_prompt=True, prompt_writer="A. Writer"
    )
    data = ImageWriter(named).encode(PICTURE, "WEBP")
    packet = Image.open(io.BytesIO(data)).info["xmp"].decode()
    assert 'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"' in packet
    for part in ('AISystemUsed="Example Paint"', 'AISystemVersionUsed="3.1"', 'AIPromptWriterName="A. Writer"', 'DigImageGUID="urn:uuid:'):
        assert f" Iptc4xmpExt:{part}" in packet
    assert "<Iptc4xmpExt:AIPromptInformation>red apple\ufffd &lt;b&gt;\n" in packet
    assert 'diffusette:provider="Example &amp; Co"' in packet
    assert ' xmp:CreateDate="20' in packet
    plain = Image.open(io.BytesIO(ImageWriter(Marks(sign="off")).encode(PICTURE, "WEBP"))).info["xmp"].decode()
    assert "AIPrompt" not in plain
    assert "DigImageGUID" not in plain


def test_a_watermark_is_bound_to_the_signature(marks: Marks) -> None:
    mark = Mark(alg="com.adobe.trustmark.Q", value=b"2*0101")
    claim = Claim(
        edited=False, agent="a", agent_version="1", system="a", system_version="1", identifier="", time="2026-11-27T00:00:00Z", mark=mark
    )
    data = Signer(credentials_of(marks)).sign(ImageWriter(Marks(sign="off")).encode(PICTURE, "PNG"), "PNG", claim)
    found = c2pa_reads(data)
    assert found["validation_state"] == "Valid"
    assert assertion(found, "c2pa.soft-binding") == {"alg": mark.alg, "blocks": [{"scope": {}, "value": "2*0101"}]}
    assert [one["action"] for one in assertion(found, "c2pa.actions.v2")["actions"]] == ["c2pa.created", "c2pa.watermarked"]
    binary = manifest(msgspec.structs.replace(claim, mark=Mark(alg="x", value=b"\x00\xff")), parent=False)
    assert binary["assertions"][2]["data"]["blocks"][0]["value"] == "AP8="


@pytest.mark.parametrize("kind", ["ec", "p384", "rsa"])
def test_the_certificate_of_a_host_signs(tmp_path: Path, kind: str) -> None:
    chain, key = certificate(tmp_path, kind=kind)
    writer = ImageWriter(Marks(sign="auto", certificate=chain, key=key))
    assert writer.marks.asked
    writer.check()
    found = c2pa_reads(writer.encode(PICTURE, "JPEG"), "JPEG")
    assert found["validation_state"] == "Valid"
    assert active(found)["signature_info"]["common_name"] == "Example Paint"


def test_a_callback_of_a_host_signs_and_adds_less_than_16_kb(tmp_path: Path) -> None:
    chain, path = certificate(tmp_path)
    key = serialization.load_pem_private_key(path.read_bytes(), None)

    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    data = ImageWriter(Marks(sign="auto", signer=Callback(sign, chain.read_text()))).encode(PICTURE, "WEBP")
    assert c2pa_reads(data, "WEBP")["validation_state"] == "Valid"
    assert jumbf.size_of(data) < 16 << 10

    def broken(_data: bytes) -> bytes:
        raise OSError("the token was pulled out")

    with pytest.raises(RequestError, match="the token was pulled out"):
        ImageWriter(Marks(sign="auto", signer=Callback(broken, chain.read_text()))).check()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("other key", "does not match"),
        ("expired", "signing with the key"),
        ("usage", "signing with the key"),
        ("missing", "no such file"),
        ("junk", "not PEM"),
        ("broken key", "not a private key"),
        ("encrypted", "is encrypted"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_in_one_line_before_generating(tmp_path: Path, fault: str, said: str) -> None:
    chain, key = certificate(tmp_path, days=-1 if fault == "expired" else 30, usage=fault != "usage")
    if fault == "other key":
        _, key = certificate(tmp_path, "other")
    elif fault == "missing":
        chain.unlink()
    elif fault == "junk":
        chain.write_text("hello")
    elif fault == "broken key":
        key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    elif fault == "encrypted":
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        secret = serialization.BestAvailableEncryption(b"x")
        key.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
    with pytest.raises(RequestError, match=said) as raised:
        ImageWriter(Marks(sign="auto", certificate=chain, key=key)).check()
    assert "\n" not in str(raised.value)


def test_an_unwritable_key_folder_is_an_error_where_a_signature_was_asked_for_and_a_note_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    marks = Marks(sign="on", keys=tmp_path / "file" / "keys")
    with pytest.raises(RequestError, match="DIFFUSETTE_KEYS"):
        ImageWriter(marks).check()
    writer = ImageWriter(replace(marks, sign="auto"))
    writer.check()
    data = writer.encode(PICTURE, "PNG")
    assert jumbf.size_of(data) == 0
    (note,) = writer.notes
    assert note.startswith("images are not signed: ")


def test_nothing_is_written_where_signing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError):
        save(PICTURE, tmp_path / "a.png", marks=Marks(sign="on", keys=tmp_path / "file"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.fixture
def listener() -> tuple[int, list[int]]:
    """A port, and a list that grows with each connection."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        calls: list[int] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    calls.append(1)
                    connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], calls
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def test_a_manifest_that_an_image_points_to_is_never_fetched(marks: Marks, listener: tuple[int, list[int]]) -> None:
    port, calls = listener
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="http://127.0.0.1:{port}/m"/></rdf:RDF></x:xmpmeta>'
    )
    chunks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_itxt("XML:com.adobe.xmp", packet)
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=chunks)
    assert c2pa_reader.read(buffer.getvalue()) is None
    data = ImageWriter(marks).encode(EDITED, "PNG", parent=buffer.getvalue())
    assert c2pa_reader.read(data).state == "intact"
    assert calls == []


def test_a_time_stamp_authority_is_asked_only_where_it_is_configured_and_its_silence_is_an_error(
    marks: Marks, listener: tuple[int, list[int]]
) -> None:
    port, calls = listener
    with pytest.raises(RequestError, match="a time stamp authority that answers"):
        ImageWriter(replace(marks, timestamp=f"http://127.0.0.1:{port}/")).check()
    assert calls


def test_processes_that_make_the_key_at_the_same_time_share_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from diffusette.runtime.provenance import installation_key as k\n"
        f"sys.stdout.buffer.write(k.kept(Path({str(tmp_path)!r}) / 'keys').key)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    keys = {process.communicate()[0] for process in running}
    assert len(keys) == 1
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["installation.pem"]
    assert (tmp_path / "keys" / "installation.pem").stat().st_mode & 0o777 == 0o600


def test_a_key_that_others_can_read_or_that_is_damaged_is_refused(marks: Marks) -> None:
    ImageWriter(marks).check()
    path = Path(str(marks.keys)) / "installation.pem"
    path.chmod(0o644)
    with pytest.raises(RequestError, match="chmod 600"):
        ImageWriter(marks).check()
    path.chmod(0o600)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) - 300], whole.replace(b"\nM", b"\nN")):
        path.write_bytes(damaged)
        with pytest.raises(RequestError):
            ImageWriter(marks).check()
    path.write_bytes(whole)
    ImageWriter(marks).check()


def test_a_key_in_memory_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    data = ImageWriter(Marks(sign="on", keys=None)).encode(PICTURE, "PNG")
    assert c2pa_reads(data)["validation_state"] == "Valid"
    assert not (tmp_path / "data").exists()


def test_settings_come_from_the_environment_unless_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIGN": "on", "ISSUER": "Example Ltd", "SYSTEM": "Paint", "SYSTEM_VERSION": "2"}.items():
        monkeypatch.setenv(f"DIFFUSETTE_{name}", value)
    marks = Marks(system="Other")
    assert (marks.sign, marks.issuer, marks.system, marks.system_version) == ("on", "Example Ltd", "Other", "2")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sign": "maybe"}, "auto, on or off"),
        ({"certificate": "a.pem"}, "without its key"),
        ({"timestamp": "file:///etc/passwd"}, "http or https"),
        ({"issuer": "a\nb"}, "printable"),
        ({"system": "x" * 201}, "at most 200"),
    ],
)
def test_settings_that_are_not_accepted_are_refused(fields: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Marks(**fields)


def test_without_the_extra_images_are_unsigned_and_signing_names_it(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "import diffusette.runtime.provenance.c2pa_signer as s\n"
        "s.find_spec = lambda name: None if name == 'c2pa' else find(name)\n"
        "from diffusette.runtime.provenance.marks import Marks\n"
        "from diffusette.runtime.provenance import c2pa_reader\n"
        "assert s.open_signer(Marks(sign='auto')) is None\n"
        f"print(c2pa_reader.read(open({str(tmp_path / 'a.png')!r}, 'rb').read()).state)\n"
        "s.open_signer(Marks(sign='on'))"
    )
    save(PICTURE, tmp_path / "a.png", marks=Marks(sign="on", keys=None))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "unchecked\n"
    assert 'pip install "diffusette[sign]"' in done.stderr


def test_nothing_of_the_library_is_imported_before_an_image_is_written() -> None:
    code = (
        "import sys, diffusette; from diffusette.runtime.saving import ImageWriter\n"
        "diffusette.Marks, diffusette.save, ImageWriter(diffusette.Marks(sign='auto')).check()\n"
        "print([name for name in ('c2pa', 'cryptography') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_signer_that_is_off_is_none(marks: Marks) -> None:
    assert open_signer(replace(marks, sign="off")) is None
    assert set(TYPES) == set(KINDS)
    assert os.environ["DIFFUSETTE_SIGN"] == "off"
