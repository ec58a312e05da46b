"""A report as a table, Markdown, CSV or JSON, all from the same numbers."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import msgspec

from ...models.errors import RequestError
from ...models.formats.atomic_file import replace_file
from .. import profiles
from ..measure.statistics import Ratio
from ..quality import prompt_fidelity
from ..quality.fidelity import Fidelity
from ..results import Report, Row, Scalar, flat
from . import plots

Found = TypeVar("Found")
NOTHING = "–"
Column = tuple[str, str, Callable[[Mapping[str, Scalar]], str]]
"""Heading, alignment ("<" or ">"), and the text of a cell from a flat row."""


def _text(name: str) -> Callable[[Mapping[str, Scalar]], str]:
    return lambda cells: "" if cells.get(name) is None else str(cells[name])


def _number(name: str, form: str, factor: float = 1.0) -> Callable[[Mapping[str, Scalar]], str]:
    def show(cells: Mapping[str, Scalar]) -> str:
        value = cells.get(name)
        return format(value * factor, form) if isinstance(value, int | float) else NOTHING

    return show


def _step(cells: Mapping[str, Scalar]) -> str:
    """The U-Net's part of a step: one call or two."""
    total, steps = cells.get("unet_latency_p50"), cells.get("steps")
    return f"{1e3 * total / steps:.1f}" if isinstance(total, int | float) and isinstance(steps, int) and steps else NOTHING


COLUMNS: tuple[Column, ...] = (
    ("engine", "<", _text("engine")),
    ("model_name", "<", _text("model_name")),
    ("folder", "<", lambda cells: Path(str(cells["folder"])).name if cells["engine"] == "diffusette" else ""),
    ("precision", "<", _text("precision")),
    ("provider", "<", _text("provider")),
    ("memory", "<", _text("memory")),
    ("threads", ">", lambda cells: str(cells["threads"] or "auto")),
    ("size", "<", lambda cells: "default" if cells["width"] is None else f"{cells['width']}×{cells['height']}"),
    ("steps", ">", _text("steps")),
    ("count", ">", _text("count")),
    ("speed", "<", _text("speed")),
    ("start s", ">", _number("start_latency", ".2f")),
    ("first s", ">", _number("first_latency", ".3f")),
    ("p50 s", ">", _number("latency_p50", ".3f")),
    ("p90 s", ">", _number("latency_p90", ".3f")),
    ("p99 s", ">", _number("latency_p99", ".3f")),
    ("stdev %", ">", _number("latency_stdev_", ".1f")),
    ("text ms", ">", _number("text_encoder_latency_p50", ".1f", 1e3)),
    ("U-Net call ms", ">", _number("unet_call_latency_p50", ".1f", 1e3)),
    ("step ms", ">", _step),
    ("VAE ms", ">", _number("vae_decoder_latency_p50", ".1f", 1e3)),
    ("images/min", ">", _number("throughput", ".2f", 60.0)),
    ("RAM MB", ">", _number("max_ram", ".0f", 1e-6)),
    ("anonymous MB", ">", _number("max_anonymous", ".0f", 1e-6)),
)
"""Columns of the table and of Markdown; CSV and JSON have everything."""
_SOMETIMES: tuple[Column, ...] = (
    ("VRAM MB", ">", _number("max_vram", ".0f", 1e-6)),
    ("cold first s", ">", _number("cold_first_latency", ".3f")),
    ("PSNR dB", ">", _number("fidelity_psnr", ".1f")),
    ("GMSD", ">", _number("fidelity_gmsd", ".4f")),
    ("PSNR to rival", ">", _number("likened_psnr", ".1f")),
    ("PSNR on demo", ">", _number("likened_demo_psnr", ".1f")),
    ("subject", ">", _number("judged_subject", ".1%")),
    ("style", ">", _number("judged_style", ".1%")),
    ("background", ">", _number("judged_background", ".1%")),
)
"""Shown where some row has it."""
_ALWAYS = 11
"""Columns before this one move to a line above the table if all rows have the same value."""


def text(report: Report) -> str:
    """The report for a terminal."""
    rows = [flat(row) for row in report.rows]
    told, shown = _split(rows)
    cells = [[heading for heading, _, _ in shown], *([show(row) for _, _, show in shown] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(shown))]
    table = [
        "  ".join(f"{cell:{side}{width}}" for cell, width, (_, side, _) in zip(line, widths, shown, strict=True)).rstrip() for line in cells
    ]
    return "\n".join([*([", ".join(told)] if told else []), *table, *remarks(report)])


def markdown(report: Report, wanted: Sequence[str] | None = None) -> str:
    """The report as a table, of the headings `wanted` or of all, and a list of remarks."""
    rows = [flat(row) for row in report.rows]
    told, shown = _split(rows)
    shown = [column for column in shown if wanted is None or column[0] in wanted]
    lines = [[heading for heading, _, _ in shown], ["---:" if side == ">" else "---" for _, side, _ in shown]]
    lines += [[show(row).replace("|", "\\|") for _, _, show in shown] for row in rows]
    machine = report.machine
    where = f"{report.date[:10]}, {machine.processor}, {machine.cores} cores, {report.made_by}"
    listed = [f"* {line}" for line in (where, *([", ".join(told)] if told else []), *remarks(report))]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", *listed]) + "\n"


def _split(rows: Sequence[Mapping[str, Scalar]]) -> tuple[list[str], list[Column]]:
    """Values that all rows share, in words, and the remaining columns."""
    told: list[str] = []
    shown: list[Column] = []
    extra = [column for column in _SOMETIMES if any(column[2](row) != NOTHING for row in rows)]
    for place, (heading, side, show) in enumerate((*COLUMNS, *extra)):
        values = {show(row) for row in rows}
        if place < _ALWAYS and len(values) == 1:
            told += [f"{heading} {value}" for value in values if value]
        else:
            shown.append((heading, side, show))
    return told, shown


def remarks(report: Report) -> list[str]:
    """Remarks below the numbers, one per line: errors, comparisons, fidelity, noise, completeness."""
    failed: dict[str, list[str]] = {}
    for row in report.rows:
        if row.error:
            failed.setdefault(row.error, []).append(_name(row))
    lines = [f"not measured: {', '.join(names)}: {error}" for error, names in failed.items()]
    lines += _comparisons(report)
    seen: list[Fidelity] = []
    for row in report.rows:
        if row.fidelity is not None and row.fidelity not in seen:
            seen.append(row.fidelity)
            lines += _fidelity(row.fidelity)
    lines += _judged(report)
    likened = [row.likened.to for row in report.rows if row.likened is not None]
    lines += [f"PSNR to rival: the same prompt and noise, generated by {to}; 200 stands for equal" for to in dict.fromkeys(likened)]
    demo = [row.likened_demo.to for row in report.rows if row.likened_demo is not None]
    lines += [f"PSNR on demo: likewise with the demo model, the mean of a few images, against {to}" for to in dict.fromkeys(demo)]
    lines += [line for row in report.rows if report.profile for line in profiles.remarks(report.profile, row)]
    lines += report.advice
    lines += [f"note: {note}" for note in dict.fromkeys(note for row in report.rows for note in row.notes)]
    if report.noise.reasons:
        lines.append(f"noisy machine, seconds of different rows are not to be compared: {'; '.join(report.noise.reasons)}")
    if not report.complete:
        lines.append("not complete: there is more to measure")
    return lines


def _comparisons(report: Report) -> list[str]:
    """Each ratio, and what is not compared, one line a reason."""
    lines: list[str] = []
    refused: dict[str, list[str]] = {}
    for one in report.comparisons:
        settings = f"{one.provider}, {one.memory}, {one.steps} steps"
        if one.latency is None:
            refused.setdefault(one.refused, []).append(f"{one.versus} ({settings})")
        else:
            ratio = one.latency
            parts = "".join(f"; {name} {_ratio(found)}" for name, found in one.components.items())
            note = f"; {one.note}" if one.note else ""
            lines.append(
                f"{one.model_name} takes {_ratio(ratio)} × the time of {one.versus}{parts} "
                f"({settings}; ratios with their 95 % interval, {ratio.pairs} pairs{note})"
            )
    return [*lines, *(f"no comparison with {', '.join(names)}: {reason}" for reason, names in refused.items())]


def _ratio(found: Ratio) -> str:
    return f"{found.ratio:.3g} [{found.low:.3g}, {found.high:.3g}]"


def _name(row: Row) -> str:
    if row.engine != "diffusette":
        return f"{row.engine} {row.precision}"
    speed = "" if row.speed == "exact" else f", {row.speed}"
    return f"{row.folder or row.engine} on {row.provider}, {row.memory}{speed}"


def _judged(report: Report) -> list[str]:
    """The judge's result, and its own accuracy."""
    found = [row.judged for row in report.rows if row.judged is not None]
    if not found:
        return []
    accuracy = ", ".join(f"{how} {share['subject']:.1%}" for how, share in prompt_fidelity.labels().accuracy.items())
    lines = [f"the judge's own accuracy on real drawings, subject: {accuracy}"]
    return [f"prompt fidelity over {found[0].pictures} images: shares that show the subject, style and background asked for", *lines]


def _fidelity(found: Fidelity) -> list[str]:
    pictures = (
        f"fidelity to {found.reference} ({found.reference_precision}), {found.width}×{found.height}, {found.steps} steps, "
        f"{len(found.seeds)} seeds: PSNR {sum(found.psnr) / len(found.psnr):.1f} dB (worst {min(found.psnr):.1f}), "
        f"SSIM {sum(found.ssim) / len(found.ssim):.4f} (worst {min(found.ssim):.4f}), "
        f"GMSD {sum(found.gmsd) / len(found.gmsd):.4f} (worst {max(found.gmsd):.4f})"
    )
    components = ", ".join(f"{name} {db:.1f} dB" for name, db in found.components.items())
    return [pictures, f"SNR of components on the same inputs, worst call: {components}"]


def as_csv(report: Report) -> str:
    """One line a row, every number with its name; `noisy` says whether the numbers can be trusted."""
    rows = [{**flat(row), "noisy": bool(report.noise.reasons)} for row in report.rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_json(report: Report) -> str:
    """Everything, raw timings included: `results.Report` by its field names."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


FORMS: Mapping[str, Callable[[Report], str]] = MappingProxyType(
    {"text": text, "json": as_json, "csv": as_csv, "markdown": markdown, "plot": plots.svg}
)


def keeper(files: Mapping[str, Path | None], forms: Mapping[str, Callable[[Found], str]]) -> Callable[[Found], None]:
    """A function that writes a report into `files` (form → path), as `forms` write it, each whole or not at all.

    Raises:
        RequestError: a file cannot be written; raised now, not after an hour of measuring.
    """
    wanted = {form: path for form, path in files.items() if path is not None}
    for path in wanted.values():
        check(path)

    def keep(report: Found) -> None:
        for form, path in wanted.items():
            replace_file(path, forms[form](report).encode())

    return keep


def check(path: Path) -> None:
    """Refuse a file that cannot be written before anything is measured.

    Raises:
        RequestError: a folder, or in none that exists and can be written.
    """
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise RequestError(f"{path}: cannot be written: expected the name of a file in a folder that exists")
