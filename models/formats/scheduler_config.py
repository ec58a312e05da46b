"""Reading diffusers' `scheduler_config.json`: how the model was trained to see noise, and which sampler generates from it.

`from_scheduler_config` understands every class of `CLASSES`, whose samplers `runtime.samplers` has under the same names. What these classes
can do and the samplers here do not is refused with the key that asks for it; `clip_sample` is passed over, as diffusers'
Stable Diffusion pipelines do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import msgspec

from ..errors import BundleError
from ..manifest import BetaSchedule, Edm, Final, Noise, Prediction, Spacing

FILE_NAME = "scheduler_config.json"


@dataclass(frozen=True)
class SchedulerConfig:
    """The facts of a scheduler config."""

    noise: Noise
    sampler: str
    """A name of `runtime.samplers.SAMPLERS`."""
    schedule: str
    """A name of `runtime.schedules.SCHEDULES`."""
    final: Final = "zero"
    """Where the last step ends: the argument `final` of `runtime.sampling.schedules.sigmas`."""
    options: Mapping[str, float | str] = field(default_factory=lambda: MappingProxyType({}))
    """Keyword arguments of the sampler, where they differ from its own defaults."""


@dataclass(frozen=True)
class _Class:
    """The sampler of a class, and the defaults of its keys where they are not the usual ones."""

    sampler: str
    beta_ends: tuple[float, float] = (0.0001, 0.02)
    spacing: Spacing = "linspace"
    betas: BetaSchedule = "linear"
    final: Final = "zero"


_SD = (0.00085, 0.012)

CLASSES: Mapping[str, _Class] = MappingProxyType(
    {
        "DDIMScheduler": _Class("ddim", spacing="leading"),
        "DDPMScheduler": _Class("ddpm", spacing="leading"),
        "DEISMultistepScheduler": _Class("deis", final="sigma_min"),
        "DPMSolverMultistepScheduler": _Class("dpm++2m"),
        "EDMDPMSolverMultistepScheduler": _Class("dpm++2m"),
        "EDMEulerScheduler": _Class("euler"),
        "DPMSolverSDEScheduler": _Class("dpm++sde", beta_ends=_SD),
        "DPMSolverSinglestepScheduler": _Class("dpm++2s"),
        "EulerAncestralDiscreteScheduler": _Class("euler_a"),
        "EulerDiscreteScheduler": _Class("euler"),
        "FlowMatchEulerDiscreteScheduler": _Class("euler_flow"),
        "HeunDiscreteScheduler": _Class("heun", beta_ends=_SD),
        "IPNDMScheduler": _Class("ipndm"),
        "KDPM2AncestralDiscreteScheduler": _Class("dpm2_a", beta_ends=_SD),
        "KDPM2DiscreteScheduler": _Class("dpm2", beta_ends=_SD),
        "LCMScheduler": _Class("lcm", spacing="leading", betas="scaled_linear", beta_ends=_SD),
        "LMSDiscreteScheduler": _Class("lms"),
        "PNDMScheduler": _Class("pndm", spacing="leading"),
        "TCDScheduler": _Class("tcd", spacing="leading", betas="scaled_linear", final="sigma_min", beta_ends=_SD),
        "UniPCMultistepScheduler": _Class("unipc"),
    }
)
"""Every class that can be read."""


class _Config(msgspec.Struct, frozen=True):
    """The keys that matter; None means missing or null. Other keys are ignored."""

    class_name: str = msgspec.field(default="", name="_class_name")
    beta_start: float | None = None
    beta_end: float | None = None
    beta_schedule: str | None = None
    num_train_timesteps: int | None = None
    prediction_type: str | None = None
    timestep_spacing: str | None = None
    steps_offset: int | None = None
    rescale_betas_zero_snr: bool | None = None
    shift: float | None = None
    flow_shift: float | None = None
    set_alpha_to_one: bool | None = None
    final_sigmas_type: str | None = None
    use_karras_sigmas: bool | None = None
    use_exponential_sigmas: bool | None = None
    use_beta_sigmas: bool | None = None
    use_lu_lambdas: bool | None = None
    use_flow_sigmas: bool | None = None
    solver_order: int | None = None
    solver_type: str | None = None
    algorithm_type: str | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool | None = None
    variance_type: str | None = None
    predict_x0: bool | None = None
    stochastic_sampling: bool | None = None
    interpolation_type: str | None = None
    timestep_type: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_data: float | None = None
    sigma_schedule: str | None = None
    rho: float | None = None


_REFUSED = {
    "trained_betas": "betas of its own",
    "thresholding": "dynamic thresholding, which is for models that draw pixels",
    "use_dynamic_shifting": "a shift that depends on the size of the image",
    "shift_terminal": "a shifted end",
    "invert_sigmas": "inverted sigmas",
    "disable_corrector": "steps without their corrector",
    "solver_p": "another solver as its predictor",
    "sigma_min": "a range of its own",
    "sigma_max": "a range of its own",
}


_HARMLESS = frozenset({
    "base_image_seq_len", "base_shift", "clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "lambda_min_clipped",
    "max_image_seq_len", "max_shift", "sample_max_value", "skip_prk_steps", "time_shift_type",
})  # fmt: skip
"""Keys without an effect here: Stable Diffusion clips no latents, PNDM has its usual first steps, and lambda is clipped for cosine betas
alone."""


_USUAL = MappingProxyType({"original_inference_steps": 50, "timestep_scaling": 10.0})
"""Keys that are not read, with the values that the samplers have anyway."""


def unknown(config: Mapping[str, object]) -> list[str]:
    """The keys of `config` that are neither read nor known to be harmless; values that switch nothing on are left out."""
    known = {field.encode_name for field in msgspec.structs.fields(_Config)} | _HARMLESS | _REFUSED.keys()
    return sorted(
        key for key, value in config.items() if value and key not in known and value != _USUAL.get(key) and not key.startswith("_")
    )


def from_scheduler_config(config: Mapping[str, object], where: str = FILE_NAME) -> SchedulerConfig:
    """Read `config`, a parsed scheduler_config.json.

    Raises:
        BundleError: a class, a value or an option that is not supported; the message has the key and what is.
    """
    edm = str(config.get("_class_name")).startswith("EDM")
    for key, what in _REFUSED.items():
        if config.get(key) and not (edm and key in {"sigma_min", "sigma_max"}):
            raise BundleError(f"{where}: {key} requests {what}, which is not supported; set it to null, or use another scheduler")
    try:
        known = msgspec.convert({key: value for key, value in config.items() if value is not None}, _Config)
    except msgspec.ValidationError as error:
        raise BundleError(f"{where}: {error}: not a diffusers scheduler config") from error
    own = CLASSES.get(known.class_name)
    if own is None:
        raise BundleError(f"{where}: scheduler {known.class_name!r} is not supported: expected one of {', '.join(CLASSES)}")
    noise = _noise(own, known, where)
    if known.use_flow_sigmas and noise.prediction != "flow":
        raise BundleError(f"{where}: use_flow_sigmas is for flow-matching models: expected prediction_type flow_prediction beside it")
    _one_of("interpolation_type", known.interpolation_type or "linear", ("linear",), where)
    _one_of("timestep_type", known.timestep_type or "discrete", ("discrete",), where)
    if edm:
        noise = _edm(noise, known, where)
    try:
        msgspec.convert(msgspec.to_builtins(noise), Noise)  # the bounds of a manifest
    except msgspec.ValidationError as error:
        raise BundleError(f"{where}: {error}: no model is trained so; download the config again") from error
    sampler, options = _solver(own.sampler, known, where)
    return SchedulerConfig(
        noise,
        sampler,
        (known.sigma_schedule or "karras") if edm else _schedule(known),
        _final(own, known, noise, where),
        MappingProxyType(options),
    )


def _noise(own: _Class, config: _Config, where: str) -> Noise:
    flow = own.sampler == "euler_flow" or config.prediction_type in {"flow_prediction", "flow"}
    predictions: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
    betas: tuple[BetaSchedule, ...] = ("linear", "scaled_linear", "squaredcos_cap_v2")
    spacings: tuple[Spacing, ...] = ("linspace", "leading", "trailing")
    prediction = "epsilon" if config.prediction_type is None else config.prediction_type
    timesteps = 1000 if config.num_train_timesteps is None else config.num_train_timesteps
    if not 1 <= timesteps <= 100_000:
        raise BundleError(f"{where}: num_train_timesteps is {timesteps}, expected 1 to 100000 (usually 1000)")
    noise = Noise(
        prediction="flow" if flow else _one_of("prediction_type", prediction, predictions, where),
        betas=_one_of("beta_schedule", own.betas if config.beta_schedule is None else config.beta_schedule, betas, where),
        beta_start=own.beta_ends[0] if config.beta_start is None else config.beta_start,
        beta_end=own.beta_ends[1] if config.beta_end is None else config.beta_end,
        train_timesteps=timesteps,
        spacing=_one_of("timestep_spacing", own.spacing if config.timestep_spacing is None else config.timestep_spacing, spacings, where),
        steps_offset=config.steps_offset or 0,
        zero_terminal_snr=bool(config.rescale_betas_zero_snr),
        flow_shift=next((shift for shift in (config.shift, config.flow_shift) if shift is not None), 1.0),
        final="sigma_min" if config.set_alpha_to_one is False or (own.sampler == "pndm" and config.set_alpha_to_one is None) else "zero",
    )
    if not (0.0 < noise.beta_start <= noise.beta_end < 1.0 and 1e-3 <= noise.flow_shift <= 1000.0):
        what = f"betas from {noise.beta_start} to {noise.beta_end}, shift {noise.flow_shift}"
        raise BundleError(f"{where}: {what}: expected 0 < beta_start <= beta_end < 1 and a shift from 0.001 to 1000")
    return noise


def _edm(noise: Noise, config: _Config, where: str) -> Noise:
    data = config.sigma_data or 0.5
    low, high = ((0.002 if config.sigma_min is None else config.sigma_min), (80.0 if config.sigma_max is None else config.sigma_max))
    prediction = _one_of("prediction_type", noise.prediction, ("epsilon", "v_prediction"), where)
    _one_of("sigma_schedule", config.sigma_schedule or "karras", ("karras", "exponential"), where)
    if not (0.0 < low < high <= 1e5 and 1e-3 <= data <= 1e3 and config.rho in {None, 7.0}):
        what = f"sigma_min {low}, sigma_max {high}, sigma_data {data}, rho {config.rho or 7.0}"
        raise BundleError(f"{where}: {what}: expected 0 < sigma_min < sigma_max, sigma_data above 0 and rho 7")
    kind: Prediction = "edm" if prediction == "epsilon" else "v_prediction"
    return msgspec.structs.replace(noise, prediction=kind, spacing="linspace", edm=Edm(low / data, high / data, data))


def _schedule(config: _Config) -> str:
    if config.use_karras_sigmas:
        return "karras"
    if config.use_exponential_sigmas or config.use_lu_lambdas:
        return "exponential"
    return "beta" if config.use_beta_sigmas else "model"


def _final(own: _Class, config: _Config, noise: Noise, where: str) -> Final:
    if own.sampler in {"ddim", "pndm"}:
        return noise.final
    ends: tuple[Final, ...] = ("zero", "sigma_min")
    return own.final if config.final_sigmas_type is None else _one_of("final_sigmas_type", config.final_sigmas_type, ends, where)


def _solver(sampler: str, config: _Config, where: str) -> tuple[str, dict[str, float | str]]:
    """The sampler, for the family of DPM-Solver chosen by its algorithm, and its options."""
    if sampler == "ddpm":
        usual = ("fixed_small", "fixed_small_log", "fixed_large")
        large = _one_of("variance_type", config.variance_type or "fixed_small", usual, where) == "fixed_large"
        return sampler, {"large_variance": True} if large else {}
    if config.variance_type is not None:
        raise BundleError(f"{where}: variance_type {config.variance_type!r} is for models that predict it: not supported, expected null")
    if sampler == "euler_flow":
        return sampler, {"stochastic": True} if config.stochastic_sampling else {}
    if sampler not in {"dpm++2m", "dpm++2s", "deis", "unipc"}:
        return sampler, {}
    if config.predict_x0 is False:
        raise BundleError(f"{where}: predict_x0 is false, but UniPC is supported with true alone")
    sampler, order = _algorithm(sampler, config, where)
    wishes: tuple[tuple[str, float | str, bool, set[str]], ...] = (
        ("order", order, order != 2, {"dpm++2m", "deis", "unipc"}),
        ("solver", "heun", config.solver_type == "heun", {"dpm++2m", "dpm++2m_sde", "dpm++2s"}),
        ("variant", "bh1", config.solver_type == "bh1", {"unipc"}),
        ("lower_order_final", False, config.lower_order_final is False, {"dpm++2m", "dpm++2m_sde", "deis", "unipc"}),
        ("euler_at_final", True, bool(config.euler_at_final), {"dpm++2m", "dpm++2m_sde"}),
    )
    return sampler, {name: value for name, value, wished, samplers in wishes if wished and sampler in samplers}


def _algorithm(sampler: str, config: _Config, where: str) -> tuple[str, int]:
    """The sampler and its order; 2 is everyone's own."""
    order = 2 if config.solver_order is None else config.solver_order
    stochastic = config.algorithm_type == "sde-dpmsolver++" and sampler.startswith("dpm++")
    if sampler.startswith("dpm++"):
        _one_of("algorithm_type", config.algorithm_type or "dpmsolver++", ("dpmsolver++", "sde-dpmsolver++", "deis"), where)
    if (sampler == "dpm++2s" and (stochastic or order != 2)) or not 1 <= order <= 3 or (stochastic and order == 1):
        asked = f"solver_order {order} of {config.class_name}" + (" with sde-dpmsolver++" if stochastic else "")
        raise BundleError(f"{where}: {asked} is not supported: expected solver_order 2")
    if stochastic:
        return ("dpm++2m_sde" if order == 2 else "dpm++3m_sde"), 2
    return sampler, order


T = TypeVar("T", bound=str)


def _one_of(key: str, value: str, allowed: Iterable[T], where: str) -> T:
    for one in allowed:
        if one == value:
            return one
    raise BundleError(f"{where}: {key} {value!r} is not supported: expected one of {', '.join(allowed)}")
