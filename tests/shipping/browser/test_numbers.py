"""Noise, schedules and samplers of the page, under Node, against those of the runtime, number by number."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from diffusette.models.manifest import Noise
from diffusette.runtime.sampling import samplers, schedules
from diffusette.runtime.sampling.denoise import combine
from diffusette.runtime.sampling.noise_levels import timestep_of
from diffusette.runtime.sampling.rng import rng
from tests.shipping.browser.conftest import Node, floats, packed

SEEDS = [0, 1, 7, 12345, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**64 - 1]
NAMES = ["model", "linspace", "leading", "trailing", "karras", "exponential", "kl_optimal", "sgm_uniform", "simple"]
SAMPLERS = ["euler", "euler_a", "heun", "ddim", "ddpm", "dpm++2m", "lcm"]
NOISES = [
    Noise(),
    Noise(prediction="v_prediction", spacing="trailing", zero_terminal_snr=True),
    Noise(betas="linear", beta_start=0.0001, beta_end=0.02, spacing="linspace"),
    Noise(betas="squaredcos_cap_v2", spacing="leading", steps_offset=0, final="sigma_min"),
]


def test_the_noise_of_a_seed_is_numpys_number_by_number(node: Node) -> None:
    counts = [2048, 1, 3, 1000]  # an odd count keeps half a word for the next call
    found = node("noise", seeds=[str(seed) for seed in SEEDS], counts=counts)
    for seed, text in zip(SEEDS, found, strict=True):
        source = rng("numpy", seed)
        assert np.array_equal(floats(text), np.concatenate([source.normal((count,)) for count in counts])), seed


def test_a_million_numbers_reach_the_tail_of_the_ziggurat_and_agree(node: Node) -> None:
    (found,) = node("noise", seeds=["3"], counts=[1_000_000])
    expected = rng("numpy", 3).normal((1_000_000,))
    assert np.abs(expected).max() > 3.6541528853610088  # where the tail begins
    assert np.array_equal(floats(found), expected)


def test_schedules_and_timesteps_are_the_runtimes(node: Node) -> None:
    cases = list(itertools.product(NAMES, [1, 2, 7, 10, 30], ["fractional", "integer", "spare"], ["zero", "sigma_min"]))
    cases += [("lcm", 4, "distilled", "zero"), ("model", 4, "distilled", "zero")]
    found = node("schedules", noises=[msgspec.to_builtins(noise) for noise in NOISES], cases=cases)
    for noise, answers in zip(NOISES, found, strict=True):
        timestep = timestep_of(noise)
        for (name, steps, grid, final), answer in zip(cases, answers, strict=True):
            levels = schedules.sigmas(name, noise, steps, grid, final)  # type: ignore[arg-type]
            np.testing.assert_allclose(answer["levels"], levels, rtol=1e-11, err_msg=f"{name} {steps} {grid} {final}")
            np.testing.assert_allclose(answer["timesteps"], [timestep(float(level)) for level in levels], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["model", "karras"])
def test_every_sampler_gives_the_runtimes_samples_step_by_step(node: Node, schedule: str) -> None:
    noise, shape = Noise(), (1, 4, 8, 8)

    def denoise(x: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        square = x * x
        return combine((1.0 / (1.0 + sigma), x), (0.25, square / (np.float32(1.0) + square)))

    runs, expected = [], []
    for name, steps in itertools.product(SAMPLERS, [1, 6, 20]):
        sampler = samplers.find_sampler(name)
        levels = schedules.sigmas(schedule, noise, steps, sampler.grid, samplers.final_of(sampler, noise))
        start = combine((samplers.start_scale(sampler, noise, float(levels[0])), rng("numpy", 5).normal(shape)))
        runs.append({"sampler": name, "levels": levels.tolist(), "start": packed(start), "seed": "9"})
        expected.append((name, list(sampler.function(denoise, start, levels, rng("numpy", 9)))))
    for (name, samples), texts in zip(expected, node("samplers", runs=runs), strict=True):
        assert len(samples) == len(texts), name
        for sample, text in zip(samples, texts, strict=True):
            np.testing.assert_allclose(floats(text), sample.ravel(), rtol=2e-6, atol=2e-6, err_msg=name)


def test_the_page_knows_the_samplers_and_schedules_by_the_runtimes_names(node: Node) -> None:
    known = node("tables")
    for name, facts in known["samplers"].items():
        own = samplers.SAMPLERS[name]
        assert facts == {"label": own.label, "schedule": own.schedule, "grid": own.grid, "unit": own.unit_variance, "final": own.final}
    assert {name: schedules.SCHEDULES[name].label for name in known["schedules"]} == known["schedules"]
    assert sorted(known["samplers"]) == sorted(SAMPLERS)
