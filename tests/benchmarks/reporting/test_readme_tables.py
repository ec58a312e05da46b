"""Committed results: what Markdown says was measured, and the ratios of this machine are near the committed ones."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from diffusette.benchmarks import full, smoke
from diffusette.benchmarks.quality.grouped_prompts import read
from diffusette.benchmarks.reporting import readme_tables
from diffusette.benchmarks.results import Report

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_every_table_of_measurements_is_made_of_the_committed_results(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert readme_tables.render(text) == text


def test_the_machine_table_has_a_row_for_each_measurement_of_our_engine_and_no_other_engine() -> None:
    rows = readme_tables.machine_table().splitlines()[2:]
    reports = [msgspec.json.decode((readme_tables.RESULTS / name).read_bytes(), type=Report) for name in readme_tables.MODELS]
    ours = [row for report in reports for row in report.rows if row.engine == readme_tables.OURS]
    assert len(rows) == len(ours)
    for line, row in zip(rows, ours, strict=True):
        assert f"{row.width}×{row.height}, {row.steps} steps" in line
        assert f"| {row.max_ram / 1e6:,.0f} MB |" in line
        assert f"| {row.latency.p50:.3g} |" in line


@pytest.mark.parametrize("name", [*readme_tables.FIGURES, readme_tables.SPREAD_FIGURE])
def test_every_committed_plot_is_drawn_from_the_committed_results(name: str) -> None:
    assert (readme_tables.DOCS / name).read_text("utf-8") == readme_tables.figure(name)


def test_committed_results_are_complete_and_say_on_what_they_were_measured() -> None:
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = msgspec.json.decode(path.read_bytes(), type=Report)
        assert found.complete or path.name == full.FILE, path  # hours, in parts: its table says what is missing
        assert found.machine.processor, path
        assert "/work" not in path.read_text(), path


def test_the_committed_results_by_group_are_of_every_prompt_and_name_no_folder_of_a_machine() -> None:
    found = readme_tables.spread_report()
    assert found.complete
    assert found.prompts == len(read(ROOT / "benchmarks/quality/demo_spread.jsonl"))
    assert {one.folder for one in found.measured} == {"models/demo/bundle"}


@pytest.mark.alone
def test_the_ratios_of_this_machine_are_near_the_committed_ones() -> None:
    assert smoke.outside(smoke.ratios(smoke.measured()), smoke.committed()) == []


def test_a_ratio_out_of_the_band_is_told_with_both_figures() -> None:
    assert smoke.outside({"a / b": 1.0, "c / d": 2.0}, {"a / b": 1.2, "c / d": 0.5}) == [
        "c / d: 2.00, committed 0.50, more than 2.5 × apart"
    ]
