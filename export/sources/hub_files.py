"""Which files of a model on a hub an export reads."""

from __future__ import annotations

import re
from collections.abc import Collection

from ...models.errors import BundleError
from .diffusers_folder import ALLOWED, LICENCE_FILE, PICKLES, STEMS

_CONFIGS = {"config.json"}
_TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"}
_FOLDERS = {
    "scheduler": {"scheduler_config.json"},
    "tokenizer": _TOKENIZER,
    "tokenizer_2": _TOKENIZER,
    "feature_extractor": {"preprocessor_config.json"},
    "vae_encoder": _CONFIGS,
    "vae_decoder": _CONFIGS,
    **dict.fromkeys(ALLOWED, _CONFIGS),
}
_TOP = {"model_index.json", "diffusette.json", "prompts.txt"}
_GRAPHS = {"model.onnx", "model.onnx_data", "model.onnx.data", "weights.pb"}
"""A graph, and the usual names of its external data."""


def is_weight(path: str) -> bool:
    """Whether `path` is a large file."""
    return path.endswith(".safetensors") or path.rpartition("/")[2] in _GRAPHS


def choose(paths: Collection[str], name: str) -> list[str]:
    """The paths of the model `name` that an export reads: of each component's weights the plain ones, else the fp16 variant.

    Raises:
        BundleError: it is no pipeline, or a component has no safetensors.
    """
    if "model_index.json" not in paths:
        whole = sorted(path for path in paths if path.endswith(".safetensors") and "/" not in path)
        raise BundleError(
            f"{name}: has no model_index.json, so it is no pipeline of diffusers: "
            + (f"download {whole[0]} and give that file" if whole else "expected a Stable Diffusion model")
        )
    chosen = [path for path in paths if path in _TOP or LICENCE_FILE.fullmatch(path)]
    for folder, names in _FOLDERS.items():
        chosen += [path for path in paths if path in {f"{folder}/{one}" for one in names}]
    if "unet/model.onnx" in paths and not _weights("unet", paths):
        return chosen + [path for path in paths if path.partition("/")[2] in _GRAPHS and not path.startswith("safety_checker/")]
    for component in ALLOWED:
        inside = [path.partition("/")[2] for path in paths if path.startswith(f"{component}/")]
        found = _weights(component, paths)
        if "config.json" in inside and not found:
            pickles = sorted(one for one in inside if one.endswith(PICKLES))
            raise BundleError(
                f"{name}: {component} has no weights in safetensors"
                + (f" (only {pickles[0]}, a pickle, which can run code)" if pickles else "")
                + ": look for another --revision, or a conversion of it"
            )
        chosen += found
    return sorted(set(chosen))


def _weights(folder: str, paths: Collection[str]) -> list[str]:
    for stem in STEMS:
        for variant in ("", ".fp16"):
            whole, index = f"{folder}/{stem}{variant}.safetensors", f"{folder}/{stem}.safetensors.index{variant}.json"
            if whole in paths:
                return [whole]
            if index in paths:
                part = re.compile(re.escape(f"{folder}/{stem}{variant}-") + r"\d{5}-of-\d{5}\.safetensors")
                return [index, *(path for path in paths if part.fullmatch(path))]
    return []
