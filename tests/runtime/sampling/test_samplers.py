"""Whole trajectories of samplers against diffusers; without a counterpart, against k-diffusion's formulas and the order of convergence."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from diffusette.models.errors import RequestError
from diffusette.models.formats.scheduler_config import CLASSES, from_scheduler_config
from diffusette.models.manifest import Noise, Tensor
from diffusette.runtime.sampling import denoise, guidance, samplers, schedules
from diffusette.runtime.sampling.noise_levels import model_sigmas, timestep_of
from diffusette.runtime.sampling.rng import rng
from diffusette.runtime.types import Denoise
from tests.conftest import FakeSession

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # torch 2.13 beside NumPy 2.4, in diffusers

SHAPE = (1, 4, 4, 4)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_random = np.random.default_rng(0)
MIX = (_random.standard_normal((64, 64)) * 0.1).astype(np.float32)
SHIFT = _random.standard_normal(64).astype(np.float32)
START = _random.standard_normal(SHAPE).astype(np.float32)


def network(sample: np.ndarray, timestep: float) -> np.ndarray:
    """A fixed random non-linear model, smooth in sample and timestep."""
    inner = np.tanh(MIX @ sample.reshape(-1) + SHIFT * np.float32(timestep / 1000.0))
    return inner.reshape(sample.shape) + np.float32(0.3) * sample


def our_model(noise: Noise) -> Denoise:
    session = FakeSession(
        lambda feeds: {"out_sample": network(feeds["sample"], float(feeds["timestep"]))},
        {"sample": Tensor("float32", ("batch", 4, "h", "w")), "timestep": Tensor("float32", ())},
    )
    return guidance.guided(denoise.unet(session, noise), noise.prediction, denoise.always({}), None, guidance.Guidance(scale=1.0))


@dataclass(frozen=True)
class Case:
    """A diffusers scheduler, its config, and the options that it can be combined with."""

    cls: str
    config: Mapping[str, Any]
    schedules: str = "linspace leading trailing karras exponential beta"
    predictions: str = "epsilon v_prediction sample"
    tolerance: float = 1e-4

    def __str__(self) -> str:
        return "-".join([self.cls.removesuffix("Scheduler"), *(f"{key}={value}" for key, value in self.config.items())])


SPACINGS = "linspace leading trailing"
NO_CLIP = {"clip_sample": False, "set_alpha_to_one": True}
CASES = [
    Case("EulerDiscreteScheduler", {}),
    Case("EulerAncestralDiscreteScheduler", {}, SPACINGS, "epsilon v_prediction"),
    Case("HeunDiscreteScheduler", {}),
    Case("KDPM2DiscreteScheduler", {}, predictions="epsilon v_prediction"),
    Case("KDPM2AncestralDiscreteScheduler", {}, predictions="epsilon v_prediction"),
    Case("LMSDiscreteScheduler", {}),
    Case("DDIMScheduler", NO_CLIP, "leading trailing"),
    Case("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, "leading trailing"),
    Case("DDPMScheduler", {"clip_sample": False}, SPACINGS),
    Case("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, "linspace"),
    Case("PNDMScheduler", {"skip_prk_steps": True}, "leading trailing", "epsilon"),
    Case("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, "leading trailing", "epsilon"),
    Case("DEISMultistepScheduler", {}, SPACINGS),
    Case("DEISMultistepScheduler", {"solver_order": 3}, SPACINGS),
    Case("DEISMultistepScheduler", {"lower_order_final": False}, "karras exponential beta"),
    Case("UniPCMultistepScheduler", {}),
    Case("UniPCMultistepScheduler", {"solver_order": 3}),
    Case("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min", "solver_order": 3}, SPACINGS),
    Case("DPMSolverMultistepScheduler", {}),
    Case("DPMSolverMultistepScheduler", {"solver_order": 3}),
    Case("DPMSolverMultistepScheduler", {"solver_order": 1}, SPACINGS),
    Case("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "trailing karras"),
    Case("DPMSolverMultistepScheduler", {"euler_at_final": True, "final_sigmas_type": "sigma_min"}, SPACINGS),
    Case("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "linspace"),
    Case("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    Case("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, "trailing karras"),
    Case("DPMSolverSinglestepScheduler", {}, "linspace karras exponential beta"),
    Case("DPMSolverSinglestepScheduler", {"solver_type": "heun"}, "linspace karras"),
    Case("LCMScheduler", {}, "leading"),
    Case("TCDScheduler", {}, "leading"),
    Case("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "linspace karras exponential beta", "flow"),
    Case("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "linspace", "flow"),
    Case("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 2.0}, "linspace", "flow_prediction"),
    # Zero terminal SNR is an alpha-bar of exactly 0 in diffusers' DDIM and DDPM, of 2⁻²⁴ here and in its other schedulers.
    Case("DPMSolverMultistepScheduler", {"rescale_betas_zero_snr": True}, "trailing", "v_prediction"),
    Case("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True}, "trailing", "v_prediction", tolerance=5e-4),  # its float32 at 4096
    Case("DDIMScheduler", {**NO_CLIP, "rescale_betas_zero_snr": True}, "trailing", "v_prediction", tolerance=1e-3),
]
GRID = [
    pytest.param(case, schedule, prediction, id=f"{case}-{schedule}-{prediction}")
    for case in CASES
    for schedule in case.schedules.split()
    for prediction in case.predictions.split()
]


@lru_cache(maxsize=1)  # some take a second to make; neighbours in the grid differ in their prediction alone
def scheduler_of(cls: str, config: tuple[tuple[str, Any], ...]) -> Any:
    kind = getattr(diffusers, cls)
    known = inspect.signature(kind.__init__).parameters
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return kind(**{key: value for key, value in config if key in known})


def config_for(case: Case, schedule: str) -> tuple[tuple[str, Any], ...]:
    config = {**SD, **case.config}
    if schedule in SPACINGS:
        config |= {"timestep_spacing": schedule, "steps_offset": int(schedule == "leading")}
    else:
        config[f"use_{schedule}_sigmas"] = True
    return tuple(sorted(config.items()))


def sigma_seen(scheduler: Any, timestep: Any) -> float:
    """The noise level of diffusers' current model call, in k-diffusion's scale."""
    if not isinstance(getattr(scheduler, "sigmas", None), torch.Tensor):
        bar = float(scheduler.alphas_cumprod[int(timestep)])
        return math.sqrt((1.0 - bar) / max(bar, 2.0**-24))
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    index, levels = scheduler.step_index, scheduler.sigmas
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        levels, index = scheduler.sigmas_interpol, index - ("Ancestral" in type(scheduler).__name__)
    level = float(levels[index])
    return level / (1.0 - min(level, 1.0 - 1e-6)) if "flow" in str(scheduler.config.get("prediction_type", "flow")) else level


def their_trajectory(scheduler: Any, noise: Noise, steps: int, *, told_exactly: bool) -> list[np.ndarray]:
    """The sample after each step, in the scheduler's own scale. The model receives diffusers' timestep, or ours."""
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(START) * getattr(scheduler, "init_noise_sigma", 1.0)
    generator = torch.Generator().manual_seed(steps)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    samples: list[np.ndarray] = []
    for timestep in scheduler.timesteps:
        told = float(timestep) if told_exactly else timestep_of(noise)(sigma_seen(scheduler, timestep))
        seen = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        output = torch.from_numpy(network(seen.numpy(), told))
        x = scheduler.step(output, timestep, x, **({"generator": generator} if takes_generator else {}), return_dict=False)[0]
        samples.append(x.numpy())
    if type(scheduler).__name__.startswith(("Heun", "KDPM2")):
        return samples[1:-1:2] + samples[-1:]
    return samples[1:] if isinstance(scheduler, diffusers.PNDMScheduler) else samples


@pytest.mark.parametrize(("case", "schedule", "prediction"), GRID)
def test_a_whole_trajectory_equals_diffusers(case: Case, schedule: str, prediction: str) -> None:
    scheduler = scheduler_of(case.cls, config_for(case, schedule))
    if prediction != "flow":
        scheduler.register_to_config(prediction_type=prediction)
    ours = from_scheduler_config({"_class_name": case.cls, **dict(scheduler.config)})
    sampler = samplers.find_sampler(ours.sampler)
    for steps in (2, 5, 20):
        theirs = their_trajectory(scheduler, ours.noise, steps, told_exactly=schedule in {"leading", "trailing"})
        sigmas = schedules.sigmas(ours.schedule, ours.noise, steps, sampler.grid, ours.final)
        x = START * np.float32(samplers.start_scale(sampler, ours.noise, float(sigmas[0])))
        trajectory = list(sampler.function(our_model(ours.noise), x, sigmas, rng("torch", steps), **ours.options))
        assert len(trajectory) == len(sigmas) - 1
        if len(theirs) > len(trajectory):  # a last step of length 0, which is left out here
            np.testing.assert_array_equal(theirs.pop(), theirs[-1])
        for sample, sigma, expected in zip(trajectory, sigmas[1:].tolist(), theirs, strict=True):
            assert sample.dtype == np.float32
            scale = own_scale(sampler, ours.noise, sigma)
            assert np.abs(sample * scale - expected).max() <= case.tolerance * np.abs(expected).max(), (steps, sigma)


def own_scale(sampler: samplers.Sampler, noise: Noise, sigma: float) -> np.float32:
    """From k-diffusion's scale to that of diffusers' sampler."""
    if noise.prediction == "flow":
        return np.float32(1.0 / (1.0 + sigma))
    return np.float32(1.0 / math.sqrt(1.0 + sigma * sigma) if sampler.unit_variance else 1.0)


def test_every_readable_scheduler_class_has_a_sampler_and_every_diffusers_sampler_is_readable() -> None:
    for name, entry in CLASSES.items():
        assert samplers.find_sampler(name).name == entry.sampler
    classes = {alias for sampler in samplers.SAMPLERS.values() for alias in sampler.aliases if alias.endswith("Scheduler")}
    assert classes == set(CLASSES)


def test_ipndm_equals_diffusers_on_the_angles_it_was_made_for() -> None:
    scheduler = diffusers.IPNDMScheduler()
    for steps in (2, 5, 20):
        scheduler.set_timesteps(steps)
        alphas, betas = scheduler.alphas.double().numpy(), scheduler.betas.double().numpy()
        x = torch.from_numpy(START)
        for index, timestep in enumerate(scheduler.timesteps):
            v = torch.from_numpy(network(x.numpy(), 1000.0 * float(betas[index])))
            x = scheduler.step(v, timestep, x, return_dict=False)[0]
        alphas[0] = 1e-7  # it starts at an infinite sigma
        sigmas = np.append(betas[:-1] / alphas[:-1], 0.0)

        def model(x: np.ndarray, sigma: float) -> np.ndarray:
            alpha = 1.0 / math.sqrt(1.0 + sigma * sigma)
            if sigma > 1e6:
                return np.zeros_like(x)  # diffusers' first step
            own = x * np.float32(alpha)
            return np.float32(alpha) * own - np.float32(sigma * alpha) * network(own, 1000.0 * sigma * alpha)

        *_, last = samplers.find_sampler("ipndm").function(model, START * np.float32(1e7), sigmas, rng("numpy", 0))
        np.testing.assert_allclose(last, x.numpy(), rtol=0, atol=1e-4 * np.abs(x.numpy()).max())


# Samplers that diffusers lacks or defines differently: the formulas of k-diffusion in float64.


class Noises:
    """The same noise for a formula and a sampler."""

    def __init__(self, count: int) -> None:
        self.arrays = [np.random.default_rng(index).standard_normal(SHAPE).astype(np.float32) for index in range(count)]
        self.left = iter(self.arrays)

    def normal(self, shape: Any) -> np.ndarray:
        assert tuple(shape) == SHAPE
        return next(self.left)


SIGMAS = schedules.sigmas("karras", Noise(), 7)


def ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    up = min(sigma_next, eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def formula_2s_a(x: np.ndarray, noise: Iterator[np.ndarray], eta: float) -> np.ndarray:
    """Lu et al. 2022 (arXiv:2211.01095), algorithm 1 with r = 1/2, to sigma_down; then noise."""
    model = our_model(Noise())
    for sigma, sigma_next in pairwise(SIGMAS.tolist()):
        x0 = model(x.astype(np.float32), sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        if down == 0.0:
            x = x + (x - x0) / sigma * (down - sigma)
            continue
        t, t_next = -math.log(sigma), -math.log(down)
        h = t_next - t
        middle = math.exp(-(t + h / 2))
        x0 = model((middle / sigma * x - math.expm1(-h / 2) * x0).astype(np.float32), middle)
        x = down / sigma * x - math.expm1(-h) * x0 + (next(noise) * up if up else 0.0)
    return x


def formula_sde(x: np.ndarray, noise: Iterator[np.ndarray], eta: float) -> np.ndarray:
    """k-diffusion's dpmpp_sde with r = 1/2; its two noises per step are W(mid) - W(start) and W(end) - W(start), scaled to variance 1."""
    model = our_model(Noise())
    for sigma, sigma_next in pairwise(SIGMAS.tolist()):
        x0 = model(x.astype(np.float32), sigma)
        if sigma_next == 0.0:
            return x0
        middle = math.exp((math.log(sigma) + math.log(sigma_next)) / 2)
        way = next(noise) * math.sqrt(sigma - middle)
        down, up = ancestral(sigma, middle, eta)
        x2 = down / sigma * x - math.expm1(math.log(down / sigma)) * x0 + up * way / math.sqrt(sigma - middle)
        x0 = model(x2.astype(np.float32), middle)
        way = way + next(noise) * math.sqrt(middle - sigma_next)
        down, up = ancestral(sigma, sigma_next, eta)
        x = down / sigma * x - math.expm1(math.log(down / sigma)) * x0 + up * way / math.sqrt(sigma - sigma_next)
    raise AssertionError


def formula_2m_sde_heun(x: np.ndarray, noise: Iterator[np.ndarray], eta: float) -> np.ndarray:
    """k-diffusion's dpmpp_2m_sde with solver_type heun: the second order of its third-order integrator."""
    return formula_3m_sde(x, noise, eta, order=2)


def formula_3m_sde(x: np.ndarray, noise: Iterator[np.ndarray], eta: float, order: int = 3) -> np.ndarray:
    """k-diffusion's dpmpp_3m_sde: the third-order exponential integrator of the paper above with h (1 + eta) in its phi-functions."""
    model = our_model(Noise())
    known: list[np.ndarray] = []
    lengths: list[float] = []
    for sigma, sigma_next in pairwise(SIGMAS.tolist()):
        x0 = model(x.astype(np.float32), sigma).astype(np.float64)
        if sigma_next == 0.0:
            return x0
        h = math.log(sigma / sigma_next)
        e = h * (1.0 + eta)
        x = math.exp(-e) * x - math.expm1(-e) * x0
        phi_2 = math.expm1(-e) / e + 1.0
        if len(known) > 1 and order == 3:
            r0, r1 = lengths[-1] / h, lengths[-2] / h
            d1_0, d1_1 = (x0 - known[-1]) / r0, (known[-1] - known[-2]) / r1
            x = x + phi_2 * (d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)) - (phi_2 / e - 0.5) * (d1_0 - d1_1) / (r0 + r1)
        elif known:
            x = x + phi_2 * (x0 - known[-1]) / (lengths[-1] / h)
        if eta:
            x = x + next(noise) * sigma_next * math.sqrt(-math.expm1(-2.0 * h * eta))
        known.append(x0)
        lengths.append(h)
    raise AssertionError


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("dpm++2s_a", formula_2s_a),
        ("dpm++sde", formula_sde),
        ("dpm++2m_sde_heun", formula_2m_sde_heun),
        ("dpm++3m_sde", formula_3m_sde),
    ],
)
def test_a_sampler_equals_the_formula_of_k_diffusion(name: str, formula: Any, eta: float) -> None:
    noises = Noises(20)
    start = START * np.float32(SIGMAS[0])
    *_, last = samplers.find_sampler(name).function(our_model(Noise()), start, SIGMAS, noises, eta=eta)
    expected = formula(start.astype(np.float64), iter(noises.arrays), eta)
    np.testing.assert_allclose(last, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_third_order_sde_step_with_eta_0_adds_no_noise_and_equals_the_third_order_ode_step() -> None:
    start = START * np.float32(SIGMAS[0])
    quiet = list(samplers.find_sampler("dpm++3m_sde").function(our_model(Noise()), start, SIGMAS, Noises(0), eta=0.0))
    ode = list(
        samplers.find_sampler("dpm++2m").function(
            our_model(Noise()), start, SIGMAS, Noises(0), order=3, solver="heun", lower_order_final=False
        )
    )
    np.testing.assert_allclose(quiet, ode, rtol=1e-5, atol=1e-5)


def test_churn_adds_noise_before_the_model_call_as_in_algorithm_2_of_karras() -> None:
    noises, model, x = Noises(20), our_model(Noise()), START.astype(np.float64) * SIGMAS[0]
    options = {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.003}
    *_, last = samplers.find_sampler("heun").function(model, START * np.float32(SIGMAS[0]), SIGMAS, noises, **options)
    fresh = iter(noises.arrays)
    for sigma, sigma_next in pairwise(SIGMAS.tolist()):
        gamma = min(2.0 / 7, math.sqrt(2.0) - 1.0) if 0.1 <= sigma <= 10.0 else 0.0
        hat = sigma * (1.0 + gamma)
        if gamma:
            x = x + 1.003 * math.sqrt(hat**2 - sigma**2) * next(fresh)
        slope = (x - model(x.astype(np.float32), hat)) / hat
        ahead = x + (sigma_next - hat) * slope
        if sigma_next:
            slope = (slope + (ahead - model(ahead.astype(np.float32), sigma_next)) / sigma_next) / 2
        x = x + (sigma_next - hat) * slope
    np.testing.assert_allclose(last, x, rtol=0, atol=1e-5 * np.abs(x).max())


def test_euler_with_churn_equals_heun_with_churn_without_its_correction() -> None:
    def flat(x: np.ndarray, sigma: float) -> np.ndarray:
        """x0 does not depend on x: every method is exact between the noises."""
        return np.ones_like(x)

    start = START * np.float32(SIGMAS[0])
    names = ("euler", "heun", "dpm2")
    ends = [list(samplers.find_sampler(name).function(flat, start, SIGMAS, Noises(20), s_churn=3.0))[-2] for name in names]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ends[0], ends[2], rtol=1e-4, atol=1e-5)


# Order of convergence on Gaussian data of variance c²: x0 = x c² / (c² + sigma²), and x(sigma) is proportional to sqrt(c² + sigma²).

SPREAD = 0.5
ORDERS = {"euler": 1, "ddim": 1} | dict.fromkeys(
    ("heun", "dpm2", "lms", "pndm", "ipndm", "deis", "unipc", "dpm++2m", "dpm++2s", "dpm++2s_a"), 2
)


@pytest.mark.parametrize("name", ORDERS)
def test_a_deterministic_sampler_converges_at_its_order(name: str) -> None:
    def model(x: np.ndarray, sigma: float) -> np.ndarray:
        return x * (SPREAD**2 / (SPREAD**2 + sigma**2))

    errors: list[float] = []
    for steps in (24, 48):
        sampler = samplers.find_sampler(name)
        options = {"eta": 0.0} if name == "dpm++2s_a" else {}
        *_, last = sampler.function(model, np.ones(SHAPE), np.geomspace(5.0, 0.5, steps + 1), Noises(0), **options)
        errors.append(float(abs(last.flat[0] - math.sqrt((SPREAD**2 + 0.5**2) / (SPREAD**2 + 5.0**2)))))
    assert math.log2(errors[0] / errors[1]) > ORDERS[name] - 0.15, errors


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_sampler_yields_each_step_starts_anywhere_and_ends_on_the_model_s_output(name: str) -> None:
    target = np.full(SHAPE, 0.5, np.float32)
    sampler = samplers.find_sampler(name)
    asked: list[float] = []

    def model(x: np.ndarray, sigma: float) -> np.ndarray:
        assert x.dtype == np.float32
        asked.append(sigma)
        return target

    for sigmas in ([14.6, 3.0, 0.5, 0.0], [0.7, 0.3, 0.0], [0.2, 0.0], np.append(np.geomspace(80.0, 1e-3, 40), 0.0)):
        asked.clear()
        levels = schedules.from_sigmas(list(sigmas))
        samples = list(sampler.function(model, target + np.float32(levels[0]) * START, levels, rng("numpy", 1)))
        assert len(samples) == len(levels) - 1
        np.testing.assert_allclose(samples[-1], target, atol=2e-5)
        assert len(samples) <= len(asked) <= sampler.evaluations * len(samples) + (name == "pndm")


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_sampler_uses_noise_only_if_marked_stochastic_and_does_not_change_its_input(name: str) -> None:
    sampler, start = samplers.find_sampler(name), START.copy()
    drawn = Noises(40)
    list(sampler.function(our_model(Noise()), start, schedules.sigmas("karras", Noise(), 6), drawn))
    assert (len(list(drawn.left)) < 40) == sampler.stochastic
    np.testing.assert_array_equal(start, START)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_options_of_a_sampler_are_the_keyword_arguments_of_its_function(name: str) -> None:
    sampler = samplers.SAMPLERS[name]
    parameters = inspect.signature(sampler.function).parameters.values()
    assert set(sampler.options) == {one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert schedules.find_schedule(sampler.schedule).name == sampler.schedule


def test_eta_turns_ddim_into_ddpm() -> None:
    start = START * np.float32(SIGMAS[0])
    ddim = list(samplers.find_sampler("ddim").function(our_model(Noise()), start, SIGMAS, Noises(20), eta=1.0))
    ddpm = list(samplers.find_sampler("ddpm").function(our_model(Noise()), start, SIGMAS, Noises(20)))
    np.testing.assert_array_equal(ddim, ddpm)


@pytest.mark.parametrize(
    ("asked", "name", "schedule"),
    [
        ("euler", "euler", "model"),
        ("Euler a", "euler_a", "model"),
        ("k_euler_ancestral", "euler_a", "model"),
        ("DPM++ 2M Karras", "dpm++2m", "karras"),
        ("dpmpp_2m", "dpm++2m", "karras"),
        ("DPM++ 2M", "dpm++2m", "karras"),
        ("DPM++ 2M SDE Exponential", "dpm++2m_sde", "exponential"),
        ("DPM++ 3M SDE Karras", "dpm++3m_sde", "karras"),
        ("DPM++ 2M SDE Heun Exponential", "dpm++2m_sde_heun", "exponential"),
        ("DPM++ SDE", "dpm++sde", "karras"),
        ("sample_dpmpp_2s_ancestral", "dpm++2s_a", "karras"),
        ("Euler SGM Uniform", "euler", "sgm_uniform"),
        ("Euler a Automatic", "euler_a", "model"),
        ("DPM2 a", "dpm2_a", "karras"),
        ("DDIM", "ddim", "model"),
        ("PLMS", "pndm", "model"),
        ("UniPC", "unipc", "model"),
        ("LCM", "lcm", "model"),
        ("LCM Karras", "lcm", "karras"),
        ("DPMSolverMultistepScheduler", "dpm++2m", "model"),
        ("dpmsolversdescheduler", "dpm++sde", "model"),
        ("KDPM2DiscreteScheduler", "dpm2", "model"),
        ("FlowMatchEulerDiscreteScheduler", "euler_flow", "model"),
    ],
)
def test_samplers_are_found_by_the_names_people_use(asked: str, name: str, schedule: str) -> None:
    found = samplers.find_sampler(asked)
    assert (found.name, found.schedule) == (name, schedule)


def test_an_unknown_sampler_is_refused_with_a_suggestion_and_the_list() -> None:
    with pytest.raises(RequestError, match=r"'oiler' is not known \(did you mean Euler\?\): choose one of euler, euler_a, .*euler_flow"):
        samplers.find_sampler("oiler")
    with pytest.raises(RequestError, match="is not known: choose"):
        samplers.find_sampler("")


def test_an_option_that_a_sampler_does_not_have_is_refused() -> None:
    assert samplers.options_for(samplers.find_sampler("ddim"), {"eta": 0.5}, Noise()) == {"eta": 0.5}
    with pytest.raises(RequestError, match=r"euler has no option 'eta'; its options are: s_churn"):
        samplers.options_for(samplers.find_sampler("euler"), {"eta": 0.5}, Noise())


def test_a_schedule_can_end_at_the_model_s_smallest_sigma() -> None:
    levels = schedules.sigmas("leading", Noise(), 5, "integer", "sigma_min")
    assert levels[-1] == model_sigmas(Noise())[0]
