"""Our own API against a real server."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib

import pytest
from PIL import Image

import diffusette
from diffusette.runtime.request import Fields
from tests.support.server_process import Server

PROMPT = 'a fox, noto style\nSteps: 1, Seed: 5\nNegative prompt: "none", really'


def test_a_job_gives_the_images_that_the_runtime_gives(server: Server) -> None:
    job = server.ended(server.submit("red apple, flat style", seed=7, count=2, steps=4))
    assert job["status"] == "done"
    assert [image["seed"] for image in job["images"]] == [7, 8]
    data = server.client.get(job["images"][1]["url"]).content
    with diffusette.load() as pipeline:
        expected = pipeline.generate("red apple, flat style", seed=8, steps=4).images[0]
    assert Image.open(io.BytesIO(data)).tobytes() == expected.tobytes()


def test_what_was_decided_is_told(server: Server) -> None:
    job = server.ended(server.submit(seed=None))
    decided = job["resolved"]
    assert decided["width"] == decided["height"] == 128
    assert decided["sampler"] == "dpm++2m"
    assert decided["seed"] == job["images"][0]["seed"]
    assert decided["provider"] == "cpu"
    assert decided["plan"] == "resident"


def test_a_request_without_a_seed_gets_another_one_each_time(server: Server) -> None:
    seeds = {server.ended(server.submit(seed=None, steps=1))["images"][0]["seed"] for _ in range(2)}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"width": 129}, "width"),
        ({"steps": 0}, "steps"),
        ({"steps": 501}, "steps"),
        ({"width": 4096, "height": 4096}, "width"),
        ({"hires": 8.0, "width": 512, "height": 512}, "width"),
        ({"count": 1_000_000}, "count"),
        ({"guidance": "much"}, "guidance"),
        ({"sampler": "elur"}, "sampler"),
        ({"colour": "red"}, "colour"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x" * 20_001}, "prompt"),
        ({"lora_folder": "/etc"}, "lora_folder"),
        ({"prompt": "fox <lora:ink:0.8>"}, "prompt"),
        ({"width": 5000}, "width"),
        ({"loras": [{"name": "../../etc/passwd"}]}, "loras"),
        ({"embeddings": ["/etc/passwd"]}, "embeddings"),
        ({"init": "https://example.com/a.png"}, "init"),
        ({"init": "/etc/passwd"}, "init"),
        ({"init": "file:///etc/passwd"}, "init"),
        ({"init": "data:image/svg+xml;base64,PHN2Zy8+PHN2Zy8+PHN2Zy8+"}, "init"),
        ({"init": base64.b64encode(b"not an image at all, but long enough").decode()}, "init"),
        ({"init": {"image": "nothing"}}, None),
        ({"sigmas": [1.0] * 10_000}, "sigmas"),
    ],
)
def test_a_wrong_request_is_refused_with_the_name_of_the_field(server: Server, fields: dict[str, object], field: str | None) -> None:
    answer = server.client.post("/api/v1/jobs", json={"request": {"prompt": "x", **fields}})
    assert answer.status_code == (404 if field is None else 400)
    error = answer.json()["error"]
    assert error["field"] == field
    assert error["code"] in {"invalid_request", "not_found"}
    assert len(error["message"]) > 10


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b'{"request": {"prompt": "\\ud800"}}', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(server: Server, body: bytes) -> None:
    answer = server.client.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


def test_a_png_bomb_is_refused_before_it_is_decoded(server: Server) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b""))
    chunks = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    bomb = base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode()
    answer = server.client.post("/api/v1/jobs", json={"request": {"prompt": "x", "init": bomb}})
    assert answer.status_code == 400
    assert "60000" in answer.json()["error"]["message"]


def test_image_to_image_takes_data_urls_and_images_of_the_gallery(server: Server, png: bytes) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    first = server.ended(server.submit(init=url, strength=0.5))
    assert first["request"]["init"] is True
    again = server.ended(server.submit(init={"image": first["images"][0]["id"]}, strength=0.5, mask=url))
    assert again["status"] == "done"
    assert again["request"]["init"] == {"image": first["images"][0]["id"]}
    assert not list((server.data / "inputs").iterdir())


def test_every_event_comes_in_order_with_progress_that_grows_and_previews(server: Server) -> None:
    number = server.client.get("/api/v1/state").json()["event"]
    with server.events(number) as stream:
        identifier = server.submit(steps=8, count=2)
        seen = []
        for event in stream:
            seen.append(event)
            if event["event"] == "job" and event["data"]["job"]["status"] == "done":
                break
    numbers = [int(event["id"]) for event in seen]
    assert numbers == sorted(numbers)
    assert numbers[0] > number
    statuses = [event["data"]["job"]["status"] for event in seen if event["event"] == "job"]
    assert statuses[0] == "queued"
    assert statuses[-1] == "done"
    assert "running" in statuses
    progress = [event["data"] for event in seen if event["event"] == "progress"]
    assert [one["done"] for one in progress] == sorted(one["done"] for one in progress)
    assert {"denoising", "decoding"} <= {one["phase"] for one in progress}
    assert all(one["job"] == identifier and one["count"] == 2 and one["steps"] == 8 for one in progress if one["phase"] != "opening")
    assert len([event for event in seen if event["event"] == "image"]) == 2
    previews = [event["data"]["url"] for event in seen if event["event"] == "preview"]
    assert previews
    assert Image.open(io.BytesIO(base64.b64decode(previews[0].partition(",")[2]))).format == "JPEG"


def test_a_page_that_slept_catches_up_and_one_that_slept_too_long_is_told(server: Server) -> None:
    number = server.client.get("/api/v1/state").json()["event"]
    identifier = server.submit(steps=1)
    server.ended(identifier)
    with server.events(number) as stream:
        for event in stream:
            if event["event"] == "job" and event["data"]["job"]["status"] == "done":
                assert event["data"]["job"]["id"] == identifier
                assert len(event["data"]["job"]["images"]) == 1
                break
    with server.events(3) as stream:
        assert next(stream)["event"] == "reset"


def test_the_last_event_id_of_the_browser_is_understood(server: Server) -> None:
    number = server.client.get("/api/v1/state").json()["event"]
    server.ended(server.submit(steps=1))
    with server.client.stream("GET", "/api/v1/events", headers={"last-event-id": str(number)}) as answer:
        line = next(line for line in answer.iter_lines() if line.startswith("id:"))
    assert int(line.partition(":")[2]) > number


def test_a_running_job_is_cancelled_within_a_step_and_leaves_no_file(server: Server) -> None:
    before = server.files()
    identifier = server.submit(steps=400, width=256, height=256)
    server.running(identifier)
    assert server.client.delete(f"/api/v1/jobs/{identifier}").status_code == 200
    job = server.ended(identifier, 5)
    assert job["status"] == "cancelled"
    assert job["images"] == []
    assert job["progress"] is None
    assert server.files() == before


def test_the_queue_is_reordered_and_emptied_and_a_job_can_go_first(server: Server) -> None:
    long = server.submit("long", steps=400, width=256, height=256)
    server.running(long)
    one, two, three = (server.submit(name, steps=1, client="page") for name in ("one", "two", "three"))
    moved = server.client.post(f"/api/v1/jobs/{three}/move", json={"before": one}).json()["jobs"]
    assert [job["id"] for job in moved] == [three, one, two]
    assert [job["position"] for job in moved] == [0, 1, 2]
    moved = server.client.post(f"/api/v1/jobs/{three}/move", json={"before": None}).json()["jobs"]
    assert [job["id"] for job in moved] == [one, two, three]
    assert server.client.post(f"/api/v1/jobs/{two}/now").status_code == 200
    assert server.ended(two)["status"] == "done"
    assert server.job(long)["status"] == "cancelled"
    for identifier in (one, three):
        server.ended(identifier)
    long = server.submit("long", steps=400, width=256, height=256)
    waiting = server.submit("waits", steps=1)
    assert server.client.post("/api/v1/queue/clear").json() == {"jobs": []}
    assert server.job(waiting)["status"] == "cancelled"
    assert server.client.post(f"/api/v1/jobs/{waiting}/move", json={}).status_code == 404
    server.client.delete(f"/api/v1/jobs/{long}")
    server.ended(long)


def test_a_live_job_replaces_the_one_before_and_only_the_last_of_a_burst_stays(server: Server) -> None:
    before = {image["id"] for image in server.images()}
    slow = server.submit("slow", live=True, client="typist", steps=400, width=256, height=256)
    server.running(slow)
    quick = [server.submit(f"quick {number}", live=True, client="typist", steps=1) for number in range(3)]
    assert server.ended(slow)["status"] == "cancelled"
    assert server.ended(quick[-1])["status"] == "done"
    last = server.submit("last", live=True, client="typist", steps=1)
    done = server.ended(last)
    Server.until(lambda: {image["id"] for image in server.images()} - before == {done["images"][0]["id"]})


def test_the_gallery_searches_pages_deletes_and_restores(server: Server) -> None:
    ids = [server.ended(server.submit(f"zebra number {number} 100%_", steps=1))["images"][0]["id"] for number in range(3)]
    assert [image["id"] for image in server.images(q="zebra")] == ids[::-1]
    assert [image["id"] for image in server.images(q="100%_ ZEBRA")] == ids[::-1]
    assert server.images(q="zebra 1000") == []
    assert [image["id"] for image in server.images(q="zebra", before=ids[1])] == [ids[0]]
    assert server.client.get("/api/v1/images", params={"q": "zebra", "limit": 2}).json()["more"] is True
    assert server.client.get("/api/v1/images", params={"limit": "many"}).status_code == 400
    assert server.client.delete(f"/api/v1/images/{ids[1]}").json()["image"]["deleted"] is True
    assert ids[1] not in {image["id"] for image in server.images(q="zebra")}
    assert f"{ids[1]}.png" not in server.files()
    assert server.client.post(f"/api/v1/images/{ids[1]}/restore").json()["image"]["deleted"] is False
    assert [image["id"] for image in server.images(q="zebra")] == ids[::-1]
    assert f"{ids[1]}.png" in server.files()


def test_files_have_safe_names_and_fixed_types(server: Server) -> None:
    image = server.ended(server.submit("../../etc/passwd\r\nX-Evil: 1", steps=1))["images"][0]
    shown = server.client.get(image["url"])
    assert shown.headers["content-type"] == "image/png"
    assert re.fullmatch(r'inline; filename="diffusette-7-[0-9a-v]{6}\.png"', shown.headers["content-disposition"])
    assert "x-evil" not in shown.headers
    saved = server.client.get(image["url"], params={"download": "1"})
    assert saved.headers["content-disposition"].startswith("attachment;")
    small = Image.open(io.BytesIO(server.client.get(image["thumbnail"]).content))
    assert small.format == "WEBP"
    assert max(small.size) <= 256


@pytest.mark.parametrize(("kind", "format"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_images_come_in_the_format_asked_for(server: Server, kind: str, format: str) -> None:  # noqa: A002
    body = {"request": {"prompt": "x", "steps": 1}, "format": kind}
    job = server.ended(server.client.post("/api/v1/jobs", json=body).json()["job"]["id"])
    assert Image.open(io.BytesIO(server.client.get(job["images"][0]["url"]).content)).format == format


def test_a_prompt_comes_back_unchanged_from_the_file(server: Server) -> None:
    image = server.ended(server.submit(PROMPT, negative="two\nlines", steps=2, sampler="euler_a", schedule="karras"))["images"][0]
    data = server.client.get(image["url"]).content
    found = server.client.post("/api/v1/metadata", content=data, headers={"content-type": "image/png"}).json()
    assert found["settings"]["prompt"] == PROMPT
    assert found["settings"]["negative"] == "two\nlines"
    assert found["settings"]["seed"] == 7
    assert found["settings"]["sampler"] == "euler_a"
    assert found["model"] == image["model"]
    assert found["unapplied"] == []
    again = server.ended(server.submit(**found["settings"]))["images"][0]
    assert server.client.get(again["url"]).content == data
    told = server.client.get(f"/api/v1/images/{image['id']}").json()["image"]
    assert told["metadata"]["prompt"] == PROMPT
    assert told["settings"]["sampler"] == "euler_a"


def test_settings_of_other_tools_are_read_and_what_cannot_be_applied_is_said(server: Server, picture: Image.Image) -> None:
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    last = "Steps: 30, Sampler: Restart, CFG scale: 5, Seed: 11, Size: 128x128, Model: sd15, Face restoration: GFPGAN"
    chunks.add_text("parameters", f"a cat <lora:thing:1>\nNegative prompt: dogs\n{last}")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=chunks)
    found = server.client.post("/api/v1/metadata", content=buffer.getvalue(), headers={"content-type": "image/png"}).json()
    assert found["tool"] == "AUTOMATIC1111"
    assert found["settings"]["steps"] == 30
    assert found["settings"]["negative"] == "dogs"
    assert {one["key"] for one in found["unapplied"]} == {"sampler", "model", "Face restoration"}
    assert all(one["reason"] for one in found["unapplied"])
    answer = server.client.post("/api/v1/metadata", content=b"<svg/>" * 10, headers={"content-type": "image/png"})
    assert answer.status_code == 400


def test_tokens_are_counted_and_mistakes_are_said(server: Server) -> None:
    found = server.client.post("/api/v1/tokens", json={"prompt": "red apple, " * 30, "negative": "(" * 200 + "a" + ")" * 200}).json()
    assert found["prompt"]["chunks"] > 1
    assert found["prompt"]["tokens"] == 90
    assert found["prompt"]["errors"] == []
    assert found["negative"]["errors"]


def test_settings_of_the_page_are_kept_within_bounds(server: Server) -> None:
    wanted = {"theme": "dark", "sizes": [[128, 128]], "nested": {"a": None}}
    assert server.client.put("/api/v1/settings", json={"settings": wanted}).json()["settings"] == wanted
    assert server.client.get("/api/v1/settings").json()["settings"] == wanted
    assert server.client.get("/api/v1/state").json()["settings"] == wanted
    assert server.client.put("/api/v1/settings", json={"settings": {"a": "x" * 70_000}}).status_code == 413
    assert server.client.put("/api/v1/settings", json={"settings": [1]}).status_code == 400


def test_a_model_tells_its_choices(server: Server) -> None:
    (model,) = server.client.get("/api/v1/models").json()["models"]
    details = server.client.get(f"/api/v1/models/{model['id']}").json()
    assert details["defaults"]["width"] == 128
    assert details["defaults"]["speed"] == "exact"
    assert {"name": "dpm++2m", "title": "DPM++ 2M", "options": ["solver", "order", "lower_order_final"]}.keys() == details["samplers"][
        0
    ].keys()
    assert details["image_to_image"]
    assert not details["needs_init"]
    assert [128, 128] in details["sizes"]
    assert all(side % details["multiple"] == 0 for size in details["sizes"] for side in size)
    job = server.client.post(f"/api/v1/models/{model['id']}/open").json()["job"]
    assert job["kind"] == "open"
    assert server.ended(job["id"])["status"] == "done"
    assert server.client.get("/api/v1/models/nothing").status_code == 404


def test_the_description_names_every_operation_and_field(server: Server) -> None:
    found = server.client.get("/api/v1/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    assert "/api/v1/jobs/{id}/move" in found["paths"]
    request = found["components"]["schemas"]["Request"]["properties"]
    assert set(request) == {"prompt", *Fields.__annotations__} - {"lora_folder"}
    page = server.client.get("/api/v1/docs").text
    assert "/api/v1/jobs/{id}/move" in page
    assert "<script" not in page


def test_monitors_get_their_answers(server: Server) -> None:
    assert server.client.get("/healthz").text == "ok\n"
    assert server.client.get("/readyz").status_code == 200
    text = server.client.get("/metrics").text
    assert re.search(r"^diffusette_images_total \d+$", text, re.MULTILINE)
    assert re.search(r'^diffusette_jobs_total\{status="done"\} \d+$', text, re.MULTILINE)
    assert "prompt" not in text


def test_the_page_and_its_files_are_served_with_tags(server: Server) -> None:
    page = server.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    again = server.client.get("/", headers={"if-none-match": page.headers["etag"]})
    assert again.status_code == 304
    assert server.client.get("/assets/index.html").status_code == 200
    assert server.client.get("/assets/nothing.js").status_code == 404


STRANGE: list[object] = [None, True, -1, 0, 1.5, 1e308, 2**70, "", "x", "x" * 5000, [], [1, 2], ["a"], [[]], {}, {"a": 1}, "\u0000", "1"]


def strange(server: Server, path: str, body: dict[str, object], names: list[str], wrap: str = "") -> list[str]:
    """Fields and values whose answer is neither good nor a refusal with a reason."""
    wrong: list[str] = []
    for name in names:
        for value in STRANGE:
            given = {**body, name: value}
            answer = server.client.post(path, json={wrap: given} if wrap else given)
            if answer.status_code not in {200, 202, 400, 404, 422, 429}:
                wrong.append(f"{name}={str(value)[:20]!r}: {answer.status_code}")
            if answer.status_code == 202:
                server.client.delete(f"/api/v1/jobs/{answer.json()['job']['id']}")
    return wrong


def test_no_value_of_any_field_is_an_unexpected_error(server: Server) -> None:
    names = sorted({"prompt", *Fields.__annotations__})
    assert strange(server, "/api/v1/jobs", {"prompt": "x", "steps": 1}, names, "request") == []
    assert strange(server, "/api/v1/jobs", {"request": {"prompt": "x", "steps": 1}}, ["request", "model", "client", "live", "front"]) == []
    for path, body, names in (
        ("/api/v1/tokens", {}, ["prompt", "negative", "model"]),
        ("/sdapi/v1/png-info", {}, ["image"]),
        ("/sdapi/v1/options", {}, ["sd_model_checkpoint"]),
        ("/sdapi/v1/extra-single-image", {}, ["image", "upscaling_resize", "resize_mode", "upscaler_1"]),
    ):
        assert strange(server, path, dict(body), names) == []


def test_no_value_of_any_field_of_the_other_apis_is_an_unexpected_error(server: Server, png: bytes) -> None:
    init = base64.b64encode(png).decode()
    hopeless = {"prompt": "x", "width": 129, "init_images": [init], "mask": init}  # refused at the end at the latest: nothing is generated
    names = [
        "prompt",
        "negative_prompt",
        "steps",
        "cfg_scale",
        "seed",
        "subseed",
        "subseed_strength",
        "sampler_name",
        "sampler_index",
        "scheduler",
        "batch_size",
        "n_iter",
        "enable_hr",
        "hr_scale",
        "hr_upscaler",
        "hr_second_pass_steps",
        "hr_resize_x",
        "denoising_strength",
        "mask_blur",
        "inpainting_fill",
        "inpaint_full_res",
        "inpaint_full_res_padding",
        "inpainting_mask_invert",
        "resize_mode",
        "eta",
        "s_churn",
        "clip_skip",
        "override_settings",
        "send_images",
        "styles",
        "alwayson_scripts",
        "script_name",
        "init_images",
        "mask",
    ]
    for path in ("/sdapi/v1/txt2img", "/sdapi/v1/img2img"):
        assert strange(server, path, hopeless | {"enable_hr": True}, names) == []
    names = [
        "prompt",
        "model",
        "n",
        "quality",
        "response_format",
        "output_format",
        "output_compression",
        "background",
        "partial_images",
        "stream",
        "user",
        "seed",
        "steps",
    ]
    names += ["negative_prompt", "guidance", "sampler", "schedule", "strength"]
    assert strange(server, "/v1/images/generations", {"prompt": "x", "size": "129x128"}, names) == []
    assert strange(server, "/v1/images/generations", {"prompt": "x", "size": "129x128", "n": 99}, ["size"]) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/jobs", {"request": {"prompt": "fox <lora:ink:0.8>"}}),
        ("/sdapi/v1/txt2img", {"prompt": "fox <lora:ink:0.8>"}),
        ("/v1/images/generations", {"prompt": "fox <lora:ink:0.8>"}),
    ],
)
def test_a_missing_lora_of_a_prompt_is_told_in_the_words_of_the_server(server: Server, path: str, body: dict[str, object]) -> None:
    assert (server.data / "loras").is_dir()
    assert (server.data / "embeddings").is_dir()
    answer = server.client.post(path, json=body)
    told = answer.json()
    field = told["field"] if path.startswith("/sdapi") else told["error"].get("field", told["error"].get("param"))
    assert (answer.status_code, field) == (422 if path.startswith("/sdapi") else 400, "prompt")
    assert "--loras" in answer.text
    assert "lora_folder" not in answer.text
    assert str(server.data) not in answer.text


def test_a_damaged_lora_is_named_without_its_folder(server: Server) -> None:
    damaged = server.data / "loras" / "short.safetensors"
    damaged.write_bytes(b"short")
    try:
        job = server.ended(server.submit(prompt="fox <lora:short:1>", steps=1))
    finally:
        damaged.unlink()
    assert "short.safetensors" in job["error"]["message"]
    assert str(server.data) not in job["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"promt": "x"}, "did you mean prompt?"),
        ({"width": 2048, "height": 4096}, "width: 2048 × 4096, expected at most 4,194,304 pixels, as many as 2048 × 2048 has"),
        ({"width": 2048, "height": 2048, "hires": 2.0}, "2048 × 2048, enlarged 2 times, expected"),
        ({"height": 5000}, "height: 5000, expected 8 to 4096, and both sides together at most 4,194,304 pixels"),
    ],
)
def test_a_refusal_says_the_limit_of_the_server(server: Server, fields: dict[str, object], said: str) -> None:
    answer = server.client.post("/api/v1/jobs", json={"request": {"prompt": "x", **fields}})
    assert said in answer.json()["error"]["message"]
