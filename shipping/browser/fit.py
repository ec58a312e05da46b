"""Whether a bundle can be drawn in a browser's tab, and how much memory that takes."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import NamedTuple

from ...models.bundle import Bundle
from ...models.errors import BundleError, RequestError
from ...models.formats import clip_vocabulary
from ...models.manifest import Manifest

FAMILIES = ("sd1", "sd2")
TARGETS = ("cpu", "portable", "openvino")
"""Whose graphs hold only operators that ONNX Runtime Web has."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
GRAPH_INPUTS = {
    "text_encoder": {"input_ids"},
    "unet": {"sample", "timestep", "encoder_hidden_states", "timestep_cond"},
    "vae_decoder": {"latent_sample"},
}
_WORDS = ("vocab.json", "merges.txt", "added_tokens.json")
_PAPERS = ("LICENSE", "LICENCE", "NOTICE", "README", "CHANGES")

LARGEST = 4 << 30
"""WebAssembly's limit: a 32-bit address space."""
LARGE = 2 << 30
"""From here on, phones and small PCs fail."""
LARGEST_FILE = (2 << 30) - (1 << 20)
"""Browsers hold no larger array."""
PAGE = 260 << 20
"""The page itself, its runtime and the browser's process."""
OPEN, DECODING = 1.4, 5400
"""Memory of open components as a multiple of their files, and bytes per pixel that decoding takes: as `runtime/engine/memory_plans.py`
measured them."""


def check(bundle: Bundle) -> None:
    """Refuse a bundle that a site cannot draw, or not as `diffusette generate` does.

    Raises:
        RequestError: the message names what is supported, and what to do.
        BundleError: its tokenizer is damaged.
    """
    found, folder = bundle.manifest, bundle.folder
    if not found.files:
        raise RequestError(f"{folder}: has no manifest.json: make a bundle of it with `diffusette export {folder} BUNDLE`")
    extra = {f"{name}.{one}" for name in COMPONENTS for one in found.components[name].inputs.keys() - GRAPH_INPUTS[name]}
    for wrong, message in (
        (found.family not in FAMILIES, f"the family is {found.family}; sites draw with text-to-image models of {', '.join(FAMILIES)} only"),
        (
            "safety_checker" in found.components,
            "the model has a safety checker, which does not run in a browser: its images would be unchecked; use `diffusette serve`",
        ),
        (
            found.target not in TARGETS,
            f"the graphs are for {found.target}; browsers run those of {', '.join(TARGETS)}: export the model again with --target cpu",
        ),
        (found.noise.prediction not in PREDICTIONS, f"it predicts {found.noise.prediction}; sites know {', '.join(PREDICTIONS)}"),
        (bool(extra), f"its graphs take {', '.join(sorted(extra))}, which sites do not give: export the model again"),
    ):
        if wrong:
            raise RequestError(f"{folder}: {message}")
    if missing := {f"{found.tokenizers['tokenizer'].folder}/{name}" for name in _WORDS[:2]} - found.files.keys():
        raise BundleError(f"{folder}: {min(missing)} is missing, expected the files of a CLIP tokenizer: export the model again")
    clip_vocabulary.read(bundle.path(found.tokenizers["tokenizer"].folder))
    largest = max(found.files[name].size for name in files_of(found))
    if largest > LARGEST_FILE or peak(found) > LARGEST:
        raise RequestError(
            f"{folder}: drawing would take about {peak(found) / 2**30:.1f} GiB of memory, with a file of {largest / 2**30:.1f} GiB; "
            f"a browser's tab has at most {LARGEST >> 30} GiB, in files of at most 2 GiB: export the model with --precision int8, or use "
            "`diffusette serve`"
        )


def files_of(manifest: Manifest) -> list[str]:
    """The files that drawing needs, in the order in which the page reads them: tokenizer, then each graph with its weights."""
    folder = manifest.tokenizers["tokenizer"].folder
    found = [f"{folder}/{name}" for name in _WORDS if f"{folder}/{name}" in manifest.files]
    for component in COMPONENTS:
        graph = manifest.components[component].graph
        place = PurePosixPath(graph).parent
        weights = [name for name in manifest.files if PurePosixPath(name).parent == place and not name.endswith(".onnx")]
        found += [graph, *sorted(weights)]
    return list(dict.fromkeys(found))


def papers_of(manifest: Manifest) -> list[str]:
    """Licence, model card and the like, which travel with the weights."""
    return [name for name in manifest.files if "/" not in name and name.upper().startswith(_PAPERS)]


class Memory(NamedTuple):
    """What drawing takes in a tab, in bytes, estimated."""

    open: int
    """With every component open."""
    largest: int
    """More while the largest component opens."""
    pixel: int
    """More for each pixel while the image is decoded."""

    def peak(self, pixels: int) -> int:
        """The most at a time, for an image of so many pixels."""
        return self.open + max(self.largest, self.pixel * pixels)


def memory(manifest: Manifest) -> Memory:
    """Estimate what drawing takes in a tab."""
    sizes: list[int] = []
    for component in COMPONENTS:
        place = PurePosixPath(manifest.components[component].graph).parent
        sizes.append(sum(manifest.files[name].size for name in files_of(manifest) if PurePosixPath(name).parent == place))
    return Memory(round(PAGE + OPEN * sum(sizes)), max(sizes), DECODING)


def peak(manifest: Manifest) -> int:
    """The same for an image of the model's default size, in bytes."""
    return memory(manifest).peak(manifest.defaults.width * manifest.defaults.height)
