"""Train the demo model's autoencoder: `python models/demo/autoencoder.py [--steps N]`; resumes by itself."""

from __future__ import annotations

import time

import click
import data
import numpy as np
import torch
from diffusers import AutoencoderKL
from optim import Muon, split_parameters
from torch import Tensor

LATENT_CHANNELS = 8
BATCH = 4
KL_WEIGHT = 1e-3


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=data.SIZE,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def draw_batch(drawings: np.ndarray, rng: np.random.Generator, size: int) -> Tensor:
    """Random drawings on random backgrounds; one in four is mirrored and moved, on any colour: (size, 3, 128, 128)."""
    colours = np.asarray(list(data.BACKGROUNDS.values()))
    pictures: list[np.ndarray] = []
    for _ in range(size):
        drawing = drawings[rng.integers(len(drawings)), rng.integers(len(data.STYLES))]
        colour = colours[rng.integers(len(colours))]
        if rng.random() < 0.25:
            drawing = np.roll(drawing[:, ::-1], rng.integers(-8, 9, 2), (0, 1))
            colour = rng.integers(0, 256, 3)
        pictures.append(data.compose(drawing, tuple(colour)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def loss_of(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """L1 of pixels and of their differences to the neighbours (edges), and a small KL."""
    posterior = vae.encode(pictures).latent_dist
    decoded = vae.decode(posterior.sample()).sample.float()
    loss = (decoded - pictures).abs().mean() + 0.5 * ((decoded - pictures) ** 2).mean()
    for got, wanted in zip(gradient(decoded), gradient(pictures), strict=True):
        loss = loss + (got - wanted).abs().mean()
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    return loss + KL_WEIGHT * kl


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    decoded = vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / ((decoded - pictures) ** 2).mean((1, 2, 3)))).mean())


@click.command()
@click.option("--steps", default=2400)
@click.option("--lr", default=1.5e-3)
def main(steps: int, lr: float) -> None:
    torch.manual_seed(0)
    drawings = data.fetch_drawings()
    vae = build()
    matrices, others = split_parameters([vae], ("conv_in", "conv_out", "quant_conv"))
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, lr), torch.optim.AdamW(others, lr, weight_decay=0)]
    checkpoint = data.WORK / "autoencoder.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["vae"])
        for one, saved in zip(optimizers, state["optimizers"], strict=True):
            one.load_state_dict(saved)
        first = state["step"]
    test = draw_batch(drawings, np.random.default_rng(1), 32)
    started = time.monotonic()
    for step in range(first, steps):
        scale = min(1, (step + 1) / 100, 2.5 * (1 - step / steps))
        for one in optimizers:
            for group in one.param_groups:
                group["lr"] = lr * scale
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(vae, draw_batch(drawings, np.random.default_rng((2, step)), BATCH))
        loss.backward()
        for one in optimizers:
            one.step()
            one.zero_grad()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            seconds, value = time.monotonic() - started, float(loss.detach())
            print(f"{seconds:6.0f} s  step {step + 1}  loss {value:.4f}  PSNR {psnr(vae, test):.2f} dB", flush=True)
            temporary = checkpoint.with_suffix(".tmp")
            torch.save({"vae": vae.state_dict(), "optimizers": [one.state_dict() for one in optimizers], "step": step + 1}, temporary)
            temporary.replace(checkpoint)


if __name__ == "__main__":
    main()
