"""The shapes of figures that are written as SVG by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

WIDTH = 920
"""Units across a figure."""
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
"""Colours that colour-blind readers can distinguish (Observable 10)."""


def figure(height: int, parts: Sequence[str]) -> str:
    """An SVG file of `WIDTH` × `height` units on white with `parts` in it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" fill="#222">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>"]) + "\n"


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The straight line that takes `low` to `start` and `high` to `end`."""
    return lambda value: start + (value - low) / (high - low or 1.0) * (end - start)


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 13, weight: str = "normal") -> str:
    """`words` at (x, y), their baseline; `anchor` is start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A filled rectangle; (x, y) is its upper left corner."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{height}" fill="{colour}"/>'


def path(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    """A line through `points`."""
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = ' stroke-dasharray="2 3"' if dashed else ""
    return f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.5"{dots}/>'
