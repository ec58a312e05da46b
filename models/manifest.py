"""The manifest of a bundle: the only contract between export and runtime.

A *bundle* is a folder with `manifest.json` and the files it lists: one ONNX graph a component (in optimum's layout,
`unet/model.onnx` and so on), tokenizers, licence. Everything the runtime has to know about a model stands here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from .errors import BundleError

SCHEMA = 1
FILE_NAME = "manifest.json"

Target = Literal["portable", "cpu", "cuda", "directml", "openvino"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Spacing = Literal["linspace", "leading", "trailing"]
Final = Literal["zero", "sigma_min"]
"""Where the last step ends: at no noise, or at the model's smallest sigma."""


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """A part of the manifest; unknown fields are refused, so that a misspelt one is never silently ignored."""


class Tensor(_Struct, frozen=True):
    """An input or output of a graph; a dimension given by a name is free."""

    dtype: str
    shape: tuple[int | str, ...]


class Norm(_Struct, frozen=True):
    """A group normalization."""

    groups: int
    epsilon: float


class Bands(_Struct, frozen=True):
    """How a graph works on some rows of its tensors at a time; `export/bands.py` makes such graphs, `runtime/bands.py` runs them."""

    rows: dict[str, int]
    """Rows of each tensor that is taken, given, or summed up for later normalizing, for one row of the coarsest of them."""
    halo: int | None
    """Rows of the coarsest that are needed above and below those that come out; None needs all."""
    norms: dict[str, Norm]
    """The tensors that are normalized, for which `NAME.scale` and `NAME.shift` are given; inputs, or made of 8-bit ones again."""


class Graph(_Struct, frozen=True):
    """A further graph of a component, over the same weight file."""

    graph: str
    """Path of the ONNX file inside the bundle, with forward slashes; beside the component's own."""
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    grid: int | None = None
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
    """Graphs that do less work, by name: `export/reuse.py` and `export/stem.py` make a U-Net's, `export/bands.py` the pieces of an
    autoencoder's half."""

    @property
    def pieces(self) -> dict[str, tuple[Graph, Bands]]:
        """The graphs that work on bands of rows, in the order in which they are run."""
        return {name: (graph, graph.bands) for name, graph in sorted(self.graphs.items()) if graph.bands is not msgspec.UNSET}


class Tokenizer(_Struct, frozen=True):
    """A CLIP byte-pair tokenizer, one a text encoder (`tokenizer` for `text_encoder`, `tokenizer_2` for `text_encoder_2`)."""

    folder: str
    length: int
    """Tokens in one chunk, start and end included: 77 for CLIP."""
    pad: int
    """Token id that fills a chunk up."""


class Noise(_Struct, frozen=True):
    """How the model was trained to see noise: what its scheduler config says."""

    prediction: Prediction = "epsilon"
    betas: BetaSchedule = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_timesteps: int = 1000
    spacing: Spacing = "leading"
    steps_offset: int = 1
    zero_terminal_snr: bool = False
    flow_shift: float = 1.0
    final: Final = "zero"
    """Where DDIM and PNDM end: sigma_min is what diffusers calls `set_alpha_to_one=False`."""


class Latent(_Struct, frozen=True):
    """The space the U-Net works in. picture → encode → (z - shift) × scaling → U-Net."""

    channels: int = 4
    downscale: int = 8
    """Pixels along one side of a latent pixel."""
    scaling: float = 0.18215
    shift: float = 0.0


class Defaults(_Struct, frozen=True):
    """What is used where the user says nothing."""

    width: int
    height: int
    steps: int = 20
    guidance: float = 7.5
    sampler: str = "dpm++2m"
    schedule: str = "karras"


class Source(_Struct, frozen=True):
    """Where the weights came from, and under which terms."""

    name: str
    revision: str | None = None
    licence: str = "unknown"
    reference: Literal["torch", "graphs"] = "torch"
    """What parity was measured against: the source's weights in torch, or, where it has none, its own graphs in ONNX Runtime."""


class File(_Struct, frozen=True):
    """Size in bytes and SHA-256 (hex) of a file."""

    size: int
    sha256: str


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
    """What cheap previews are made with: red, green and blue (-1 to 1) of each latent channel, and in the last row of nothing
    (`runtime/preview.py`). Empty where nobody has found them yet."""
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
            raise BundleError(f"{where}: schema {schema}, but this version reads schema {SCHEMA}: upgrade diffusette, or export again")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}: not a manifest of this version; export the model again") from error


def encode(manifest: Manifest) -> bytes:
    """`manifest` as readable JSON; the same manifest gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"


def fingerprint(manifest: Manifest) -> str:
    """What tells this bundle from every other: the SHA-256 (hex) of its manifest, which holds those of all its files."""
    return hashlib.sha256(encode(manifest)).hexdigest()


def read(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`.

    Raises:
        BundleError: there is none, or it cannot be understood.
    """
    path = folder / FILE_NAME
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise BundleError(f"{path}: no readable manifest ({error.strerror}): expected a bundle made by `diffusette export`") from error


class _Header(msgspec.Struct):
    schema: int = 0
