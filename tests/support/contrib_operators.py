"""ONNX Runtime's operators for diffusion models in NumPy, after its documentation, for onnx's reference evaluator.

Many of them only have GPU kernels; these let graphs be checked on any machine (docs/ContribOperators.md).
"""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun
from scipy.special import erf


class _Microsoft(OpRun):
    op_domain = "com.microsoft"


def group_norm(x, gamma, beta, groups, epsilon):
    """Group normalization on channels last, in float32."""
    batch, height, width, channels = x.shape
    grouped = x.astype(np.float32).reshape(batch, height * width, groups, channels // groups)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    normalized = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    return normalized * gamma + beta


def silu(x):
    return x / (1 + np.exp(-x))


class GroupNorm(_Microsoft):
    def _run(self, x, gamma, beta, activation=None, channels_last=1, epsilon=1e-5, groups=None):
        assert gamma.dtype == beta.dtype == np.float32, "the CUDA kernel supports no other type"
        last = x if channels_last else x.transpose(0, 2, 3, 1)
        result = group_norm(last, gamma, beta, groups, epsilon)
        result = silu(result) if activation else result
        return ((result if channels_last else result.transpose(0, 3, 1, 2)).astype(x.dtype),)


class SkipGroupNorm(_Microsoft):
    def _run(self, x, gamma, beta, skip, bias=None, activation=None, channels_last=1, epsilon=1e-5, groups=None):
        assert channels_last == 1, "the CUDA kernel supports no other order"
        assert gamma.dtype == beta.dtype == np.float32
        assert skip.shape in {x.shape, (x.shape[0], x.shape[3]), (x.shape[0], 1, 1, x.shape[3])}
        total = x + (skip[:, None, None] if skip.ndim == 2 else skip) + (0 if bias is None else bias)
        result = group_norm(total, gamma, beta, groups, epsilon)
        return ((silu(result) if activation else result).astype(x.dtype), total.astype(x.dtype))


class SkipLayerNormalization(_Microsoft):
    def _run(self, x, skip, gamma, beta=None, bias=None, epsilon=1e-12):
        assert x.shape == skip.shape
        assert x.ndim == 3
        total = x + (0 if bias is None else bias) + skip
        x32 = total.astype(np.float32)
        mean, variance = x32.mean(-1, keepdims=True), x32.var(-1, keepdims=True)
        result = ((x32 - mean) / np.sqrt(variance + epsilon) * gamma + beta).astype(x.dtype)
        return result, mean, 1 / np.sqrt(variance + epsilon), total.astype(x.dtype)


class BiasSplitGelu(_Microsoft):
    def _run(self, x, bias):
        assert x.shape[-1] in {2560, 5120, 10240}, "the CUDA kernel supports no other size"
        left, right = np.split((x + bias).astype(np.float32), 2, axis=-1)
        return ((left * right * (1 + erf(right / np.sqrt(2))) / 2).astype(x.dtype),)


class BiasAdd(_Microsoft):
    def _run(self, x, bias, skip):
        assert x.shape[-1] in {320, 640, 1280}, "the CUDA kernel supports no other size"
        return (x + bias + skip,)


class Gelu(_Microsoft):
    def _run(self, x, approximate="none"):  # onnx passes the attribute of its own Gelu
        assert approximate == "none"
        x32 = x.astype(np.float32)
        return ((x32 * (1 + erf(x32 / np.sqrt(2))) / 2).astype(x.dtype),)


class QuickGelu(_Microsoft):
    def _run(self, x, alpha=1.702):
        x32 = x.astype(np.float32)
        return ((x32 / (1 + np.exp(-alpha * x32))).astype(x.dtype),)


class MultiHeadAttention(_Microsoft):
    def _run(self, query, key, value, num_heads=None, scale=None, unidirectional=0):
        q, k, v = (x.astype(np.float32).reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3) for x in (query, key, value))
        scores = q @ k.transpose(0, 1, 3, 2) * (scale or q.shape[-1] ** -0.5)
        if unidirectional:
            scores += np.triu(np.full(scores.shape[-2:], -np.inf, np.float32), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return (mixed.transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1).astype(query.dtype),)


ALL = [GroupNorm, SkipGroupNorm, SkipLayerNormalization, BiasSplitGelu, BiasAdd, Gelu, QuickGelu, MultiHeadAttention]
