"""Operators that a bundle's graphs may use.

The standard domain of ONNX is allowed as a whole: its operators compute, and nothing else. Of ONNX Runtime's own domain
only what our exporter writes, or what the fusions of its CPU, CUDA and DirectML providers know. Everything else (custom
libraries, Python callbacks, compiled blobs of a vendor in EPContext) can run foreign code and is refused by name.
"""

from __future__ import annotations

from pathlib import Path

from .errors import BundleError
from .onnx_file import Graph

STANDARD = ""
MICROSOFT = "com.microsoft"

CONTRIB = frozenset({
    # attention
    "Attention", "GroupQueryAttention", "MultiHeadAttention", "PackedMultiHeadAttention", "QAttention", "RotaryEmbedding",
    # activations and normalizations, alone and fused with what stands beside them
    "BiasAdd", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "FastGelu", "Gelu", "GroupNorm", "QuickGelu", "SkipGroupNorm",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "QEmbedLayerNormalization",
    # matrix products and convolutions
    "ConvTransposeWithDynamicPads", "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation", "GemmFastGelu", "GemmFloat8",
    "MatMulBnb4", "MatMulFpQ4", "MatMulNBits", "NhwcConv", "NhwcFusedConv", "NhwcMaxPool", "TransposeMatMul",
    # integers
    "DequantizeLinear", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulInteger16", "MatMulIntegerToFloat", "QGemm",
    "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu",
    "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear",
    # shapes
    "ExpandDims", "GridSample", "Pad", "Trilu",
})  # fmt: skip
_RESERVED = ("ai.onnx", "com.microsoft", "com.ms")
"""Domains in which a file's own function may not hide an operator that ONNX Runtime has."""


def check_operators(graph: Graph, path: Path) -> None:
    """Refuse `graph`, read from `path`, if it uses an operator that is not allowed.

    Raises:
        BundleError: the operator and its domain.
    """
    own = {(domain, name) for domain, name in graph.functions if not domain.startswith(_RESERVED) and domain != STANDARD}
    for domain, operator in sorted(graph.operators - own):
        if domain == STANDARD or (domain == MICROSOFT and operator in CONTRIB):
            continue
        raise BundleError(
            f"{path}: operator {operator!r} of domain {domain!r} is refused: expected those of ONNX itself and known ones of "
            f"{MICROSOFT}: export the model again with `diffusette export`"
        )
