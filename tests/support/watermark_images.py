"""Images for the watermark's table, varied and the same each time, and what happens to images on their way through the world."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Picture = Image.Image
ROOT = Path(__file__).parents[2]
PHOTOGRAPHS, DRAWN = ROOT / "build" / "watermark" / "photographs", ROOT / "build" / "watermark" / "demo"
SIZES = ((256, 256), (256, 256), (320, 256), (384, 384), (512, 512), (512, 512), (512, 768), (768, 512), (640, 480), (1024, 1024))
_NO_PHOTOGRAPHS = ("chessboard", "aggregator", "selector", "logo", "phantom", "copy")


@dataclass(frozen=True)
class Sample:
    kind: str
    name: str
    image: Picture


def samples(count: int, seed: int = 0, sizes: tuple[tuple[int, int], ...] = SIZES, *, all_kinds: bool = True) -> Iterator[Sample]:
    """Three of ten from the demo model, four photographs, three synthetic; those that are missing are replaced by synthetic ones."""
    rng = random.Random(seed)
    photographs, drawn = (_pictures(PHOTOGRAPHS), _pictures(DRAWN)) if all_kinds else ([], [])
    for number in range(count):
        size = rng.choice(sizes)
        place = number % 10
        if place < 3 and drawn:
            name, image = drawn[rng.randrange(len(drawn))]
            if seed:
                image = _cut(image, rng, size)
            elif rng.random() < 0.3:
                image = image.resize((512, 512), Image.Resampling.LANCZOS)
            yield Sample("demo", f"demo-{name}", image)
        elif 3 <= place < 7 and photographs:
            name, image = photographs[(number // 10 * 4 + place - 3) % len(photographs)]
            yield Sample("photograph", name, _cut(image, rng, size))
        else:
            kind, image = synthetic(number, rng, *size)
            yield Sample(kind, f"{kind}-{number}", image)


@lru_cache(maxsize=2)
def _pictures(folder: Path) -> list[tuple[str, Picture]]:
    found: list[tuple[str, Picture]] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in {".jpg", ".jpeg", ".png"} and not any(word in path.name for word in _NO_PHOTOGRAPHS):
            try:
                with Image.open(path) as file:
                    image = file.convert("RGB")
            except OSError:
                continue
            if min(image.size) >= 250:
                found.append((path.stem, image))
    return found


def _cut(image: Picture, rng: random.Random, size: tuple[int, int]) -> Picture:
    """A part of `image` of that size, at a random scale and place, perhaps mirrored."""
    width, height = size
    least = max(width / image.width, height / image.height)
    scale = rng.uniform(least, max(least, 1.0))
    image = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.LANCZOS)
    image = _part(image, rng, width, height)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _part(image: Picture, rng: random.Random, width: int, height: int) -> Picture:
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height))


def synthetic(number: int, rng: random.Random, width: int, height: int) -> tuple[str, Picture]:
    """A gradient, flat shapes (twice as often), coloured noise, text or waves."""
    kind = ("gradient", "shapes", "shapes", "noise", "text", "waves")[number % 6]
    makers: dict[str, Callable[..., Picture]] = {"gradient": _gradient, "shapes": _shapes, "noise": _noise, "text": _text, "waves": _waves}
    return kind, makers[kind](rng, width, height)


def _colour(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(0, 255) for _ in range(3))


def _plane(width: int, height: int) -> tuple[NDArray[Any], NDArray[Any]]:
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    return x, y


def _gradient(rng: random.Random, width: int, height: int) -> Picture:
    first, last = np.array(_colour(rng)), np.array(_colour(rng))
    x, y = _plane(width, height)
    turn = rng.uniform(0, 6.3)
    share = x * np.cos(turn) + y * np.sin(turn)
    share = (share - share.min()) / np.ptp(share)
    return Image.fromarray(np.rint(first + (last - first) * share[..., None]).astype(np.uint8))


def _shapes(rng: random.Random, width: int, height: int) -> Picture:
    image = Image.new("RGB", (width * 3, height * 3), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(3, 14)):
        x, y = rng.randint(0, image.width), rng.randint(0, image.height)
        wide, high = rng.randint(10, image.width // 4), rng.randint(10, image.height // 4)
        corners = (x - wide, y - high, x + wide, y + high)
        shape = rng.randrange(3)
        if shape == 0:
            draw.ellipse(corners, fill=_colour(rng))
        elif shape == 1:
            draw.rectangle(corners, fill=_colour(rng))
        else:
            draw.polygon([(rng.randint(0, image.width), rng.randint(0, image.height)) for _ in range(3)], fill=_colour(rng))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _noise(rng: random.Random, width: int, height: int) -> Picture:
    noise = np.fft.fft2(np.random.default_rng(rng.getrandbits(32)).normal(size=(height, width, 3)), axes=(0, 1))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1 / max(width, height)
    noise = np.fft.ifft2(noise / radius[..., None] ** rng.uniform(0.6, 1.8), axes=(0, 1)).real
    return Image.fromarray(np.clip(noise / noise.std() * rng.uniform(15, 50) + rng.uniform(80, 180), 0, 255).astype(np.uint8))


def _text(rng: random.Random, width: int, height: int) -> Picture:
    pairs = (("#ffffff", "#000000"), ("#faf5e6", "#281e14"), ("#14141e", "#dcdcdc"), ("#ffffff", "#1e3ca0"))
    ground, ink = rng.choice(pairs)
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    size = rng.choice([12, 16, 24, 40])
    for top in range(8, height, int(size * 1.5)):
        words = ("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9))) for _ in range(40))
        draw.text((8, top), " ".join(words), fill=ink, font=ImageFont.load_default(size))
    return image


def _waves(rng: random.Random, width: int, height: int) -> Picture:
    x, y = _plane(width, height)
    waves = np.sin(x * rng.uniform(5, 60) + rng.uniform(0, 6)) + np.sin(y * rng.uniform(5, 60)) + np.sin((x + y) * rng.uniform(5, 90))
    channels = [128 + rng.uniform(10, 40) * waves + rng.uniform(-60, 60) for _ in range(3)]
    return Image.fromarray(np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8))


def compressed(image: Picture, kind: str, quality: int = 75) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def resized(image: Picture, factor: float) -> Picture:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def cropped(image: Picture, rng: random.Random, share: float) -> Picture:
    """`share` of each side, anywhere."""
    return _part(image, rng, round(image.width * share), round(image.height * share))


def noisy(image: Picture, rng: random.Random, share: float) -> Picture:
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 255 * share, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.rint(np.asarray(image) + noise), 0, 255).astype(np.uint8))


ATTACKS: dict[str, Callable[[Picture, random.Random], Picture]] = {
    "nothing": lambda image, _: image,
    "JPEG 75": lambda image, _: compressed(image, "JPEG"),
    "WebP 75": lambda image, _: compressed(image, "WEBP"),
    "resized to 0.5": lambda image, _: resized(image, 0.5),
    "resized to 2.0": lambda image, _: resized(image, 2.0),
    "resized, 0.5 to 2.0 at random": lambda image, rng: resized(image, rng.uniform(0.5, 2)),
    "20 % of the area cropped away": lambda image, rng: cropped(image, rng, 0.8**0.5),
    "20 % of each side cropped away": lambda image, rng: cropped(image, rng, 0.8),
    "brightness + 20 %": lambda image, _: ImageEnhance.Brightness(image).enhance(1.2),
    "brightness − 20 %": lambda image, _: ImageEnhance.Brightness(image).enhance(0.8),
    "contrast + 20 %": lambda image, _: ImageEnhance.Contrast(image).enhance(1.2),
    "contrast − 20 %": lambda image, _: ImageEnhance.Contrast(image).enhance(0.8),
    "Gaussian noise, 2 %": lambda image, rng: noisy(image, rng, 0.02),
    "Gaussian blur, radius 1": lambda image, _: image.filter(ImageFilter.GaussianBlur(1)),
    "turned by 1°": lambda image, rng: image.rotate(rng.choice([-1, 1]), Image.Resampling.BICUBIC),
    "resized to 0.75, then JPEG 75": lambda image, _: compressed(resized(image, 0.75), "JPEG"),
}
