"""Plots of a report, written as SVG by hand: latency by component, memory over time, and time against fidelity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..quality.image_metrics import EQUAL
from ..results import Report, Row
from .svg_shapes import COLOURS, WIDTH, box, figure, path, scale, text

_LEFT, _RIGHT, _LINE = 300, 80, 22
_COMPONENTS = {"text_encoder": "text encoder", "unet": "U-Net", "vae_decoder": "VAE decoder"}


KINDS = ("latency", "memory", "pareto")
ALIKE = 60.0
"""PSNR in dB above which images look equal; the plot ends there."""


class Point(NamedTuple):
    """A row in the plot of time against fidelity."""

    seconds: float
    fidelity: float
    name: str


def svg(report: Report, kinds: Sequence[str] = KINDS) -> str:
    """The plots of `kinds` that `report` has numbers for, one below the other."""
    rows = [row for row in report.rows if row.latency is not None and not row.error]
    names = _names(rows)
    drawers: dict[str, Callable[[Sequence[Row], Sequence[str]], _Panel | None]]
    drawers = dict(zip(KINDS, (_latency, _memory, _pareto), strict=True))
    panels = [panel for kind in kinds if (panel := drawers[kind](rows, names)) is not None]
    height = sum(panel.height for panel in panels) + 40
    machine = f"{report.date[:10]}, {report.machine.processor}, {report.machine.cores} cores, {report.made_by}"
    noisy = "; noisy machine: do not compare seconds" if report.noise.reasons else ""
    parts: list[str] = []
    top = 10
    for panel in panels:
        parts += [f'<g transform="translate(0 {top})">', *panel.parts, "</g>"]
        top += panel.height
    return figure(height, [*parts, text(10, height - 12, machine + noisy, size=11)])


class _Panel(NamedTuple):
    height: int
    parts: list[str]


def _latency(rows: Sequence[Row], names: Sequence[str]) -> _Panel | None:
    """Bars: the median of a request, cut into its components; what is left is between them."""
    if not rows:
        return None
    longest = max(_median(row) for row in rows)
    across = scale(0.0, longest, _LEFT, WIDTH - _RIGHT)
    parts = [text(10, 16, "Seconds a request, median, by component", weight="bold")]
    kinds = [*_COMPONENTS.values(), "between them"]
    for index, kind in enumerate(kinds):
        parts += [box(_LEFT + 130 * index, 26, 10, 10, COLOURS[index]), text(_LEFT + 130 * index + 14, 35, kind, size=11)]
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        top, start = 46 + number * _LINE, 0.0
        parts.append(text(_LEFT - 8, top + 12, name, anchor="end", size=12))
        shares = [row.components[key].latency.p50 if key in row.components else 0.0 for key in _COMPONENTS]
        for index, seconds in enumerate([*shares, max(0.0, _median(row) - sum(shares))]):
            end = min(start + seconds, _median(row))
            parts.append(box(across(start), top, across(end) - across(start), _LINE - 7, COLOURS[index]))
            start = end
        parts.append(text(across(_median(row)) + 6, top + 12, f"{_median(row):.3g}", size=12))
    return _Panel(46 + len(rows) * _LINE + 30, parts)


def _memory(rows: Sequence[Row], names: Sequence[str]) -> _Panel | None:
    """Lines: resident memory since the start of the process; dotted: the part that cannot be dropped."""
    found = [(row, name) for row, name in zip(rows, names, strict=True) if len(row.memory_over_time) > 1]
    if not found:
        return None
    bottom, top = 250, 40
    across = scale(0.0, max(row.memory_over_time[-1][0] for row, _ in found), 60, WIDTH - _LEFT)
    up = scale(0.0, max(rss for row, _ in found for _, rss, _ in row.memory_over_time), bottom, top)
    parts = [text(10, 16, "Memory over time: resident, and dotted anonymous", weight="bold"), *_axes(across, up, 60, bottom, top)]
    for number, (row, name) in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(path([(across(at), up(rss)) for at, rss, _ in row.memory_over_time], colour))
        parts.append(path([(across(at), up(used)) for at, _, used in row.memory_over_time if used is not None], colour, dashed=True))
        parts += [
            box(WIDTH - _LEFT + 16, top + 18 * number, 10, 10, colour),
            text(WIDTH - _LEFT + 30, top + 9 + 18 * number, name, size=11),
        ]
    return _Panel(max(bottom, top + 18 * len(found)) + 50, parts)


def _axes(across: Callable[[float], float], up: Callable[[float], float], left: int, bottom: int, top: int) -> list[str]:
    """Lines at the largest value, half of it and nothing, in megabytes, and the length of the time."""
    largest, longest = _inverse(up, top, bottom), _inverse(across, WIDTH - _LEFT, left)
    parts: list[str] = []
    for value in (0.0, largest / 2, largest):
        parts.append(f'<path d="M{left} {up(value):.1f}H{WIDTH - _LEFT}" stroke="#ddd"/>')
        parts.append(text(left - 6, up(value) + 4, f"{value / 1e6:.0f} MB", anchor="end", size=10))
    return [*parts, text(left, bottom + 16, "0 s", size=11), text(WIDTH - _LEFT, bottom + 16, f"{longest:.3g} s", anchor="end", size=11)]


def _pareto(rows: Sequence[Row], names: Sequence[str]) -> _Panel | None:
    """Points: seconds a request against fidelity; the line joins those that nothing beats in both."""
    points, what = points_of(rows, names)
    if len(points) < 2:
        return None
    left, bottom, top = 60, 250, 40
    heights = [min(point.fidelity, ALIKE) for point in points]
    low, high = min(heights), max(heights)
    slowest = max(point.seconds for point in points)
    across = scale(0.0, 1.05 * slowest, left, WIDTH - _LEFT)
    margin = 0.1 * (high - low) or 1.0
    up = scale(low - margin, high + margin, bottom, top)
    parts = [text(10, 16, f"Time against fidelity ({what}); up and left is better", weight="bold")]
    parts += [f'<path d="M{left} {top}V{bottom}H{WIDTH - _LEFT}" stroke="#999" fill="none"/>']
    for value in dict.fromkeys((low, high)):
        parts.append(text(left - 6, up(value) + 4, f"{'≥ ' if value == ALIKE else ''}{value:.4g}", anchor="end", size=11))
    best = front(points)
    parts.append(path([(across(point.seconds), up(min(point.fidelity, ALIKE))) for point in best], "#bbb"))
    for number, (point, height) in enumerate(zip(points, heights, strict=True)):
        colour, x, y = COLOURS[number % len(COLOURS)], across(point.seconds), up(height)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}" fill-opacity="{1 if point in best else 0.4}"/>')
        parts += [box(WIDTH - _LEFT + 16, top + 18 * number, 10, 10, colour)]
        parts += [text(WIDTH - _LEFT + 30, top + 9 + 18 * number, f"{point.name}: {_told(point.fidelity)}", size=11)]
    parts.append(text(left, bottom + 16, "0 s", size=11))
    parts += [text(WIDTH - _LEFT, bottom + 16, f"{1.05 * slowest:.3g} s a request", anchor="end", size=11)]
    return _Panel(max(bottom, top + 18 * len(points)) + 50, parts)


def _told(fidelity: float) -> str:
    return "equal" if fidelity == EQUAL else f"{fidelity:.4g}"


def points_of(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[Point], str]:
    """Time and fidelity of each row that has both, by the first measure that two rows or more have, and its name."""
    measures: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
        (
            "PSNR in dB on the demo model, to diffusers in float32",
            lambda row: None if row.likened_demo is None else row.likened_demo.likeness.psnr,
        ),
        ("PSNR in dB to another engine's image", lambda row: None if row.likened is None else row.likened.likeness.psnr),
        ("PSNR in dB to the reference", lambda row: None if row.fidelity is None else sum(row.fidelity.psnr) / len(row.fidelity.psnr)),
        ("share of images that show what was asked", lambda row: None if row.judged is None else row.judged.subject),
    )
    for what, measure in measures:
        found = [(row, name, measure(row)) for row, name in zip(rows, names, strict=True)]
        points = [Point(_median(row), value, name) for row, name, value in found if value is not None]
        if len(points) > 1:
            return points, what
    return [], ""


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in time without losing fidelity, by time."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.seconds, -one.fidelity)):
        if not best or point.fidelity > best[-1].fidelity:
            best.append(point)
    return best


def _names(rows: Sequence[Row]) -> list[str]:
    """Short labels that distinguish the rows."""
    sides: tuple[Callable[[Row], str], ...] = (
        lambda row: row.engine,
        lambda row: row.model_name if row.engine == "diffusette" else "",
        lambda row: row.precision,
        lambda row: row.provider if row.engine == "diffusette" else "",
        lambda row: row.memory,
        lambda row: f"{row.threads} threads",
        lambda row: f"{row.width}×{row.height}",
        lambda row: f"{row.steps} steps",
        lambda row: f"× {row.count}",
        lambda row: row.speed if row.engine == "diffusette" else "",
    )
    telling = [side for side in sides if len({side(row) for row in rows} - {""}) > 1] or [sides[0], sides[2]]
    return [" ".join(word for word in (side(row) for side in telling) if word) for row in rows]


def _median(row: Row) -> float:
    assert row.latency is not None
    return row.latency.p50


def _inverse(scale: Callable[[float], float], position: float, origin: float) -> float:
    """The value at `position` of a scale that has 0 at `origin`."""
    return (position - origin) / (scale(1.0) - origin)
