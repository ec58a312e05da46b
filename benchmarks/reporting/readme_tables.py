"""Tables in Markdown files, made from the JSON of `diffusette bench -o`.

Usage: `python -m diffusette.benchmarks.reporting.readme_tables README.md docs/benchmarks.md`.

A table is between `<!-- table: FILE.json -->` and `<!-- end of table -->`; FILE is in benchmarks/results/. The headings of the wanted
columns may follow the file name, separated by commas. `<!-- machine table -->` asks for the summary "will it run on my machine", and
`<!-- group table -->` for what `diffusette bench --spread` found. The plots in docs/ (`FIGURES`) are made again too. A test renders every
table and plot again, so that none states what was not measured.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec

from ...models.formats.atomic_file import replace_file
from ..quality.spread import SpreadReport
from ..results import Report
from . import formats, plots, spread_formats, spread_plot

RESULTS = Path(__file__).resolve().parents[1] / "results"
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
OURS = "diffusette"
FIGURES = {"speed.svg": ("full.json", ("pareto", "latency")), "memory.svg": ("engines.json", ("memory",))}
"""Plot → the results that it is generated from, and its kinds."""
SPREAD, SPREAD_FIGURE = "spread/demo.json", "spread.svg"
"""Results of the demo model by group, and their plot."""
MODELS = {"engines.json": ("demo model", "emoji"), "full.json": ("SD 1.5's size", "random weights")}
"""Results that the machine table shows → the model's name, and what its weights are."""
_MACHINES = re.compile(r"(<!-- machine table -->\n).*?(<!-- end of table -->)", re.DOTALL)
_GROUPS = re.compile(r"(<!-- group table -->\n).*?(<!-- end of table -->)", re.DOTALL)
_TABLE = re.compile(r"(<!-- table: (\S+\.json)(?: ([^>]*?))? -->\n).*?(<!-- end of table -->)", re.DOTALL)


def render(text: str) -> str:
    """`text` with every table in it made again."""
    text = _MACHINES.sub(lambda found: f"{found[1]}{machine_table()}{found[2]}", text)
    text = _GROUPS.sub(lambda found: f"{found[1]}{spread_formats.markdown(spread_report())}{found[2]}", text)
    return _TABLE.sub(lambda found: f"{found[1]}{table(found[2], found[3] or '')}{found[4]}", text)


def machine_table() -> str:
    """What our engine needs and how long it takes, by model and settings, on the processors of the committed results."""
    lines = [
        "| model | image | settings | disk | peak RAM | seconds per image | measured on |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for name, (model, weights) in MODELS.items():
        report = _read(name)
        processor = f"{report.machine.processor}, {report.machine.cores} cores"
        for row in report.rows:
            if row.engine != OURS or row.latency is None or row.max_ram is None:
                continue
            bundle = ROOT / row.folder if row.folder else None
            size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) if bundle and bundle.is_dir() else None
            settings = f"{row.precision}, {row.provider}, {row.memory}, {row.speed}"
            lines.append(
                f"| {model} ({weights}) | {row.width}×{row.height}, {row.steps} steps | {settings} | {_mb(size)} | {_mb(row.max_ram)} "
                f"| {row.latency.p50:.3g} | {processor} |"
            )
    return "\n".join(lines) + "\n"


def _mb(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:,.0f} MB"


def table(name: str, columns: str) -> str:
    """The table of the results in the file `name`, of the headings in `columns` or of all, with the remarks below it."""
    found = _read(name)
    wanted = tuple(heading.strip() for heading in columns.split(",")) if columns else None
    return formats.markdown(found, wanted)


def figure(name: str) -> str:
    """The plot called `name`, as SVG."""
    if name == SPREAD_FIGURE:
        return spread_plot.svg(spread_report())
    results, kinds = FIGURES[name]
    return plots.svg(_read(results), kinds)


def spread_report() -> SpreadReport:
    """The committed results of the demo model by group."""
    return msgspec.json.decode((RESULTS / SPREAD).read_bytes(), type=SpreadReport)


def _read(name: str) -> Report:
    return msgspec.json.decode((RESULTS / name).read_bytes(), type=Report)


def main() -> None:
    """Rewrite the files named on the command line, and the plots."""
    for name, (results, _) in FIGURES.items():
        if (RESULTS / results).exists():
            replace_file(DOCS / name, figure(name).encode())
    replace_file(DOCS / SPREAD_FIGURE, figure(SPREAD_FIGURE).encode())
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(render(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
