"""The manifest of a bundle: the only contract between export and runtime.

A *bundle* is a folder with `manifest.json` and the files it lists: one ONNX graph a component (in optimum's layout,
`unet/model.onnx` and so on), tokenizers, licence. It holds everything that the runtime has to know about a model.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .errors import BundleError

SCHEMA = 1
FILE_NAME = "manifest.json"

Target = Literal["portable", "cpu", "cuda", "directml", "openvino", "webgpu"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow", "edm"]
"""`edm` is the output of Karras et al. 2022: v-prediction with the opposite sign."""
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Spacing = Literal["linspace", "leading", "trailing"]
Final = Literal["zero", "sigma_min"]
"""Where the last step ends: at no noise, or at the model's smallest sigma."""

Count = Annotated[int, Meta(ge=1, le=1 << 20)]
Side = Annotated[int, Meta(ge=8, le=1 << 14)]
"""Pixels."""
Unit = Annotated[float, Meta(gt=0.0, lt=1.0)]
Name = Annotated[str, Meta(max_length=1000)]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """A part of the manifest; unknown fields are refused, so that a misspelt one is never silently ignored."""


class Tensor(_Struct, frozen=True):
    """An input or output of a graph; a dimension given by a name is free."""

    dtype: str
    shape: tuple[int | str, ...]


class Norm(_Struct, frozen=True):
    """A group normalization."""

    groups: Count
    epsilon: Annotated[float, Meta(ge=0.0, le=1.0)]


class Bands(_Struct, frozen=True):
    """How a graph works on bands of rows. The `vae_bands.py` of export cuts such graphs, that of runtime runs them."""

    rows: dict[str, Count]
    """Rows of each tensor that is taken, given, or summed up for later normalizing, for one row of the coarsest of them."""
    halo: Annotated[int, Meta(ge=0, le=1 << 20)] | None
    """Rows of the coarsest that are needed above and below those that come out; None needs all."""
    norms: dict[str, Norm]
    """The tensors that are normalized, for which `NAME.scale` and `NAME.shift` are given; inputs, or made of int8 ones again."""


class Graph(_Struct, frozen=True):
    """A further graph of a component, over the same weight file."""

    graph: str
    """Path of the ONNX file inside the bundle, with forward slashes; beside the component's own."""
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    grid: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Latent pixels along one side of a token of the self-attentions that `token_stride` is for; None where there are none."""
    bands: Bands | msgspec.UnsetType = msgspec.UNSET
    """Of a piece of an autoencoder's half, and of no other graph; pieces are run one after the other, in the order of their names."""


class Component(_Struct, frozen=True):
    """One graph, and what was cut from it."""

    graph: str
    """Path of the ONNX file inside the bundle, with forward slashes."""
    precision: Precision
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    parity_db: float | None = None
    """The worst signal-to-noise ratio in dB against torch float32, as measured at export."""
    judged_as_functions: tuple[str, ...] = ()
    """Operators that only GPUs have: `parity_db` was measured on the CPU with what they compute in standard operators in their place."""
    graphs: dict[str, Graph] = {}
    """Graphs that do less work, by name: a U-Net's for step caching and shared prefixes, an autoencoder's for bands of rows
    (`export/subgraphs/`)."""

    @property
    def pieces(self) -> dict[str, tuple[Graph, Bands]]:
        """The graphs that work on bands of rows, in the order in which they are run."""
        return {name: (graph, graph.bands) for name, graph in sorted(self.graphs.items()) if graph.bands is not msgspec.UNSET}


class Tokenizer(_Struct, frozen=True):
    """A CLIP byte-pair tokenizer, one a text encoder (`tokenizer` for `text_encoder`, `tokenizer_2` for `text_encoder_2`)."""

    folder: str
    length: Annotated[int, Meta(ge=3, le=4096)]
    """Tokens in one chunk, start and end included: 77 for CLIP."""
    pad: Annotated[int, Meta(ge=0, lt=1 << 31)]
    """Token id that fills a chunk up."""


class Edm(_Struct, frozen=True):
    """The range of noise of a model trained as Karras et al. 2022 (arXiv:2206.00364) do, which has no betas.

    Everything is divided by the data's standard deviation (`data`), also the latents (`Latent.scaling`): then the model's formulas are
    those of v-prediction, and only its timestep is another, ln(sigma) / 4 in the undivided scale.
    """

    low: Annotated[float, Meta(gt=0.0, le=1e6)]
    high: Annotated[float, Meta(gt=0.0, le=1e6)]
    data: Annotated[float, Meta(gt=0.0, le=1e3)]


class Noise(_Struct, frozen=True):
    """The noise that the model was trained on, from its scheduler config."""

    prediction: Prediction = "epsilon"
    betas: BetaSchedule = "scaled_linear"
    beta_start: Unit = 0.00085
    beta_end: Unit = 0.012
    train_timesteps: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    spacing: Spacing = "leading"
    steps_offset: Annotated[int, Meta(ge=-1000, le=1000)] = 1
    zero_terminal_snr: bool = False
    flow_shift: Annotated[float, Meta(ge=1e-3, le=1000.0)] = 1.0
    final: Final = "zero"
    """Where DDIM and PNDM end: sigma_min is diffusers' `set_alpha_to_one=False`."""
    edm: Edm | msgspec.UnsetType = msgspec.UNSET
    """In place of betas, with the predictions `edm` and `v_prediction`."""


class Latent(_Struct, frozen=True):
    """The space the U-Net works in. image → encode → (z - shift) × scaling → U-Net."""

    channels: Annotated[int, Meta(ge=1, le=1024)] = 4
    downscale: Annotated[int, Meta(ge=1, le=256)] = 8
    """Pixels along one side of a latent pixel."""
    scaling: Annotated[float, Meta(ge=1e-6, le=1e6)] = 0.18215
    shift: Annotated[float, Meta(ge=-1e6, le=1e6)] = 0.0
    mean: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET
    """Mean of each channel before scaling (diffusers' `latents_mean`), given together with `std`."""
    std: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET
    """Standard deviation of each channel before scaling (`latents_std`)."""


class Defaults(_Struct, frozen=True):
    """Defaults of a request."""

    width: Side
    height: Side
    steps: Annotated[int, Meta(ge=1, le=10_000)] = 20
    guidance: Annotated[float, Meta(ge=0.0, le=100.0)] = 7.5
    sampler: str = "dpm++2m"
    schedule: str = "karras"


class Source(_Struct, frozen=True):
    """Origin and licence of the weights."""

    name: str
    revision: str | None = None
    licence: str = "unknown"
    reference: Literal["torch", "graphs"] = "torch"
    """The reference of parity: the source's weights in torch, or its own graphs in ONNX Runtime if it has no weights."""


class File(_Struct, frozen=True):
    """Size in bytes and SHA-256 (hex) of a file."""

    size: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Manifest(_Struct, frozen=True):
    """Everything the runtime knows about a model."""

    family: str
    """A name of `models.families.FAMILIES`."""
    target: Target
    components: dict[str, Component]
    tokenizers: dict[str, Tokenizer]
    noise: Noise
    latent: Latent
    defaults: Defaults
    source: Source
    files: dict[str, File]
    """Every file of the bundle but the manifest itself, by its path with forward slashes."""
    preview: tuple[tuple[float, float, float], ...] = ()
    """Colours of cheap previews: red, green and blue (-1 to 1) of each latent channel, and in the last row the offset
    (`runtime/images/preview.py`). Empty if they are not known yet."""
    zero_empty_negative: bool | msgspec.UnsetType = msgspec.UNSET
    """Whether an empty negative prompt is all zeros, as for most SDXL models, or the encoding of ""; if it is not given, as is usual for
    the family."""
    schema: int = SCHEMA
    made_by: str = "diffusette"


def decode(data: bytes, where: str = FILE_NAME) -> Manifest:
    """The manifest in `data` (JSON).

    Raises:
        BundleError: a newer schema, or a wrong or missing field; the message has the path of the field.
    """
    try:
        schema = msgspec.json.decode(data, type=_Header).schema
        if schema != SCHEMA:
            raise BundleError(f"{where}: schema {schema}, expected {SCHEMA}; upgrade diffusette, or export the model again")
        found = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}: not a manifest of this version; export the model again") from error
    _check(found, where)
    return found


def _check(found: Manifest, where: str) -> None:
    """Check values against each other."""
    if found.noise.beta_start > found.noise.beta_end:
        raise BundleError(f"{where}: $.noise.beta_start is above beta_end; export the model again")
    edm = found.noise.edm
    if edm is msgspec.UNSET and found.noise.prediction == "edm":
        raise BundleError(f"{where}: $.noise.edm is missing, and prediction edm needs it; export the model again")
    if edm is not msgspec.UNSET and (found.noise.prediction not in {"edm", "v_prediction"} or not edm.low < edm.high):
        raise BundleError(f"{where}: $.noise.edm needs prediction edm or v_prediction, and low below high; export the model again")
    for name, values in (("mean", found.latent.mean), ("std", found.latent.std)):
        if values is not msgspec.UNSET and (len(values) != found.latent.channels or (name == "std" and min(values) <= 0)):
            raise BundleError(f"{where}: $.latent.{name} has {len(values)} values, expected {found.latent.channels} above 0; export again")
    if (found.latent.mean is msgspec.UNSET) != (found.latent.std is msgspec.UNSET):
        raise BundleError(f"{where}: $.latent needs mean and std together; export the model again")


def encode(manifest: Manifest) -> bytes:
    """`manifest` as readable, deterministic JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"


def fingerprint(manifest: Manifest) -> str:
    """The bundle's identity: the SHA-256 (hex) of its manifest, which holds those of all its files."""
    return hashlib.sha256(encode(manifest)).hexdigest()


class _Header(msgspec.Struct):
    schema: int = 0
