"""Schedules: compared with diffusers' tables and scipy, and properties that hold for every number of steps."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffusette.models.errors import BundleError, RequestError
from diffusette.models.manifest import Noise
from diffusette.runtime.sampling import schedules
from diffusette.runtime.sampling.noise_levels import alpha_bars, model_sigmas, sigma_of, timestep_of

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # torch 2.13 beside NumPy 2.4, in diffusers

NOISES = {
    "sd": Noise(),
    "sdxl-turbo": Noise(spacing="trailing", steps_offset=1),
    "sd2-zero-snr": Noise(prediction="v_prediction", spacing="trailing", zero_terminal_snr=True),
    "linear": Noise(betas="linear", beta_start=0.0001, beta_end=0.02, spacing="linspace"),
    "cosine": Noise(betas="squaredcos_cap_v2"),
    "short": Noise(train_timesteps=100),
    "flow": Noise(prediction="flow", flow_shift=3.0),
}
ENDLESS = (
    Noise(betas="linear", beta_start=0.5, beta_end=0.99, train_timesteps=100_000),
    Noise(betas="linear", beta_start=1e-20, beta_end=1e-20, zero_terminal_snr=True),
)
"""Betas that leave no signal, or take none."""
NAMES = [(noise, name) for noise in NOISES for name in schedules.SCHEDULES if name != "flow" or noise == "flow"]


@pytest.mark.parametrize("key", [key for key in NOISES if key != "flow"])
def test_alpha_bars_equal_diffusers(key: str) -> None:
    noise = NOISES[key]
    theirs = diffusers.EulerDiscreteScheduler(
        num_train_timesteps=noise.train_timesteps,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule=noise.betas,
        rescale_betas_zero_snr=noise.zero_terminal_snr,
    ).alphas_cumprod.numpy()
    ours = alpha_bars(noise)
    assert ours.dtype == np.float64
    # Diffusers computes in float32: values close to 0 have the absolute error of their larger neighbours.
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(model_sigmas(noise), np.sqrt((1 - ours) / ours))


@pytest.mark.parametrize("key", NOISES)
def test_each_sigma_of_the_model_maps_to_a_whole_timestep_and_back(key: str) -> None:
    noise = NOISES[key]
    timestep, sigma = timestep_of(noise), sigma_of(noise)
    shifted = noise.prediction == "flow"
    for index, level in enumerate(model_sigmas(noise).tolist()):
        assert shifted or timestep(level) == index
        assert math.isclose(sigma(timestep(level)), level, rel_tol=1e-6)
    if not shifted:
        assert timestep(1e-9) == 0.0
        assert timestep(1e9) == noise.train_timesteps - 1


@pytest.mark.parametrize(
    ("spacing", "kind"),
    [("leading", None), ("trailing", None), ("linspace", None), ("linspace", "karras"), ("linspace", "exponential"), ("linspace", "beta")],
)
def test_sigmas_and_timesteps_equal_diffusers(spacing: Any, kind: str | None) -> None:
    noise = Noise(spacing=spacing)
    config: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    chosen = {f"use_{kind}_sigmas": True} if kind else {}
    theirs = diffusers.EulerDiscreteScheduler(timestep_spacing=spacing, **config, **chosen)
    for steps in (2, 3, 7, 20, 50, 333):
        theirs.set_timesteps(steps)
        ours = schedules.sigmas(kind or "model", noise, steps)
        np.testing.assert_allclose(ours, theirs.sigmas.numpy(), rtol=2e-5, atol=1e-6)
        told = [timestep_of(noise)(sigma) for sigma in ours[:-1].tolist()]
        # Between timesteps 0 and 1 of linspace diffusers interpolates sigma itself, not its logarithm.
        np.testing.assert_allclose(told, theirs.timesteps.numpy(), atol=0.06 if spacing == "linspace" else 0.02)


def test_align_your_steps_equals_the_tables_of_its_authors_at_ten_steps() -> None:
    tables = diffusers.schedulers.AysSchedules
    np.testing.assert_allclose(schedules.sigmas("ays", Noise(), 10), tables["StableDiffusionSigmas"])
    np.testing.assert_allclose(schedules.sigmas("ays_sdxl", Noise(), 10), tables["StableDiffusionXLSigmas"])
    assert schedules.find_schedule("Align Your Steps", "sdxl").name == "ays_sdxl"
    assert schedules.find_schedule("Align Your Steps", "sd1").name == "ays"
    between = schedules.sigmas("ays", Noise(), 20)
    np.testing.assert_allclose(between[::2], tables["StableDiffusionSigmas"])
    np.testing.assert_allclose(between[1], math.sqrt(14.615 * 6.475))


def test_beta_quantiles_equal_scipy() -> None:
    probability = np.linspace(0.0, 1.0, 1001)
    for shape in (0.3, 0.6, 0.9):
        np.testing.assert_allclose(
            schedules._beta_quantiles(probability, shape), scipy.stats.beta.ppf(probability, shape, shape), rtol=1e-10, atol=1e-14
        )


def test_beta_has_its_steps_where_images_form_also_with_zero_terminal_snr() -> None:
    noise = Noise(prediction="v_prediction", spacing="trailing", zero_terminal_snr=True)
    levels = schedules.sigmas("beta", noise, 25)
    assert (levels > 14.7).sum() <= 6
    own = model_sigmas(noise)
    quantiles = scipy.stats.beta.ppf(1.0 - np.linspace(0.0, 1.0, 25), 0.6, 0.6) * 999  # in timesteps, as in the paper
    np.testing.assert_allclose(levels[:-1], np.interp(quantiles, np.arange(1000), own), rtol=1e-8)


def test_kl_optimal_has_even_steps_in_the_arctangent() -> None:
    levels = schedules.sigmas("KL Optimal", Noise(), 10)
    steps = np.diff(np.arctan(levels[:-1]))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    own = model_sigmas(Noise())
    np.testing.assert_allclose([levels[0], levels[-2]], [own[-1], own[0]], rtol=1e-9)


def test_sgm_uniform_and_simple_take_even_timesteps_from_the_top() -> None:
    noise = Noise()
    told = [timestep_of(noise)(sigma) for sigma in schedules.sigmas("sgm_uniform", noise, 5)[:-1].tolist()]
    np.testing.assert_allclose(told, np.linspace(999, 0, 6)[:-1], atol=1e-6)
    assert [timestep_of(noise)(sigma) for sigma in schedules.sigmas("simple", noise, 8)[:-1].tolist()] == [
        999,
        874,
        749,
        624,
        499,
        374,
        249,
        124,
    ]


@pytest.mark.parametrize(("key", "name"), NAMES)
@settings(max_examples=12, deadline=None)
@given(
    steps=st.integers(1, 1000),
    grid=st.sampled_from(["fractional", "integer", "spare", "distilled"]),
    final=st.sampled_from(["zero", "sigma_min"]),
)
@example(steps=1, grid="fractional", final="zero")
@example(steps=2, grid="spare", final="sigma_min")
@example(steps=999, grid="spare", final="zero")
@example(steps=1000, grid="spare", final="zero")
@example(steps=1000, grid="integer", final="sigma_min")
def test_a_schedule_descends_strictly_from_a_finite_value_to_its_end(key: str, name: str, steps: int, grid: Any, final: Any) -> None:
    noise = NOISES[key]
    if steps > noise.train_timesteps or (steps > 50 and (name == "lcm" or (name == "model" and grid == "distilled"))):
        if noise.prediction != "flow" or name != "model":
            with pytest.raises(RequestError, match="steps"):
                schedules.sigmas(name, noise, steps, grid, final)
        return
    levels = schedules.sigmas(name, noise, steps, grid, final)
    assert levels.dtype == np.float64
    assert np.isfinite(levels).all()
    assert (np.diff(levels) < 0.0).all()
    if final == "zero" or noise.prediction == "flow":
        assert levels[-1] == 0.0
        assert len(levels) == steps + 1
    else:
        assert math.isclose(levels[-1], model_sigmas(noise)[0])
        assert len(levels) in {steps, steps + 1}
    if steps == 1:
        assert levels[0] >= min(14.6, 0.99 * model_sigmas(noise)[-1])


def test_a_custom_schedule_is_used_unchanged() -> None:
    np.testing.assert_array_equal(schedules.from_sigmas([10.0, 1.0]), [10.0, 1.0, 0.0])
    np.testing.assert_array_equal(schedules.from_sigmas([10.0, 1.0, 0.0]), [10.0, 1.0, 0.0])
    noise = Noise()
    np.testing.assert_allclose(schedules.from_timesteps([999, 500.5, 0], noise), [*map(sigma_of(noise), (999, 500.5, 0)), 0.0])
    for wrong in ([], [0.0], [1.0, 2.0], [2.0, 2.0], [math.inf, 1.0], [math.nan], [2.0, -1.0]):
        with pytest.raises(RequestError, match="sigmas"):
            schedules.from_sigmas(wrong)
    for wrong in ([1000], [-1], [10, 20], [math.nan]):
        with pytest.raises(RequestError, match=r"timesteps|sigmas"):
            schedules.from_timesteps(wrong, noise)


def test_an_impossible_number_of_steps_is_refused() -> None:
    for steps in (0, -1, 1001):
        with pytest.raises(RequestError, match=f"steps: {steps}, expected 1 to 1000 with this model"):
            schedules.sigmas("karras", Noise(), steps)
    with pytest.raises(RequestError, match="at most 50 with the schedule lcm"):
        schedules.sigmas("lcm", Noise(), 51)
    with pytest.raises(RequestError, match="flow-matching"):
        schedules.sigmas("flow", Noise(), 5)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("Karras", "karras"), ("SGM Uniform", "sgm_uniform"), ("sgm-uniform", "sgm_uniform"), ("Automatic", "model"), ("normal", "model"),
        ("model", "model"), ("use_karras_sigmas", "karras"), ("Polyexponential", "exponential"), ("TRAILING", "trailing"),
        ("Align Your Steps", "ays"), ("AYS", "ays"), ("Beta", "beta"), ("simple", "simple"),
    ],
)  # fmt: skip
def test_schedules_are_found_by_the_names_people_use(asked: str, name: str) -> None:
    assert schedules.find_schedule(asked).name == name


def test_an_unknown_schedule_is_refused_with_a_suggestion_and_the_list() -> None:
    with pytest.raises(
        RequestError, match=r"schedule 'karas' is not known \(did you mean karras\?\): choose one of model, linspace, .*flow"
    ):
        schedules.find_schedule("karas")


@pytest.mark.parametrize("noise", ENDLESS)
def test_betas_without_finite_noise_levels_are_refused(noise: Noise) -> None:
    with pytest.raises(BundleError, match=r"linear betas from .* give no finite noise levels"):
        schedules.sigmas("karras", noise, 4)
