"""Train the demo model's U-Net, and its text encoder with it: `python models/demo/unet.py [--steps N]`; resumes by itself.

v-prediction on Stable Diffusion's noise schedule. Half of the timesteps are drawn from the noisier part, where the
prompt decides what the picture becomes. Latents of all pictures are computed once, and kept on disk.
"""

from __future__ import annotations

import time

import autoencoder
import click
import data
import numpy as np
import text
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from optim import Muon, split_parameters
from torch import Tensor, nn

BATCH = 64
CHECKPOINT = data.WORK / "unet.pt"
LATENTS = data.WORK / "latents.npy"
AVERAGE_OVER = 200
"""Steps that the moving average of the weights reaches back."""


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=data.SIZE // 8,
        in_channels=autoencoder.LATENT_CHANNELS,
        out_channels=autoencoder.LATENT_CHANNELS,
        block_out_channels=(64, 160, 256),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),  # attention at 16×16 doubles the time
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=256,
        attention_head_dim=(2, 5, 8),  # the number of heads, 32 wide each, as Stable Diffusion's configs name it
        norm_num_groups=16,
    )


@torch.no_grad()
def encode_pictures(drawings: np.ndarray) -> np.ndarray:
    """Latent means of every image: float16, (subjects, styles, backgrounds, channels, 16, 16); cached on disk.

    The first time, the autoencoder's 1×1 convolutions are scaled so that each latent channel has mean 0 and variance 1.
    """
    if LATENTS.exists():
        return np.load(LATENTS)
    state = torch.load(data.WORK / "autoencoder.pt", weights_only=True)
    vae = autoencoder.build()
    vae.load_state_dict(state["vae"])
    subjects, styles = drawings.shape[:2]
    latents = np.zeros((subjects, styles, len(data.BACKGROUNDS), autoencoder.LATENT_CHANNELS, 16, 16), np.float32)
    for subject in range(subjects):
        pictures = np.stack([data.compose(drawings[subject], colour) for colour in data.BACKGROUNDS.values()], 1)
        batch = torch.from_numpy(pictures.reshape(-1, data.SIZE, data.SIZE, 3)).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.encode(batch).latent_dist.mode().float()
        latents[subject] = moments.view(styles, len(data.BACKGROUNDS), *moments.shape[1:]).numpy()
    mean, deviation = latents.mean((0, 1, 2, 4, 5)), latents.std((0, 1, 2, 4, 5))
    normalize(vae, torch.from_numpy(mean), torch.from_numpy(deviation))
    torch.save({"vae": vae.state_dict()}, data.WORK / "autoencoder-normalized.pt")
    latents = ((latents - mean[:, None, None]) / deviation[:, None, None]).astype(np.float16)
    np.save(LATENTS, latents)
    return latents


@torch.no_grad()
def normalize(vae: nn.Module, mean: Tensor, deviation: Tensor) -> None:
    """Fold (z - mean) / deviation into the convolutions at both sides of the latents."""
    channels = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.bias[channels:] -= 2 * deviation.log()
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= deviation[None, :, None, None]


def alpha_bars() -> Tensor:
    """Stable Diffusion's scaled-linear schedule, (1000,)."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).float()


class Batches:
    """Training batches by step number, so that a resumed run sees what an uninterrupted one would have seen."""

    def __init__(self) -> None:
        drawings = data.fetch_drawings()
        self.latents = encode_pictures(drawings)
        self.subjects = data.read_subjects()
        self.encoder = text.Encoder()
        self.styles, self.backgrounds = list(data.STYLES), list(data.BACKGROUNDS)
        self.alpha_bars = alpha_bars()

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(noisy latents, timesteps, token ids, v)."""
        rng = np.random.default_rng((4, step))
        latents, captions = [], []
        while len(latents) < BATCH:
            subject, style, background = (int(rng.integers(n)) for n in self.latents.shape[:3])
            names = self.styles[style], self.backgrounds[background]
            if data.held_out(self.subjects.icons[subject], *names):
                continue
            with_style, with_background = text.parts(rng)
            words = self.subjects.words[subject]
            caption = data.caption(words, names[0] if with_style else None, names[1] if with_background else None, rng)
            captions.append("" if rng.random() < 0.08 else caption)
            latents.append(self.latents[subject, style, background])
        x = torch.from_numpy(np.stack(latents)).float()
        noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
        spread = (np.arange(BATCH) + rng.random(BATCH)) / BATCH  # stratified over the batch
        t = torch.from_numpy(np.where(np.arange(BATCH) % 2, 1000 * spread, 1000 - 450 * spread**1.5).clip(0, 999).astype(np.int64))
        alpha = self.alpha_bars[t][:, None, None, None].sqrt()
        sigma = (1 - self.alpha_bars[t])[:, None, None, None].sqrt()
        return alpha * x + sigma * noise, t, self.encoder(captions), alpha * noise - sigma * x


@click.command()
@click.option("--steps", default=1620)
@click.option("--lr", default=1.5e-3)
def main(steps: int, lr: float) -> None:
    torch.manual_seed(0)
    batches = Batches()
    unet, text_encoder = build(), text.build(batches.encoder)
    unet.set_attn_processor(AttnProcessor())  # on a CPU plain matrix products are faster, backwards, than the fused attention
    text_encoder.load_state_dict(torch.load(text.CHECKPOINT, weights_only=True))
    modules: list[nn.Module] = [unet, text_encoder]
    average = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    matrices, others = split_parameters([unet], ("conv_in", "conv_out"))
    settings = {"betas": (0.9, 0.98), "weight_decay": 0.0, "fused": True}
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr),
        torch.optim.AdamW(others, lr, **settings),
        torch.optim.AdamW(text_encoder.parameters(), 0.2 * lr, **settings),
    ]
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first = 0
    if CHECKPOINT.exists():
        state = torch.load(CHECKPOINT, weights_only=True)
        for module, saved in zip(modules, state["modules"], strict=True):
            module.load_state_dict(saved)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average, first = state["average"], state["step"]
    started, losses = time.monotonic(), []
    for step in range(first, steps):
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 100, 2.5 * (1 - step / steps))
        noisy, t, ids, v = batches(step)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(noisy, t, text_encoder(ids).last_hidden_state).sample
        squares = ((predicted.float() - v) ** 2).mean((1, 2, 3))
        squares.mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        keep = min(1 - 1 / AVERAGE_OVER, (step + 1) / (step + 10))
        with torch.no_grad():
            for module, saved in zip(modules, average, strict=True):
                for name, value in module.state_dict().items():
                    saved[name].lerp_(value, 1 - keep) if value.is_floating_point() else saved[name].copy_(value)
        losses.append([float(squares[0::2].mean().detach()), float(squares[1::2].mean().detach())])
        if (step + 1) % 50 == 0 or step + 1 == steps:
            noisy_part, even = np.mean(losses, 0)
            print(f"{time.monotonic() - started:6.0f} s  step {step + 1}  noisy part {noisy_part:.4f}  all {even:.4f}", flush=True)
            losses = []
            state = {
                "modules": [module.state_dict() for module in modules],
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "average": average,
                "step": step + 1,
            }
            torch.save(state, CHECKPOINT.with_suffix(".tmp"))
            CHECKPOINT.with_suffix(".tmp").replace(CHECKPOINT)


if __name__ == "__main__":
    main()
