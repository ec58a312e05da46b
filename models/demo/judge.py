"""A judge of the demo model's pictures: which subject, style and background does a picture show?

A small convolutional classifier, trained on the drawings alone (with blur, noise, shifts and colour changes), never on
generated pictures: `python models/demo/judge.py` trains it; `python models/demo/judge.py --bundle DIR` judges a bundle on
the 100 plain names and 100 full prompts that `prompts()` fixes, and writes a contact sheet beside the numbers.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import data
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

CHECKPOINT = data.WORK / "judge.pt"
BATCH = 64
STEPS = 3000


class Judge(nn.Module):
    """(batch, 3, 64, 64) in [-1, 1] → logits of subject, style, background."""

    def __init__(self, subjects: int) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1, groups=8), nn.GroupNorm(8, width), nn.SiLU()]
            before = width
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 16, 256), nn.SiLU())
        self.heads = nn.ModuleList([nn.Linear(256, size) for size in (subjects, len(data.STYLES), len(data.BACKGROUNDS))])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.features(x)
        return [head(features) for head in self.heads]


def shrink(pictures: Tensor) -> Tensor:
    return functional.avg_pool2d(pictures, data.SIZE // 64)


def spoil(x: Tensor, rng: torch.Generator) -> Tensor:
    """What generators do to pictures: softness, noise, a shift, a change of contrast and colour."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) * (high - low) + low

    count = len(x)
    scale, moved = uniform(0.9, 1.1, count), uniform(-0.08, 0.08, count, 2)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = moved
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    soft = functional.avg_pool2d(functional.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)
    x = torch.lerp(x, soft, uniform(0, 1, count, 1, 1, 1) * (uniform(0, 1, count, 1, 1, 1) < 0.6))
    x = x * uniform(0.85, 1.1, count, 1, 1, 1) + uniform(-0.08, 0.08, count, 3, 1, 1)
    return x + torch.randn(x.shape, generator=rng) * uniform(0, 0.12, count, 1, 1, 1)


def pictures_of(drawings: np.ndarray, picks: np.ndarray) -> Tensor:
    colours = list(data.BACKGROUNDS.values())
    stack = np.stack([data.compose(drawings[subject, style], colours[background]) for subject, style, background in picks])
    return shrink(torch.from_numpy(stack).permute(0, 3, 1, 2))


def train(steps: int = STEPS) -> None:
    torch.manual_seed(0)
    drawings = data.fetch_drawings()
    judge = Judge(len(drawings))
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    parts = {"judge": judge, "optimizer": optimizer, "schedule": schedule}
    first = 0
    if CHECKPOINT.exists():
        saved = torch.load(CHECKPOINT, weights_only=True)
        first = saved.pop("step")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    started = time.monotonic()
    for step in range(first, steps):
        rng, noise = np.random.default_rng((6, step)), torch.Generator().manual_seed(step)
        picks = rng.integers(0, (*drawings.shape[:2], len(data.BACKGROUNDS)), (BATCH, 3))
        logits = judge(spoil(pictures_of(drawings, picks), noise))
        loss = sum(functional.cross_entropy(one, torch.from_numpy(picks[:, index])) for index, one in enumerate(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            right = [float((one.argmax(1) == torch.from_numpy(picks[:, index])).float().mean()) for index, one in enumerate(logits)]
            print(f"{time.monotonic() - started:6.0f} s  step {step + 1}  loss {float(loss.detach()):.3f}  right {right}", flush=True)
            fresh = CHECKPOINT.with_suffix(".new")
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}, fresh)
            fresh.replace(CHECKPOINT)


def prompts() -> list[tuple[str, int, int | None, int | None]]:
    """(prompt, subject, style, background), fixed before the U-Net was trained.

    100 plain names, then 100 full prompts, half of them combinations that were held out from the U-Net's training.
    """
    subjects = data.read_subjects()
    styles, backgrounds = list(data.STYLES), list(data.BACKGROUNDS)
    rng = np.random.default_rng(2026)
    chosen: list[tuple[str, int, int | None, int | None]] = [
        (subjects.words[index][-1], int(index), None, None) for index in rng.permutation(len(subjects.icons))[:100]
    ]
    wanted = {True: 50, False: 50}
    while any(wanted.values()):
        subject, style, background = (int(rng.integers(n)) for n in (len(subjects.icons), len(styles), len(backgrounds)))
        held = data.held_out(subjects.icons[subject], styles[style], backgrounds[background])
        if wanted[held]:
            wanted[held] -= 1
            text = f"{subjects.words[subject][0]}, {styles[style]} style, {backgrounds[background]} background"
            chosen.append((text, subject, style, background))
    return chosen


@torch.no_grad()
def judge_pictures(pictures: Tensor) -> list[np.ndarray]:
    """Subject, style and background seen in each picture (batch, 3, 128, 128)."""
    judge = Judge(len(data.read_subjects().icons))
    judge.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["judge"])
    return [one.argmax(1).numpy() for one in judge.eval()(shrink(pictures))]


def score(pictures: Tensor) -> dict[str, float]:
    """Fractions of the pictures of `prompts()` that show what was asked."""
    subject, style, background = judge_pictures(pictures)
    wanted = prompts()
    subjects = data.read_subjects()
    styles, backgrounds = list(data.STYLES), list(data.BACKGROUNDS)
    held = np.array([s is not None and data.held_out(subjects.icons[i], styles[s], backgrounds[b or 0]) for _, i, s, b in wanted])
    right = np.array([subject[row] == one[1] for row, one in enumerate(wanted)])
    full = np.array([one[2] is not None for one in wanted])
    return {
        "subject, plain names": float(right[~full].mean()),
        "subject, full prompts seen": float(right[full & ~held].mean()),
        "subject, full prompts held out": float(right[full & held].mean()),
        "style": float(np.mean([style[row] == one[2] for row, one in enumerate(wanted) if one[2] is not None])),
        "background": float(np.mean([background[row] == one[3] for row, one in enumerate(wanted) if one[3] is not None])),
    }


def contact_sheet(pictures: Tensor, columns: int = 20) -> Image.Image:
    tiles = (pictures.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * data.SIZE, columns * data.SIZE, 3), np.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet[row * data.SIZE : (row + 1) * data.SIZE, column * data.SIZE : (column + 1) * data.SIZE] = tile
    return Image.fromarray(sheet)


def judge_bundle(bundle: Path) -> None:
    from diffusette.runtime import pipeline  # noqa: TID251  # the recipe stands outside of the package

    drawer = pipeline.load(bundle, provider="cpu")
    images = [drawer.generate(prompt, seed=row).images[0] for row, (prompt, *_) in enumerate(prompts())]
    pictures = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1
    print(json.dumps(score(pictures), indent=2))
    contact_sheet(pictures).save(data.WORK / "judged.png")


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="judge this bundle instead of training")
def main(bundle: Path | None) -> None:
    if bundle is None:
        train()
    else:
        judge_bundle(bundle)


if __name__ == "__main__":
    main()
