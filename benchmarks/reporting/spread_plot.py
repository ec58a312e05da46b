"""The figure of a report of groups: a row for each group, a column for each measure, means with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..quality.spread import EVERYTHING, MEASURES, SHARES, Group, Mean, Measured, SpreadReport
from .svg_shapes import COLOURS, WIDTH, box, figure, path, scale, text

COLUMNS = 5
"""Measures that fit beside each other; the first ones of `MEASURES` that vary."""
_LEFT, _LINE, _TOP, _GAP = 190, 18, 64, 14


def svg(report: SpreadReport) -> str:
    """The figure; bundles have a colour each, and a grey line marks the first bundle's mean over everything."""
    measured = report.measured
    names = _shown(measured)
    rows = _rows(measured[0].groups) if measured and names else []
    if not rows:
        return figure(40, [text(10, 24, "nothing to show: no group has a measure")])
    bottom = rows[-1][1] + _LINE
    parts = [text(10, 18, "Means by group with 95 % intervals over prompts", weight="bold"), *_legend(measured)]
    parts += [_label(group, top) for group, top in rows]
    step = (WIDTH - _LEFT) / len(names)
    for column, name in enumerate(names):
        parts += _column(name, measured, rows, _LEFT + column * step, _LEFT + (column + 1) * step - 24, bottom)
    machine = f"{report.date[:10]}, {report.machine.processor}, {report.made_by}, {report.prompts} prompts, each with {seeds(report)}"
    return figure(bottom + 50, [*parts, text(10, bottom + 38, machine, size=11)])


def seeds(report: SpreadReport) -> str:
    """How many seeds each prompt had, in words."""
    return "1 seed" if len(report.seeds) == 1 else f"{len(report.seeds)} seeds"


def _shown(measured: Sequence[Measured]) -> list[str]:
    """Measures whose means are not the same in every group."""
    found: list[str] = []
    for name in MEASURES:
        means = {group.measures[name].mean for one in measured for group in one.groups if name in group.measures}
        found += [name] if len(means) > 1 else []
    return found[:COLUMNS]


def _rows(groups: Sequence[Group]) -> list[tuple[Group, int]]:
    """Each group and the top of its row, with a gap between groups of different names."""
    found: list[tuple[Group, int]] = []
    top = _TOP
    for _, members in groupby(groups, key=lambda group: group.name):
        for group in members:
            found.append((group, top))
            top += _LINE
        top += _GAP
    return found


def _label(group: Group, top: int) -> str:
    name = "everything" if (group.name, group.value) == EVERYTHING else group.value
    return text(_LEFT - 14, top + 12, name[:28], anchor="end", size=12)


def _legend(measured: Sequence[Measured]) -> list[str]:
    if len(measured) < 2:
        return []
    return [
        part
        for number, one in enumerate(measured)
        for part in (box(400 + 170 * number, 9, 10, 10, _colour(number)), text(414 + 170 * number, 18, one.label[:24], size=11))
    ]


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _column(
    name: str, measured: Sequence[Measured], rows: Sequence[tuple[Group, int]], left: float, right: float, bottom: int
) -> list[str]:
    """One measure: heading, scale, and a dot with its interval for each group and bundle."""
    ends = [end for one in measured for group in one.groups if name in group.measures for end in _ends(group.measures[name])]
    low, high = min(ends), max(ends)
    across = scale(low, high, left, right)
    form = ".0%" if name in SHARES else ".3f"
    parts = [text((left + right) / 2, 42, name, anchor="middle", weight="bold", size=12)]
    parts += [text(left, 56, f"{low:{form}}", size=10), text(right, 56, f"{high:{form}}", anchor="end", size=10)]
    whole = measured[0].groups[0].measures.get(name)
    if whole is not None:
        parts.append(f'<path d="M{across(whole.mean):.1f} {_TOP - 4}V{bottom}" stroke="#bbb"/>')
    for place, (_, top) in enumerate(rows):
        for number, one in enumerate(measured):
            found = one.groups[place].measures.get(name)
            if found is not None:
                middle = top + 8 + (number - (len(measured) - 1) / 2) * 5
                least, most = _ends(found)
                parts.append(path([(across(least), middle), (across(most), middle)], _colour(number)))
                parts.append(f'<circle cx="{across(found.mean):.1f}" cy="{middle:.1f}" r="3" fill="{_colour(number)}"/>')
    return parts


def _ends(found: Mean) -> tuple[float, float]:
    """The interval, or the mean alone."""
    return (found.mean if found.low is None else found.low, found.mean if found.high is None else found.high)
