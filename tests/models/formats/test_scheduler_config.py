"""Reading diffusers' scheduler configs: what real models ship, class defaults, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest

from diffusette.models.errors import BundleError
from diffusette.models.formats.scheduler_config import CLASSES, from_scheduler_config
from diffusette.models.manifest import Noise
from diffusette.runtime.sampling import samplers, schedules

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "trained_betas": None}
SD15 = {
    **BETAS,
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
SDXL = {
    **BETAS,
    "_class_name": "EulerDiscreteScheduler",
    "clip_sample": False,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
DPM = {"_class_name": "DPMSolverMultistepScheduler"}
SDE = {**DPM, "algorithm_type": "sde-dpmsolver++"}


def test_the_configs_that_models_ship_with_are_read() -> None:
    sd15 = from_scheduler_config(SD15)
    assert (sd15.noise, sd15.sampler, sd15.schedule, sd15.final, dict(sd15.options)) == (
        Noise(final="sigma_min"),
        "pndm",
        "model",
        "sigma_min",
        {},
    )
    sdxl = from_scheduler_config(SDXL)
    assert (sdxl.noise, sdxl.sampler, sdxl.schedule, sdxl.final, dict(sdxl.options)) == (
        Noise(final="sigma_min"),
        "euler",
        "model",
        "zero",
        {},
    )
    turbo = from_scheduler_config({**SDXL, "_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"})
    assert (turbo.noise, turbo.sampler) == (Noise(spacing="trailing", final="sigma_min"), "euler_a")
    sd21 = from_scheduler_config({**SD15, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"})
    assert (sd21.noise.prediction, sd21.sampler, sd21.final) == ("v_prediction", "ddim", "sigma_min")
    sd3 = from_scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0})
    assert (sd3.noise.prediction, sd3.noise.flow_shift, sd3.sampler) == ("flow", 3.0, "euler_flow")


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"DPMSolverSDEScheduler"}))  # that one needs a package of its own
def test_a_config_without_keys_means_the_defaults_of_its_class(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    written = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty and one.default is not None}
    assert from_scheduler_config({"_class_name": name}) == from_scheduler_config({"_class_name": name, **written})


@pytest.mark.parametrize(
    ("config", "sampler", "schedule", "options"),
    [
        ({**DPM, "use_karras_sigmas": True}, "dpm++2m", "karras", {}),
        ({**DPM, "solver_order": 3, "use_lu_lambdas": True}, "dpm++2m", "exponential", {"order": 3}),
        ({**SDE, "euler_at_final": True}, "dpm++2m_sde", "model", {"euler_at_final": True}),
        ({**SDE, "solver_order": 3}, "dpm++3m_sde", "model", {}),
        ({"_class_name": "DPMSolverSinglestepScheduler", "solver_type": "heun"}, "dpm++2s", "model", {"solver": "heun"}),
        (
            {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1", "lower_order_final": False, "use_exponential_sigmas": True},
            "unipc", "exponential", {"variant": "bh1", "lower_order_final": False},
        ),
        ({"_class_name": "DEISMultistepScheduler", "solver_order": 3, "use_beta_sigmas": True}, "deis", "beta", {"order": 3}),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}, "ddpm", "model", {"large_variance": True}),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}, "euler_flow", "model", {"stochastic": True}),
    ],
)  # fmt: skip
def test_what_a_solver_is_told_becomes_options_that_its_sampler_has(config: Any, sampler: str, schedule: str, options: Any) -> None:
    read = from_scheduler_config(config)
    assert (read.sampler, read.schedule, dict(read.options)) == (sampler, schedule, options)
    samplers.options_for(samplers.find_sampler(read.sampler), dict(read.options), read.noise)
    assert schedules.find_schedule(read.schedule).name == schedule


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"scheduler '' is not supported: expected one of DDIMScheduler, .*UniPCMultistepScheduler"),
        ({"_class_name": "SASolverScheduler"}, "'SASolverScheduler' is not supported"),
        ({"_class_name": 5}, r"Expected `str`, got `int` - at `\$._class_name`"),
        ({"_class_name": "DDIMScheduler", "beta_start": "a"}, r"\$.beta_start"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not supported: expected one of linear"),
        ({"_class_name": "DDIMScheduler", "beta_end": 1.5}, "expected 0 < beta_start"),
        ({"_class_name": "DDIMScheduler", "beta_start": float("nan")}, "expected 0 < beta_start"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"_class_name": "DDIMScheduler", "steps_offset": 10**30}, r"\$.steps_offset"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1e-300}, "a shift from 0.001 to 1000"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.001, "sigma_max": 1e5}, r"\$.edm.high"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1]}, "trained_betas"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "x"}, "prediction_type 'x'"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "x"}, "timestep_spacing 'x'"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "variance_type 'learned_range'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned"}, "variance_type 'learned'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "algorithm_type 'dpmsolver'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "flow_prediction"),
        ({"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "x"}, "final_sigmas_type 'x'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "solver_order 4"),
        ({"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3}, "solver_order 3"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}, "interpolation_type 'log_linear'"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type 'continuous'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_key(config: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        from_scheduler_config(config, "model/scheduler_config.json")
    assert str(caught.value).startswith("model/scheduler_config.json: ")
