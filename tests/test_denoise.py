"""From session to `Denoise`: what the U-Net is fed, prediction types, guidance of every kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from diffusette.models.errors import BundleError, RequestError
from diffusette.models.manifest import Noise, Tensor
from diffusette.runtime import denoise, schedules
from diffusette.runtime.denoise import EXTRA_CHANNELS, Guidance, Weighted
from diffusette.runtime.noise_levels import model_sigmas
from tests.conftest import FakeSession

SHAPE = (1, 4, 8, 8)
SIGMA = float(model_sigmas(Noise())[500])
_random = np.random.default_rng(0)
X = (_random.standard_normal(SHAPE) * 5).astype(np.float32)


def prompt(value: float, tokens: int = 77) -> dict[str, np.ndarray]:
    return {"encoder_hidden_states": np.full((1, tokens, 3), value, np.float32)}


def session_of(dtype: str = "float32", timestep: Tensor | None = None, **more: Tensor) -> FakeSession:
    """A model that is linear in its sample, and whose answer names its prompt."""
    inputs = {
        "sample": Tensor(dtype, ("batch", 4, "height", "width")),
        "timestep": timestep or Tensor("float32", ()),
        "encoder_hidden_states": Tensor(dtype, ("batch", "tokens", 3)),
        **more,
    }

    def answer(feeds: Mapping[str, Any]) -> dict[str, Any]:
        said = feeds["encoder_hidden_states"].mean(axis=(1, 2), dtype=np.float32)[:, None, None, None]
        pattern = np.sin(np.arange(256, dtype=np.float32)).reshape(SHAPE)
        channels = feeds["sample"].astype(np.float32)
        return {"out_sample": 0.5 * channels[:, :4] + said * (pattern + channels[:, 4:].sum(axis=1, keepdims=True))}

    return FakeSession(answer, inputs)


def shapes(session: FakeSession) -> list[tuple[int, float]]:
    """The batch and the prompts of each call."""
    return [(len(fed["sample"]), [float(row.mean()) for row in fed["encoder_hidden_states"]]) for fed in session.fed]


def test_the_session_is_fed_what_it_declares_in_its_dtypes() -> None:
    session = session_of("float16", Tensor("int64", ("batch",)))
    predict = denoise.unet(session, Noise())
    assert predict(np.concatenate([X, X]), SIGMA * 1.0001, prompt(1.0)).dtype == np.float32
    (fed,) = session.fed
    assert {name: (value.dtype.name, value.shape) for name, value in fed.items()} == {
        "sample": ("float16", (2, 4, 8, 8)),
        "timestep": ("int64", (2,)),
        "encoder_hidden_states": ("float16", (2, 77, 3)),
    }
    assert fed["timestep"].tolist() == [500, 500]
    np.testing.assert_allclose(fed["sample"][0], X[0] / math.sqrt(1 + SIGMA**2), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("shape", "expected"), [((), ()), ((1,), (1,)), (("steps",), (1,)), (("batch_size",), (2,))])
def test_the_timestep_has_the_rank_that_the_graph_declares(shape: Any, expected: tuple[int, ...]) -> None:
    session = session_of(timestep=Tensor("float32", shape))
    denoise.unet(session, Noise())(np.concatenate([X, X]), SIGMA, prompt(1.0))
    assert session.fed[0]["timestep"].shape == expected
    assert session.fed[0]["timestep"].ravel()[0] == 500.0


def test_extra_channels_are_put_behind_the_sample_as_they_are() -> None:
    session = session_of()
    extra = _random.standard_normal((1, 5, 8, 8)).astype(np.float32)
    denoise.unet(session, Noise())(np.concatenate([X, X]), SIGMA, prompt(1.0) | {EXTRA_CHANNELS: extra})
    assert session.fed[0].keys() == {"sample", "timestep", "encoder_hidden_states"}
    for row in session.fed[0]["sample"]:
        np.testing.assert_array_equal(row[4:], extra[0])


def test_a_graph_without_the_output_is_refused() -> None:
    session = FakeSession(lambda feeds: {"noise": feeds["sample"]}, session_of().inputs)
    with pytest.raises(BundleError, match="the graph gives noise, but out_sample was expected"):
        denoise.unet(session, Noise())(X, SIGMA, prompt(1.0))


def test_feeds_that_the_graph_does_not_take_and_inputs_that_nobody_feeds_are_refused() -> None:
    with pytest.raises(BundleError, match=r"takes encoder_hidden_states, sample, timestep, but the prompt gives .*time_ids"):
        denoise.unet(session_of(), Noise())(X, SIGMA, prompt(1.0) | {"time_ids": np.zeros((1, 6), np.float32)})
    with pytest.raises(BundleError, match=r"takes .*timestep_cond.*, but the prompt gives encoder_hidden_states, sample, timestep"):
        denoise.unet(session_of(timestep_cond=Tensor("float32", ("batch", 8))), Noise())(X, SIGMA, prompt(1.0))


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6, 4096.0])
def test_every_prediction_type_leads_back_to_the_same_sample(sigma: float) -> None:
    x0, noise = _random.standard_normal((2, *SHAPE))
    x = (x0 + sigma * noise).astype(np.float32)
    alpha, s = 1 / math.sqrt(1 + sigma**2), sigma / (1 + sigma)
    outputs = {"epsilon": noise, "v_prediction": alpha * noise - sigma * alpha * x0, "sample": x0, "flow": noise - x0}
    for prediction, output in outputs.items():
        found = denoise.denoised(prediction, x, sigma, output.astype(np.float32))  # type: ignore[arg-type]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, x0, atol=4e-6 * (1 + sigma))
    scaled = denoise.model_scale("flow", sigma) * x
    np.testing.assert_allclose(scaled, (1 - s) * x0 + s * noise, atol=1e-5)
    assert abs(float((denoise.model_scale("epsilon", sigma) * x).std()) - 1.0) < 0.15


def guided(session: FakeSession, positive: Any, negative: Any, guidance: Guidance, noise: Noise | None = None) -> denoise.Denoise:
    noise = noise or Noise()
    return denoise.guided(denoise.unet(session, noise), noise.prediction, positive, negative, guidance)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("batched", [False, True])
def test_guidance_moves_from_the_negative_prompt_through_the_positive_one(prediction: Any, batched: bool) -> None:
    noise = Noise(prediction=prediction)
    session = session_of()
    found = guided(session, denoise.always(prompt(2.0)), denoise.always(prompt(-1.0)), Guidance(7.5, batched=batched), noise)(X, SIGMA)
    predict = denoise.unet(session_of(), noise)
    yes, no = predict(X, SIGMA, prompt(2.0)), predict(X, SIGMA, prompt(-1.0))
    np.testing.assert_allclose(found, denoise.denoised(prediction, X, SIGMA, no + 7.5 * (yes - no)), rtol=1e-5, atol=1e-4)
    assert shapes(session) == ([(2, [2.0, -1.0])] if batched else [(1, [2.0]), (1, [-1.0])])


def test_no_call_is_made_for_a_negative_prompt_that_does_not_count() -> None:
    yes, no = denoise.always(prompt(2.0)), denoise.always(prompt(-1.0))
    plain = guided(session_of(), yes, None, Guidance(7.5))(X, SIGMA)
    for negative, guidance, sigma in [
        (None, Guidance(7.5), SIGMA),
        (no, Guidance(1.0), SIGMA),
        (no, Guidance(7.5, interval=(SIGMA, math.inf)), SIGMA),
        (no, Guidance(7.5, interval=(0.0, SIGMA * 0.99)), SIGMA),
    ]:
        session = session_of()
        np.testing.assert_array_equal(guided(session, yes, negative, guidance)(X, sigma), plain)
        assert shapes(session) == [(1, [2.0])]
    inside = session_of()
    guided(inside, yes, no, Guidance(7.5, interval=(SIGMA * 0.99, SIGMA)))(X, SIGMA)
    assert len(inside.fed) == 2


@pytest.mark.parametrize("batched", [False, True])
def test_prompts_joined_by_and_each_pull_with_their_weight(batched: bool) -> None:
    parts = (Weighted(1.0, prompt(2.0)), Weighted(0.5, prompt(3.0)), Weighted(0.0, prompt(9.0)), Weighted(-0.3, prompt(1.0)))
    session = session_of()
    found = guided(session, lambda _sigma: parts, denoise.always(prompt(-1.0)), Guidance(4.0, batched=batched))(X, SIGMA)
    predict = denoise.unet(session_of(), Noise())
    no = predict(X, SIGMA, prompt(-1.0))
    output = no + sum(4.0 * part.weight * (predict(X, SIGMA, part.feeds) - no) for part in parts)
    np.testing.assert_allclose(found, denoise.denoised("epsilon", X, SIGMA, output), rtol=1e-5, atol=1e-4)
    assert sum(batch for batch, _ in shapes(session)) == 4  # the part of weight 0 is not asked
    assert len(session.fed) == (1 if batched else 4)


def test_and_without_a_negative_prompt_is_the_weighted_mean() -> None:
    parts = (Weighted(1.0, prompt(2.0)), Weighted(3.0, prompt(4.0)))
    for negative, guidance in [(None, Guidance(1.0)), (denoise.always(prompt(-1.0)), Guidance(5.0, interval=(1e4, 1e5)))]:
        session = session_of()
        mean = guided(session, lambda _sigma: parts, negative, guidance)(X, SIGMA)
        np.testing.assert_allclose(mean, guided(session_of(), denoise.always(prompt(3.5)), None, guidance)(X, SIGMA), rtol=1e-5, atol=1e-4)
        assert len(session.fed) == 2
    with pytest.raises(RequestError, match="sum up to 0"):
        guided(session_of(), lambda _sigma: (Weighted(1.0, prompt(1.0)), Weighted(-1.0, prompt(2.0))), None, Guidance())(X, SIGMA)


def test_the_prompt_of_the_sigma_is_taken() -> None:
    session = session_of()
    model = guided(session, lambda sigma: (Weighted(1.0, prompt(1.0 if sigma > 1.0 else 2.0)),), None, Guidance(1.0))
    model(X, 5.0)
    model(X, 0.5)
    assert shapes(session) == [(1, [1.0]), (1, [2.0])]


def test_prompts_of_different_length_are_not_batched_and_pictures_share_a_prompt() -> None:
    session = session_of()
    model = guided(session, denoise.always(prompt(1.0, 154)), denoise.always(prompt(-1.0)), Guidance(3.0, batched=True))
    model(X, SIGMA)
    assert [fed["encoder_hidden_states"].shape for fed in session.fed] == [(1, 154, 3), (1, 77, 3)]
    two = np.concatenate([X, 2 * X])
    for batched in (False, True):
        model = guided(session_of(), denoise.always(prompt(1.0)), denoise.always(prompt(-1.0)), Guidance(3.0, batched=batched))
        np.testing.assert_allclose(model(two, SIGMA), np.concatenate([model(X, SIGMA), model(2 * X, SIGMA)]), rtol=1e-6)


def test_guidance_rescale_equals_diffusers() -> None:
    predict = denoise.unet(session_of(), Noise(prediction="v_prediction"))
    yes, no = predict(X, SIGMA, prompt(2.0)), predict(X, SIGMA, prompt(-1.0))
    for share in (0.3, 0.7, 1.0):
        wanted = rescale_noise_cfg(torch.from_numpy(no + 7.5 * (yes - no)), torch.from_numpy(yes), share).numpy()
        guidance = Guidance(7.5, rescale=share)
        noise = Noise(prediction="v_prediction")
        found = guided(session_of(), denoise.always(prompt(2.0)), denoise.always(prompt(-1.0)), guidance, noise)(X, SIGMA)
        np.testing.assert_allclose(found, denoise.denoised("v_prediction", X, SIGMA, wanted), rtol=1e-4, atol=1e-4)
    still = np.zeros(SHAPE, np.float32)
    np.testing.assert_array_equal(denoise.rescaled(still, X, 0.7), still)


@pytest.mark.parametrize("batched", [False, True])
def test_a_model_that_edits_pictures_follows_prompt_and_picture_with_a_scale_each(batched: bool) -> None:
    picture = {EXTRA_CHANNELS: _random.standard_normal(SHAPE).astype(np.float32)}
    blank = {EXTRA_CHANNELS: np.zeros(SHAPE, np.float32)}
    yes, no = prompt(2.0), prompt(-1.0)
    predict = denoise.unet(session_of(), Noise())
    full, pictured, nothing = (predict(X, SIGMA, feeds) for feeds in (yes | picture, no | picture, no | blank))

    def found(guidance: Guidance, session: FakeSession) -> np.ndarray:
        arms = denoise.always(yes | picture), denoise.always(no | picture)
        return denoise.guided_by_picture(denoise.unet(session, Noise()), "epsilon", *arms, guidance)(X, SIGMA)

    session = session_of()
    wanted = nothing + 1.5 * (pictured - nothing) + 7.0 * (full - pictured)
    result = found(Guidance(7.0, picture_scale=1.5, batched=batched), session)
    np.testing.assert_allclose(result, denoise.denoised("epsilon", X, SIGMA, wanted), rtol=1e-5, atol=1e-4)
    assert len(session.fed) == (1 if batched else 3)
    session = session_of()
    result = found(Guidance(7.0, picture_scale=1.0, batched=batched), session)
    np.testing.assert_allclose(result, denoise.denoised("epsilon", X, SIGMA, pictured + 7.0 * (full - pictured)), rtol=1e-5, atol=1e-4)
    assert sum(batch for batch, _ in shapes(session)) == 2
    session = session_of()
    outside = found(Guidance(7.0, picture_scale=1.5, interval=(1e4, 1e5)), session)
    np.testing.assert_allclose(outside, denoise.denoised("epsilon", X, SIGMA, full), rtol=1e-5, atol=1e-4)
    assert len(session.fed) == 1
    two = (Weighted(1.0, yes | picture), Weighted(1.0, yes | picture))
    with pytest.raises(RequestError, match="AND cannot be used"):
        denoise.guided_by_picture(predict, "epsilon", lambda _sigma: two, denoise.always(no | picture), Guidance())(X, SIGMA)


def test_an_interval_of_steps_holds_exactly_for_those_steps() -> None:
    sigmas = schedules.sigmas("karras", Noise(), 10)
    for start, stop, steps in [(0.0, 1.0, range(10)), (0.0, 0.5, range(5)), (0.25, 0.8, range(3, 8)), (0.9, 1.0, range(9, 10))]:
        guidance = Guidance(5.0, interval=denoise.step_interval(sigmas, start, stop))
        assert [index for index in range(10) if guidance.scale_at(float(sigmas[index])) == 5.0] == list(steps)
    for wrong in [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0)]:
        with pytest.raises(RequestError, match="guidance interval"):
            denoise.step_interval(sigmas, *wrong)


def test_guidance_that_is_no_number_is_refused() -> None:
    for options in ({"scale": math.nan}, {"scale": math.inf}, {"rescale": 1.5}, {"rescale": math.nan}, {"interval": (2.0, 1.0)}):
        with pytest.raises(RequestError, match="guidance"):
            Guidance(**options)


@pytest.mark.parametrize("width", [8, 255, 256])
def test_the_guidance_embedding_equals_diffusers(width: int) -> None:
    for scale in (1.0, 7.5, 8.5):
        embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        theirs = embed(None, torch.tensor([scale - 1.0], dtype=torch.float64), embedding_dim=width, dtype=torch.float64)  # type: ignore[arg-type]
        ours = denoise.guidance_embedding(scale, width)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)  # its logarithm is of float32, its angles go up to 7500
