"""Time stamps of an authority on loopback, read by c2pa's own reader and by the detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diffusette.models.errors import RequestError
from diffusette.runtime.detector import examine
from diffusette.runtime.provenance import c2pa_reader
from diffusette.runtime.provenance.marks import Marks
from diffusette.runtime.saving import ImageWriter
from tests.support.signed import PICTURE, active, assertion, c2pa_reads
from tests.support.time_stamp_authority import NAME, OPENSSL, authority

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="the authority needs the openssl command")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_time_stamp_is_in_the_signature_and_the_detector_says_whose_it_is(tmp_path: Path, kind: str) -> None:
    plain = ImageWriter(Marks(sign="off")).encode(PICTURE, kind)
    marks = Marks(sign="on", keys=tmp_path / "keys")
    with authority(tmp_path) as (url, asked):
        data = ImageWriter(replace(marks, timestamp=url)).encode(PICTURE, kind)
    assert asked
    assert len(data) - len(plain) <= 16 * 1024
    found = c2pa_reads(data, kind)
    assert found["validation_state"] == "Valid"
    assert "timeStamp.validated" in {one["code"] for one in found["validation_results"]["activeManifest"]["success"]}
    assert assertion(found, "diffusette.generation")["timeStamp"] == "in the signature"
    read = c2pa_reader.read(data)
    assert read is not None
    assert (read.state, read.time, read.authority, read.time_trusted) == ("intact", active(found)["signature_info"]["time"], NAME, False)
    (finding,) = [one for one in examine(data)[0].findings if one.mark == "c2pa"]
    assert f"the time stamp says {read.time}, and {NAME} is on no trust list" in finding.limits
    assert read.time not in finding.proves


def test_an_authority_that_refuses_means_no_image(tmp_path: Path) -> None:
    with authority(tmp_path) as (url, _):
        (tmp_path / "tsa.key").write_text("damaged")
        with pytest.raises(RequestError, match="a time stamp authority that answers"):
            ImageWriter(Marks(sign="on", keys=tmp_path / "keys", timestamp=url)).encode(PICTURE, "PNG")
