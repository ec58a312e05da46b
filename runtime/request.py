"""The request: every field that a user may set, declared once with its bounds and its description.

Range checks, the command line's options and `help(Request)` all come from these declarations. `Fields` repeats the names and types for
type checkers, and a test holds the two together.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

from ..models.errors import RequestError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image

    ImageInput = Image.Image | str | os.PathLike[str] | NDArray[Any]
    """A PIL image, the path of a PNG, JPEG or WebP file, or an array (height, width[, channels]): uint8, or floats 0 to 1."""
    PathInput = str | os.PathLike[str]
    PathsInput = PathInput | Sequence[PathInput]
    LorasInput = PathInput | tuple[PathInput, float] | Sequence[PathInput | tuple[PathInput, float]]

Option = bool | int | float | str
"""The value of a sampler's option."""

MAX_SIDE = 4096
"""Pixels."""
MAX_COUNT = 1000
MAX_GUIDANCE = 100.0
MAX_LORA = 100.0
MAX_SEED = 2**64 - 1
MAX_STEPS = 10_000
"""A model's own limit, its number of training timesteps, is lower."""


class Spec(NamedTuple):
    """The declaration of a field."""

    description: str
    low: float | None = None
    high: float | None = None
    multiple: int = 1
    """Values are multiples of this; the model has the last word."""
    choices: tuple[str, ...] = ()
    default: str = ""
    """The default in words, if it depends on the model or on other fields."""


def _field(value: Any, description: str, **spec: Any) -> Any:
    return dataclasses.field(default=value, metadata={"spec": Spec(description, **spec)})


@dataclass(frozen=True)
class Request:
    """Images to generate. A field that is None takes the model's default."""

    prompt: str = dataclasses.field(metadata={"spec": Spec("Text that describes the image, in AUTOMATIC1111's grammar.")})
    negative: str | None = _field("", "Text that describes what the image should not show.")
    width: int | None = _field(None, "Width in pixels, a multiple of 8.", low=8, multiple=8, high=MAX_SIDE, default="init's or the model's")
    height: int | None = _field(
        None, "Height in pixels, a multiple of 8.", low=8, multiple=8, high=MAX_SIDE, default="init's or the model's"
    )
    steps: int | None = _field(None, "Number of denoising steps.", low=1, high=MAX_STEPS, default="the model's")
    guidance: float | None = _field(
        None,
        "Classifier-free guidance scale: how closely the image follows the prompt. Up to 1, guidance is off, which halves the work.",
        low=0.0,
        high=MAX_GUIDANCE,
        default="the model's",
    )
    sampler: str | None = _field(
        None, "Sampler, by our name, AUTOMATIC1111's or diffusers': euler, euler_a, ddim, dpm++2m, …", default="the model's"
    )
    sampler_options: Mapping[str, Option] = dataclasses.field(
        default_factory=lambda: MappingProxyType({}),
        metadata={"spec": Spec("Options of the sampler by name: eta, s_churn, s_noise, order, …")},
    )
    schedule: str | None = _field(None, "Noise schedule: model, karras, exponential, …", default="the sampler's, or the model's")
    timesteps: Sequence[float] = _field((), "Custom schedule as descending timesteps of the model; they set the number of steps.")
    sigmas: Sequence[float] = _field((), "Custom schedule as descending noise levels in k-diffusion's scale; the final 0 may be left out.")
    seed: int | None = _field(
        None,
        "Seed of the first image; later images count up. The same seed gives the same image; -1 is random.",
        low=0,
        high=MAX_SEED,
        default="random",
    )
    count: int = _field(1, "Number of images.", low=1, high=MAX_COUNT)
    variation: float = _field(
        0.0,
        "Blend from the seed's noise (0) to the variation seed's (1). Above 0, the images of a request share the seed and "
        "the variation seed counts up.",
        low=0.0,
        high=1.0,
    )
    variation_seed: int | None = _field(None, "Seed of the variation.", low=0, high=MAX_SEED, default="random")
    init: ImageInput | None = _field(None, "Image to start from (image to image).")
    fit: str = _field(
        "crop",
        "How an init image of another shape fits: crop it, pad it with its edge pixels, or stretch it.",
        choices=("crop", "pad", "stretch"),
    )
    strength: float | None = _field(
        None,
        "How much of the init image changes, 0 to 1: the share of the schedule that runs.",
        low=0.0,
        high=1.0,
        default="0.75; 1 for models that see the init image, such as inpainting and pix2pix models",
    )
    mask: ImageInput | None = _field(None, "Mask for inpainting, given like init: white areas are regenerated.")
    mask_blur: float = _field(4.0, "Blur of the mask's edge, a standard deviation in pixels.", low=0.0, high=256.0)
    only_masked: bool = _field(False, "Generate the masked area alone, at full size, and paste it into the init image.")
    mask_padding: int = _field(
        32, "Pixels around the masked area that the model also sees, if only that area is generated.", low=0, high=MAX_SIDE
    )
    hires: float = _field(
        1.0, "Generate at width × height, upscale by this factor, then denoise again at the large size.", low=1.0, high=8.0
    )
    hires_steps: int | None = _field(
        None, "Steps of the second pass of hires.", low=1, high=MAX_STEPS, default="steps × strength of the second pass"
    )
    hires_strength: float | None = _field(
        None, "How much the second pass of hires changes, 0 to 1.", low=0.0, high=1.0, default="0.5; 0.6 for latent upscalers"
    )
    hires_upscaler: str = _field("lanczos", "Upscaler of hires: lanczos, latent, latent_nearest, latent_bicubic or latent_lanczos.")
    refiner_start: float | None = _field(
        None, "Share of the timesteps after which the refiner takes over.", low=0.0, high=1.0, default="0.8 with a refiner"
    )
    decoder: str = _field("vae", "Decoder: vae, or the bundle's tiny decoder, which is faster.", choices=("vae", "tiny"))
    speed: str = _field("exact", "Speed preset: balanced and fast skip part of the work.", choices=("exact", "balanced", "fast"))
    clip_skip: int = _field(0, "Number of layers to skip at the end of the text encoder.", low=0, high=12)
    rescale: float = _field(0.0, "Guidance rescale, 0 to 1 (Lin et al. 2023, arXiv:2305.08891).", low=0.0, high=1.0)
    guidance_interval: tuple[float, float] = _field(
        (0.0, 1.0), "Share of the steps with guidance, as two fractions (Kynkäänniemi et al. 2024, arXiv:2404.07724).", low=0.0, high=1.0
    )
    image_guidance: float | None = _field(
        None, "How closely a pix2pix model follows the init image.", low=0.0, high=MAX_GUIDANCE, default="1.5"
    )
    original_size: tuple[int, int] | None = _field(
        None,
        "SDXL size conditioning: width and height of the original image. Small values give blurry images.",
        low=1,
        high=MAX_SIDE,
        default="the image's",
    )
    crop: tuple[int, int] = _field(
        (0, 0), "SDXL crop conditioning: pixels cropped from the left and the top. 0 0 centers the subject.", low=0, high=MAX_SIDE
    )
    rng: str = _field(
        "numpy", "Noise source: numpy, torch (as on torch's CPU) or nv (as on NVIDIA GPUs).", choices=("numpy", "torch", "nv")
    )
    loras: LorasInput = _field((), "LoRA files (safetensors), each with or without a weight, usually 0 to 1.")
    lora_folder: PathInput | None = _field(
        None, "Folder in which <lora:NAME:WEIGHT> in a prompt finds NAME.safetensors.", default="the folders of the LoRA files"
    )
    embeddings: PathsInput = _field((), "Textual inversion files; the word is the file's name without its ending, or the key in it.")


class Fields(TypedDict, total=False):
    """The fields of `Request` after the prompt, as keyword arguments."""

    negative: str | None
    width: int | None
    height: int | None
    steps: int | None
    guidance: float | None
    sampler: str | None
    sampler_options: Mapping[str, Option]
    schedule: str | None
    timesteps: Sequence[float]
    sigmas: Sequence[float]
    seed: int | None
    count: int
    variation: float
    variation_seed: int | None
    init: ImageInput | None
    fit: str
    strength: float | None
    mask: ImageInput | None
    mask_blur: float
    only_masked: bool
    mask_padding: int
    hires: float
    hires_steps: int | None
    hires_strength: float | None
    hires_upscaler: str
    refiner_start: float | None
    decoder: str
    speed: str
    clip_skip: int
    rescale: float
    guidance_interval: tuple[float, float]
    image_guidance: float | None
    original_size: tuple[int, int] | None
    crop: tuple[int, int]
    rng: str
    loras: LorasInput
    lora_folder: PathInput | None
    embeddings: PathsInput


def specs() -> dict[str, tuple[str, Any, Spec]]:
    """Field name → (type as it is written, default, declaration)."""
    return {
        field.name: (str(field.type), None if field.default is dataclasses.MISSING else field.default, field.metadata["spec"])
        for field in dataclasses.fields(Request)
    }


_NUMBERS = {"int": (int, 1), "float": (float, 1), "tuple[int, int]": (int, 2), "tuple[float, float]": (float, 2)}
"""Type as it is written → kind and number of values."""


def check_numbers(request: Request) -> Request:
    """`request` with every number as a plain int or float within its bounds; NumPy's numbers are accepted.

    Raises:
        RequestError: a wrong type or a value out of bounds; the message names the field.
    """
    found: dict[str, Any] = {}
    for name, (annotation, _, spec) in specs().items():
        kind = _NUMBERS.get(annotation.removesuffix(" | None"))
        value: Any = getattr(request, name)
        if kind is None or (value is None and annotation.endswith(" | None")):
            continue
        number, many = kind
        assert spec.low is not None
        assert spec.high is not None
        if many == 1:
            found[name] = number_of(name, value, number, spec.low, spec.high, spec.multiple)
        else:
            values = cast("tuple[Any, ...] | list[Any]", value)
            if not isinstance(value, (tuple, list)) or len(values) != many:
                raise RequestError(f"{name}: {shown(values)}, expected {many} numbers")
            found[name] = tuple(number_of(name, one, number, spec.low, spec.high) for one in values)
    return dataclasses.replace(request, **found)


def number_of(name: str, value: Any, kind: type[int | float], low: float, high: float, multiple: int = 1) -> int | float:
    """`value` as a plain `kind` from `low` to `high`.

    Raises:
        RequestError: another type, NaN, or out of bounds; the message begins with `name`.
    """
    whole = kind is int
    fits = not isinstance(value, bool) and isinstance(value, numbers.Integral if whole else numbers.Real)
    if not fits or not low <= cast("float", value) <= high:  # NaN fails too
        expected = f"multiple of {multiple}" if multiple > 1 else "whole number" if whole else "number"
        bounds = " to ".join(str(bound) if isinstance(bound, int) else f"{bound:.20g}" for bound in (low, high))
        raise RequestError(f"{name}: {shown(value)}, expected a {expected} from {bounds}")
    return int(cast("float", value)) if whole else float(cast("float", value))


def shown(value: object) -> str:
    """`value` for a message: short, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # integers of many thousand digits, and whatever a class of the caller does
        return "a number of thousands of digits" if isinstance(value, int) else f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"


ONLY_WITH: Mapping[str, str] = MappingProxyType(
    {
        "strength": "init",
        "fit": "init",
        "mask_blur": "mask",
        "only_masked": "mask",
        "mask_padding": "only_masked",
        "hires_steps": "hires",
        "hires_strength": "hires",
        "hires_upscaler": "hires",
        "variation_seed": "variation",
    }
)
"""Fields that matter only if another field differs from its default."""


def is_default(request: Request, name: str) -> bool:
    """Whether the field `name` of `request` has its default, which says nothing."""
    return bool(getattr(request, name) == getattr(_DEFAULTS, name))


_DEFAULTS = Request("")


def _documented() -> str:
    lines = [Request.__doc__ or "", "", "Attributes:"]
    for name, (annotation, default, spec) in specs().items():
        bounds = "" if spec.low is None else f" From {spec.low:.20g} to {spec.high:.20g}."
        said = spec.default or ("" if default in (None, (), "") else f"{default!r}")
        lines.append(f"    {name} ({annotation}): {spec.description}{bounds}{f' Default: {said}.' if said else ''}")
    return "\n".join(lines) + "\n"


Request.__doc__ = _documented()
