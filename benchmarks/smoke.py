"""A guard against getting slower: `python -m diffusette.benchmarks.smoke` measures a few ratios of the demo model and compares them
with the committed ones, in a band that is wide enough for any quiet or busy machine. Never seconds: they do not travel.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import msgspec

from . import runner
from .reporting.readme_tables import RESULTS
from .results import Report, Row
from .settings import Settings

FILE = "smoke.json"
BAND = 2.5
"""A ratio may be this many times the committed one, or this part of it."""
SETTINGS = Settings(providers=("cpu",), memories=("resident", "streamed"), threads=(1,), steps=(5, 10), warmup=0, repeats=3)


def ratios(report: Report) -> dict[str, float]:
    """The compared ratios, medians over medians.

    The time of `streamed` is not among them: it is mostly opening, which processors with and without VNNI do at other speeds.

    Raises:
        KeyError: a row is missing.
    """
    rows = {(row.memory, row.steps): row for row in report.rows}
    resident, short, streamed = rows["resident", 10], rows["resident", 5], rows["streamed", 10]
    return {
        "10 steps / 5 steps": _p50(resident) / _p50(short),
        "VAE decoder / U-Net call": _component(resident, "vae_decoder") / _call(resident),
        "text encoder / U-Net call": _component(resident, "text_encoder") / _call(resident),
        "request / its components": _p50(resident) / sum(_component(resident, name) for name in resident.components),
        "anonymous memory, streamed / resident": (streamed.max_anonymous or 1) / (resident.max_anonymous or 1),
    }


def outside(found: Mapping[str, float], committed: Mapping[str, float]) -> list[str]:
    """The ratios outside the band, one line each."""
    return [
        f"{name}: {value:.2f}, committed {committed[name]:.2f}, more than {BAND} × apart"
        for name, value in found.items()
        if not 1 / BAND <= value / committed[name] <= BAND
    ]


def committed() -> dict[str, float]:
    """The ratios of the committed results."""
    return ratios(msgspec.json.decode((RESULTS / FILE).read_bytes(), type=Report))


def measured() -> Report:
    """Measure what the ratios need; about ten seconds."""
    return runner.run(SETTINGS, lambda _what, _done: None, lambda _report: None)


def main() -> None:
    """Measure, print and compare."""
    found, before = ratios(measured()), committed()
    for name, value in found.items():
        print(f"{name}: {value:.2f} (committed {before[name]:.2f})")
    wrong = outside(found, before)
    if wrong:
        sys.exit("; ".join(wrong))


def _p50(row: Row) -> float:
    assert row.latency is not None
    return row.latency.p50


def _component(row: Row, name: str) -> float:
    return row.components[name].latency.p50


def _call(row: Row) -> float:
    assert row.unet_call is not None
    return row.unet_call.p50


if __name__ == "__main__":
    main()
