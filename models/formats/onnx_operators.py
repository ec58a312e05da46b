"""Operators that a bundle's graphs may use.

The standard domain of ONNX is allowed but for control flow, sequences, texts and random numbers. Of ONNX Runtime's own domain
only what our exporter writes, or what the fusions of its CPU, CUDA and DirectML providers know. Everything else (custom
libraries, Python callbacks, compiled blobs of a vendor in EPContext) can run foreign code and is refused by name.

Attributes need no list: the reader refuses graphs and sparse tensors in them and follows tensors to their files; the others are numbers and
names, and ONNX Runtime refuses those that the schema of the operator does not have.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import BundleError
from .onnx_reader import Graph

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
_REFUSED = frozenset({
    # without bounds, or on other things than tensors of numbers
    "If", "Loop", "Scan", "SequenceMap", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
    "SequenceLength", "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
    "StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer", "ImageDecoder",
    # another image each time
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip
"""Operators of the standard domain that graphs of diffusion models do not need."""


def check_operators(graph: Graph, path: Path, *, functions: bool = False) -> None:
    """Refuse `graph`, read from `path`, if it uses an operator that is not allowed, or unless `functions` has functions of its own.

    Raises:
        BundleError: the operator and its domain; or the graph has functions, which can double their work at each level.
    """
    if graph.functions and not functions:
        found = f"functions of its own, such as {min(graph.functions)[1]!r}"
        raise BundleError(f"{path}: {found}, are refused: expected a graph without; export the model again with `diffusette export`")
    for domain, operator in sorted(graph.operators - graph.functions):
        if (domain == STANDARD and operator not in _REFUSED) or (domain == MICROSOFT and operator in CONTRIB):
            continue
        raise BundleError(
            f"{path}: operator {operator!r} of domain {domain!r} is refused: expected those of ONNX itself that compute with tensors, and "
            f"known ones of {MICROSOFT}: export the model again with `diffusette export`"
        )
