"""The report on every layer of a bundle: `report.json` and its plot `report.svg`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...models.manifest import Manifest
from ..graphs import save
from ..passes import contrib_functions
from .lower_precision import Lowered
from .quantize import Row
from .recipe import Kind

JSON, SVG = "report.json", "report.svg"
COLOURS: Mapping[Kind, str] = MappingProxyType(
    {"int4": "#8250df", "int8": "#0969da", "weights": "#1a7f37", "half": "#bf8700", "float": "#cf222e"}
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 960, 300, 48, 44, 24


def write_to(bundle: Path, floats: Path, manifest: Manifest, lowered: Mapping[str, Lowered]) -> None:
    """Write the report on the components of `manifest` into the folder `bundle`; graphs that stayed float32 are still in `floats`.

    The same components give the same bytes.
    """
    facts = {"components": {name: _component(name, bundle, floats, manifest, lowered.get(name)) for name in manifest.components}}
    (bundle / JSON).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    plotted = {name: result for name, result in lowered.items() if any(row.effect is not None for row in result.rows)}
    if plotted:
        (bundle / SVG).write_text(_plot(plotted), "utf-8")


def _component(name: str, bundle: Path, floats: Path, manifest: Manifest, lowered: Lowered | None) -> dict[str, Any]:
    component = manifest.components[name]
    folder = (floats if component.precision == "fp32" else bundle) / name
    facts: dict[str, Any] = {
        "precision": component.precision,
        "bytes": sum((folder / file).stat().st_size for file in (save.GRAPH, save.DATA) if (folder / file).is_file()),
        "parity_db": component.parity_db,
    }
    functions = contrib_functions.names(folder / save.GRAPH)
    if functions:
        facts["judged_as_functions"] = functions
    if lowered is not None and lowered.note:
        facts["note"] = lowered.note
    if lowered is not None and lowered.rows:
        facts["kinds"] = _totals(lowered.rows)
        facts["layers"] = [_layer(row) for row in lowered.rows]
    return facts


def _totals(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Return the number of layers and their bytes, by precision."""
    by_kind = {kind: [row for row in rows if row.kind == kind] for kind in COLOURS}
    return {kind: {"layers": len(same), "bytes": sum(row.bytes for row in same)} for kind, same in by_kind.items() if same}


def _layer(row: Row) -> dict[str, Any]:
    facts: dict[str, Any] = {"layer": row.layer, "kind": row.kind, "bytes": row.bytes}
    optional = {"snr_db": row.snr, "effect_db": row.effect, "recipe": row.recipe}
    return facts | {name: value for name, value in optional.items() if value is not None}


def _plot(lowered: Mapping[str, Lowered]) -> str:
    """Return an SVG image with a panel per component: for each layer, the SNR of the output if only this layer is quantized."""
    height = len(lowered) * _HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number, (name, result) in enumerate(lowered.items()):
        lines += [f'<g transform="translate(0 {number * _HEIGHT})">', *_panel(name, result), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def _panel(name: str, lowered: Lowered) -> list[str]:
    measured = [row for row in lowered.rows if row.effect is not None]
    component = lowered.component
    title = f"{name}: {component.precision}, {component.parity_db} dB. SNR of the output if one layer alone is quantized, in dB"
    lines = [f'<text x="{_LEFT}" y="16" font-size="13">{escape(title)}</text>']
    return [*lines, *_legend(measured), *_points(measured)]


def _legend(rows: Sequence[Row]) -> list[str]:
    """Return the colours of the precisions that `rows` have."""
    lines: list[str] = []
    shown = [(kind, colour) for kind, colour in COLOURS.items() if any(row.kind == kind for row in rows)]
    for number, (kind, colour) in enumerate(shown):
        lines.append(f'<rect x="{_LEFT + 90 * number}" y="24" width="9" height="9" fill="{colour}"/>')
        lines.append(f'<text x="{_LEFT + 90 * number + 13}" y="33">{kind}</text>')
    return lines


def _points(rows: Sequence[Row]) -> list[str]:
    """Return the axis in dB and a point per layer, from left to right; a ring marks a layer that left the recipe."""
    high = max(40.0, *(row.effect or 0.0 for row in rows))
    low = min(20.0, *(row.effect or 0.0 for row in rows))
    low, high = low // 10 * 10, -(-high // 10) * 10

    def y(db: float) -> float:
        return _HEIGHT - _BOTTOM - (db - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    lines = [
        f'<path d="M{_LEFT} {y(db):.1f}H{_WIDTH - 12}" stroke="#ddd"/><text x="14" y="{y(db) + 4:.1f}">{db}</text>'
        for db in range(int(low), int(high) + 1, 10)
    ]
    step = (_WIDTH - _LEFT - 12) / len(rows)
    for number, row in enumerate(rows):
        x, effect = _LEFT + (number + 0.5) * step, row.effect or 0.0
        style = f' stroke="{COLOURS[row.kind]}" fill="#fff"' if row.recipe else f' fill="{COLOURS[row.kind]}"'
        tooltip = escape(f"{row.layer}: {row.recipe + ' → ' if row.recipe else ''}{row.kind}, {effect} dB, {row.bytes} bytes")
        lines.append(f'<circle cx="{x:.1f}" cy="{y(effect):.1f}" r="3"{style}><title>{tooltip}</title></circle>')
    return lines
