"""The approximations of each speed, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from diffusette.cli import inputs
from diffusette.models import manifest as manifests
from diffusette.models.bundle import read_manifest
from diffusette.models.errors import RequestError
from diffusette.models.manifest import Noise
from diffusette.runtime import unet_graphs
from diffusette.runtime.adapters import apply, merge_weights
from diffusette.runtime.metadata import image_files
from diffusette.runtime.pipeline import Pipeline, load
from diffusette.runtime.request import Request
from diffusette.runtime.sampling import speed, step_caching
from diffusette.runtime.sampling.denoise import always
from diffusette.runtime.sampling.guidance import Guidance, guided
from diffusette.runtime.sampling.shared_prefix import SharedPrefixUnet
from diffusette.runtime.sampling.speed import Savings
from diffusette.runtime.sampling.step_caching import segments
from diffusette.runtime.types import Array, Feeds, Predict

PROMPT = "red apple on a blue table"
X = np.ones((1, 4, 8, 8), np.float32)


def begun(steps: int, every: int, least: int = 3) -> list[int]:
    """The steps that begin a segment."""
    sigmas = np.append(np.geomspace(14.0, 0.03, steps), 0.0)
    segment = segments(sigmas, every, least)
    parts = [0, *(segment(float(np.float32(sigma))) for sigma in sigmas[:-1])]
    return [step for step, (before, now) in enumerate(pairwise(parts)) if now != before]


def test_segments_are_even_and_the_last_begins_shortly_before_the_end() -> None:
    assert begun(20, 2) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert begun(20, 5) == [0, 3, 8, 13, 18]


def test_an_image_of_few_steps_has_only_full_calls() -> None:
    assert begun(10, 5) == [0, 2, 5, 8]
    assert begun(10, 3, least=4) == [0, 2, 4, 6, 8]
    assert begun(6, 5) == [0, 2, 4]
    for steps in range(1, 6):
        assert begun(steps, 5) == list(range(steps))


@dataclass
class Graphs:
    """A U-Net whose deep features are its timestep and whose prediction equals them."""

    full: int = 0
    shallow: int = 0

    def predict(self, segment: Callable[[float], int]) -> Predict:
        def full(x: Array, sigma: float, feeds: Feeds, more: Feeds) -> dict[str, Array]:
            self.full += 1
            return {"out_sample": x * np.float32(sigma), "deep_features": x * np.float32(sigma)}

        def shallow(x: Array, sigma: float, feeds: Feeds, more: Feeds) -> dict[str, Array]:
            self.shallow += 1
            return {"out_sample": np.asarray(more["deep_features"], np.float32)}

        return step_caching.reusing(full, shallow, {}, lambda sigma: 10.0 * sigma, segment)


def test_between_full_calls_deep_features_are_extrapolated_linearly() -> None:
    sigmas = np.arange(12.0, -1.0, -1.0)
    graphs = Graphs()
    predict = graphs.predict(segments(sigmas, 3, 3))  # full calls at 12, 11, 8, 5 and 2
    feeds: Feeds = {"encoder_hidden_states": X}
    found = [float(predict(X, sigma, feeds)[0, 0, 0, 0]) for sigma in sigmas[:-1].tolist()]
    assert (graphs.full, graphs.shallow) == (5, 7)
    # The line through 12 and 11 is followed only as far as their distance; later ones all the way.
    np.testing.assert_allclose(found, [12, 11, 10, 10, 8, 7, 6, 5, 4, 3, 2, 1], atol=1e-5)


def test_each_prompt_keeps_its_own_features_and_a_new_text_starts_with_a_full_call() -> None:
    sigmas = np.arange(12.0, -1.0, -1.0)
    graphs = Graphs()
    predict = graphs.predict(segments(sigmas, 3, 3))
    one, other = ({"encoder_hidden_states": X.copy()} for _ in range(2))
    for feeds in (one, other, one, other):
        predict(X, 7.0, feeds)
    assert (graphs.full, graphs.shallow) == (2, 2)
    predict(X, 7.0, {"encoder_hidden_states": X.copy()})
    assert (graphs.full, graphs.shallow) == (3, 2)


def test_more_prompts_than_are_kept_are_all_computed_in_full() -> None:
    graphs = Graphs()
    predict = graphs.predict(segments(np.arange(12.0, -1.0, -1.0), 3, 3))
    prompts = [{"encoder_hidden_states": X.copy()} for _ in range(step_caching.BRANCHES + 1)]
    for feeds in prompts * 2:
        predict(X, 7.0, feeds)
    assert (graphs.full, graphs.shallow) == (2 * len(prompts), 0)


def test_looking_ahead_begins_the_next_segment_and_going_back_up_recomputes() -> None:
    sigmas = np.arange(12.0, -1.0, -1.0)
    graphs = Graphs()
    predict = graphs.predict(segments(sigmas, 3, 3))
    feeds: Feeds = {"encoder_hidden_states": X}
    for sigma, full in ((12.0, 1), (11.0, 2), (9.0, 2), (8.0, 3), (8.0, 3), (9.0, 4), (8.0, 5)):
        predict(X, sigma, feeds)
        assert graphs.full == full


def test_held_guidance_runs_the_negative_prompt_once_per_segment_and_reuses_the_difference() -> None:
    asked: list[str] = []

    def predict(x: Array, sigma: float, feeds: Feeds) -> Array:
        asked.append(str(feeds["name"]))
        return x * np.float32(sigma) if str(feeds["name"]) == "yes" else x * np.float32(sigma) - 2

    yes, no = ({"name": np.array(name)} for name in ("yes", "no"))
    sigmas = np.arange(12.0, -1.0, -1.0)
    for guidance in (Guidance(scale=3.0), Guidance(scale=3.0, rescale=0.7)):
        exact = guided(predict, "epsilon", always(yes), always(no), guidance)
        expected = [exact(X * sigma, sigma) for sigma in sigmas[:-1].tolist()]
        asked.clear()
        held = guided(predict, "epsilon", always(yes), always(no), guidance, segments(sigmas, 3, 3))
        for sigma, wanted in zip(sigmas[:-1].tolist(), expected, strict=True):
            np.testing.assert_allclose(held(X * sigma, sigma), wanted, rtol=1e-5, atol=1e-4)
        assert asked.count("yes") == 12
        assert asked.count("no") == 5


def test_an_unknown_speed_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match="speed 'warp' is not known: choose one of exact, balanced, fast"):
        speed.find_speed("warp")


@pytest.fixture(scope="module")
def pipeline(sd1_bundle: Path) -> Iterator[Pipeline]:
    with load(sd1_bundle, "cpu", "resident", threads=1) as opened:
        yield opened


def pixels(pipeline: Pipeline, **fields: object) -> np.ndarray:
    return np.asarray(pipeline.generate(Request(PROMPT, seed=5, width=16, height=16, steps=6, **fields)).images[0])


def calls(pipeline: Pipeline, unet: list[str]) -> Pipeline:
    """`pipeline`, which records the graphs of the U-Net that run."""
    inner = pipeline.components.run

    def run(name: str, *arguments: object) -> object:
        if name.startswith("unet"):
            unet.append(name)
        return inner(name, *arguments)

    pipeline.components.run = run
    return pipeline


def test_a_fast_image_is_near_the_exact_one_and_takes_fewer_and_smaller_calls(sd1_bundle: Path) -> None:
    unet: list[str] = []
    with calls(load(sd1_bundle, "cpu", "resident", threads=1), unet) as pipeline:
        exact = pixels(pipeline)
        assert unet == ["unet/stem", "unet/full", "unet/full"] * 6
        unet.clear()
        fast = pixels(pipeline, speed="fast")
    assert unet == ["unet/stem", "unet/full", "unet/full", "unet/shallow"] * 3  # prompt and negative, then the prompt alone
    assert 0 < np.abs(exact.astype(int) - fast).mean() < 8


def test_every_plan_generates_the_same_fast_image(sd1_bundle: Path, pipeline: Pipeline) -> None:
    expected = pixels(pipeline, speed="fast")
    for plan in ("sequential", "streamed"):
        with load(sd1_bundle, "cpu", plan, threads=1) as lean:
            found = pixels(lean, speed="fast").astype(int)
            assert {name for name, *_ in lean.components.pool.open} <= {"vae_decoder"}
        assert np.abs(found - expected).max() <= (0 if plan == "sequential" else 1)


def test_exact_images_are_the_same_before_and_after_an_abandoned_fast_one(pipeline: Pipeline) -> None:
    exact, fast = pixels(pipeline), pixels(pipeline, speed="fast")
    for number, _ in enumerate(pipeline.steps(Request("a cat", seed=1, width=16, height=16, steps=6, speed="fast"))):
        if number == 3:
            break
    np.testing.assert_array_equal(pixels(pipeline, speed="fast"), fast)
    np.testing.assert_array_equal(pixels(pipeline), exact)


def test_images_of_one_request_equal_those_of_single_requests(pipeline: Pipeline) -> None:
    both = pipeline.generate(Request(PROMPT, seed=5, count=2, width=16, height=16, steps=6, speed="fast")).images
    np.testing.assert_array_equal(np.asarray(both[0]), pixels(pipeline, speed="fast"))
    alone = pipeline.generate(Request(PROMPT, seed=6, width=16, height=16, steps=6, speed="fast")).images[0]
    np.testing.assert_array_equal(np.asarray(both[1]), np.asarray(alone))


@pytest.mark.parametrize("sampler", ["heun", "dpm2_a", "pndm", "dpm++2m"])
def test_every_kind_of_sampler_works_at_every_speed(pipeline: Pipeline, sampler: str) -> None:
    exact = pixels(pipeline, sampler=sampler)
    for name in ("balanced", "fast"):
        assert np.abs(pixels(pipeline, sampler=sampler, speed=name).astype(int) - exact).mean() < 16


def test_image_to_image_works_at_every_speed(pipeline: Pipeline) -> None:
    init = Image.new("RGB", (16, 16), "teal")
    exact = pixels(pipeline, init=init, strength=1.0)
    assert np.abs(pixels(pipeline, init=init, strength=1.0, speed="fast").astype(int) - exact).mean() < 16


def test_with_full_calls_only_the_cut_graphs_generate_the_exact_image(pipeline: Pipeline) -> None:
    noise, sigmas = Noise(), np.array([5.0, 3.0, 1.0, 0.0])
    feeds: Feeds = {"encoder_hidden_states": np.random.default_rng(0).standard_normal((1, 12, 32)).astype(np.float32)}
    unet = pipeline.components.get("unet")
    exact = unet_graphs.saving(Savings(), unet, noise, sigmas, (8, 8)).predict
    whole = unet_graphs.saving(Savings(strided=True), unet, noise, sigmas, (8, 8)).predict  # too few tokens for a stride
    for sigma in (5.0, 3.0):
        np.testing.assert_array_equal(whole(X, sigma, feeds), exact(X, sigma, feeds))


@pytest.mark.parametrize("module", ["up_blocks.1.resnets.1.conv1", "mid_block.resnets.0.conv1", "down_blocks.0.resnets.0.conv1"])
def test_loras_change_all_graphs(pipeline: Pipeline, tmp_path: Path, module: str) -> None:
    out, into, *_ = merge_weights.shape_of(pipeline.bundle.graphs["unet"].initializers, module)
    rng, layer = np.random.default_rng(0), f"lora_unet_{module.replace('.', '_')}"
    down, up = rng.standard_normal((2, into, 3, 3)), rng.standard_normal((out, 2, 1, 1))
    save_file(
        {f"{layer}.lora_down.weight": down.astype(np.float32), f"{layer}.lora_up.weight": up.astype(np.float32)}, tmp_path / "a.safetensors"
    )
    request = Request(PROMPT, loras=((tmp_path / "a.safetensors", 1.0),))
    changed = apply.adapt(request, pipeline.bundle, pipeline.components, pipeline.encoders).unet
    feeds = {
        "sample": rng.standard_normal((1, 4, 8, 8)).astype(np.float32),
        "timestep": np.array([300], np.float32),
        "encoder_hidden_states": rng.standard_normal((1, 12, 32)).astype(np.float32),
    }
    expected = changed.run(feeds)["out_sample"]
    assert np.abs(expected - pipeline.components.get("unet").run(feeds)["out_sample"]).max() > 1e-3
    feeds["token_stride"] = np.array([1, 1])
    full = SharedPrefixUnet(changed.parts["stem"], changed.parts["full"]).run(feeds)
    np.testing.assert_array_equal(full["out_sample"], expected)
    given = {**feeds, "deep_features": full["deep_features"]}
    shallow = changed.parts["shallow"].run({name: given[name] for name in changed.parts["shallow"].inputs})
    np.testing.assert_allclose(shallow["out_sample"], expected, rtol=1e-5, atol=1e-5)
    assert {name for name, *_ in pipeline.components.pool.open if name.startswith("unet")} == {"unet/stem", "unet/full", "unet/shallow"}


def test_a_bundle_without_the_graphs_saves_what_it_can_and_a_note_reports_it(sd1_bundle: Path, tmp_path: Path) -> None:
    for path in sd1_bundle.rglob("*"):
        if path.is_file() and path.stem not in {"stem", "full", "shallow"}:
            (tmp_path / path.relative_to(sd1_bundle)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(sd1_bundle)).write_bytes(path.read_bytes())
    said = read_manifest(sd1_bundle)
    components = {**said.components, "unet": msgspec.structs.replace(said.components["unet"], graphs={})}
    listed = {name: file for name, file in said.files.items() if Path(name).stem not in {"stem", "full", "shallow"}}
    (tmp_path / manifests.FILE_NAME).write_bytes(manifests.encode(msgspec.structs.replace(said, components=components, files=listed)))
    unet: list[str] = []
    with calls(load(tmp_path, "cpu", "resident", threads=1), unet) as old:
        result = old.generate(Request(PROMPT, seed=5, width=16, height=16, steps=6, speed="fast"))
    assert unet == ["unet"] * 9
    assert any("no graphs for step caching" in note for note in result.notes)


def test_the_speed_is_recorded_and_reproduces_the_image(pipeline: Pipeline, tmp_path: Path) -> None:
    fast = pipeline.generate(Request(PROMPT, seed=5, width=16, height=16, steps=6, speed="fast")).pictures[0]
    assert fast.record.extra["speed"] == "fast"
    image_files.write(fast.image, tmp_path / "fast.png", fast.record, ai=True)
    again = pipeline.generate(inputs.request_of(None, inputs.recorded(tmp_path / "fast.png"), {}))
    np.testing.assert_array_equal(np.asarray(again.images[0]), np.asarray(fast.image))
    assert "speed" not in pipeline.generate(Request(PROMPT, seed=5, width=16, height=16, steps=1)).metadata[0].extra
