"""Guidance of every kind: the calls of the U-Net, and how its outputs are combined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from diffusette.models.errors import RequestError
from diffusette.models.manifest import Noise
from diffusette.runtime.sampling import denoise, schedules
from diffusette.runtime.sampling import guidance as guiding
from diffusette.runtime.sampling.guidance import Guidance
from diffusette.runtime.types import EXTRA_CHANNELS, Denoise, Weighted
from tests.conftest import FakeSession
from tests.runtime.sampling.test_denoise import SHAPE, SIGMA, X, prompt, session_of, shapes


def guided(session: FakeSession, positive: Any, negative: Any, guidance: Guidance, noise: Noise | None = None) -> Denoise:
    noise = noise or Noise()
    return guiding.guided(denoise.unet(session, noise), noise.prediction, positive, negative, guidance)


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


def test_a_negative_prompt_without_effect_is_not_run() -> None:
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
def test_prompts_joined_by_and_contribute_by_their_weights(batched: bool) -> None:
    parts = (Weighted(1.0, prompt(2.0)), Weighted(0.5, prompt(3.0)), Weighted(0.0, prompt(9.0)), Weighted(-0.3, prompt(1.0)))
    session = session_of()
    found = guided(session, lambda _sigma: parts, denoise.always(prompt(-1.0)), Guidance(4.0, batched=batched))(X, SIGMA)
    predict = denoise.unet(session_of(), Noise())
    no = predict(X, SIGMA, prompt(-1.0))
    output = no + sum(4.0 * part.weight * (predict(X, SIGMA, part.feeds) - no) for part in parts)
    np.testing.assert_allclose(found, denoise.denoised("epsilon", X, SIGMA, output), rtol=1e-5, atol=1e-4)
    assert sum(batch for batch, _ in shapes(session)) == 4  # the part of weight 0 is not run
    assert len(session.fed) == (1 if batched else 4)


def test_and_without_a_negative_prompt_is_the_weighted_mean() -> None:
    parts = (Weighted(1.0, prompt(2.0)), Weighted(3.0, prompt(4.0)))
    for negative, guidance in [(None, Guidance(1.0)), (denoise.always(prompt(-1.0)), Guidance(5.0, interval=(1e4, 1e5)))]:
        session = session_of()
        mean = guided(session, lambda _sigma: parts, negative, guidance)(X, SIGMA)
        np.testing.assert_allclose(mean, guided(session_of(), denoise.always(prompt(3.5)), None, guidance)(X, SIGMA), rtol=1e-5, atol=1e-4)
        assert len(session.fed) == 2
    with pytest.raises(RequestError, match="sum to 0"):
        guided(session_of(), lambda _sigma: (Weighted(1.0, prompt(1.0)), Weighted(-1.0, prompt(2.0))), None, Guidance())(X, SIGMA)


def test_the_prompt_for_the_current_sigma_is_used() -> None:
    session = session_of()
    model = guided(session, lambda sigma: (Weighted(1.0, prompt(1.0 if sigma > 1.0 else 2.0)),), None, Guidance(1.0))
    model(X, 5.0)
    model(X, 0.5)
    assert shapes(session) == [(1, [1.0]), (1, [2.0])]


def test_prompts_of_different_length_are_not_batched_and_images_share_a_prompt() -> None:
    session = session_of()
    model = guided(session, denoise.always(prompt(1.0, 154)), denoise.always(prompt(-1.0)), Guidance(3.0, batched=True))
    model(X, SIGMA)
    assert [fed["encoder_hidden_states"].shape for fed in session.fed] == [(1, 154, 3), (1, 77, 3)]
    two = np.concatenate([X, 2 * X])
    for batched in (False, True):
        model = guided(session_of(), denoise.always(prompt(1.0)), denoise.always(prompt(-1.0)), Guidance(3.0, batched=batched))
        np.testing.assert_allclose(model(two, SIGMA), np.concatenate([model(X, SIGMA), model(2 * X, SIGMA)]), rtol=1e-6)


def test_texts_of_a_batch_are_joined_once_and_cannot_change() -> None:
    session = session_of()
    yes, no = prompt(2.0), prompt(-1.0)
    model = guided(session, denoise.always(yes), denoise.always(no), Guidance(3.0, batched=True))
    for _ in range(3):
        model(X, SIGMA)
    first, *others = (fed["encoder_hidden_states"] for fed in session.fed)
    assert first.shape == (2, 77, 3)
    assert not first.flags.writeable
    assert all(np.shares_memory(first, one) for one in others)


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
    np.testing.assert_array_equal(guiding.rescaled(still, X, 0.7), still)


@pytest.mark.parametrize("batched", [False, True])
def test_an_image_editing_model_follows_prompt_and_image_with_separate_scales(batched: bool) -> None:
    picture = {EXTRA_CHANNELS: np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)}
    blank = {EXTRA_CHANNELS: np.zeros(SHAPE, np.float32)}
    yes, no = prompt(2.0), prompt(-1.0)
    predict = denoise.unet(session_of(), Noise())
    full, pictured, nothing = (predict(X, SIGMA, feeds) for feeds in (yes | picture, no | picture, no | blank))

    def found(guidance: Guidance, session: FakeSession) -> np.ndarray:
        arms = denoise.always(yes | picture), denoise.always(no | picture)
        return guiding.guided_by_image(denoise.unet(session, Noise()), "epsilon", *arms, guidance)(X, SIGMA)

    session = session_of()
    wanted = nothing + 1.5 * (pictured - nothing) + 7.0 * (full - pictured)
    result = found(Guidance(7.0, image_scale=1.5, batched=batched), session)
    np.testing.assert_allclose(result, denoise.denoised("epsilon", X, SIGMA, wanted), rtol=1e-5, atol=1e-4)
    assert len(session.fed) == (1 if batched else 3)
    session = session_of()
    result = found(Guidance(7.0, image_scale=1.0, batched=batched), session)
    np.testing.assert_allclose(result, denoise.denoised("epsilon", X, SIGMA, pictured + 7.0 * (full - pictured)), rtol=1e-5, atol=1e-4)
    assert sum(batch for batch, _ in shapes(session)) == 2
    session = session_of()
    outside = found(Guidance(7.0, image_scale=1.5, interval=(1e4, 1e5)), session)
    np.testing.assert_allclose(outside, denoise.denoised("epsilon", X, SIGMA, full), rtol=1e-5, atol=1e-4)
    assert len(session.fed) == 1
    two = (Weighted(1.0, yes | picture), Weighted(1.0, yes | picture))
    with pytest.raises(RequestError, match="AND does not work"):
        guiding.guided_by_image(predict, "epsilon", lambda _sigma: two, denoise.always(no | picture), Guidance())(X, SIGMA)


def test_an_interval_of_steps_applies_to_exactly_those_steps() -> None:
    sigmas = schedules.sigmas("karras", Noise(), 10)
    for start, stop, steps in [(0.0, 1.0, range(10)), (0.0, 0.5, range(5)), (0.25, 0.8, range(3, 8)), (0.9, 1.0, range(9, 10))]:
        guidance = Guidance(5.0, interval=guiding.step_interval(sigmas, start, stop))
        assert [index for index in range(10) if guidance.scale_at(float(sigmas[index])) == 5.0] == list(steps)
    for wrong in [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0)]:
        with pytest.raises(RequestError, match="guidance interval"):
            guiding.step_interval(sigmas, *wrong)


def test_guidance_that_is_not_a_number_is_refused() -> None:
    for options in ({"scale": math.nan}, {"scale": math.inf}, {"rescale": 1.5}, {"rescale": math.nan}, {"interval": (2.0, 1.0)}):
        with pytest.raises(RequestError, match="guidance"):
            Guidance(**options)
