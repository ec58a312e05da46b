"""The pipeline on tiny random models, with diffusers' own pipelines as the judge."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

from diffusette.models.errors import BundleError, NumericalError, RequestError
from diffusette.runtime import pipeline
from diffusette.runtime.engine import graph_cache
from diffusette.runtime.pipeline import Picture, Pipeline, Step
from diffusette.runtime.request import Fields, Request
from diffusette.runtime.sampling import rng

PROMPT = "red apple on a blue table"


@pytest.fixture(scope="module")
def drawer(sd1_bundle: Path) -> Pipeline:
    return pipeline.load(sd1_bundle, provider="cpu", memory="resident")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


def test_the_same_seed_draws_the_same_picture_alone_in_a_batch_and_after_another_run(drawer: Pipeline) -> None:
    alone = drawer.generate(PROMPT, seed=5, steps=3).images[0]
    drawer.generate("a green cat", seed=1, steps=2)
    batch = drawer.generate(PROMPT, seed=3, count=3, steps=3)
    assert batch.seeds == (3, 4, 5)
    assert np.array_equal(pixels(batch.images[2]), pixels(alone))


def test_another_seed_and_seed_zero_draw_other_pictures(drawer: Pipeline) -> None:
    zero, one = (drawer.generate(PROMPT, seed=seed, steps=2).images[0] for seed in (0, 1))
    assert np.abs(pixels(zero) - pixels(one)).max() > 0
    assert np.array_equal(pixels(drawer.generate(PROMPT, seed=0, steps=2).images[0]), pixels(zero))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told_to_load_the_model_again_and_does_not_hang(sd1_bundle: Path) -> None:
    script = f"""if True:
        import os, threading
        from diffusette.models.errors import ProviderError
        from diffusette.runtime import pipeline
        drawer = pipeline.load({str(sd1_bundle)!r}, provider="cpu", threads=2)
        other = threading.Thread(target=lambda: drawer.generate("a cat", steps=200))
        other.start()
        child = os.fork()
        if child == 0:
            try:
                drawer.generate("a cat", steps=1)
            except ProviderError as error:
                os._exit(7 if "load it again" in str(error) else 8)
            os._exit(9)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        drawer.cancel()
        os._exit(0)
    """
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.strip() == "7", ended.stderr


def test_an_open_seed_is_drawn_at_random_and_told(drawer: Pipeline) -> None:
    result = drawer.generate(PROMPT, steps=2)
    assert np.array_equal(pixels(drawer.generate(PROMPT, steps=2, seed=result.seeds[0]).images[0]), pixels(result.images[0]))


@pytest.mark.parametrize("plan", ["sequential", "streamed"])
def test_every_memory_plan_draws_the_picture_of_the_resident_one(drawer: Pipeline, sd1_bundle: Path, plan: str) -> None:
    with pipeline.load(sd1_bundle, provider="cpu", memory=plan) as lean:
        drawn = lean.generate(PROMPT, seed=2, steps=3, count=2)
    wanted = drawer.generate(PROMPT, seed=2, steps=3, count=2)
    assert drawn.plan == plan
    for one, other in zip(drawn.images, wanted.images, strict=True):
        np.testing.assert_array_equal(pixels(one), pixels(other))


def test_plans_that_open_a_large_model_with_other_kernels_differ_by_a_bounded_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(plan: str) -> list[Any]:
        with pipeline.load(provider="cpu", memory=plan, threads=2, cache=None) as model:
            return [pixels(model.generate("red apple, flat style", seed=seed, steps=6).images[0]) for seed in range(3)]

    wanted = drawn("resident")
    assert all(np.array_equal(one, other) for one, other in zip(drawn("streamed"), wanted, strict=True))
    monkeypatch.setattr(graph_cache, "MINIMUM", 0)  # the int8 demo model as a large one, whose weights are mapped
    apart = [np.abs(one.astype(int) - other) for one, other in zip(drawn("streamed"), wanted, strict=True)]
    assert 0 < max(difference.max() for difference in apart) <= 40
    assert np.mean(apart) <= 1.5


def test_steps_are_yielded_as_they_are_done_and_stopping_leaves_the_pipeline_usable(drawer: Pipeline) -> None:
    events = drawer.steps(Request(PROMPT, seed=1, steps=4, count=2))
    first = next(events)
    assert isinstance(first, Step)
    assert (first.picture, first.number, first.total) == (0, 1, 4)
    del events
    kinds = [type(event) for event in drawer.steps(Request(PROMPT, seed=1, steps=2, count=2))]
    assert kinds == [Step, Step, Picture] * 2


def test_a_preview_of_the_last_step_is_the_picture(drawer: Pipeline) -> None:
    *_, step, picture = drawer.steps(Request(PROMPT, seed=1, steps=2))
    assert isinstance(step, Step)
    assert isinstance(picture, Picture)
    assert np.array_equal(pixels(drawer.preview(step.latents)), pixels(picture.image))


def test_two_threads_that_share_a_pipeline_get_their_own_pictures(drawer: Pipeline) -> None:
    wanted = [drawer.generate(PROMPT, seed=seed, steps=4).images[0] for seed in (1, 2)]
    found: dict[int, Image.Image] = {}

    def draw(seed: int) -> None:
        found[seed] = drawer.generate(PROMPT, seed=seed, steps=4).images[0]

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, image in zip((1, 2), wanted, strict=True):
        assert np.array_equal(pixels(found[seed]), pixels(image))


def test_image_to_image_with_little_strength_stays_near_the_encoded_picture(drawer: Pipeline) -> None:
    size = (drawer.manifest.defaults.width, drawer.manifest.defaults.height)
    init = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))
    near, far = (drawer.generate(PROMPT, seed=4, steps=10, init=init, strength=strength).images[0] for strength in (0.1, 1.0))
    again = drawer.generate(PROMPT, seed=9, steps=10, init=init, strength=0.1).images[0]
    assert np.abs(pixels(near) - pixels(again)).mean() < np.abs(pixels(near) - pixels(far)).mean()


def test_inpainting_leaves_what_the_mask_does_not_cover(drawer: Pipeline) -> None:
    width, height = drawer.manifest.defaults.width, drawer.manifest.defaults.height
    init = Image.new("RGB", (width, height), (200, 40, 90))
    mask = Image.new("L", (width, height), 0)
    assert np.array_equal(pixels(drawer.generate(PROMPT, seed=4, steps=3, init=init, mask=mask).images[0]), pixels(init))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 7}, "width: 7"),
        ({"height": -8}, "height: -8"),
        ({"width": 9}, "multiple of"),
        ({"width": 1 << 20}, "width"),
        ({"steps": 0}, "steps: 0"),
        ({"steps": 1_000_000}, "steps: 1000000"),
        ({"guidance": float("nan")}, "guidance: nan"),
        ({"seed": -2}, "seed: -2"),
        ({"seed": 2**64 - 1, "count": 2}, "seed: 18446744073709551615, expected a whole number from 0 to 18446744073709551614"),
        ({"count": 0}, "count: 0"),
        ({"strength": 1.5}, "strength: 1.5"),
        ({"sampler": "eular"}, "eular"),
        ({"schedule": "karas"}, "karas"),
        ({"rng": "dice"}, "dice"),
        ({"mask": Image.new("L", (8, 8))}, "mask"),
        ({"crop": (0, 8)}, "does not use size conditioning"),
        ({"original_size": (0, 8)}, "original_size: 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_runs(sd1_bundle: Path, fields: Fields, message: str) -> None:
    with pipeline.load(sd1_bundle, provider="cpu") as fresh:
        with pytest.raises(RequestError, match=message):
            fresh.generate(PROMPT, **fields)
        assert not fresh.components.seconds or fields.get("rng")


def test_nan_in_the_latents_is_an_error_and_no_black_picture(drawer: Pipeline) -> None:
    latents = np.full((1, drawer.manifest.latent.channels, 2, 2), np.nan, np.float32)
    with pytest.raises(NumericalError, match="NaN"):
        drawer.preview(latents)


def test_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="it is empty"):
        pipeline.load(tmp_path)


def test_an_unknown_memory_plan_is_refused_with_the_list(sd1_bundle: Path) -> None:
    with pytest.raises(RequestError, match="resident, sequential, streamed"):
        pipeline.load(sd1_bundle, memory="tiny")


def test_the_record_says_what_it_takes_to_draw_the_picture_again(drawer: Pipeline) -> None:
    first = drawer.generate(PROMPT, negative="cat", seed=6, steps=3, guidance=4.0, sampler="euler_a", clip_skip=1)
    record = first.metadata[0]
    again = drawer.generate(
        record.prompt,
        negative=record.negative,
        seed=record.seed,
        steps=record.steps,
        guidance=record.guidance,
        sampler=record.sampler,
        schedule=record.schedule,
        clip_skip=record.extra["clip_skip"],
    )
    assert np.array_equal(pixels(again.images[0]), pixels(first.images[0]))


def test_fields_beside_a_request_come_before_its_own(drawer: Pipeline) -> None:
    assert drawer.generate(Request("a cat", steps=1, seed=1), seed=4).seeds == (4,)


def test_keyword_arguments_are_the_fields_of_a_request() -> None:
    assert {*Fields.__annotations__, "prompt"} == set(Request.__dataclass_fields__)


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")  # diffusers mends the tiny config
@pytest.mark.parametrize("case", ["sd1", "sd2-v", "sdxl", "sdxl, cut", "sd1-lcm"])
def test_a_family_draws_what_diffusers_own_pipeline_draws(bundle_of: Callable[[str], tuple[Path, Path]], case: str) -> None:
    family, _, cut = case.partition(", ")
    source, bundle = bundle_of(family)
    drawer = pipeline.load(bundle, provider="cpu")
    latent = drawer.manifest.latent
    width, height = drawer.manifest.defaults.width, drawer.manifest.defaults.height
    seed, steps, guidance = 11, 4, 4.0
    noise = rng.rng("numpy", seed).normal((1, latent.channels, height // latent.downscale, width // latent.downscale))
    judge = DiffusionPipeline.from_pretrained(source, safety_checker=None)
    judge.set_progress_bar_config(disable=True)
    fields: Fields = {"seed": seed, "steps": steps, "guidance": guidance}
    wanted: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "latents": torch.from_numpy(noise)}
    if family == "sd1-lcm":
        fields |= {"sampler": "lcm", "schedule": "lcm", "steps": 1}  # one step, after which no noise is added
        wanted["num_inference_steps"] = 1
    else:
        fields["sampler"], fields["schedule"] = "ddim", "leading"
        settings = {"timestep_spacing": "leading", "clip_sample": False}
        judge.scheduler = DDIMScheduler.from_config(judge.scheduler.config, **settings)
    wanted |= {"height": height, "width": width}
    if cut:
        fields |= {"original_size": (40, 24), "crop": (3, 2)}
        wanted |= {"original_size": (24, 40), "crops_coords_top_left": (2, 3)}
    drawn = drawer.generate(PROMPT, **fields).images[0]
    expected = judge(PROMPT, output_type="pil", **wanted).images[0]
    error = np.mean((pixels(drawn) - pixels(expected)).astype(np.float64) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 60


@pytest.mark.parametrize("threads", [-1, 5000, 10**40])
def test_more_threads_than_a_machine_can_use_are_refused(threads: int) -> None:
    with pytest.raises(RequestError, match=r"threads: .*, expected a whole number from 0 to"):
        pipeline.load(threads=threads)
