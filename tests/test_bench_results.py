"""Committed results: what Markdown says was measured, and the ratios of this machine are near the committed ones."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from diffusette.benchmarks import full, smoke, tables
from diffusette.benchmarks.results import Report

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md"])
def test_every_table_of_measurements_is_made_of_the_committed_results(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert tables.render(text) == text


@pytest.mark.parametrize("name", tables.FIGURES)
def test_every_committed_plot_is_drawn_from_the_committed_results(name: str) -> None:
    assert (tables.DOCS / name).read_text("utf-8") == tables.figure(name)


def test_committed_results_are_complete_and_say_on_what_they_were_measured() -> None:
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = msgspec.json.decode(path.read_bytes(), type=Report)
        assert found.complete or path.name == full.FILE, path  # hours, in parts: its table says what is missing
        assert found.machine.processor, path
        assert "/work" not in path.read_text(), path


def test_the_ratios_of_this_machine_are_near_the_committed_ones() -> None:
    assert smoke.outside(smoke.ratios(smoke.measured()), smoke.committed()) == []


def test_a_ratio_out_of_the_band_is_told_with_both_figures() -> None:
    assert smoke.outside({"a / b": 1.0, "c / d": 2.0}, {"a / b": 1.2, "c / d": 0.5}) == [
        "c / d: 2.00, committed 0.50, more than 2.5 × apart"
    ]
