"""The optimizer of the recipe: Muon for weight matrices and convolutions, AdamW for the rest.

Muon (Jordan et al. 2024) replaces the momentum of each weight matrix by the nearest semi-orthogonal matrix, found by a
Newton-Schulz iteration. On small models it needs about half the steps of AdamW.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def orthogonalize(matrix: Tensor, steps: int = 4) -> Tensor:
    """The nearest semi-orthogonal matrix to `matrix` (2-D), approximately, in bfloat16.

    Each Newton-Schulz step multiplies by a polynomial of the Gram matrix. These commute, so for a wide matrix the steps are
    taken on the small Gram matrix, and the large one is touched twice only.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    if x.shape[1] >= 3 * x.shape[0]:
        gram = x @ x.T
        product = torch.eye(len(gram), dtype=x.dtype)
        for _ in range(steps):
            step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            step.diagonal().add_(a)
            product, gram = step @ product, step @ gram @ step
        x = product @ x
    else:
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; `lr` is the change of a weight's RMS in one step, as in AdamW."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalize(weight.grad.lerp(buffer, group["momentum"]).flatten(1)).view_as(weight)
                rows, columns = weight.shape[0], weight[0].numel()
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.4 * max(rows, columns) ** 0.5)


def split_parameters(modules: list[nn.Module], adam_only: tuple[str, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, everything else for AdamW); names that contain a word of `adam_only` go to AdamW."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            is_matrix = parameter.ndim >= 2 and not any(word in name for word in adam_only)
            (matrices if is_matrix else others).append(parameter)
    return matrices, others
