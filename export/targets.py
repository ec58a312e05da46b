"""The passes and precisions of each target."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..models.manifest import Precision, Target
from .graphs.edit import Pass
from .passes.common import COMMON, pointwise_to_matmul, split_from_the_end
from .passes.cuda_fusions import fuse_bias_add, fuse_bias_split_gelu, fuse_group_norm, fuse_skip_layer_norm
from .passes.fusions import causal_bias, fuse_attention, fuse_silu, lower_group_norm
from .passes.layout import channels_last, image_to_tokens
from .passes.standard_opset import at_opset, contrib_gelu, decompose_attention, expand_gelu, one_time_for_all
from .passes.webgpu_channels import pad_multiples_of_three

_ATTENTION: tuple[Pass, ...] = (*COMMON, pointwise_to_matmul, fuse_attention, fuse_silu)
_PLAIN: tuple[Pass, ...] = (*COMMON, decompose_attention, lower_group_norm, expand_gelu)
_WEBGPU: tuple[Pass, ...] = (*COMMON, pointwise_to_matmul, decompose_attention, fuse_silu, lower_group_norm)
TARGETS: Mapping[Target, tuple[Pass, ...]] = MappingProxyType(
    {
        "cpu": (*_ATTENTION, lower_group_norm, split_from_the_end, at_opset(20)),
        "portable": (*_PLAIN, at_opset(18), one_time_for_all),
        "openvino": (*_PLAIN, at_opset(18)),  # the provider runs a graph as a whole only without contrib operators
        "cuda": (
            *_ATTENTION,
            image_to_tokens,
            fuse_group_norm(last=True),
            lower_group_norm,
            fuse_bias_split_gelu,
            fuse_skip_layer_norm,
            fuse_bias_add,
            channels_last,
            at_opset(20),
        ),
        "directml": (*_ATTENTION, causal_bias, image_to_tokens, fuse_group_norm(last=False), lower_group_norm, contrib_gelu, at_opset(17)),
        # WebGPU's MultiHeadAttention was 21 to 33 dB from float on the device that was measured (tests/webgpu): attention stays apart
        "webgpu": (*_WEBGPU, pad_multiples_of_three, fuse_skip_layer_norm, split_from_the_end, at_opset(20)),
    }
)
PRECISIONS: Mapping[Target, tuple[Precision, ...]] = MappingProxyType(
    {
        "cpu": ("int8", "int4", "fp32"),
        "portable": ("fp32", "fp16"),
        "openvino": ("int8", "fp32"),
        "cuda": ("fp16", "int4", "fp32"),
        "directml": ("fp16", "int4", "fp32"),
        "webgpu": ("fp16", "int4", "fp32"),
    }
)
"""The precisions of each target; the first is the default."""
