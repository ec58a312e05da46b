"""Calibration data: the inputs of each component while the real pipeline generates images, and the colours of cheap previews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models.bundle import open_bundle
from ..runtime.engine.components import Components, Forwarder, Runner
from ..runtime.engine.providers import resolve
from ..runtime.engine.session import SessionOptions
from ..runtime.engine.session_pool import Variant
from ..runtime.images import image_io
from ..runtime.images import preview as previews
from ..runtime.pipeline import Pipeline
from ..runtime.request import Request
from .graphs.run_in_pieces import Pieces
from .runtime_bridge import LARGE, Feeds, open_graph, size

PROMPTS = (
    "a red apple on a white background",
    "portrait of an old fisherman, dramatic light, oil painting",
    "a city street at night in the rain, neon signs, photograph",
    "a cute cat, flat style, blue background",
    "mountain lake at sunrise, wide landscape, highly detailed",
    "a rocket launching into space, comic style",
)
"""Default calibration prompts: different subjects, styles and compositions."""
STEPS, FEW = 10, 4
"""Denoising steps of each image, and of a large model's if `few` is set."""
KEPT = {"unet": 48, "vae_encoder": 4, "vae_decoder": 12}
"""Recorded calls to keep per component, evenly spread over steps, prompts and guidance branches; 8 for the others."""
CLIP_DEVIATION = np.float32(0.54)
"""Standard deviation of CLIP's training pixels, scaled to -1 to 1; their mean is about 0."""


class Recording(Forwarder):
    """Record the inputs of every call; large components run piece by piece."""

    def __init__(self, inner: Runner) -> None:
        super().__init__(inner)
        self.recorded: dict[str, list[Feeds]] = {}
        folders = {name: self.bundle.path(component.graph).parent for name, component in self.bundle.manifest.components.items()}
        self._pieces = {name: Pieces(folder, open_graph) for name, folder in folders.items() if size(folder) >= LARGE}

    def run(self, name: str, feeds: Feeds, variant: Variant | None = None) -> dict[str, NDArray[Any]]:
        """Run the component `name` and keep a copy of `feeds`."""
        self.recorded.setdefault(name, []).append({key: np.array(value) for key, value in feeds.items()})
        if name in self._pieces:
            self.close()
            return self._pieces[name].run(self.recorded[name][-1])
        return super().run(name, feeds, variant)


def record(folder: Path, prompts: Sequence[str] = (), *, few: bool = False, seed: int = 0) -> dict[str, list[Feeds]]:
    """Record the inputs of each component of the float bundle in `folder` while it generates `prompts`, for the model's task: all
    timesteps, both guidance branches. Deterministic.

    With `few` (half precision, which needs only the range of the values), a large model generates one prompt in `FEW` steps.
    """
    bundle = open_bundle(folder, functions=True)
    large = size(folder / "unet") >= LARGE
    recording = Recording(Components(bundle, resolve("cpu"), "streamed" if large else "resident", SessionOptions()))
    defaults, step = bundle.manifest.defaults, 8 * bundle.manifest.latent.downscale
    width, height = (max(step, side // 2 // step * step) if large else side for side in (defaults.width, defaults.height))
    with Pipeline(bundle, recording) as pipeline:
        count, steps = (1, FEW) if large and few else (2 if large else None, STEPS)
        for number, prompt in enumerate((prompts or PROMPTS)[:count]):
            request = Request(prompt, seed=seed + number, width=width, height=height, steps=min(steps, defaults.steps))
            init = _image(width, height, seed + number)
            if pipeline.family.task != "text":
                mask = Image.new("L", (width, height), 0)
                mask.paste(255, (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
                request = _with_init(request, init, mask if pipeline.family.task == "inpaint" else None)
            image = pipeline.generate(request).images[0]
            if "vae_encoder" in recording:
                recording.run("vae_encoder", {"sample": image_io.to_array(image)})
            if "safety_checker" in recording:
                side = bundle.manifest.components["safety_checker"].inputs["clip_input"].shape[-1]
                assert isinstance(side, int)
                recording.run("safety_checker", {"clip_input": image_io.to_array(image.resize((side, side))) / CLIP_DEVIATION})
    if "tiny_decoder" in recording:
        recording.recorded["tiny_decoder"] = recording.recorded["vae_decoder"]
    return {name: _spread(feeds, KEPT.get(name, 8)) for name, feeds in recording.recorded.items()}


def prediction(folder: Path) -> Literal["epsilon", "v_prediction"] | None:
    """Find out what the U-Net of the float bundle in `folder` predicts, by asking it at the highest noise; None if the answer is unclear.

    The input is almost pure noise there. A model of epsilon returns it; one of v (Salimans & Ho 2022, arXiv:2202.00512) returns the
    negative image with a few percent of it, so the two are told apart by the correlation of input and output: 1, or less than 0.1.
    """
    bundle = open_bundle(folder, functions=True)
    components = Components(bundle, resolve("cpu"), "streamed", SessionOptions())
    unet, channels = components.get("unet"), bundle.manifest.latent.channels
    noise = np.random.default_rng(0).standard_normal((1, channels, _ASKED, _ASKED), np.float32)
    sizes = {"batch_size": 1, "sequence_length": 77, "height": _ASKED, "width": _ASKED}
    feeds = {
        name: np.zeros([size if isinstance(size, int) else sizes[size] for size in tensor.shape], tensor.dtype)
        for name, tensor in unet.inputs.items()
    }
    feeds["sample"][:, :channels] = noise
    feeds["timestep"][:] = bundle.manifest.noise.train_timesteps - 1
    output = unet.run(feeds)["out_sample"]
    components.close()
    spread = float(output.std())
    if not 0.2 < spread < 2.0:  # either has about unit variance
        return None
    likeness = float(np.vdot(noise, output)) / float(np.linalg.norm(noise)) / float(np.linalg.norm(output))
    return "epsilon" if likeness > 0.8 else "v_prediction" if 0.0 < likeness < 0.25 else None


_ASKED = 32
"""Latent pixels of the square that the U-Net is asked with."""


def preview(folder: Path) -> tuple[tuple[float, float, float], ...]:
    """`Manifest.preview` of the float bundle in `folder`: the same on every machine, up to the rounding to four decimals."""
    bundle = open_bundle(folder, functions=True)
    components = Components(bundle, resolve("cpu"), "streamed", SessionOptions())
    factors = previews.factors(components.get("vae_decoder"), bundle.manifest.latent)
    components.close()
    return msgspec.convert(factors.round(4).tolist(), tuple[tuple[float, float, float], ...])


def _with_init(request: Request, init: Image.Image, mask: Image.Image | None) -> Request:
    return Request(
        request.prompt,
        seed=request.seed,
        width=request.width,
        height=request.height,
        steps=request.steps,
        init=init,
        mask=mask,
        strength=1.0,
    )


def _image(width: int, height: int, seed: int) -> Image.Image:
    """A smooth random image, for models that edit images."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _spread(feeds: list[Feeds], count: int) -> list[Feeds]:
    """Return `count` of `feeds`, evenly spaced; the stride does not coincide with the alternation of the two guidance branches."""
    if len(feeds) <= count:
        return feeds
    indices = sorted({int(index) for index in np.linspace(0, len(feeds) - 1, count)})
    return [feeds[index] for index in indices]


def keep(recorded: Mapping[str, Sequence[Feeds]], file: Path) -> None:
    """Write recorded inputs to `file`."""
    arrays = {
        f"{name}/{number}/{key}": value
        for name, feeds in recorded.items()
        for number, feed in enumerate(feeds)
        for key, value in feed.items()
    }
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def kept(file: Path) -> dict[str, list[Feeds]]:
    """Read the inputs that `keep` wrote."""
    found: dict[str, dict[int, dict[str, NDArray[Any]]]] = {}
    with np.load(file, allow_pickle=False) as arrays:
        for path in arrays.files:
            name, number, key = path.split("/")
            found.setdefault(name, {}).setdefault(int(number), {})[key] = arrays[path]
    return {name: [feeds[number] for number in sorted(feeds)] for name, feeds in found.items()}
