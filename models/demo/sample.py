"""Draw with the U-Net as trained so far, through torch: `python models/demo/sample.py`; for looking on while it trains."""

from __future__ import annotations

import autoencoder
import click
import data
import judge
import numpy as np
import text
import torch
import unet


@click.command()
@click.option("--guidance", default=3.0)
@click.option("--steps", default=20)
@click.option("--count", default=200)
def main(guidance: float, steps: int, count: int) -> None:
    """DDIM with v-prediction (Salimans and Ho 2022), the moving average of the weights, one noise a prompt."""
    encoder = text.Encoder()
    state = torch.load(unet.CHECKPOINT, weights_only=True)
    model, text_encoder = unet.build().eval(), text.build(encoder).eval()
    model.load_state_dict(state["average"][0])
    text_encoder.load_state_dict(state["average"][1])
    vae = autoencoder.build().eval()
    vae.load_state_dict(torch.load(data.WORK / "autoencoder-normalized.pt", weights_only=True)["vae"])
    alpha_bars = unet.alpha_bars()
    timesteps = torch.linspace(999, 0, steps + 1).long()[:-1].tolist()
    wanted = judge.prompts()[:: 200 // count]
    pictures = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for first in range(0, len(wanted), 50):
            prompts = [prompt for prompt, *_ in wanted[first : first + 50]]
            states = text_encoder(encoder(prompts + [""] * len(prompts))).last_hidden_state
            noise = np.random.default_rng(first).standard_normal((len(prompts), autoencoder.LATENT_CHANNELS, 16, 16))
            x = torch.from_numpy(noise).float()
            for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
                positive, negative = model(torch.cat([x, x]), t, states).sample.float().chunk(2)
                v = negative + guidance * (positive - negative)
                a, s = alpha_bars[t].sqrt(), (1 - alpha_bars[t]).sqrt()
                x0, eps = a * x - s * v, s * x + a * v
                x = x0 if t_next is None else alpha_bars[t_next].sqrt() * x0 + (1 - alpha_bars[t_next]).sqrt() * eps
            pictures.append(vae.decode(x).sample.float())
    drawn = torch.cat(pictures)
    judge.contact_sheet(drawn).save(data.WORK / "sample.png")
    if count == 200:
        print("step", state["step"], judge.score(drawn))


if __name__ == "__main__":
    main()
