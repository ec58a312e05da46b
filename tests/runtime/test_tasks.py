"""Tasks beyond text to image, on tiny random models: diffusers' pipelines are the judge where they have the task."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image, ImageDraw

from diffusette.models.errors import BundleError, RequestError
from diffusette.runtime import pipeline, reproduce
from diffusette.runtime.images import hires, image_io, vae
from diffusette.runtime.metadata import image_files, infotext
from diffusette.runtime.metadata.record import from_json, to_json
from diffusette.runtime.pipeline import Pipeline, Step
from diffusette.runtime.request import Fields, Request
from diffusette.runtime.sampling.rng import rng as generator_of
from diffusette.runtime.sampling.rng import variation

PROMPT = "red apple on a blue table"
Made = Callable[[str], tuple[Path, Path]]
pytestmark = [  # what diffusers says about itself
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In dB, of arrays whose values span that of `other`."""
    span = float(other.max() - other.min())
    return 10 * np.log10(span**2 / max(float(np.mean((one.astype(np.float64) - other) ** 2)), 1e-20))


def judge_of(source: Path, scheduler: type = DDIMScheduler, **more: Any) -> Any:
    """Diffusers' own pipeline of a folder, on whole timesteps as DDIM takes them."""
    with contextlib.redirect_stderr(io.StringIO()):
        judge = DiffusionPipeline.from_pretrained(source, **more)
    judge.set_progress_bar_config(disable=True)
    options = {"clip_sample": False} if scheduler is DDIMScheduler else {}
    judge.scheduler = scheduler.from_config(judge.scheduler.config, timestep_spacing="leading", **options)
    return judge


def noise_of(drawer: Pipeline, seed: int, size: tuple[int, int] | None = None) -> np.ndarray:
    latent, defaults = drawer.manifest.latent, drawer.manifest.defaults
    width, height = size or (defaults.width, defaults.height)
    return generator_of("numpy", seed).normal((1, latent.channels, height // latent.downscale, width // latent.downscale))


def last_of(drawer: Pipeline, **fields: Any) -> np.ndarray:
    """The last latents of an image."""
    *_, step, _ = drawer.steps(Request(PROMPT, **fields))
    assert isinstance(step, Step)
    return step.latents


def decoded(drawer: Pipeline, latents: np.ndarray) -> np.ndarray:
    """The image of latents, 0 to 1, (1, height, width, 3): what diffusers gives with output_type "np"."""
    made = vae.decode(drawer.components.get("vae_decoder"), latents, drawer.manifest.latent)
    return made.transpose(0, 2, 3, 1) / 2 + 0.5


def init_of(drawer: Pipeline, seed: int = 0, scale: int = 1) -> Image.Image:
    """An image of soft colours, of the model's size or a multiple of it."""
    defaults = drawer.manifest.defaults
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((defaults.width * scale, defaults.height * scale), Image.Resampling.BICUBIC)


def mask_of(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """White in the box, given in shares of width and height."""
    mask = Image.new("L", image.size)
    left, right = round(box[0] * image.width), round(box[2] * image.width)
    top, bottom = round(box[1] * image.height), round(box[3] * image.height)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask


@pytest.fixture(scope="module")
def drawer(sd1_bundle: Path) -> Pipeline:
    return pipeline.load(sd1_bundle, provider="cpu", memory="resident")


@pytest.fixture(scope="module")
def inpainter(bundle_of: Made) -> Pipeline:
    return pipeline.load(bundle_of("sd1-inpaint")[1], provider="cpu", memory="resident")


# --- inpainting ---------------------------------------------------------------------------------------------------------------


def their_inpainting(source: Path, drawer: Pipeline, seed: int, steps: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Diffusers' image, and the request that should draw the same.

    Diffusers generates the masked image's latents at random from their posterior; it is given their mean instead.
    """
    judge = judge_of(source, safety_checker=None)
    init = init_of(drawer)
    mask = mask_of(init, (0.25, 0.25, 0.75, 1.0))
    hidden = torch.from_numpy(image_io.to_array(init) * (np.asarray(mask)[None, None] < 128))
    with torch.no_grad():
        masked = judge.vae.encode(hidden).latent_dist.mode() * judge.vae.config.scaling_factor
    theirs = judge(
        PROMPT,
        image=init,
        mask_image=mask,
        masked_image_latents=masked,
        num_inference_steps=steps,
        guidance_scale=4.0,
        latents=torch.from_numpy(noise_of(drawer, seed)),
        width=init.width,
        height=init.height,
        output_type="np",
    ).images
    request = {"seed": seed, "steps": steps, "guidance": 4.0, "sampler": "ddim", "schedule": "leading", "init": init, "mask": mask}
    return theirs, request


def test_inpainting_with_a_unet_that_sees_the_picture_is_that_of_diffusers(bundle_of: Made, inpainter: Pipeline) -> None:
    theirs, request = their_inpainting(bundle_of("sd1-inpaint")[0], inpainter, 11, 4)
    assert psnr(decoded(inpainter, last_of(inpainter, **request)), theirs) >= 60


def test_the_older_onnx_layout_inpaints_what_diffusers_does(bundle_of: Made, inpainter: Pipeline, tmp_path: Path) -> None:
    source, bundle = bundle_of("sd1-inpaint")
    for name in ("text_encoder", "unet", "vae_encoder", "vae_decoder", "tokenizer"):
        shutil.copytree(bundle / name, tmp_path / name, ignore=shutil.ignore_patterns("config.json"))
    shutil.copytree(source / "scheduler", tmp_path / "scheduler")
    parts = {name: ["diffusers", "OnnxRuntimeModel"] for name in ("text_encoder", "unet", "vae_encoder", "vae_decoder")}
    index = {
        "_class_name": "OnnxStableDiffusionInpaintPipeline",
        **parts,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    settings = {"model_max_length": 12, "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "vae_decoder/config.json").write_text(json.dumps({"block_out_channels": [8, 16]}))  # that layout means 8 pixels otherwise
    encoder = onnx.load(tmp_path / "vae_encoder/model.onnx", load_external_data=False)  # there it gives the latents themselves
    encoder.graph.node.append(onnx.helper.make_node("Split", ["latent_parameters"], ["latent_sample", "rest"], axis=1, num_outputs=2))
    encoder.graph.output[0].name = "latent_sample"
    encoder.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(encoder, tmp_path / "vae_encoder/model.onnx")
    theirs, request = their_inpainting(source, inpainter, 5, 3)
    size = {"width": inpainter.manifest.defaults.width, "height": inpainter.manifest.defaults.height}
    with pipeline.load(tmp_path, provider="cpu") as plain:
        assert plain.family.name == "sd1-inpaint"
        assert set(plain.manifest.components["vae_encoder"].outputs) == {"latent_sample"}
        assert psnr(decoded(plain, last_of(plain, **request, **size)), theirs) >= 60


@pytest.mark.parametrize("sees", [True, False])
def test_only_the_masked_area_is_drawn_at_the_full_size_and_pasted_back(sees: bool, drawer: Pipeline, inpainter: Pipeline) -> None:
    used = inpainter if sees else drawer
    init = init_of(used, scale=4)
    mask = mask_of(init, (0.4, 0.4, 0.6, 0.6))
    fields: Fields = {"seed": 3, "steps": 3, "init": init, "mask": mask, "strength": 1.0, "mask_blur": 1.0}
    part = used.generate(PROMPT, **fields, only_masked=True, mask_padding=4).images[0]
    whole = used.generate(PROMPT, **fields).images[0]
    assert part.size == init.size
    assert whole.size == (used.manifest.defaults.width, used.manifest.defaults.height)
    changed = np.argwhere((pixels(part) != pixels(init)).any(axis=2)) / init.width
    assert len(changed) > 0
    assert changed.min() > 0.3
    assert changed.max() < 0.7
    assert used.generate(PROMPT, **fields, only_masked=True, mask_padding=12).images[0].tobytes() != part.tobytes()


def test_a_note_says_how_a_mask_was_understood(drawer: Pipeline, tmp_path: Path) -> None:
    init = init_of(drawer)
    strokes = Image.new("RGBA", (init.width, init.height // 2))
    strokes.paste((0, 0, 0, 255), (0, 0, 4, 4))
    strokes.save(tmp_path / "mask.png")
    notes = drawer.generate(PROMPT, seed=1, steps=1, init=init, mask=tmp_path / "mask.png").notes
    assert any("the strokes on its transparent ground are regenerated" in note for note in notes)
    assert any(f"{init.width} × {init.height // 2} was stretched to the shape of the init image" in note for note in notes)


# --- images by instruction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_guidance", [None, 2.5])
def test_pictures_are_edited_as_diffusers_does_it(bundle_of: Made, image_guidance: float | None) -> None:
    source, bundle = bundle_of("sd1-pix2pix")
    judge = judge_of(source, EulerDiscreteScheduler, safety_checker=None)
    with pipeline.load(bundle, provider="cpu") as editor:
        init = init_of(editor)
        theirs = judge(
            PROMPT,
            image=init,
            num_inference_steps=4,
            guidance_scale=4.0,
            image_guidance_scale=image_guidance or 1.5,
            latents=torch.from_numpy(noise_of(editor, 2)),
            output_type="np",
        ).images
        request = {"seed": 2, "steps": 4, "guidance": 4.0, "sampler": "euler", "schedule": "leading", "init": init}
        assert psnr(decoded(editor, last_of(editor, **request, image_guidance=image_guidance)), theirs) >= 60


# --- base and refiner -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "plan"), [(0.8, "resident"), (0.5, "sequential")])
def test_base_and_refiner_draw_what_diffusers_experts_draw(bundle_of: Made, start: float, plan: str) -> None:
    (source, bundle), (second, refiner) = bundle_of("sdxl"), bundle_of("sdxl-refiner")
    base = judge_of(source, EulerDiscreteScheduler)
    with contextlib.redirect_stderr(io.StringIO()):
        expert = StableDiffusionXLImg2ImgPipeline.from_pretrained(
            second, text_encoder=None, tokenizer=None, vae=base.vae, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False
        )
    expert.set_progress_bar_config(disable=True)
    expert.scheduler = EulerDiscreteScheduler.from_config(expert.scheduler.config, timestep_spacing="leading")
    with pipeline.load(bundle, provider="cpu", memory=plan, refiner=refiner) as drawer:
        size = {"width": drawer.manifest.defaults.width, "height": drawer.manifest.defaults.height}
        common = {"num_inference_steps": 10, "guidance_scale": 4.0}
        noise = torch.from_numpy(noise_of(drawer, 6))
        begun = base(PROMPT, **common, **size, latents=noise, denoising_end=start, output_type="latent").images
        ratio = {"original_size": (size["height"], size["width"]), "target_size": (size["height"], size["width"])}
        theirs = expert(PROMPT, image=begun, **common, **ratio, denoising_start=start, output_type="latent").images.numpy()
        request = {"seed": 6, "steps": 10, "guidance": 4.0, "sampler": "euler", "schedule": "leading"}
        assert psnr(last_of(drawer, **request, refiner_start=start), theirs) >= 60
        opened = {name for one in (drawer, drawer.refiner) if one for name, *_ in one.components.pool.open}
        assert opened == ({"text_encoder", "text_encoder_2", "unet", "vae_decoder"} if plan == "resident" else {"vae_decoder"})
        result = drawer.generate(PROMPT, seed=6, steps=10)
        assert result.metadata[0].extra["refiner_start"] == 0.8
        assert result.timings["refiner_unet"] > 0
        assert "Refiner switch at: 0.8" in infotext.compose(result.metadata[0])


@pytest.fixture(scope="module")
def refining(bundle_of: Made) -> Pipeline:
    return pipeline.load(bundle_of("sdxl")[1], provider="cpu", memory="resident", refiner=bundle_of("sdxl-refiner")[1])


def test_a_refiner_may_have_everything_or_nothing_to_do(refining: Pipeline) -> None:
    nothing = refining.generate(PROMPT, seed=1, steps=3, refiner_start=1.0)
    assert any("the refiner has no step" in note for note in nothing.notes)
    assert nothing.timings.get("refiner_unet", 0.0) == 0.0
    everything = refining.generate(PROMPT, seed=1, steps=3, refiner_start=0.0)
    assert everything.timings["unet"] == 0.0
    assert everything.images[0].tobytes() != nothing.images[0].tobytes()


@pytest.mark.parametrize("task", ["hires", "init", "mask"])
def test_a_refiner_ends_the_last_pass_of_every_task(refining: Pipeline, task: str) -> None:
    init = init_of(refining)
    fields: dict[str, Any] = {
        "hires": {"hires": 2.0},
        "init": {"init": init},
        "mask": {"init": init, "mask": mask_of(init, (0, 0, 1, 0.5))},
    }[task]
    fields = {"seed": 1, "steps": 6, "schedule": "leading", "sampler": "euler", **fields}
    drawn = refining.generate(PROMPT, **fields, refiner_start=0.7)
    assert drawn.timings["unet"] > 0
    assert drawn.timings["refiner_unet"] > 0
    alone = refining.generate(PROMPT, **fields, refiner_start=1.0)
    assert drawn.images[0].size == alone.images[0].size
    assert drawn.images[0].tobytes() != alone.images[0].tobytes()
    if task == "mask":
        kept = pixels(init)[init.height * 7 // 8 :]
        np.testing.assert_allclose(pixels(drawn.images[0])[init.height * 7 // 8 :], kept, atol=24)  # the feather reaches there


def test_a_refiner_with_other_latents_or_another_task_is_refused(bundle_of: Made, sd1_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot refine images of .*: its latents are"):
        pipeline.load(bundle_of("sdxl")[1], provider="cpu", refiner=sd1_bundle)
    with pytest.raises(BundleError, match="sd1-inpaint cannot refine"):
        pipeline.load(sd1_bundle, provider="cpu", refiner=bundle_of("sd1-inpaint")[1])


# --- hires ----------------------------------------------------------------------------------------------------------------------


def test_hires_of_latents_is_a_second_pass_over_what_was_drawn(drawer: Pipeline) -> None:
    request: dict[str, Any] = {"seed": 4, "steps": 4, "sampler": "ddim", "schedule": "leading", "guidance": 3.0}
    more: dict[str, Any] = {"hires": 2.0, "hires_upscaler": "latent", "hires_strength": 0.5, "hires_steps": 3}
    events = [event for event in drawer.steps(Request(PROMPT, **request, **more)) if isinstance(event, Step)]
    assert [event.number for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert events[-1].total == 7
    assert events[-1].done == 1.0
    np.testing.assert_array_equal(events[3].latents, last_of(drawer, **request))
    size = {"width": 2 * drawer.manifest.defaults.width, "height": 2 * drawer.manifest.defaults.height}
    assert events[-1].latents.shape[2:] == (2 * events[0].latents.shape[2], 2 * events[0].latents.shape[3])
    # The same by hand: image to image at the large size, from the upscaled latents.
    grown = hires.resize(events[3].latents, *events[-1].latents.shape[2:], hires.find_upscaler("latent"))
    first = _by_hand(drawer, grown, {**request, **size, "steps": 6, "strength": 0.5})
    np.testing.assert_allclose(events[-1].latents, first, rtol=1e-4, atol=1e-4)


def _by_hand(drawer: Pipeline, start: np.ndarray, fields: Mapping[str, Any]) -> np.ndarray:
    """Image to image from latents that no image has to stand for."""
    from diffusette.runtime import conditioning
    from diffusette.runtime.resolve import resolve
    from diffusette.runtime.sampling import denoise, samplers

    request = resolve(Request(PROMPT, **{**fields, "init": Image.new("RGB", (8, 8))}), drawer.manifest)
    one = request.passes[0]
    encoded = conditioning.encode(request, one, drawer.manifest, drawer.encoders)
    model = conditioning.denoiser(request, one, drawer.manifest, drawer.components.get("unet"), encoded, {})
    noise = generator_of("numpy", fields["seed"]).normal(start.shape)
    x = denoise.combine((float(one.sigmas[0]), noise), (1.0, start))
    *_, last = samplers.find_sampler("ddim").function(model, x, one.sigmas, None)
    return last


def test_hires_of_the_picture_keeps_it_at_twice_the_size(drawer: Pipeline) -> None:
    small = drawer.generate(PROMPT, seed=4, steps=4).images[0]
    large = drawer.generate(PROMPT, seed=4, steps=4, hires=2.0, hires_strength=0.01).images[0]
    assert large.size == (2 * small.width, 2 * small.height)
    assert len([event for event in drawer.steps(Request(PROMPT, seed=4, steps=4, hires=2.0)) if isinstance(event, Step)]) == 6


@pytest.mark.parametrize("plan", ["sequential", "streamed"])
@pytest.mark.parametrize("upscaler", ["lanczos", "latent_nearest"])
def test_every_memory_plan_enlarges_alike(drawer: Pipeline, sd1_bundle: Path, plan: str, upscaler: str) -> None:
    fields: Fields = {"seed": 3, "steps": 3, "count": 2, "hires": 2.0, "hires_upscaler": upscaler, "sampler": "euler_a"}
    with pipeline.load(sd1_bundle, provider="cpu", memory=plan) as lean:
        drawn = lean.generate(PROMPT, **fields)
    for one, other in zip(drawn.images, drawer.generate(PROMPT, **fields).images, strict=True):
        np.testing.assert_array_equal(pixels(one), pixels(other))


# --- variations, guidance, options, schedules -----------------------------------------------------------------------------------


def test_variations_keep_the_seed_and_count_the_other_one_up(drawer: Pipeline) -> None:
    plain = drawer.generate(PROMPT, seed=1, steps=2).images[0]
    result = drawer.generate(PROMPT, seed=1, steps=2, variation=0.3, variation_seed=8, count=2)
    assert result.seeds == (1, 1)
    assert [record.extra["variation_seed"] for record in result.metadata] == [8, 9]
    assert "Variation seed strength: 0.3, Variation seed: 8" in infotext.compose(result.metadata[0])
    one, two = result.images
    assert len({one.tobytes(), two.tobytes(), plain.tobytes()}) == 3
    alone = drawer.generate(PROMPT, seed=1, steps=2, variation=0.3, variation_seed=9).images[0]
    assert alone.tobytes() == two.tobytes()
    far = drawer.generate(PROMPT, seed=1, steps=2, variation=1.0, variation_seed=8).images[0]
    assert far.tobytes() == drawer.generate(PROMPT, seed=8, steps=2).images[0].tobytes()


@pytest.mark.parametrize("rng", ["torch", "nv"])
def test_a_variation_of_the_web_ui_begins_with_its_noise(drawer: Pipeline, rng: str) -> None:
    shape = noise_of(drawer, 0).shape
    own, other = (generator_of(rng, seed).normal(shape) for seed in (1, 2))
    a, b = torch.from_numpy(own[0]), torch.from_numpy(other[0])
    omega = torch.acos((a / torch.norm(a, dim=1, keepdim=True) * (b / torch.norm(b, dim=1, keepdim=True))).sum(1))
    turned = (torch.sin(0.6 * omega) / torch.sin(omega)).unsqueeze(1) * a + (torch.sin(0.4 * omega) / torch.sin(omega)).unsqueeze(1) * b
    found = variation(generator_of(rng, 1), generator_of(rng, 2), shape, 0.4)
    np.testing.assert_allclose(found[0], turned.numpy(), atol=2e-6)


def test_guidance_works_in_its_interval_alone(drawer: Pipeline) -> None:
    common: dict[str, Any] = {"seed": 2, "steps": 4, "sampler": "euler", "schedule": "model"}
    without = [step.latents for step in drawer.steps(Request(PROMPT, guidance=1.0, **common)) if isinstance(step, Step)]
    late = [
        step.latents
        for step in drawer.steps(Request(PROMPT, guidance=6.0, guidance_interval=(0.5, 1.0), **common))
        if isinstance(step, Step)
    ]
    equal = [np.array_equal(one, other) for one, other in zip(without, late, strict=True)]
    assert equal == [True, True, False, False]


def test_options_of_a_sampler_reach_it_and_are_recorded(drawer: Pipeline) -> None:
    common: Fields = {"seed": 2, "steps": 3, "sampler": "ddim"}
    plain = drawer.generate(PROMPT, **common).images[0]
    result = drawer.generate(PROMPT, **common, sampler_options={"eta": 0.7})
    assert result.images[0].tobytes() != plain.tobytes()
    assert result.metadata[0].extra["sampler_options"] == {"eta": 0.7}
    assert "Eta: 0.7" in infotext.compose(result.metadata[0])


def test_a_schedule_of_your_own_is_followed_and_recorded(drawer: Pipeline) -> None:
    timesteps = drawer.generate(PROMPT, seed=2, sampler="euler", timesteps=(999, 600, 200))
    record = timesteps.metadata[0]
    assert (record.steps, record.schedule, record.extra["timesteps"]) == (3, "custom", (999.0, 600.0, 200.0))
    sigmas = [step.latents for step in drawer.steps(Request(PROMPT, seed=2, sampler="euler", sigmas=(5.0, 1.0))) if isinstance(step, Step)]
    assert len(sigmas) == 2


def test_ddim_and_plms_end_where_the_models_config_says(drawer: Pipeline, bundle_of: Made) -> None:
    from diffusers import PNDMScheduler

    judge = judge_of(bundle_of("sd1")[0], PNDMScheduler, safety_checker=None)
    assert judge.scheduler.config.set_alpha_to_one is False
    assert drawer.manifest.noise.final == "sigma_min"
    size = {"width": drawer.manifest.defaults.width, "height": drawer.manifest.defaults.height}
    latents = torch.from_numpy(noise_of(drawer, 9))
    theirs = judge(PROMPT, num_inference_steps=5, guidance_scale=4.0, latents=latents, **size, output_type="np").images
    ours = decoded(drawer, last_of(drawer, seed=9, steps=5, guidance=4.0, sampler="PLMS", schedule="leading"))
    # Diffusers leaves the latents in the scale of the alpha-bars, 0.04 % smaller at its smallest sigma.
    assert psnr(ours, theirs) >= 60


# --- again from the record ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"hires": 1.5, "hires_upscaler": "Latent (bicubic)"},
        {"hires": 2.0, "steps": 3, "guidance_interval": (0.3, 0.9), "rescale": 0.5},
        {"variation": 0.4},
        {"sampler": "euler", "sampler_options": {"s_churn": 5, "s_noise": 1.01}, "rng": "torch"},
        {"sampler": "dpm++2m", "sampler_options": {"order": 3, "solver": "heun", "lower_order_final": False}},
        {"timesteps": (900, 500, 100), "sampler": "ddim"},
        {"sigmas": (9.0, 3.0, 1.0, 0.2)},
        {"init": True, "strength": 0.5},
        {"init": True, "mask": True},
        {"init": True, "mask": True, "only_masked": True, "mask_padding": 3, "mask_blur": 0.5},
    ],
    ids="-".join,
)
def test_a_picture_is_drawn_again_from_its_file_bit_for_bit(drawer: Pipeline, fields: dict[str, Any], tmp_path: Path) -> None:
    init = init_of(drawer, scale=2)
    given = {name: init if name == "init" else mask_of(init, (0.2, 0.2, 0.7, 0.6)) for name in ("init", "mask") if name in fields}
    first = drawer.generate(PROMPT, **{"steps": None if {"timesteps", "sigmas"} & fields.keys() else 3, **fields, **given}).pictures[0]
    image_files.write(first.image, tmp_path / "one.png", first.record)
    found = image_files.read(tmp_path / "one.png").record
    assert found is not None
    again = drawer.generate(reproduce.request_of(found, given, "one.png")).pictures[0]
    assert again.image.tobytes() == first.image.tobytes()
    assert to_json(again.record) == to_json(first.record)
    for name in given:
        with pytest.raises(RequestError, match=f"not in the file; add it with --{name}"):
            reproduce.request_of(found, {key: value for key, value in given.items() if key != name}, "one.png")


def test_what_is_given_beside_a_record_takes_the_place_of_what_belongs_to_it(drawer: Pipeline) -> None:
    own = drawer.generate(PROMPT, seed=1, sampler="ddim", sampler_options={"eta": 0.5}, timesteps=(900, 400)).metadata[0]
    changed = reproduce.request_of(own, {"sampler": "euler", "steps": 5}, "one.png")
    assert (changed.sampler, changed.steps, changed.timesteps, dict(changed.sampler_options)) == ("euler", 5, (), {})
    assert drawer.generate(changed).metadata[0].schedule != "custom"
    other = reproduce.request_of(own, {"sigmas": (4.0, 1.0, 0.3)}, "one.png")
    assert (other.timesteps, other.sigmas, dict(other.sampler_options)) == ((), (4.0, 1.0, 0.3), {"eta": 0.5})
    assert drawer.generate(other).metadata[0].steps == 3


def test_a_damaged_record_is_refused_by_the_field(drawer: Pipeline) -> None:
    record = drawer.generate(PROMPT, seed=1, steps=1).metadata[0]
    wrong = from_json(to_json(record).replace('"extra":{', '"extra":{"hires":"two",'))
    assert wrong is not None
    with pytest.raises(RequestError, match="hires in its record is damaged"):
        reproduce.request_of(wrong, {}, "one.png")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hires": 0.5}, "hires: 0.5"),
        ({"hires": float("nan")}, "hires: nan"),
        ({"hires": 8.0, "width": 1024}, "width after hires"),
        ({"hires": 2.0, "hires_strength": 2.0}, "hires_strength: 2.0"),
        ({"hires": 2.0, "hires_steps": 0}, "hires_steps: 0"),
        ({"hires": 2.0, "hires_upscaler": "magic"}, "'magic' is not known"),
        ({"hires": 2.0, "init": Image.new("RGB", (8, 8))}, "hires: cannot be combined with init"),
        ({"variation": 1.2}, "variation: 1.2"),
        ({"variation": 0.1, "variation_seed": -2}, "variation_seed: -2"),
        ({"only_masked": True}, "only_masked: there is no mask"),
        ({"mask_blur": -1.0}, "mask_blur: -1.0"),
        ({"mask_padding": 10**6}, "mask_padding: 1000000"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance interval"),
        ({"image_guidance": 2.0}, "does not edit images"),
        ({"refiner_start": 0.8}, "no refiner is open"),
        ({"decoder": "tiny"}, "has no tiny decoder"),
        ({"sampler": "euler", "sampler_options": {"eta": 0.5}}, "euler has no option 'eta'"),
        ({"sampler": "ddim", "sampler_options": {"eta": 2.0}}, "expected a number from 0 to 1"),
        ({"sampler": "dpm++2m", "sampler_options": {"order": 2.5}}, "expected a whole number from 1 to 3"),
        ({"sampler": "dpm++2m", "sampler_options": {"solver": "magic"}}, "expected midpoint or heun"),
        ({"sampler": "tcd", "sampler_options": {"noise": 1}}, "its options are: eta"),
        ({"timesteps": (100, 900)}, "each smaller"),
        ({"timesteps": (1200, 900)}, "from 999 down to 0"),
        ({"sigmas": (1.0, float("nan"))}, "each smaller"),
        ({"sigmas": (1.0, 0.5), "schedule": "karras"}, "give one schedule"),
        ({"sigmas": (1.0, 0.5), "steps": 3}, "omit steps"),
        ({"steps": 2.5}, "expected a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_field(drawer: Pipeline, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        drawer.generate(PROMPT, **fields)


# --- guidance off, and strength at few steps -----------------------------------------------------------------------------------


def test_guidance_of_at_most_one_generates_the_prompt_itself_with_one_call_per_step(drawer: Pipeline) -> None:
    off = drawer.generate(PROMPT, seed=1, steps=3, guidance=0.0)
    assert off.images[0].tobytes() == drawer.generate(PROMPT, seed=1, steps=3, guidance=1.0).images[0].tobytes()
    assert off.images[0].tobytes() != drawer.generate("something else", seed=1, steps=3, guidance=0.0).images[0].tobytes()


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
def test_the_noise_of_image_to_image_grows_with_strength_however_few_the_steps(drawer: Pipeline, steps: int) -> None:
    from diffusette.runtime.resolve import resolve

    init = Image.new("RGB", (16, 16), (200, 40, 90))
    strengths = (0.0, 0.1, 0.3, 0.5, 0.75, 1.0)
    starts = [
        resolve(Request(PROMPT, init=init, steps=steps, strength=strength, sampler="euler"), drawer.manifest).passes[0].sigmas[0]
        for strength in strengths
    ]
    assert starts == sorted(starts)
    assert starts[0] < 0.05
    assert starts[1] < 1.0 < starts[-1]


def test_strength_rounds_the_number_of_steps_down_as_diffusers_does(drawer: Pipeline) -> None:
    from diffusette.runtime.resolve import resolve

    init = Image.new("RGB", (16, 16))
    for steps, strength in ((2, 0.75), (10, 0.34), (20, 0.99), (5, 1.0)):
        request = resolve(Request(PROMPT, init=init, steps=steps, strength=strength), drawer.manifest)
        assert request.passes[0].steps == min(int(steps * strength), steps)


def test_the_record_names_provider_and_memory_plan(drawer: Pipeline) -> None:
    record = drawer.generate(PROMPT, seed=1, steps=1).metadata[0]
    assert reproduce.machine_of(record) == {"provider": "cpu", "memory": drawer.components.plan}
    changed = reproduce.differences(record, Request(PROMPT), drawer.manifest, None, {"provider": "cpu", "memory": "other"})
    assert changed == [f"the original ran with memory {drawer.components.plan}, this ran with other: the images may differ by rounding"]
