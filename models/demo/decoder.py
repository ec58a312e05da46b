"""Finish the autoencoder's decoder on frozen latents: `python models/demo/decoder.py [--steps N]`; resumes by itself.

The U-Net learns on latents that the encoder has fixed, so the decoder can go on learning beside it. A little noise on the
latents teaches it to forgive what the U-Net gets slightly wrong.
"""

from __future__ import annotations

import time

import autoencoder
import click
import data
import numpy as np
import torch
from optim import Muon, split_parameters

BATCH = 4
CHECKPOINT = data.WORK / "autoencoder-final.pt"


@click.command()
@click.option("--steps", default=360)
@click.option("--lr", default=1.2e-3)
def main(steps: int, lr: float) -> None:
    torch.manual_seed(0)
    drawings = data.fetch_drawings()
    colours = list(data.BACKGROUNDS.values())
    latents = np.load(data.WORK / "latents.npy")
    vae = autoencoder.build()
    first, optimizer_states = 0, []
    start = torch.load(CHECKPOINT if CHECKPOINT.exists() else data.WORK / "autoencoder-normalized.pt", weights_only=True)
    vae.load_state_dict(start["vae"])
    matrices, others = split_parameters([vae.decoder, vae.post_quant_conv], ("conv_in", "conv_out", "quant_conv"))
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, lr), torch.optim.AdamW(others, lr, weight_decay=0)]
    first, optimizer_states = start.get("step", 0), start.get("optimizers", [])
    for optimizer, saved in zip(optimizers, optimizer_states, strict=False):
        optimizer.load_state_dict(saved)
    started, squares = time.monotonic(), []
    for step in range(first, steps):
        rng = np.random.default_rng((7, step))
        picks = rng.integers(0, latents.shape[:3], (BATCH, 3))
        wanted = torch.from_numpy(np.stack([data.compose(drawings[s, k], colours[b]) for s, k, b in picks])).permute(0, 3, 1, 2)
        z = torch.from_numpy(latents[picks[:, 0], picks[:, 1], picks[:, 2]]).float()
        z = z + torch.from_numpy(rng.standard_normal(z.shape, np.float32) * rng.uniform(0, 0.15, (BATCH, 1, 1, 1)).astype(np.float32))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (step + 1) / 50, 1.5 * (1 - step / steps))
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(z).sample
        decoded = decoded.float()
        loss = (decoded - wanted).abs().mean() + 0.5 * ((decoded - wanted) ** 2).mean()
        for got, right in zip(autoencoder.gradient(decoded), autoencoder.gradient(wanted), strict=True):
            loss = loss + (got - right).abs().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        squares.append(10 * torch.log10(4 / ((decoded.detach().clamp(-1, 1) - wanted) ** 2).mean((1, 2, 3))).mean().item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"{time.monotonic() - started:6.0f} s  step {step + 1}  PSNR {np.mean(squares):.2f} dB", flush=True)
            squares = []
            state = {"vae": vae.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers], "step": step + 1}
            torch.save(state, CHECKPOINT.with_suffix(".tmp"))
            CHECKPOINT.with_suffix(".tmp").replace(CHECKPOINT)


if __name__ == "__main__":
    main()
