"""What can go wrong while an image is generated: each fault is caused for real, and the pipeline generates on afterwards."""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import diffusette
from diffusette.cli import inputs
from diffusette.export.graphs import save
from diffusette.export.passes import half_precision
from diffusette.export.subgraphs import step_caching
from diffusette.models import manifest as manifests
from diffusette.models.bundle import read_manifest
from diffusette.models.errors import Cancelled, NumericalError, RequestError
from diffusette.models.manifest import Component, Tensor
from diffusette.runtime import pipeline
from diffusette.runtime.metadata import image_files
from diffusette.runtime.pipeline import Picture, Pipeline, Step
from diffusette.runtime.request import Request
from tests.support import small_graphs

PROMPT = "red apple on a blue table"


@pytest.fixture(scope="module")
def drawer(sd1_bundle: Path) -> Pipeline:
    return pipeline.load(sd1_bundle, provider="cpu", memory="resident")


def broken(bundle: Path, copy: Path, component: str) -> Path:
    """A copy of a bundle with NaN for the largest weight of a component, as a damaged disk would leave it."""
    shutil.copytree(bundle, copy)
    for path in sorted((copy / component).glob("*.onnx")):
        proto = onnx.load(path)
        floats = [one for one in proto.graph.initializer if one.data_type == TensorProto.FLOAT]
        largest = max(floats, key=lambda one: onnx.numpy_helper.to_array(one).size)
        largest.CopyFrom(onnx.numpy_helper.from_array(np.full(largest.dims, np.nan, np.float32), largest.name))
        onnx.save(proto, path)
        small_graphs.relist(copy, f"{component}/{path.name}")
    return copy


def with_tiny_decoder(bundle: Path, copy: Path) -> Path:
    """A copy of a bundle with a decoder of one convolution, ×2."""
    shutil.copytree(bundle, copy)
    weights = {
        "w": np.random.default_rng(0).standard_normal((4, 12, 1, 1)).astype(np.float32).transpose(1, 0, 2, 3).copy() * np.float32(0.02)
    }
    nodes = [
        helper.make_node("Conv", ["latent_sample", "w"], ["c"]),
        helper.make_node("DepthToSpace", ["c"], ["sample"], blocksize=2),
    ]
    shapes: Any = ({"latent_sample": ["b", 4, "h", "w2"]}, {"sample": ["b", 3, "H", "W"]})
    ports = [{name: (TensorProto.FLOAT, shape) for name, shape in one.items()} for one in shapes]
    small_graphs.save(small_graphs.model(nodes, ports[0], ports[1], weights), copy / "tiny_decoder/model.onnx")
    inputs, outputs = ({name: Tensor("float32", tuple(shape)) for name, shape in one.items()} for one in shapes)
    manifest = read_manifest(copy)
    component = Component("tiny_decoder/model.onnx", "fp32", inputs, outputs)
    changed = msgspec.structs.replace(manifest, components={**manifest.components, "tiny_decoder": component})
    (copy / manifests.FILE_NAME).write_bytes(manifests.encode(changed))
    small_graphs.relist(copy, "tiny_decoder/model.onnx")
    return copy


# --- cancelling -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_picture_cancelled_at_any_step_leaves_the_next_one_as_a_fresh_one(drawer: Pipeline, sd1_bundle: Path, number: int) -> None:
    drawing = drawer.steps(Request("a green cat", seed=1, steps=6, hires=2.0))
    for _ in range(number):
        assert isinstance(next(drawing), Step)
    drawing.close()
    after = drawer.generate(PROMPT, seed=2, steps=3).images[0]
    with pipeline.load(sd1_bundle, provider="cpu") as fresh:
        assert fresh.generate(PROMPT, seed=2, steps=3).images[0].tobytes() == after.tobytes()


def test_another_thread_cancels_within_a_step_and_the_next_picture_is_right(drawer: Pipeline) -> None:
    wanted = drawer.generate(PROMPT, seed=2, steps=3).images[0]
    begun, ended = threading.Event(), list[BaseException]()

    def draw() -> None:
        try:
            drawer.watch(Request(PROMPT, seed=1, steps=1000, width=64, height=64, guidance=7.0), lambda _event: begun.set())
        except Cancelled as error:
            ended.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    assert begun.wait(60)
    drawer.cancel()
    thread.join(30)
    assert len(ended) == 1
    assert drawer.generate(PROMPT, seed=2, steps=3).images[0].tobytes() == wanted.tobytes()


def test_a_cancel_between_two_model_calls_is_not_lost(drawer: Pipeline) -> None:
    seen = list[object]()

    def cancel(event: object) -> None:
        seen.append(event)
        drawer.cancel()

    with pytest.raises(Cancelled):
        drawer.watch(Request(PROMPT, seed=1, steps=9), cancel)
    assert len(seen) == 1


CANCELLED = """
import sys
import diffusette
with diffusette.load(provider="cpu", threads=1) as drawer:
    for _ in range(12):
        drawing = drawer.steps(diffusette.Request("fox", seed=1, steps=4, width=256, height=256))
        next(drawing), drawing.close()
        print(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_pictures_that_are_cancelled_leave_no_memory_behind() -> None:
    done = subprocess.run([sys.executable, "-c", CANCELLED], capture_output=True, text=True, check=True)
    kilobytes = [int(line) for line in done.stdout.split()]
    assert kilobytes[-1] - kilobytes[3] < 4 << 10  # twelve images' latents, states and results would be more


# --- seeds on several workers ---------------------------------------------------------------------------------------------------


def test_a_seed_gives_its_picture_on_one_worker_on_four_and_in_another_process(drawer: Pipeline, sd1_bundle: Path) -> None:
    seeds = range(4)
    wanted = [image.tobytes() for image in drawer.generate(PROMPT, seed=0, count=4, steps=2, sampler="euler_a").images]

    def draw(seed: int) -> bytes:
        with pipeline.load(sd1_bundle, provider="cpu", threads=1 + seed % 2) as own:
            return own.generate(PROMPT, seed=seed, steps=2, sampler="euler_a").images[0].tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, seeds)) == wanted
        shared = pool.map(lambda seed: drawer.generate(PROMPT, seed=seed, steps=2, sampler="euler_a").images[0].tobytes(), seeds)
        assert list(shared) == wanted
    code = (
        "import diffusette, hashlib, sys\n"
        f"drawer = diffusette.load({str(sd1_bundle)!r}, provider='cpu')\n"
        f"image = drawer.generate({PROMPT!r}, seed=3, steps=2, sampler='euler_a').images[0]\n"
        "sys.stdout.buffer.write(image.tobytes())\n"
    )
    apart = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)
    assert apart.stdout == wanted[3]


def test_threads_with_different_tasks_on_one_pipeline_do_not_mix(drawer: Pipeline) -> None:
    init = Image.new("RGB", (16, 16), (200, 40, 90))
    tasks: list[dict[str, Any]] = [
        {"seed": 1, "steps": 4},
        {"seed": 2, "steps": 3, "width": 32, "height": 24, "guidance": 1.0},
        {"seed": 3, "steps": 3, "init": init, "strength": 0.6},
        {"seed": 4, "steps": 3, "hires": 2.0, "sampler": "euler_a"},
    ]
    wanted = [drawer.generate(PROMPT, **task).images[0].tobytes() for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda task: drawer.generate(PROMPT, **task).images[0].tobytes(), tasks * 3)
    assert list(found) == wanted * 3


# --- prompts --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("red apple " * 1_000_000, "prompt: "),
        ("red\0apple", ""),
        ("a lone \udfff surrogate", "prompt: "),
        ("<|endoftext|> <|startoftext|> apple", ""),
        ("تفاحة حمراء 🍎👩‍👩‍👧‍👦", ""),
        ("((((apple", ""),
        ("apple))]]", ""),
        ("", ""),
    ],
    ids=["10 MB", "NUL", "surrogate", "control tokens", "right to left, emoji", "open", "closed", "empty"],
)
def test_any_prompt_gives_a_picture_in_bounded_time_and_what_was_changed_is_said(
    drawer: Pipeline, prompt: str, note: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    result = drawer.generate(prompt, seed=1, steps=1)
    assert time.monotonic() - started < 30
    assert any(one.startswith(note) for one in result.notes) or not note
    image_files.write(result.images[0], tmp_path / "picture.png", result.metadata[0])
    again = drawer.generate(inputs.request_of(None, inputs.recorded(tmp_path / "picture.png"), {}))
    assert again.images[0].tobytes() == result.images[0].tobytes()


def test_ten_thousand_brackets_are_text_or_an_error_in_bounded_time(drawer: Pipeline) -> None:
    for prompt in ("(" * 10_000 + "apple", "(" * 9_000 + "apple" + ")" * 9_000, "[" * 10_000):
        started = time.monotonic()
        try:
            drawer.generate(prompt, seed=1, steps=1)
        except RequestError as error:
            assert "bracket" in str(error)  # noqa: PT017  # either is right
        assert time.monotonic() - started < 30


# --- numbers that went wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "said"),
    [
        ("unet", "step 1: NaN or Inf in the latents"),
        ("text_encoder", "NaN or Inf"),
        ("vae_decoder", r"VAE decoder \(cpu\) returned NaN or Inf"),
    ],
)
def test_not_a_number_on_the_way_is_an_error_and_never_a_black_picture(sd1_bundle: Path, tmp_path: Path, component: str, said: str) -> None:
    with (
        pipeline.load(broken(sd1_bundle, tmp_path / "bundle", component), provider="cpu") as drawer,
        pytest.raises(NumericalError, match=said),
    ):
        drawer.generate(PROMPT, seed=1, steps=2)


FEEDING = {"unet": "up_blocks.0.resnets.0.conv1.weight", "vae_decoder": "decoder.up_blocks.0.resnets.0.conv1.weight"}
"""Convolutions that a normalization follows: however large what they give, what comes after it is not."""


def overflowing(bundle: Path, copy: Path, *, halved: bool) -> Path:
    """A copy of a bundle whose U-Net and decoder go through numbers that half precision cannot hold; `halved`, they round to it after
    each operator, as a GPU does.
    """
    shutil.copytree(bundle, copy)
    for component, name in FEEDING.items():
        for path in sorted((copy / component).glob("*.onnx")):
            proto = onnx.load(path)
            for weight in [one for one in proto.graph.initializer if one.name.endswith(name)]:
                weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1e6), weight.name))
                onnx.save(proto, path)
                if halved:
                    save.save_beside(half_precision.rounded(step_caching.load(path)), path)
                small_graphs.relist(copy, f"{component}/{path.name}")
    return copy


@pytest.mark.parametrize("plan", ["resident", "streamed"])
def test_what_overflows_in_half_precision_is_done_again_in_float32_and_that_is_said(sd1_bundle: Path, tmp_path: Path, plan: str) -> None:
    with pipeline.load(overflowing(sd1_bundle, tmp_path / "float", halved=False), provider="cpu", memory=plan) as drawer:
        wanted = drawer.generate(PROMPT, seed=1, steps=3)
    assert wanted.notes == ()
    with pipeline.load(overflowing(sd1_bundle, tmp_path / "half", halved=True), provider="cpu", memory=plan) as drawer:
        for _ in range(2):
            found = drawer.generate(PROMPT, seed=1, steps=3)
            assert found.notes == tuple(f"{name}: NaN or Inf in half precision: it computes in float32 from now on" for name in FEEDING)
            difference = np.asarray(found.images[0], np.float64) - np.asarray(wanted.images[0], np.float64)
            assert 10 * np.log10(255**2 / np.mean(difference**2)) > 50  # weights are stored in half precision


def test_not_a_number_from_the_encoder_is_an_error_and_words_alone_still_draw(sd1_bundle: Path, tmp_path: Path) -> None:
    with pipeline.load(broken(sd1_bundle, tmp_path / "bundle", "vae_encoder"), provider="cpu") as drawer:
        with pytest.raises(NumericalError, match=r"VAE encoder \(cpu\) returned NaN or Inf"):
            drawer.generate(PROMPT, seed=1, steps=2, init=Image.new("RGB", (16, 16)))
        assert drawer.generate(PROMPT, seed=1, steps=2).images


# --- images to generate over ------------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_rotated() -> bytes:
    picture = Image.new("RGB", (24, 16), (250, 0, 0))
    picture.getexif()[0x0112] = 6
    return saved(picture, "JPEG", exif=picture.getexif())


def giant() -> bytes:
    """A PNG whose header says 50,000 × 50,000."""
    data = bytearray(saved(Image.new("RGB", (1, 1)), "PNG"))
    data[16:24] = (50_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


INITS: dict[str, tuple[bytes, str]] = {
    "animated": (saved(Image.new("RGB", (20, 20)), "WEBP", save_all=True, append_images=[Image.new("RGB", (20, 20), 9)], duration=9), ""),
    "cmyk": (saved(Image.new("CMYK", (20, 20), (9, 9, 9, 9)), "JPEG"), ""),
    "16-bit": (saved(Image.fromarray(np.full((20, 20), 40_000, np.uint16)), "PNG"), ""),
    "rotated": (exif_rotated(), ""),
    "truncated": (saved(Image.effect_noise((64, 64), 50), "PNG")[:900], "cannot be decoded"),
    "giant": (giant(), "expected at most"),
    "gif": (saved(Image.new("P", (20, 20)), "GIF"), "not a PNG, JPEG or WebP image"),
    "web page": (b"<!doctype html><title>404</title>", "not a PNG, JPEG or WebP image"),
}


@pytest.mark.parametrize("name", sorted(INITS))
def test_a_strange_picture_is_drawn_over_or_refused(drawer: Pipeline, tmp_path: Path, name: str) -> None:
    data, refusal = INITS[name]
    (tmp_path / "init").write_bytes(data)
    if refusal:
        with pytest.raises(RequestError, match=refusal):
            inputs.request_of(PROMPT, None, {"init": tmp_path / "init"})
        return
    result = drawer.generate(inputs.request_of(PROMPT, None, {"init": tmp_path / "init", "seed": 1, "steps": 2}))
    assert result.images[0].size == ((14, 20) if name == "rotated" else (16, 16))  # upright, its shape at the model's number of pixels


# --- the tiny decoder -----------------------------------------------------------------------------------------------------------


def test_the_tiny_decoder_makes_previews_and_on_request_the_picture(sd1_bundle: Path, tmp_path: Path, drawer: Pipeline) -> None:
    with pipeline.load(with_tiny_decoder(sd1_bundle, tmp_path / "bundle"), provider="cpu") as tiny:
        *_, step, picture = tiny.steps(Request(PROMPT, seed=1, steps=2, decoder="tiny"))
        assert isinstance(step, Step)
        assert isinstance(picture, Picture)
        assert tiny.preview(step.latents, cheap=True).tobytes() == picture.image.tobytes()
        assert picture.record.extra["decoder"] == "tiny"
        whole = tiny.generate(PROMPT, seed=1, steps=2)
        assert whole.images[0].tobytes() == drawer.generate(PROMPT, seed=1, steps=2).images[0].tobytes() != picture.image.tobytes()
        assert whole.images[0].size == picture.image.size


@pytest.mark.parametrize("latent", [{"scaling": 1e-320}, {"shift": 1e308}])
def test_latents_that_become_infinite_before_decoding_are_an_error_in_int8_too(latent: dict[str, float]) -> None:
    with diffusette.load() as drawer:
        manifest = drawer.bundle.manifest
        wrong = msgspec.structs.replace(manifest, latent=msgspec.structs.replace(manifest.latent, **latent))
        drawer.bundle = dataclasses.replace(drawer.bundle, manifest=wrong)
        with pytest.raises(NumericalError, match="NaN or Inf in the latents before decoding"):
            drawer.generate("fox", seed=1, steps=2)
