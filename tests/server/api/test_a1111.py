"""AUTOMATIC1111's API: its Python client, and the calls of other programs in their order, against a real server."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import webuiapi
from PIL import Image, PngImagePlugin

from tests.support.server_process import Server

SMALL = {"width": 128, "height": 128, "steps": 3}


@pytest.fixture
def api(server: Server) -> Iterator[webuiapi.WebUIApi]:
    found = webuiapi.WebUIApi(host="127.0.0.1", port=server.port)
    yield found
    found.session.close()


@pytest.fixture
def encoded(png: bytes) -> str:
    return base64.b64encode(png).decode()


def encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_webuiapi_generates_from_text(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(prompt="red apple", negative_prompt="blue", seed=5, batch_size=2, n_iter=1, cfg_scale=3, **SMALL)
    assert [image.size for image in result.images] == [(128, 128)] * 2
    assert result.info["all_seeds"] == [5, 6]
    assert result.info["sampler_name"] == "Euler a"
    assert result.info["steps"] == 3
    assert result.info["infotexts"][0].startswith("red apple\nNegative prompt: blue\nSteps: 3")
    assert result.parameters["prompt"] == "red apple"
    again = api.txt2img(prompt="red apple", negative_prompt="blue", seed=5, cfg_scale=3, **SMALL)
    assert again.image.tobytes() == result.images[0].tobytes()


def test_webuiapi_changes_images_and_paints_into_masks(api: webuiapi.WebUIApi, picture: Image.Image, mask: Image.Image) -> None:
    changed = api.img2img(images=[picture], prompt="fox", denoising_strength=0.5, seed=1, **SMALL)
    assert changed.image.size == (128, 128)
    assert changed.info["denoising_strength"] == 0.5
    for fill in (0, 1):
        found = api.img2img(
            images=[picture], mask_image=mask, mask_blur=0, inpainting_fill=fill, inpaint_full_res=False, prompt="fox", seed=1, **SMALL
        )
        assert found.image.crop((0, 70, 128, 128)).tobytes() == picture.crop((0, 70, 128, 128)).tobytes()
        assert found.image.crop((40, 10, 90, 50)).tobytes() != picture.crop((40, 10, 90, 50)).tobytes()
    other = api.img2img(
        images=[picture], mask_image=mask, inpainting_mask_invert=1, mask_blur=0, inpaint_full_res=False, prompt="fox", seed=1, **SMALL
    )
    assert other.image.crop((40, 10, 90, 50)).tobytes() == picture.crop((40, 10, 90, 50)).tobytes()
    whole = api.img2img(images=[picture], mask_image=mask, inpaint_full_res=True, inpaint_full_res_padding=8, prompt="fox", **SMALL)
    assert whole.image.size == picture.size


def test_webuiapi_enlarges_and_varies(api: webuiapi.WebUIApi) -> None:
    large = api.txt2img(prompt="fox", seed=1, enable_hr=True, hr_scale=1.5, hr_second_pass_steps=2, denoising_strength=0.6, **SMALL)
    assert large.image.size == (192, 192)
    varied = api.txt2img(prompt="fox", seed=1, subseed=9, subseed_strength=0.3, **SMALL)
    assert varied.info["all_subseeds"] == [9]
    assert varied.image.tobytes() != api.txt2img(prompt="fox", seed=1, **SMALL).image.tobytes()


def test_webuiapi_reads_everything_it_lists(api: webuiapi.WebUIApi, picture: Image.Image) -> None:
    assert "DPM++ 2M" in api.util_get_sampler_names()
    assert {"automatic", "karras"} <= set(api.util_get_scheduler_names())
    (title,) = api.util_get_model_names()
    assert api.util_get_current_model() == title
    api.util_set_model(title, find_closest=False)
    api.util_wait_for_ready(check_interval=0.05)
    assert {one["name"] for one in api.get_upscalers()} == {"None", "Lanczos"}
    assert {"name": "Latent"} in api.get_latent_upscale_modes()
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_memory()["ram"]["total"] > 0
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    for empty in (api.get_loras, api.get_sd_vae, api.get_hypernetworks, api.get_face_restorers, api.get_prompt_styles):
        assert empty() == []
    assert "token" not in json.dumps(api.get_cmd_flags()).lower()
    assert api.refresh_checkpoints() is None
    assert api.interrupt() == api.skip() == {}
    info = api.png_info(api.txt2img(prompt="a cat\nSteps: 1, Seed: 5", seed=3, **SMALL).image)
    assert info.info.startswith("a cat")
    assert api.extra_single_image(picture, upscaling_resize=2, upscaler_1="Lanczos").image.size == (256, 256)


def test_a_prompt_that_looks_like_settings_comes_back_unchanged(server: Server) -> None:
    prompt = "line one\nSteps: 1, Seed: 5\nNegative prompt: no"
    made = server.client.post("/sdapi/v1/txt2img", json={"prompt": prompt, "seed": 3, **SMALL}).json()
    read = server.client.post("/sdapi/v1/png-info", json={"image": f"data:image/png;base64,{made['images'][0]}"}).json()
    assert read["parameters"]["Prompt"] == prompt
    assert read["parameters"]["Seed"] == 3


def test_the_calls_of_sillytavern(server: Server) -> None:
    """src/endpoints/stable-diffusion.js: ping, lists, model switch with polling, generate."""
    get, post = server.client.get, server.client.post
    assert get("/sdapi/v1/options").json()["sd_model_checkpoint"]
    assert all(one["name"] for one in get("/sdapi/v1/samplers").json())
    assert all(one["name"] for one in get("/sdapi/v1/schedulers").json())
    model = get("/sdapi/v1/sd-models").json()[0]
    assert model["model_name"] in model["title"]
    assert [one["model_name"] for one in get("/sdapi/v1/sd-vae").json()] == []
    names = [one["name"] for path in ("upscalers", "latent-upscale-modes") for one in get(f"/sdapi/v1/{path}").json()]
    assert "Latent" in names
    assert post("/sdapi/v1/options", json={"sd_model_checkpoint": model["title"]}).text == "null"

    def idle() -> bool:
        found = get("/sdapi/v1/progress").json()
        return found["progress"] == 0.0 and found["state"]["job_count"] == 0

    server.until(idle)
    body = {
        "prompt": "red apple",
        "negative_prompt": "",
        "sampler_name": "DPM++ 2M Karras",
        "scheduler": "automatic",
        "cfg_scale": 3,
        **SMALL,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1.5,
        "denoising_strength": 0.4,
        "hr_second_pass_steps": 0,
        "seed": 4,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    made = post("/sdapi/v1/txt2img", json=body).json()
    assert Image.open(io.BytesIO(base64.b64decode(made["images"][0]))).size == (128, 128)
    info = json.loads(made["info"])
    assert info["extra_generation_params"]["Schedule type"] == "karras"
    assert info["ignored"] == []


def test_the_calls_of_open_webui(server: Server) -> None:
    """backend/open_webui/routers/images.py: the whole options object goes back, an empty Basic header everywhere."""
    with httpx.Client(base_url=server.url, headers={"authorization": "Basic Og=="}, timeout=60) as client:
        options = client.get("/sdapi/v1/options").json()
        models = client.get("/sdapi/v1/sd-models").json()
        options["sd_model_checkpoint"] = models[0]["title"]
        assert client.post("/sdapi/v1/options", json=options).json() is None
        body = {"prompt": "red apple", "batch_size": 1, "width": 128, "height": 128, "steps": 3, "negative_prompt": "x"}
        made = client.post("/sdapi/v1/txt2img", json=body).json()
        assert len(made["images"]) == 1
        assert isinstance(made["info"], str)


def test_the_calls_of_auto_photoshop(server: Server, encoded: str, mask: Image.Image) -> None:
    get, post = server.client.get, server.client.post
    for path in ("/config", *(f"/sdapi/v1/{name}" for name in _LISTS)):
        assert get(path).status_code == 200, path
    for name in ("version", "module_list", "model_list", "settings"):
        assert get(f"/controlnet/{name}").status_code == 404
    assert post("/sdapi/v1/interrogate", json={"image": encoded}).status_code == 404
    body = {
        "prompt": "fox",
        **SMALL,
        "init_images": [f"data:image/png;base64,{encoded}"],
        "mask": encode(mask),
        "denoising_strength": 0.7,
        "inpainting_fill": 1,
        "inpaint_full_res": False,
        "mask_blur": 2,
        "sampler_index": "Euler a",
        "styles": [],
        "alwayson_scripts": {"controlnet": {"args": [{"enabled": False, "input_image": ""}]}},
        "use_prompt_shortcut": True,
    }
    made = post("/sdapi/v1/img2img", json=body).json()
    assert len(made["images"]) == 1
    assert json.loads(made["info"])["ignored"] == ["use_prompt_shortcut"]
    assert post("/sdapi/v1/png-info", json={"image": made["images"][0]}).json()["info"].startswith("fox")
    enlarge = {"image": encoded, "resize_mode": 0, "upscaling_resize": 2, "upscaler_1": "Lanczos", "upscaler_2": "None"}
    assert post("/sdapi/v1/extra-single-image", json=enlarge).json()["image"]


_LISTS = ("options", "sd-models", "samplers", "upscalers", "loras", "embeddings", "scripts", "sd-vae", "cmd-flags", "memory")


def test_progress_tells_the_running_job_with_a_preview_and_interrupt_ends_it(server: Server) -> None:
    answers: list[httpx.Response] = []
    body = {"prompt": "fox", "width": 256, "height": 256, "steps": 400}
    request = threading.Thread(target=lambda: answers.append(server.client.post("/sdapi/v1/txt2img", json=body)))
    request.start()

    def seen() -> dict[str, object] | None:
        found = server.client.get("/sdapi/v1/progress").json()
        return found if found["current_image"] else None

    found = server.until(seen)
    assert 0 < found["progress"] < 1
    assert found["eta_relative"] > 0
    assert found["state"]["job_count"] == 1
    assert found["state"]["sampling_steps"] == 400
    assert Image.open(io.BytesIO(base64.b64decode(found["current_image"]))).format == "JPEG"
    started = time.monotonic()
    assert server.client.post("/sdapi/v1/interrupt").json() == {}
    request.join()
    assert time.monotonic() - started < 5
    assert answers[0].status_code == 200
    assert answers[0].json()["images"] == []
    assert json.loads(answers[0].json()["info"])["interrupted"] is True


def test_skip_gives_up_one_image_and_goes_on_with_the_next(server: Server) -> None:
    answers: list[httpx.Response] = []
    body = {"prompt": "fox", "width": 192, "height": 192, "steps": 20, "batch_size": 2, "seed": 40}
    request = threading.Thread(target=lambda: answers.append(server.client.post("/sdapi/v1/txt2img", json=body)))
    request.start()
    server.until(lambda: server.client.get("/sdapi/v1/progress").json()["state"]["sampling_step"])
    server.client.post("/sdapi/v1/skip")
    request.join()
    assert json.loads(answers[0].json()["info"])["all_seeds"] == [41]


def test_a_client_that_goes_away_cancels_its_job(server: Server) -> None:
    body = {"prompt": "gone", "width": 256, "height": 256, "steps": 400}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=0.5)

    def cancelled() -> bool:
        jobs = [job for job in server.client.get("/api/v1/jobs").json()["jobs"] if job["prompt"] == "gone"]
        return [job["status"] for job in jobs] == ["cancelled"]

    server.until(cancelled, 5)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "face"}]}}}, "alwayson_scripts"),
        ({"refiner_checkpoint": "sdxl"}, "refiner_checkpoint"),
        ({"styles": ["nice"]}, "styles"),
        ({"override_settings": {"sd_vae": "kl-f8"}}, "override_settings"),
        ({"sampler_name": "Restart"}, "sampler"),
        ({"width": 129}, "width"),
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "hires_upscaler"),
    ],
)
def test_what_is_not_supported_is_422_and_never_silence(server: Server, fields: dict[str, object], field: str) -> None:
    answer = server.client.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, **fields})
    assert answer.status_code == 422
    assert answer.json()["field"] == field
    assert answer.json()["detail"]


def test_unknown_fields_are_ignored_and_listed(server: Server) -> None:
    body = {"prompt": "x", **SMALL, "future": 1, "override_settings": {"eta_noise_seed_delta": 31337}, "s_churn": 2, "sampler_name": "DDIM"}
    info = json.loads(server.client.post("/sdapi/v1/txt2img", json=body).json()["info"])
    assert info["ignored"] == ["future", "override_settings.eta_noise_seed_delta", "s_churn"]


@pytest.mark.parametrize("source", ["http://127.0.0.1:1/a.png", "/etc/passwd", "file:///etc/passwd", "../../x.png", ""])
def test_an_init_image_that_is_an_address_or_a_path_is_400(server: Server, source: str) -> None:
    answer = server.client.post("/sdapi/v1/img2img", json={"prompt": "x", "init_images": [source]})
    assert answer.status_code == 400


def test_what_should_not_be_kept_is_not_kept(server: Server) -> None:
    before = server.files()
    body = {"prompt": "secret", "do_not_save_samples": True, **SMALL}
    assert len(server.client.post("/sdapi/v1/txt2img", json=body).json()["images"]) == 1
    assert server.files() == before
    assert server.images(q="secret") == []


def test_without_images_in_the_answer_they_are_in_the_gallery(server: Server) -> None:
    made = server.client.post("/sdapi/v1/txt2img", json={"prompt": "okapi", "send_images": False, **SMALL}).json()
    assert made["images"] == []
    assert len(server.images(q="okapi")) == 1


def test_settings_of_the_web_ui_are_read_from_its_files(server: Server, picture: Image.Image) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 30, Sampler: Euler a, CFG scale: 5, Seed: 11, Size: 512x512")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=chunks)
    found = server.client.post("/sdapi/v1/png-info", json={"image": base64.b64encode(buffer.getvalue()).decode()}).json()
    assert found["parameters"]["Steps"] == 30
    assert found["items"]["parameters"] == found["info"]
