"""OpenAI's image API: its Python client against a real server."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.support.server_process import Server

FAST: dict[str, Any] = {"size": "128x128", "extra_body": {"steps": 4, "seed": 3}}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def opened(data: str | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_images_are_generated(client: openai.OpenAI) -> None:
    made = client.images.generate(model="gpt-image-1", prompt="red apple", n=2, quality="high", **FAST)
    assert made.data is not None
    assert [opened(one.b64_json).size for one in made.data] == [(128, 128)] * 2
    assert (made.size, made.quality, made.output_format, made.background) == ("128x128", "high", "png", "opaque")
    assert made.usage is not None
    assert made.usage.input_tokens == made.usage.input_tokens_details.text_tokens > 0
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    again = client.images.generate(model="dall-e-3", prompt="red apple", **FAST)
    assert again.data is not None
    assert again.data[0].b64_json == made.data[0].b64_json


@pytest.mark.parametrize(("kind", "format"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats_and_extra_fields_are_followed(client: openai.OpenAI, server: Server, kind: Any, format: str) -> None:  # noqa: A002
    extra = {"seed": 9, "steps": 2, "negative_prompt": "blue", "guidance": 1.5}
    made = client.images.generate(prompt="fox", size="136x128", output_format=kind, output_compression=80, quality="low", extra_body=extra)
    assert made.data is not None
    image = opened(made.data[0].b64_json)
    assert (image.format, image.size) == (format, (136, 128))
    job = server.job(made.model_extra["diffusette"]["job"])  # type: ignore[index]
    assert job["resolved"]["seed"] == 9
    assert job["resolved"]["guidance"] == 1.5
    assert job["request"]["negative"] == "blue"
    assert job["request"]["speed"] == "fast"


def test_addresses_are_given_when_asked_for(client: openai.OpenAI) -> None:
    made = client.images.generate(prompt="fox", response_format="url", **FAST)
    assert made.data is not None
    assert made.data[0].b64_json is None
    assert made.data[0].url is not None
    assert Image.open(io.BytesIO(httpx.get(made.data[0].url).content)).size == (128, 128)


def test_a_stream_brings_partial_images_then_the_whole_one(client: openai.OpenAI) -> None:
    stream = client.images.generate(prompt="fox", stream=True, partial_images=3, size="128x128", extra_body={"steps": 8, "seed": 1})
    events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]  # type: ignore[union-attr]
    assert all(opened(event.b64_json).size == (128, 128) for event in events)
    assert events[-1].usage.total_tokens > 0  # type: ignore[union-attr]
    whole = client.images.generate(prompt="fox", size="128x128", extra_body={"steps": 8, "seed": 1})
    assert whole.data is not None
    assert events[-1].b64_json == whole.data[0].b64_json


def test_images_are_edited_where_the_mask_is_transparent(
    client: openai.OpenAI, png: bytes, picture: Image.Image, mask: Image.Image
) -> None:
    clear = picture.convert("RGBA")
    clear.putalpha(mask.point(lambda value: 255 - value))
    buffer = io.BytesIO()
    clear.save(buffer, "PNG")
    made = client.images.edit(image=("a.png", png), mask=("m.png", buffer.getvalue()), prompt="fox", **FAST)
    assert made.data is not None
    found = opened(made.data[0].b64_json)
    assert found.crop((0, 90, 128, 128)).tobytes() == picture.crop((0, 90, 128, 128)).tobytes()
    assert found.crop((40, 10, 90, 40)).tobytes() != picture.crop((40, 10, 90, 40)).tobytes()
    stream = client.images.edit(image=[("a.png", png)], prompt="fox", stream=True, partial_images=1, **FAST)
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_images_are_varied(client: openai.OpenAI, png: bytes) -> None:
    made = client.images.create_variation(image=("a.png", png), n=2, size="256x256", extra_body={"steps": 2})
    assert made.data is not None
    assert len(made.data) == 2


def test_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).owned_by == "diffusette"
    made = client.images.generate(model=model.id, prompt="fox", **FAST)
    assert made.data is not None
    with pytest.raises(openai.NotFoundError, match="is not here"):
        client.images.generate(model="something-else", prompt="fox", **FAST)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "129x128"}, "width"),
        ({"size": "huge"}, "size"),
        ({"n": 11}, "n"),
        ({"quality": "best"}, "quality"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"extra_body": {"steps": -1}}, "steps"),
        ({"extra_body": {"partial_images": 4, "stream": True}}, "partial_images"),
    ],
)
def test_errors_are_openai_s(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**({"prompt": "x", "size": "128x128"} | fields))
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code in {"invalid_request", "unsupported"}


def test_a_form_without_an_image_or_with_several_is_refused(client: openai.OpenAI, server: Server, png: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="one image at a time"):
        client.images.edit(image=[("a.png", png), ("b.png", png)], prompt="x")
    answer = server.client.post("/v1/images/edits", files={"mask": ("m.png", png)}, data={"prompt": "x"})
    assert answer.status_code == 400
    answer = server.client.post("/v1/images/edits", content=b"nonsense", headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400


def test_a_client_that_leaves_its_stream_cancels_the_job(server: Server) -> None:
    body = {"prompt": "left alone", "size": "256x256", "steps": 400, "stream": True, "partial_images": 3, "quality": "high"}
    with httpx.stream("POST", f"{server.url}/v1/images/generations", json=body, timeout=30) as answer:
        assert answer.status_code == 200
        server.until(lambda: server.client.get("/sdapi/v1/progress").json()["state"]["sampling_step"])

    def cancelled() -> bool:
        jobs = [job for job in server.client.get("/api/v1/jobs").json()["jobs"] if job["prompt"] == "left alone"]
        return [job["status"] for job in jobs] == ["cancelled"]

    server.until(cancelled, 5)
