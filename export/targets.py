"""What each target's graphs go through, and which precisions it can have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..models.manifest import Precision, Target
from .fusions import fuse_attention, fuse_silu, lower_group_norm
from .graph import Pass
from .passes import COMMON, pointwise_to_matmul
from .quantize import Form
from .standard import at_opset, contrib_gelu, decompose_attention, expand_gelu

_FUSED: tuple[Pass, ...] = (*COMMON, pointwise_to_matmul, fuse_attention, fuse_silu, lower_group_norm)
_PLAIN: tuple[Pass, ...] = (*COMMON, decompose_attention, lower_group_norm, expand_gelu)
TARGETS: Mapping[Target, tuple[Pass, ...]] = MappingProxyType(
    {
        "cpu": (*_FUSED, at_opset(20)),
        "portable": (*_PLAIN, at_opset(18)),
        "openvino": (*_PLAIN, at_opset(18)),  # its plug-in takes a graph whole only without contrib operators
        "cuda": (*_FUSED, at_opset(20)),
        "directml": (*_FUSED, contrib_gelu, at_opset(17)),
    }
)
PRECISIONS: Mapping[Target, tuple[Precision, ...]] = MappingProxyType(
    {"cpu": ("int8", "fp32"), "portable": ("fp32",), "openvino": ("int8", "fp32"), "cuda": ("fp16", "fp32"), "directml": ("fp16", "fp32")}
)
"""What each target can have; the first is what it gets where nobody says anything."""
FORMS: Mapping[Target, Form] = MappingProxyType({"cpu": "operators", "openvino": "qdq"})
