"""A classifier for the demo model's images: subject, style and background of an image.

A small convolutional classifier, trained on the drawings alone (with blur, noise, shifts and colour changes), never on
generated pictures: `python models/demo/judge.py` trains it and writes `judge/`: the classifier as ONNX with weights in half
precision, and labels.json with its labels, its accuracy on drawings that were spoilt in other ways than in training, and the
100 plain names and 100 full prompts that `prompts()` fixes. `diffusette bench --judge` lets it judge a bundle.
"""

from __future__ import annotations

import io
import json
import time

import data
import numpy as np
import onnx_ir as ir
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional

CHECKPOINT = data.WORK / "judge.pt"
PUBLISHED = data.HERE / "judge"
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
    """Distort images as generators do: softness, noise, a shift, a change of contrast and colour."""

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
    """Subject, style and background seen in each image (batch, 3, 128, 128)."""
    return [one.argmax(1).numpy() for one in trained()(shrink(pictures))]


def score(pictures: Tensor) -> dict[str, float]:
    """Fractions of the images of `prompts()` that show the subject, style and background of their prompt."""
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


def spoilt(picture: np.ndarray, way: str, rng: np.random.Generator) -> np.ndarray:
    """A drawing (SIZE, SIZE, 3) in [-1, 1], distorted in a way that training did not use."""
    image = Image.fromarray(np.rint(picture * 127.5 + 127.5).astype(np.uint8))
    if way == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(1, 10)))
        image = Image.open(buffer)
    elif way == "rotated":
        image = image.rotate(float(rng.uniform(-30, 30)), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
    elif way == "out of focus":
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(3, 8))))
    elif way == "coarse":
        side = int(rng.integers(12, 24))
        image = image.resize((side, side), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)
    elif way == "a quarter hidden":
        left, top = (int(corner) for corner in rng.integers(0, data.SIZE // 2, 2))
        image.paste((128, 128, 128), (left, top, left + data.SIZE // 2, top + data.SIZE // 2))
    return np.asarray(image, np.float32) / 127.5 - 1


@torch.no_grad()
def accuracy(judge: nn.Module) -> dict[str, dict[str, float]]:
    """Distortion → share of 1,000 drawings whose subject, style and background are recognized."""
    drawings = data.fetch_drawings()
    colours = list(data.BACKGROUNDS.values())
    found: dict[str, dict[str, float]] = {}
    for way in ("unspoilt", "jpeg", "rotated", "out of focus", "coarse", "a quarter hidden"):
        rng = np.random.default_rng(77)
        picks = rng.integers(0, (*drawings.shape[:2], len(colours)), (1000, 3))
        stack = [spoilt(data.compose(drawings[subject, style], colours[background]), way, rng) for subject, style, background in picks]
        logits = judge(shrink(torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2)))
        right = [float(np.mean(one.argmax(1).numpy() == picks[:, index])) for index, one in enumerate(logits)]
        found[way] = dict(zip(("subject", "style", "background"), right, strict=True))
    return found


def trained() -> Judge:
    judge = Judge(len(data.read_subjects().icons))
    judge.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["judge"])
    return judge.eval()


def publish() -> None:
    """Write `judge/model.onnx` (weights in half precision, widened when it is opened) and `judge/labels.json`."""
    judge = trained()
    dynamic = {"picture": {0: torch.export.Dim.DYNAMIC}}
    names = {"input_names": ["picture"], "output_names": ["subject", "style", "background"]}
    program = torch.onnx.export(
        judge, (torch.zeros(2, 3, 64, 64),), dynamo=True, opset_version=18, dynamic_shapes=(dynamic["picture"],), **names
    )
    assert program is not None
    graph = program.model.graph
    for value in [one for one in graph.initializers.values() if one.dtype == ir.DataType.FLOAT and one.const_value.size > 64]:
        half = ir.Value(
            name=f"{value.name}.half", const_value=ir.tensor(value.const_value.numpy().astype(np.float16), name=f"{value.name}.half")
        )
        widen = ir.node("Cast", [half], attributes={"to": ir.DataType.FLOAT})
        widen.outputs[0].name = f"{value.name}.wide"
        value.replace_all_uses_with(widen.outputs[0])
        graph.initializers.pop(value.name)
        graph.register_initializer(half)
        graph.insert_before(graph[0], widen)
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
    PUBLISHED.mkdir(exist_ok=True)
    ir.save(program.model, PUBLISHED / "model.onnx")
    subjects = data.read_subjects()
    styles, backgrounds = list(data.STYLES), list(data.BACKGROUNDS)
    wanted = [
        {
            "prompt": text,
            "subject": subjects.icons[subject],
            "style": None if style is None else styles[style],
            "background": None if background is None else backgrounds[background],
            "held_out": style is not None
            and background is not None
            and data.held_out(subjects.icons[subject], styles[style], backgrounds[background]),
        }
        for text, subject, style, background in prompts()
    ]
    facts = {
        "trained": "on drawings alone, softened, noisy, shifted, with contrast and colours changed; never on generated pictures",
        "accuracy": accuracy(judge),
        "accuracy_of": "1,000 drawings each, spoilt in ways that training did not know",
        "subject": subjects.icons,
        "style": styles,
        "background": backgrounds,
        "prompts": wanted,
    }
    (PUBLISHED / "labels.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    train()
    publish()
