"""What is left out at which speed, and that nothing else changes."""

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

from diffusette.models import manifest as manifests
from diffusette.models.errors import RequestError
from diffusette.models.manifest import Noise
from diffusette.runtime import adapters, denoise, files, merge, metadata, pipeline, speed
from diffusette.runtime.denoise import Array, Feeds, always
from diffusette.runtime.guidance import Guidance, guided
from diffusette.runtime.pipeline import Pipeline
from diffusette.runtime.request import Request
from diffusette.runtime.speed import Savings, segments
from diffusette.runtime.stem import Stemmed

PROMPT = "red apple on a blue table"
X = np.ones((1, 4, 8, 8), np.float32)


def begun(steps: int, every: int, least: int = 3) -> list[int]:
    """The steps that begin a part."""
    sigmas = np.append(np.geomspace(14.0, 0.03, steps), 0.0)
    segment = segments(sigmas, every, least)
    parts = [0, *(segment(float(np.float32(sigma))) for sigma in sigmas[:-1])]
    return [step for step, (before, now) in enumerate(pairwise(parts)) if now != before]


def test_parts_are_even_and_the_last_begins_shortly_before_the_end() -> None:
    assert begun(20, 2) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert begun(20, 5) == [0, 3, 8, 13, 18]


def test_few_steps_stay_whole() -> None:
    assert begun(10, 5) == [0, 2, 5, 8]
    assert begun(10, 3, least=4) == [0, 2, 4, 6, 8]
    assert begun(6, 5) == [0, 2, 4]
    for steps in range(1, 6):
        assert begun(steps, 5) == list(range(steps))


@dataclass
class Graphs:
    """A U-Net whose deep features are its time, and whose prediction they are."""

    full: int = 0
    shallow: int = 0

    def predict(self, segment: Callable[[float], int]) -> denoise.Predict:
        def full(x: Array, sigma: float, feeds: Feeds, more: Feeds) -> dict[str, Array]:
            self.full += 1
            return {"out_sample": x * np.float32(sigma), "deep_features": x * np.float32(sigma)}

        def shallow(x: Array, sigma: float, feeds: Feeds, more: Feeds) -> dict[str, Array]:
            self.shallow += 1
            return {"out_sample": np.asarray(more["deep_features"], np.float32)}

        return speed.reusing(full, shallow, {}, lambda sigma: 10.0 * sigma, segment)


def test_between_whole_calls_deep_features_go_on_in_a_straight_line() -> None:
    sigmas = np.arange(12.0, -1.0, -1.0)
    graphs = Graphs()
    predict = graphs.predict(segments(sigmas, 3, 3))  # whole at 12, 11, 8, 5 and 2
    feeds: Feeds = {"encoder_hidden_states": X}
    found = [float(predict(X, sigma, feeds)[0, 0, 0, 0]) for sigma in sigmas[:-1].tolist()]
    assert (graphs.full, graphs.shallow) == (5, 7)
    # The line through 12 and 11 is followed no further than those lie apart; later ones all the way.
    np.testing.assert_allclose(found, [12, 11, 10, 10, 8, 7, 6, 5, 4, 3, 2, 1], atol=1e-5)


def test_each_prompt_keeps_its_own_features_and_another_text_begins_anew() -> None:
    sigmas = np.arange(12.0, -1.0, -1.0)
    graphs = Graphs()
    predict = graphs.predict(segments(sigmas, 3, 3))
    one, other = ({"encoder_hidden_states": X.copy()} for _ in range(2))
    for feeds in (one, other, one, other):
        predict(X, 7.0, feeds)
    assert (graphs.full, graphs.shallow) == (2, 2)
    predict(X, 7.0, {"encoder_hidden_states": X.copy()})
    assert (graphs.full, graphs.shallow) == (3, 2)


def test_more_prompts_than_are_remembered_are_all_computed_whole() -> None:
    graphs = Graphs()
    predict = graphs.predict(segments(np.arange(12.0, -1.0, -1.0), 3, 3))
    prompts = [{"encoder_hidden_states": X.copy()} for _ in range(speed.BRANCHES + 1)]
    for feeds in prompts * 2:
        predict(X, 7.0, feeds)
    assert (graphs.full, graphs.shallow) == (2 * len(prompts), 0)


def test_looking_ahead_begins_the_next_part_and_going_back_up_gives_fresh_values() -> None:
    sigmas = np.arange(12.0, -1.0, -1.0)
    graphs = Graphs()
    predict = graphs.predict(segments(sigmas, 3, 3))
    feeds: Feeds = {"encoder_hidden_states": X}
    for sigma, full in ((12.0, 1), (11.0, 2), (9.0, 2), (8.0, 3), (8.0, 3), (9.0, 4), (8.0, 5)):
        predict(X, sigma, feeds)
        assert graphs.full == full


def test_held_guidance_asks_the_negative_prompt_once_a_part_and_adds_what_it_added() -> None:
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


def test_an_unknown_speed_is_refused_with_those_there_are() -> None:
    with pytest.raises(RequestError, match="speed 'warp' is unknown: expected exact, balanced, fast"):
        speed.find("warp")


@pytest.fixture(scope="module")
def drawer(sd1_bundle: Path) -> Iterator[Pipeline]:
    with pipeline.load(sd1_bundle, "cpu", "resident", threads=1) as opened:
        yield opened


def pixels(drawer: Pipeline, **fields: object) -> np.ndarray:
    return np.asarray(drawer.generate(Request(PROMPT, seed=5, width=16, height=16, steps=6, **fields)).images[0])


def calls(drawer: Pipeline, unet: list[str]) -> Pipeline:
    """`drawer`, noting down which graphs of the U-Net are run."""
    inner = drawer.components.run

    def run(name: str, *arguments: object) -> object:
        if name.startswith("unet"):
            unet.append(name)
        return inner(name, *arguments)

    drawer.components.run = run
    return drawer


def test_a_fast_picture_is_near_the_exact_one_and_takes_fewer_and_smaller_calls(sd1_bundle: Path) -> None:
    unet: list[str] = []
    with calls(pipeline.load(sd1_bundle, "cpu", "resident", threads=1), unet) as drawer:
        exact = pixels(drawer)
        assert unet == ["unet/stem", "unet/full", "unet/full"] * 6
        unet.clear()
        fast = pixels(drawer, speed="fast")
    assert unet == ["unet/stem", "unet/full", "unet/full", "unet/shallow"] * 3  # prompt and negative, then the prompt alone
    assert 0 < np.abs(exact.astype(int) - fast).mean() < 8


def test_every_plan_draws_the_same_fast_picture(sd1_bundle: Path, drawer: Pipeline) -> None:
    expected = pixels(drawer, speed="fast")
    for plan in ("sequential", "streamed"):
        with pipeline.load(sd1_bundle, "cpu", plan, threads=1) as lean:
            found = pixels(lean, speed="fast").astype(int)
            assert {name for name, *_ in lean.components._open} <= {"vae_decoder"}
        assert np.abs(found - expected).max() <= (0 if plan == "sequential" else 1)


def test_exact_pictures_are_the_same_before_and_after_a_fast_one_that_was_left_half_drawn(drawer: Pipeline) -> None:
    exact, fast = pixels(drawer), pixels(drawer, speed="fast")
    for number, _ in enumerate(drawer.steps(Request("a cat", seed=1, width=16, height=16, steps=6, speed="fast"))):
        if number == 3:
            break
    np.testing.assert_array_equal(pixels(drawer, speed="fast"), fast)
    np.testing.assert_array_equal(pixels(drawer), exact)


def test_pictures_of_one_request_are_those_of_single_ones(drawer: Pipeline) -> None:
    both = drawer.generate(Request(PROMPT, seed=5, count=2, width=16, height=16, steps=6, speed="fast")).images
    np.testing.assert_array_equal(np.asarray(both[0]), pixels(drawer, speed="fast"))
    alone = drawer.generate(Request(PROMPT, seed=6, width=16, height=16, steps=6, speed="fast")).images[0]
    np.testing.assert_array_equal(np.asarray(both[1]), np.asarray(alone))


@pytest.mark.parametrize("sampler", ["heun", "dpm2_a", "pndm", "dpm++2m"])
def test_every_kind_of_sampler_draws_at_every_speed(drawer: Pipeline, sampler: str) -> None:
    exact = pixels(drawer, sampler=sampler)
    for name in ("balanced", "fast"):
        assert np.abs(pixels(drawer, sampler=sampler, speed=name).astype(int) - exact).mean() < 16


def test_drawing_over_a_picture_works_at_every_speed(drawer: Pipeline) -> None:
    init = Image.new("RGB", (16, 16), "teal")
    exact = pixels(drawer, init=init, strength=1.0)
    assert np.abs(pixels(drawer, init=init, strength=1.0, speed="fast").astype(int) - exact).mean() < 16


def test_with_everything_whole_the_cut_graphs_draw_the_exact_picture(drawer: Pipeline) -> None:
    noise, sigmas = Noise(), np.array([5.0, 3.0, 1.0, 0.0])
    feeds: Feeds = {"encoder_hidden_states": np.random.default_rng(0).standard_normal((1, 12, 32)).astype(np.float32)}
    unet = drawer.components.get("unet")
    exact = speed.saving(Savings(), unet, noise, sigmas, (8, 8)).predict
    whole = speed.saving(Savings(strided=True), unet, noise, sigmas, (8, 8)).predict  # too few tokens for a stride
    for sigma in (5.0, 3.0):
        np.testing.assert_array_equal(whole(X, sigma, feeds), exact(X, sigma, feeds))


@pytest.mark.parametrize("module", ["up_blocks.1.resnets.1.conv1", "mid_block.resnets.0.conv1", "down_blocks.0.resnets.0.conv1"])
def test_loras_change_all_graphs(drawer: Pipeline, tmp_path: Path, module: str) -> None:
    out, into, *_ = merge.shape_of(drawer.bundle.graphs["unet"].initializers, module)
    rng, layer = np.random.default_rng(0), f"lora_unet_{module.replace('.', '_')}"
    down, up = rng.standard_normal((2, into, 3, 3)), rng.standard_normal((out, 2, 1, 1))
    save_file(
        {f"{layer}.lora_down.weight": down.astype(np.float32), f"{layer}.lora_up.weight": up.astype(np.float32)}, tmp_path / "a.safetensors"
    )
    request = Request(PROMPT, loras=((tmp_path / "a.safetensors", 1.0),))
    changed = adapters.adapt(request, drawer.bundle, drawer.components, drawer.encoders).unet
    feeds = {
        "sample": rng.standard_normal((1, 4, 8, 8)).astype(np.float32),
        "timestep": np.array([300], np.float32),
        "encoder_hidden_states": rng.standard_normal((1, 12, 32)).astype(np.float32),
    }
    expected = changed.run(feeds)["out_sample"]
    assert np.abs(expected - drawer.components.get("unet").run(feeds)["out_sample"]).max() > 1e-3
    feeds["token_stride"] = np.array([1, 1])
    full = Stemmed(changed.parts["stem"], changed.parts["full"]).run(feeds)
    np.testing.assert_array_equal(full["out_sample"], expected)
    given = {**feeds, "deep_features": full["deep_features"]}
    shallow = changed.parts["shallow"].run({name: given[name] for name in changed.parts["shallow"].inputs})
    np.testing.assert_allclose(shallow["out_sample"], expected, rtol=1e-5, atol=1e-5)
    assert {name for name, *_ in drawer.components._open if name.startswith("unet")} == {"unet/stem", "unet/full", "unet/shallow"}


def test_a_bundle_without_the_graphs_saves_what_it_can_and_says_so(sd1_bundle: Path, tmp_path: Path) -> None:
    for path in sd1_bundle.rglob("*"):
        if path.is_file() and path.stem not in {"stem", "full", "shallow"}:
            (tmp_path / path.relative_to(sd1_bundle)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(sd1_bundle)).write_bytes(path.read_bytes())
    said = manifests.read(sd1_bundle)
    components = {**said.components, "unet": msgspec.structs.replace(said.components["unet"], graphs={})}
    listed = {name: file for name, file in said.files.items() if Path(name).stem not in {"stem", "full", "shallow"}}
    (tmp_path / manifests.FILE_NAME).write_bytes(manifests.encode(msgspec.structs.replace(said, components=components, files=listed)))
    unet: list[str] = []
    with calls(pipeline.load(tmp_path, "cpu", "resident", threads=1), unet) as old:
        result = old.generate(Request(PROMPT, seed=5, width=16, height=16, steps=6, speed="fast"))
    assert unet == ["unet"] * 9
    assert any("no graphs for less work" in note for note in result.notes)


def test_the_speed_stands_in_the_record_and_draws_the_picture_again(drawer: Pipeline, tmp_path: Path) -> None:
    drawn = drawer.generate(Request(PROMPT, seed=5, width=16, height=16, steps=6, speed="fast")).pictures[0]
    assert drawn.record.extra["speed"] == "fast"
    metadata.write(drawn.image, tmp_path / "fast.png", drawn.record, ai=True)
    again = drawer.generate(files.request_of(None, files.recorded(tmp_path / "fast.png"), {}))
    np.testing.assert_array_equal(np.asarray(again.images[0]), np.asarray(drawn.image))
    assert "speed" not in drawer.generate(Request(PROMPT, seed=5, width=16, height=16, steps=1)).metadata[0].extra
