"""Tables in Markdown files, made of the JSON that `diffusette bench -o` wrote: `python -m diffusette.benchmarks.tables README.md …`.

A table stands between `<!-- table: FILE.json -->` and `<!-- end of table -->`; FILE is beside this module in results/. Behind the
file's name may stand the headings of the columns that are wanted, with commas between them. The plots in docs/ (`FIGURES`) are drawn
anew too. A test renders every table and plot again, so that none says what was not measured.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec

from ..runtime.whole_file import replace_file
from . import plots, report
from .results import Report

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
FIGURES = {"speed.svg": ("full.json", ("pareto", "latency")), "memory.svg": ("engines.json", ("memory",))}
"""Plot → the results that it is drawn from, and its kinds."""
_TABLE = re.compile(r"(<!-- table: (\S+\.json)(?: ([^>]*?))? -->\n).*?(<!-- end of table -->)", re.DOTALL)


def render(text: str) -> str:
    """`text` with every table in it made anew."""
    return _TABLE.sub(lambda found: f"{found[1]}{table(found[2], found[3] or '')}{found[4]}", text)


def table(name: str, columns: str) -> str:
    """The table of the results in the file `name`, of the headings in `columns` or of all, with the remarks below it."""
    found = _read(name)
    wanted = tuple(heading.strip() for heading in columns.split(",")) if columns else None
    return report.markdown(found, wanted)


def figure(name: str) -> str:
    """The plot called `name`, as SVG."""
    results, kinds = FIGURES[name]
    return plots.svg(_read(results), kinds)


def _read(name: str) -> Report:
    return msgspec.json.decode((RESULTS / name).read_bytes(), type=Report)


def main() -> None:
    """Rewrite the files named on the command line, and the plots."""
    for name, (results, _) in FIGURES.items():
        if (RESULTS / results).exists():
            replace_file(DOCS / name, figure(name).encode())
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(render(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
