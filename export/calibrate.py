"""What the export borrows from the runtime: sessions, and inputs recorded while real pictures are drawn.

The one module of the export that knows the runtime.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models.bundle import open_bundle
from ..models.manifest import Component
from ..runtime import bands, lora, lora_names, machine, pictures
from ..runtime import preview as previews
from ..runtime.components import Components, Variant
from ..runtime.pipeline import Pipeline
from ..runtime.providers import resolve
from ..runtime.request import Request
from ..runtime.session import Session, SessionOptions, open_session
from .pieces import Pieces

Feeds = Mapping[str, NDArray[Any]]
PROMPTS = (
    "a red apple on a white background",
    "portrait of an old fisherman, dramatic light, oil painting",
    "a city street at night in the rain, neon signs, photograph",
    "a cute cat, flat style, blue background",
    "mountain lake at sunrise, wide landscape, highly detailed",
    "a rocket launching into space, comic style",
)
"""Drawn for calibration where nothing else is asked for: subjects, styles and compositions that differ."""
STEPS, FEW = 10, 4
KEPT = {"unet": 48, "vae_encoder": 4, "vae_decoder": 12}
"""Recorded calls that are used of each component, evenly spread over steps, prompts and guidance branches."""
CLIP_DEVIATION = np.float32(0.54)
"""Of what CLIP was trained on, where pixels go from -1 to 1; its mean is about 0."""
LARGE = 1_000_000_000
"""Bytes of a U-Net from which only two prompts are drawn, at half size: a float32 call then takes seconds."""


class Recording(Components):
    """Components that remember what they were given; large ones run piece by piece."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.recorded: dict[str, list[Feeds]] = {}
        folders = {name: self.bundle.path(component.graph).parent for name, component in self.bundle.manifest.components.items()}
        self._pieces = {name: Pieces(folder, open_graph) for name, folder in folders.items() if size(folder) >= LARGE}

    def run(self, name: str, feeds: Feeds, variant: Variant | None = None) -> dict[str, NDArray[Any]]:
        """Runs component `name`, and keeps `feeds`."""
        self.recorded.setdefault(name, []).append({key: np.array(value) for key, value in feeds.items()})
        if name in self._pieces:
            self._close()
            return self._pieces[name].run(self.recorded[name][-1])
        return super().run(name, feeds, variant)


def size(folder: Path) -> int:
    """Bytes of the files in `folder`."""
    return sum(path.stat().st_size for path in folder.iterdir())


def open_graph(graph: Path, *, lean: bool | None = None, fold: bool = True) -> Session:
    """The graph on the CPU; with `lean`, as large ones are opened where nobody says anything, its weights stay on disk.

    Without `fold` it runs operator by operator, as it was written: 16-bit weights are widened one at a time, and tensors go when they
    have been read.
    """
    if lean is None:
        lean = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*")) >= LARGE
    options = SessionOptions(threads=machine.cores(), prepack=not lean, reorder=not lean, fold=fold, arena=not lean)
    return open_session(graph, resolve("cpu"), options)


def run_in_bands(folder: Path, component: Component, feeds: Feeds, size: int) -> dict[str, NDArray[Any]]:
    """What the pieces of `component` in `folder` give together, on bands of about `size` bytes."""
    session: dict[str, Session] = {}

    def call(piece: str, given: Feeds) -> dict[str, NDArray[Any]]:
        if piece not in session:
            session.clear()
            session[piece] = open_graph(folder / f"{piece}.onnx", lean=True)
        return session[piece].run(given)

    return bands.run(component.pieces, call, feeds, size)


def read_lora(
    path: Path, modules: Mapping[str, Collection[str]]
) -> dict[tuple[str, str], Callable[[tuple[int, ...]], NDArray[np.float32]]]:
    """What the LoRA file `path` adds: (component, layer) → a function from the weight's shape to what is added at strength 1.

    Raises:
        BundleError: not a safetensors file, or a damaged one.
        RequestError: no LoRA, or one that changes no layer of `modules`.
    """
    changes = lora.read(path, lora_names.places(modules)).changes
    return {(place.component, place.module): change.delta for place, change in changes.items()}


def give_memory_back() -> None:
    """Returns to the system what was freed: tracing leaves much of that."""
    gc.collect()
    machine.give_memory_back()


def free_memory() -> int | None:
    """Bytes of memory that could be taken now; None where the system does not say."""
    found = machine.memory()
    return None if found is None else found[0]


def record(folder: Path, prompts: Sequence[str] = (), *, few: bool = False, seed: int = 0) -> dict[str, list[Feeds]]:
    """What each component of the float bundle in `folder` is given while `prompts` are drawn: all timesteps, both branches
    of the guidance, for the task that the model is for. The same arguments give the same inputs.

    With `few` (half precision, which has to see only how large numbers get), of a large model one prompt in `FEW` steps.
    """
    bundle = open_bundle(folder)
    large = size(folder / "unet") >= LARGE
    recording = Recording(bundle, resolve("cpu"), "streamed" if large else "resident", SessionOptions())
    defaults, step = bundle.manifest.defaults, 8 * bundle.manifest.latent.downscale
    width, height = (max(step, side // 2 // step * step) if large else side for side in (defaults.width, defaults.height))
    with Pipeline(bundle, recording) as pipeline:
        several, steps = (1, FEW) if large and few else (2 if large else None, STEPS)
        for number, prompt in enumerate((prompts or PROMPTS)[:several]):
            request = Request(prompt, seed=seed + number, width=width, height=height, steps=min(steps, defaults.steps))
            picture = _picture(width, height, seed + number)
            if pipeline.family.task != "text":
                mask = Image.new("L", (width, height), 0)
                mask.paste(255, (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
                request = _with_picture(request, picture, mask if pipeline.family.task == "inpaint" else None)
            drawn = pipeline.generate(request).images[0]
            if "vae_encoder" in recording:
                recording.run("vae_encoder", {"sample": pictures.to_array(drawn)})
            if "safety_checker" in recording:
                side = bundle.manifest.components["safety_checker"].inputs["clip_input"].shape[-1]
                assert isinstance(side, int)
                recording.run("safety_checker", {"clip_input": pictures.to_array(drawn.resize((side, side))) / CLIP_DEVIATION})
    if "tiny_decoder" in recording:
        recording.recorded["tiny_decoder"] = recording.recorded["vae_decoder"]
    return {name: _spread(feeds, KEPT.get(name, 8)) for name, feeds in recording.recorded.items()}


def preview(folder: Path) -> tuple[tuple[float, float, float], ...]:
    """`Manifest.preview` of the float bundle in `folder`; the same on every machine, but for what rounding to four places may do."""
    bundle = open_bundle(folder)
    components = Components(bundle, resolve("cpu"), "streamed", SessionOptions())
    factors = previews.factors(components.get("vae_decoder"), bundle.manifest.latent)
    components.close()
    return msgspec.convert(factors.round(4).tolist(), tuple[tuple[float, float, float], ...])


def _with_picture(request: Request, picture: Image.Image, mask: Image.Image | None) -> Request:
    return Request(
        request.prompt,
        seed=request.seed,
        width=request.width,
        height=request.height,
        steps=request.steps,
        init=picture,
        mask=mask,
        strength=1.0,
    )


def _picture(width: int, height: int, seed: int) -> Image.Image:
    """A smooth random picture, for models that work on one."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _spread(feeds: list[Feeds], count: int) -> list[Feeds]:
    """`count` of `feeds`, evenly, with a stride that does not fall in step with the two branches of the guidance."""
    if len(feeds) <= count:
        return feeds
    places = sorted({int(place) for place in np.linspace(0, len(feeds) - 1, count)})
    return [feeds[place] for place in places]


def keep(recorded: Mapping[str, Sequence[Feeds]], file: Path) -> None:
    """Writes what `record` gave."""
    arrays = {
        f"{name}/{number}/{key}": value
        for name, feeds in recorded.items()
        for number, feed in enumerate(feeds)
        for key, value in feed.items()
    }
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def kept(file: Path) -> dict[str, list[Feeds]]:
    """What `keep` wrote."""
    found: dict[str, dict[int, dict[str, NDArray[Any]]]] = {}
    with np.load(file, allow_pickle=False) as arrays:
        for path in arrays.files:
            name, number, key = path.split("/")
            found.setdefault(name, {}).setdefault(int(number), {})[key] = arrays[path]
    return {name: [feeds[number] for number in sorted(feeds)] for name, feeds in found.items()}
