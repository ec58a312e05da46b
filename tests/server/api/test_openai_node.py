"""OpenAI's image API: its Node client against a real server."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support import npm_packages
from tests.support.server_process import Server


@pytest.fixture(scope="module")
def seen(server: Server, tmp_path_factory: pytest.TempPathFactory, picture: Image.Image, mask: Image.Image) -> dict[str, Any]:
    """What the client saw."""
    try:
        judge = npm_packages.install("openai")
    except npm_packages.Missing as error:
        pytest.skip(str(error))
    folder: Path = tmp_path_factory.mktemp("node")
    clear = picture.convert("RGBA")
    clear.putalpha(mask.point(lambda value: 255 - value))
    picture.save(folder / "image.png")
    clear.save(folder / "mask.png")
    command = ["node", "judge.js", server.url, str(folder / "image.png"), str(folder / "mask.png")]
    done = subprocess.run(command, cwd=judge, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_node_generates_images(seen: dict[str, Any]) -> None:
    assert [opened(one["b64_json"]).size for one in seen["generated"]["data"]] == [(128, 128)] * 2
    usage = seen["generated"]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_node_edits_where_the_mask_is_transparent(seen: dict[str, Any], picture: Image.Image) -> None:
    found = opened(seen["edited"]["data"][0]["b64_json"]).convert("RGB")
    assert found.crop((0, 90, 128, 128)).tobytes() == picture.crop((0, 90, 128, 128)).tobytes()
    assert found.crop((40, 10, 90, 40)).tobytes() != picture.crop((40, 10, 90, 40)).tobytes()


def test_node_reads_the_stream_of_partial_images(seen: dict[str, Any]) -> None:
    types = [event["type"] for event in seen["events"]]
    assert types == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event["partial_image_index"] for event in seen["events"][:2]] == [0, 1]
    assert all(opened(event["b64_json"]).size == (128, 128) for event in seen["events"])
    assert seen["events"][-1]["usage"]["total_tokens"] > 0


def test_node_gets_errors_in_openai_s_form(seen: dict[str, Any]) -> None:
    error = seen["error"]
    assert (error["known"], error["status"], error["param"], error["type"]) == (True, 400, "size", "invalid_request_error")
    assert "banana" in error["message"]


def test_node_lists_models_and_gives_up(seen: dict[str, Any], server: Server) -> None:
    assert len(seen["models"]) > 0
    assert seen["aborted"]
    server.until(lambda: all(job["ended"] for job in server.client.get("/api/v1/jobs").json()["jobs"]))
