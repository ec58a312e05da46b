"""Other engines on the same weights: what to install for each, and the script that runs it.

Each runs in an environment of its own (environments.py), since their requirements exclude one another, in a process of its
own, as its documentation says. engines/ has the scripts; they never import Diffusette.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Preparation = Literal["none", "script", "bundle"]


@dataclass(frozen=True)
class Rival:
    """An engine, and how it is set up."""

    name: str
    requirements: tuple[str, ...]
    """For pip, pinned."""
    script: str
    variants: tuple[str, ...]
    """Precisions that are measured."""
    documentation: str
    preparation: Preparation = "none"
    """Conversion of the weights: none, the engine's own format, or our portable fp32 bundle."""
    without: tuple[str, ...] = ()
    """Packages that pip brings along and that are taken out again."""
    same_noise: bool = True
    """Whether it can be given the noise that it starts from."""


_TORCH = "torch==2.13.0"
RIVALS: Mapping[str, Rival] = MappingProxyType(
    {
        rival.name: rival
        for rival in (
            Rival(
                name="diffusers",
                requirements=(_TORCH, "diffusers==0.42.1", "transformers==5.23.0", "accelerate==1.15.0", "pillow==13.0.0"),
                script="run_diffusers.py",
                variants=("fp32", "bf16"),
                documentation="https://huggingface.co/docs/diffusers/using-diffusers/loading",
            ),
            Rival(
                name="onnxruntime",
                requirements=("onnxruntime==1.31.1", "numpy==2.4.6", "pillow==13.0.0"),
                script="run_onnxruntime.py",
                variants=("fp32",),
                documentation="https://onnxruntime.ai/docs/api/python/",
                preparation="bundle",
            ),
            Rival(
                name="optimum",
                requirements=(
                    _TORCH,
                    "diffusers==0.39.0",
                    "transformers==4.57.6",
                    "optimum==2.1.0",
                    "optimum-onnx==0.1.0",
                    "onnxruntime==1.31.1",
                    "pillow==13.0.0",
                ),
                script="run_optimum.py",
                variants=("fp32",),
                documentation="https://huggingface.co/docs/optimum-onnx/onnxruntime/usage_guides/models",
                preparation="script",
            ),
            Rival(
                name="openvino",
                requirements=(
                    _TORCH,
                    "optimum-intel[openvino]==2.2.0",
                    "openvino==2026.4.1",
                    "diffusers==0.38.0",
                    "accelerate==1.15.0",
                    "pillow==13.0.0",
                ),
                script="run_openvino.py",
                without=("torchvision",),  # of no use here, and the index's build does not load beside a torch for the CPU alone
                variants=("auto", "int8"),
                documentation="https://huggingface.co/docs/optimum-intel/openvino/inference",
                preparation="script",
            ),
            Rival(
                name="stable-diffusion.cpp",
                requirements=("stable-diffusion-cpp-python==0.4.7", "safetensors==0.8.0", "numpy==2.4.6", "pillow==13.0.0"),
                script="run_stable_diffusion_cpp.py",
                variants=("f16", "q8_0"),
                documentation="https://github.com/william-murray1204/stable-diffusion-cpp-python",
                preparation="script",
                same_noise=False,
            ),
        )
    }
)
"""By the name that `--against` takes."""
