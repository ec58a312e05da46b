"""What an export made of each layer, for people: `report.json` and a picture of it, `report.svg`, inside the bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..models.manifest import Manifest
from . import fused, write
from .lower import Lowered
from .quantize import Row
from .recipe import Kind

JSON, SVG = "report.json", "report.svg"
COLOURS: Mapping[Kind, str] = MappingProxyType(
    {"int4": "#8250df", "int8": "#0969da", "weights": "#1a7f37", "half": "#bf8700", "float": "#cf222e"}
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 960, 300, 48, 44, 24


def write_to(bundle: Path, floats: Path, made: Manifest, lowered: Mapping[str, Lowered]) -> None:
    """Writes the report on `made` into the folder `bundle`; graphs that stayed float32 are in `floats` yet.

    The same export gives the same bytes.
    """
    facts = {"components": {name: _component(name, bundle, floats, made, lowered.get(name)) for name in made.components}}
    (bundle / JSON).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    drawn = {name: one for name, one in lowered.items() if any(row.effect is not None for row in one.rows)}
    if drawn:
        (bundle / SVG).write_text(_picture(drawn), "utf-8")


def _component(name: str, bundle: Path, floats: Path, made: Manifest, lowered: Lowered | None) -> dict[str, Any]:
    component = made.components[name]
    folder = (floats if component.precision == "fp32" else bundle) / name
    facts: dict[str, Any] = {
        "precision": component.precision,
        "bytes": sum((folder / file).stat().st_size for file in (write.GRAPH, write.DATA) if (folder / file).is_file()),
        "parity_db": component.parity_db,
    }
    functions = fused.names(folder / write.GRAPH)
    if functions:
        facts["judged_as_functions"] = functions
    if lowered is not None and lowered.note:
        facts["note"] = lowered.note
    if lowered is not None and lowered.rows:
        facts["kinds"] = {
            kind: {"layers": len(rows), "bytes": sum(row.bytes for row in rows)}
            for kind in COLOURS
            if (rows := [row for row in lowered.rows if row.kind == kind])
        }
        facts["layers"] = [_layer(row) for row in lowered.rows]
    return facts


def _layer(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"layer": row.layer, "kind": row.kind, "bytes": row.bytes}
    named = {"snr_db": row.snr, "effect_db": row.effect, "recipe": row.recipe}
    return found | {name: value for name, value in named.items() if value is not None}


def _picture(drawn: Mapping[str, Lowered]) -> str:
    """One panel a component: its layers from left to right, each as high as the output's SNR if it alone were quantized."""
    height = len(drawn) * _HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for place, (name, one) in enumerate(drawn.items()):
        lines += [f'<g transform="translate(0 {place * _HEIGHT})">', *_panel(name, one), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def _panel(name: str, lowered: Lowered) -> list[str]:
    rows: Sequence[Row] = [row for row in lowered.rows if row.effect is not None]
    top = max(40.0, *(row.effect or 0.0 for row in rows))
    low = min(20.0, *(row.effect or 0.0 for row in rows))
    low, top = low // 10 * 10, -(-top // 10) * 10

    def y(db: float) -> float:
        return _HEIGHT - _BOTTOM - (db - low) / (top - low) * (_HEIGHT - _TOP - _BOTTOM)

    component = lowered.component
    title = f"{name}: {component.precision}, {component.parity_db} dB. SNR of the output if one layer alone is quantized, in dB"
    lines = [f'<text x="{_LEFT}" y="16" font-size="13">{escape(title)}</text>']
    shown = [(kind, colour) for kind, colour in COLOURS.items() if any(row.kind == kind for row in rows)]
    for number, (kind, colour) in enumerate(shown):
        lines.append(f'<rect x="{_LEFT + 90 * number}" y="24" width="9" height="9" fill="{colour}"/>')
        lines.append(f'<text x="{_LEFT + 90 * number + 13}" y="33">{kind}</text>')
    lines += [
        f'<path d="M{_LEFT} {y(db):.1f}H{_WIDTH - 12}" stroke="#ddd"/><text x="14" y="{y(db) + 4:.1f}">{db}</text>'
        for db in range(int(low), int(top) + 1, 10)
    ]
    step = (_WIDTH - _LEFT - 12) / len(rows)
    for number, row in enumerate(rows):
        x, effect = _LEFT + (number + 0.5) * step, row.effect or 0.0
        ring = f' stroke="{COLOURS[row.kind]}" fill="#fff"' if row.recipe else f' fill="{COLOURS[row.kind]}"'
        said = escape(f"{row.layer}: {row.recipe + ' → ' if row.recipe else ''}{row.kind}, {effect} dB, {row.bytes} bytes")
        lines.append(f'<circle cx="{x:.1f}" cy="{y(effect):.1f}" r="3"{ring}><title>{said}</title></circle>')
    return lines
