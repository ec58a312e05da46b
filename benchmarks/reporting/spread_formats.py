"""A report of groups as a table, Markdown, CSV or JSON, all from the same numbers."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from ..quality.prompt_fidelity import labels
from ..quality.spread import EVERYTHING, JUDGED, MEASURES, SHARES, Group, Mean, Measured, SpreadReport
from . import spread_plot
from .formats import NOTHING

_LISTED = 5
"""Failures of a kind, and cells, that are listed for each bundle."""
_DECIMALS = MappingProxyType({"variety": 3, "brightness": 3, "saturation": 3, "detail": 4})


def text(report: SpreadReport) -> str:
    """The report for a terminal."""
    lines = _table(report)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    left = 1 + (len(report.measured) > 1)
    table = [
        "  ".join(f"{cell:{'<' if column < left else '>'}{width}}" for column, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in table), *remarks(report)])


def markdown(report: SpreadReport) -> str:
    """The report as a table and a list of remarks."""
    head, *lines = _table(report)
    left = 1 + (len(report.measured) > 1)
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    cells = [head, rule, *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in cells), "", *(f"* {line}" for line in remarks(report))]) + "\n"


def _table(report: SpreadReport) -> list[list[str]]:
    """Heading and one line for each group and bundle, groups together."""
    several = len(report.measured) > 1
    shown = [name for name in MEASURES if any(name in group.measures for one in report.measured for group in one.groups)]
    lines = [["group", *(["bundle"] if several else []), "prompts", "images", *shown]]
    for place, group in enumerate(report.measured[0].groups if report.measured else ()):
        for one in report.measured:
            found = one.groups[place]
            cells = [cell(name, found.measures.get(name)) for name in shown]
            lines.append([name_of(group), *([one.label] if several else []), str(found.prompts), str(found.images), *cells])
    return lines


def name_of(group: Group) -> str:
    """A group as tables write it."""
    return group.name if (group.name, group.value) == EVERYTHING else f"{group.name}: {group.value}"


def cell(name: str, found: Mean | None, *, sign: str = "") -> str:
    """A measure with half of its interval, or with both of its ends if it is a share."""
    if found is None:
        return NOTHING
    form = f"{sign}.1%" if name in SHARES else f"{sign}.{_DECIMALS[name]}f"
    if found.low is None or found.high is None:
        return f"{found.mean:{form}}"
    if name in SHARES:
        return f"{found.mean:{form}} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"
    return f"{found.mean:{form}} ± {(found.high - found.low) / 2:.{_DECIMALS[name]}f}"


def remarks(report: SpreadReport) -> list[str]:
    """Remarks below the numbers, one a line: where it ran, the widest gaps, common failures, differences between bundles."""
    machine = report.machine
    asked = f"{report.prompts} prompts, each with {spread_plot.seeds(report)} from {report.seeds[0]}"
    lines = [
        f"{report.date[:10]}, {machine.processor}, {machine.cores} cores, {report.made_by}, {asked}",
        "[ ] and ± are 95 % intervals over prompts; the more groups are compared, the more of them lie apart by chance",
    ]
    for one in report.measured:
        where = f"{one.model_name} {one.precision}, {one.provider}, {one.steps} steps, speed {one.speed}"
        unchecked = "; no safety checker, so nothing is flagged" if one.safety == "none" else ""
        lines.append(f"{one.label}: {where}, {one.seconds:.2f} s an image{unchecked}")
        lines += [f"{one.label}: {line}" for line in (*_gaps(one), *_failures(one), *_differences(one), *one.notes)]
    if any(part in group.measures for one in report.measured for group in one.groups for part in JUDGED):
        own = ", ".join(f"{how} {shares['subject']:.1%}" for how, shares in labels().accuracy.items())
        lines.append(f"the judge's own accuracy on real drawings, subject: {own}")
    if not report.complete:
        lines.append("not complete: there is more to measure")
    return lines


def _gaps(one: Measured) -> list[str]:
    """For each kind of group, the lowest and the highest share of what should not depend on it, where their intervals lie apart."""
    lines: list[str] = []
    for name in dict.fromkeys(group.name for group in one.groups[1:]):
        for measure in MEASURES:
            found = [(group.measures[measure], group.value) for group in one.groups if group.name == name and measure in group.measures]
            if len(found) < 2:
                continue
            (least, low), (most, high) = min(found, key=_by_mean), max(found, key=_by_mean)
            if least.high is not None and most.low is not None and least.high < most.low:
                lines.append(f"{measure} differs by {name}, from {cell(measure, least)} ({low}) to {cell(measure, most)} ({high})")
    return lines


def _by_mean(found: tuple[Mean, str]) -> float:
    return found[0].mean


def _failures(one: Measured) -> list[str]:
    """How often the judge saw something else, by part, and the commonest mistakes."""
    lines: list[str] = []
    for part in JUDGED:
        counted = Counter((failure.expected, failure.seen) for failure in one.failures if failure.part == part)
        if counted:
            listed = ", ".join(f"{expected} as {seen} ({number})" for (expected, seen), number in counted.most_common(_LISTED))
            lines.append(f"another {part} than expected in {counted.total()} of the images, most often {listed}")
    return lines


def _differences(one: Measured) -> list[str]:
    """What differs from the first bundle, over everything, and in which groups the interval excludes zero."""
    if not one.differences:
        return []
    whole, *rest = one.differences
    listed = ", ".join(f"{name} {_difference(name, found)}" for name, found in whole.measures.items())
    cells = [(f"{name_of(group)}, {name}", name, found) for group in rest for name, found in group.measures.items()]
    known = [
        (where, name, found, found.low, found.high) for where, name, found in cells if found.low is not None and found.high is not None
    ]
    apart = [f"{where} {_difference(name, found)}" for where, name, found, low, high in known if low > 0 or high < 0]
    more = ["…"] if len(apart) > _LISTED else []
    groups = f"the interval excludes zero in {len(apart)} of {len(known)} cells (by chance: {0.05 * len(known):.0f})"
    return [f"minus the first, prompt by prompt: {listed}", "; ".join([groups, *apart[:_LISTED], *more])]


def _difference(name: str, found: Mean) -> str:
    """A difference with its interval; none where all prompts are equal."""
    return "equal" if found.low == found.high == 0 else cell(name, found, sign="+")


def as_csv(report: SpreadReport) -> str:
    """One line for each group and bundle, each measure with `_low` and `_high`, and with `_difference` from the first bundle."""
    rows = [row for one in report.measured for row in _rows(one)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _rows(one: Measured) -> list[dict[str, str | int | float | None]]:
    found: list[dict[str, str | int | float | None]] = []
    for place, group in enumerate(one.groups):
        row: dict[str, str | int | float | None] = {"bundle": one.label, "model_name": one.model_name, "precision": one.precision}
        row |= {"group": group.name, "value": group.value, "prompts": group.prompts, "images": group.images}
        for name, measured in group.measures.items():
            row |= {name: measured.mean, f"{name}_low": measured.low, f"{name}_high": measured.high}
        if one.differences:
            row |= {f"{name}_difference": measured.mean for name, measured in one.differences[place].measures.items()}
        found.append(row)
    return found


def as_json(report: SpreadReport) -> str:
    """Everything, each failure included: `quality.spread.SpreadReport` by its field names."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


FORMS: Mapping[str, Callable[[SpreadReport], str]] = MappingProxyType(
    {"text": text, "json": as_json, "csv": as_csv, "markdown": markdown, "plot": spread_plot.svg}
)
