"""What ONNX Runtime's documentation says of its own operators for diffusion models, in NumPy, for onnx's reference evaluator.

Many of them have kernels for GPUs alone; so their graphs can be checked on any machine (docs/ContribOperators.md).
"""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun
from scipy.special import erf


class _Microsoft(OpRun):
    op_domain = "com.microsoft"


def norm_of_groups(x, gamma, beta, groups, epsilon):
    """On channels last, in float32."""
    batch, height, width, channels = x.shape
    parts = x.astype(np.float32).reshape(batch, height * width, groups, channels // groups)
    mean, variance = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    normal = ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    return normal * gamma + beta


def silu(x):
    return x / (1 + np.exp(-x))


class GroupNorm(_Microsoft):
    def _run(self, x, gamma, beta, activation=None, channels_last=1, epsilon=1e-5, groups=None):
        assert gamma.dtype == beta.dtype == np.float32, "the CUDA kernel has no other"
        last = x if channels_last else x.transpose(0, 2, 3, 1)
        found = norm_of_groups(last, gamma, beta, groups, epsilon)
        found = silu(found) if activation else found
        return ((found if channels_last else found.transpose(0, 3, 1, 2)).astype(x.dtype),)


class SkipGroupNorm(_Microsoft):
    def _run(self, x, gamma, beta, skip, bias=None, activation=None, channels_last=1, epsilon=1e-5, groups=None):
        assert channels_last == 1, "the CUDA kernel has no other"
        assert gamma.dtype == beta.dtype == np.float32
        assert skip.shape in {x.shape, (x.shape[0], x.shape[3]), (x.shape[0], 1, 1, x.shape[3])}
        total = x + (skip[:, None, None] if skip.ndim == 2 else skip) + (0 if bias is None else bias)
        found = norm_of_groups(total, gamma, beta, groups, epsilon)
        return ((silu(found) if activation else found).astype(x.dtype), total.astype(x.dtype))


class SkipLayerNormalization(_Microsoft):
    def _run(self, x, skip, gamma, beta=None, bias=None, epsilon=1e-12):
        assert x.shape == skip.shape
        assert x.ndim == 3
        total = x + (0 if bias is None else bias) + skip
        single = total.astype(np.float32)
        mean, variance = single.mean(-1, keepdims=True), single.var(-1, keepdims=True)
        found = ((single - mean) / np.sqrt(variance + epsilon) * gamma + beta).astype(x.dtype)
        return found, mean, 1 / np.sqrt(variance + epsilon), total.astype(x.dtype)


class BiasSplitGelu(_Microsoft):
    def _run(self, x, bias):
        assert x.shape[-1] in {2560, 5120, 10240}, "the CUDA kernel has no other"
        left, right = np.split((x + bias).astype(np.float32), 2, axis=-1)
        return ((left * right * (1 + erf(right / np.sqrt(2))) / 2).astype(x.dtype),)


class BiasAdd(_Microsoft):
    def _run(self, x, bias, skip):
        assert x.shape[-1] in {320, 640, 1280}, "the CUDA kernel has no other"
        return (x + bias + skip,)


class Gelu(_Microsoft):
    def _run(self, x, approximate="none"):  # onnx gives it the attribute of its own operator of that name
        assert approximate == "none"
        single = x.astype(np.float32)
        return ((single * (1 + erf(single / np.sqrt(2))) / 2).astype(x.dtype),)


class QuickGelu(_Microsoft):
    def _run(self, x, alpha=1.702):
        single = x.astype(np.float32)
        return ((single / (1 + np.exp(-alpha * single))).astype(x.dtype),)


class MultiHeadAttention(_Microsoft):
    def _run(self, query, key, value, num_heads=None, scale=None, unidirectional=0):
        q, k, v = (one.astype(np.float32).reshape(*one.shape[:2], num_heads, -1).transpose(0, 2, 1, 3) for one in (query, key, value))
        scores = q @ k.transpose(0, 1, 3, 2) * (scale or q.shape[-1] ** -0.5)
        if unidirectional:
            scores += np.triu(np.full(scores.shape[-2:], -np.inf, np.float32), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return (mixed.transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1).astype(query.dtype),)


ALL = [GroupNorm, SkipGroupNorm, SkipLayerNormalization, BiasSplitGelu, BiasAdd, Gelu, QuickGelu, MultiHeadAttention]
