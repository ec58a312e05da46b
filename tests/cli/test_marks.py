"""Marks as people meet them: signing by default on every surface, the options, and the detector."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusette.runtime.provenance import jumbf
from tests.support.server_process import Server
from tests.support.signed import active, assertion, c2pa_reads, certificate

FOX = ("generate", "fox", "--seed", "1", "--steps", "1")


def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with signing at its default."""
    given = {name: value for name, value in os.environ.items() if name != "DIFFUSETTE_SIGN"} | {"XDG_DATA_HOME": str(cwd / "data")}
    command = [sys.executable, "-m", "diffusette", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=given | environment, timeout=120, check=False)


def test_images_are_signed_by_default_and_their_pixels_do_not_change(tmp_path: Path) -> None:
    assert run(*FOX, "-o", "a.png", cwd=tmp_path).returncode == 0
    assert run(*FOX, "-o", "b.png", "--no-sign", cwd=tmp_path).returncode == 0
    signed, plain = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert c2pa_reads(signed)["validation_state"] == "Valid"
    assert jumbf.size_of(plain) == 0
    assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(data))) for data in (signed, plain)))
    key = tmp_path / "data" / "diffusette" / "signing" / "installation.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    done = run(
        *FOX[:2], "--seed", "2", "--steps", "1", "--init", "a.png", "-o", "c.webp", "--json", cwd=tmp_path, DIFFUSETTE_ISSUER="Example Ltd"
    )
    assert json.loads(done.stdout)["signed"] is True
    found = c2pa_reads((tmp_path / "c.webp").read_bytes(), "WEBP")
    assert active(found)["ingredients"][0]["active_manifest"] == c2pa_reads(signed)["active_manifest"]
    assert assertion(found, "diffusette.generation")["provider"] == "Example Ltd"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--sign-with", "cert.pem", "none.pem"], 1, "none.pem: no such file"),
        (["--sign-with", "cert.pem", "key.pem", "--no-sign"], 2, "contradict"),
        (["--sign", "--no-ai-mark"], 1, "--no-ai-mark"),
        (["--sign-prompt", "--no-metadata"], 2, "contradict"),
        (["--timestamp", "nowhere"], 1, "http"),
        (["--watermark", "on"], 1, "128×128 pixels; expected at least 256 a side"),
    ],
)
def test_a_mark_that_is_impossible_is_one_line_and_no_image(tmp_path: Path, options: list[str], code: int, said: str) -> None:
    for path, name in zip(certificate(tmp_path), ("cert.pem", "key.pem"), strict=True):
        path.rename(tmp_path / name)
    done = run(*FOX, "-o", "a.png", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "a.png").exists()


def test_a_folder_is_summed_up(tmp_path: Path) -> None:
    run(*FOX, "-o", "a.jpg", cwd=tmp_path)
    folder = tmp_path / "images" / "inner"
    folder.mkdir(parents=True)
    signed = (tmp_path / "a.jpg").read_bytes()
    (folder / "signed.jpg").write_bytes(signed)
    (folder / "altered.jpg").write_bytes(signed[:-300] + bytes([signed[-300] ^ 1]) + signed[-299:])
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "bare.png")
    (tmp_path / "images" / "junk.webp").write_bytes(b"\x1b[2J")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    shown = run("metadata", "images", cwd=tmp_path)
    assert shown.returncode == 0
    *lines, summary = shown.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"images/{name}" for name in ("bare.png", "junk.webp", "inner/altered.jpg", "inner/signed.jpg")
    ]
    assert summary == "4 images: 1 signed, 1 altered, 0 marked, 1 unmarked, 1 unreadable; 2 say that AI made or edited them"
    assert "\x1b" not in shown.stdout
    facts = json.loads(run("metadata", "images", "a.jpg", "--json", cwd=tmp_path).stdout)
    assert facts["summary"] == {"signed": 2, "altered": 1, "marked": 0, "unmarked": 1, "unreadable": 1, "ai": 3}
    assert facts["files"][-1]["marks"]["findings"][0]["state"] == "intact"
    alone = run("metadata", "a.jpg", cwd=tmp_path).stdout
    assert alone.startswith("a.jpg: signed and unchanged since")
    assert "\n  does not prove: who holds the key" in alone
    assert "\nprompt: fox\n" in alone


def host(*options: str | Path, **environment: str) -> list[dict[str, Any]]:
    """What `diffusette host` answers to a request for one image."""
    request = {"id": 1, "type": "generate", "request": {"prompt": "fox", "seed": 1, "steps": 1}}
    given = {name: value for name, value in os.environ.items() if name != "DIFFUSETTE_SIGN"} | environment
    command = [sys.executable, "-m", "diffusette", "host", *map(str, options)]
    sent = json.dumps(request) + "\n"
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(sent)
    process.stdin.flush()
    answers: list[dict[str, Any]] = []
    for line in process.stdout:
        answers.append(json.loads(line))
        if answers[-1]["type"] in {"done", "error"}:
            break
    process.stdin.close()
    process.stdout.close()
    answers.append({"type": "stderr", "text": process.stderr.read()})
    process.stderr.close()
    process.wait(30)
    return answers


def test_the_host_protocol_signs_with_a_key_in_its_own_folder_or_in_memory(tmp_path: Path) -> None:
    import base64

    outside = {"XDG_DATA_HOME": str(tmp_path / "outside")}
    *_, image, done, _ = host("--data", tmp_path / "mine", "--system", "Example Paint", **outside)
    assert done["signed"] is True
    assert assertion(c2pa_reads(Path(image["path"]).read_bytes()), "diffusette.generation")["system"] == "Example Paint"
    assert (tmp_path / "mine" / "signing" / "installation.pem").is_file()
    *_, image, done, _ = host(**outside)
    assert c2pa_reads(base64.b64decode(image["base64"]))["validation_state"] == "Valid"
    assert not (tmp_path / "outside").exists()
    *answers, errors = host("--sign-with", "none.pem", "none.pem")
    assert answers == []
    assert errors["text"].splitlines() == [
        "diffusette: signing: none.pem: no such file; expected a certificate chain or a private key in PEM"
    ]


def test_the_server_signs_and_its_api_says_what_the_marks_prove(tmp_path: Path) -> None:
    with Server(tmp_path / "data", "--sign", "--issuer", "Example Ltd") as server:
        image = server.ended(server.submit(steps=1))["images"][0]
        data = server.client.get(image["url"]).content
        assert assertion(c2pa_reads(data), "diffusette.generation")["provider"] == "Example Ltd"
        found = server.client.post("/api/v1/metadata", content=data, headers={"content-type": "image/png"}).json()
        assert (found["marks"]["verdict"], found["marks"]["findings"][0]["state"]) == ("signed", "intact")
        assert found["settings"]["prompt"] == "red apple"
        told = server.client.get(f"/api/v1/images/{image['id']}").json()["image"]["metadata"]
        assert told["marks"]["findings"][0]["details"]["generation"]["provider"] == "Example Ltd"
        again = server.ended(server.submit(steps=2, init={"image": image["id"]}, strength=0.9))["images"][0]
        edited = c2pa_reads(server.client.get(again["url"]).content)
        assert active(edited)["ingredients"][0]["active_manifest"] == c2pa_reads(data)["active_manifest"]
    assert (tmp_path / "data" / "signing" / "installation.pem").is_file()
