"""The table of full size: parts that are kept and taken up again, and what is computed from fewer steps than were asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from diffusette.benchmarks import full, full_parts
from diffusette.benchmarks.full_parts import STEPS, Entry, Part, Place
from diffusette.benchmarks.measure import statistics
from diffusette.benchmarks.measure.worker import Drawn, Job
from diffusette.benchmarks.quality import image_metrics
from diffusette.benchmarks.results import ComponentCost, Row
from diffusette.benchmarks.rivals import duel
from diffusette.models.bundle import DEMO

OURS = Entry("diffusette", "exact", "cpu")
SILENT = [].append


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("full")
    job = Job(str(DEMO), "fox", width=64, height=64, threads=1, steps=STEPS, sampler="ddim")
    source = DEMO.parent / "source"
    return Place(source, {"cpu": DEMO}, folder / "pictures", folder / "environments", duel.terms(job, source, folder))


def a_row(steps: int, *, step: float = 2.0, rest: float = 1.0) -> Row:
    seconds = (rest + steps * step,)
    unet = ComponentCost(statistics.latency((steps * step,)), 2 * steps, None, None, (steps * step,))
    sizes = {"width": 64, "height": 64, "steps": steps, "count": 1}
    known = {"model_name": "m", "folder": "f", "provider": "cpu", "memory": "resident", "threads": 2}
    return Row(**known, **sizes, latencies=seconds, latency=statistics.latency(seconds), components={"unet": unet})


def test_a_picture_is_a_row_of_all_its_steps_after_one_that_opens_everything(place: Place) -> None:
    part = full_parts.picture(place, OURS, float("inf"), SILENT)
    (row,) = part.rows
    assert not part.failed
    assert part.steps == row.steps == STEPS
    assert row.components["unet"].calls == 2 * STEPS
    assert row.notes == ()
    assert row.first_latency > 0.0
    assert len(part.probes) == 3
    assert image_metrics.read(place.picture(OURS)).shape == (64, 64, 3)


def test_engines_that_take_turns_are_compared_part_by_part(place: Place) -> None:
    other = Entry("diffusette", "balanced", "cpu")
    part = full_parts.pair(place, OURS, other, SILENT)
    (found,) = part.comparisons
    assert bool(found.refused) == (found.latency is None)
    assert f"{full_parts.PAIRS} pairs of one step" in found.note
    assert found.steps == STEPS
    assert not place.picture(other).exists()


def test_longer_pictures_are_computed_from_the_steps_that_were_measured() -> None:
    row = full_parts.whole(a_row(5), 20)
    assert (row.steps, row.latencies, row.latency.p50) == (20, (41.0,), 41.0)
    assert (row.components["unet"].latency.p50, row.components["unet"].calls) == (40.0, 40)
    assert "20 steps is computed from 5" in row.notes[-1]
    assert full_parts.whole(a_row(20), 20) == a_row(20)


@pytest.mark.parametrize(("longest", "steps"), [(float("inf"), 20), (100.0, 20), (25.0, 12), (1.0, 4)])
def test_only_as_many_steps_are_measured_as_time_allows(longest: float, steps: int) -> None:
    one = Drawn(11.0, (("unet", 0.0, 9.0), ("unet", 9.0, 10.0), ("vae_decoder", 10.0, 11.0)), 64, 64, 1, 7.5, "ddim", ())
    assert full_parts.affordable(one, longest) == steps


def test_what_is_done_is_taken_up_again_and_what_changed_or_failed_is_measured_anew(tmp_path: Path) -> None:
    done: list[str] = []

    def task(name: str, key: str, error: str = "") -> full.Task:
        def measure(_tick: object) -> Part:
            done.append(name)
            return Part(
                key=key, date="2026-11-22", seconds=60.0, probes=(0.1,), others=0.0, rows=(msgspec.structs.replace(a_row(20), error=error),)
            )

        return full.Task(name, key, measure)

    said: list[str] = []
    tasks = [task("a", "1"), task("b", "1", "no such wheel"), task("c", "1")]
    assert list(full.measure(tasks, tmp_path, 2, said.append)) == ["a", "b"]
    assert "about 2 min left] b" in said[-1]
    assert "no such wheel" in said[-1]
    assert list(full.measure(tasks, tmp_path, 0, said.append)) == ["a"]
    assert list(full.measure([task("a", "2"), *tasks[1:]], tmp_path, 9, said.append)) == ["a", "b", "c"]
    assert done == ["a", "b", "a", "b", "c"]


def test_the_report_has_a_row_an_engine_with_its_loss_on_the_demo_model(place: Place, tmp_path: Path) -> None:
    large, small = replace(place, pictures=tmp_path / "large"), [replace(place, pictures=tmp_path / str(seed)) for seed in range(2)]
    reference, other = full.RIVALS[0], full.OURS[0]
    for number, one in enumerate((large, *small)):
        one.pictures.mkdir()
        for entry, value in ((reference, 100), (other, 100 + number)):
            Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(one.picture(entry))
    part = Part(key="", date="2026-11-22", seconds=1.0, probes=(0.1, 0.1), others=0.0, rows=(a_row(20),), steps=STEPS)
    names = (other.name, reference.name, f"demo {other.name}", f"demo {reference.name}")
    report = full.merged(dict.fromkeys(names, part), large, small, complete=False)
    first, second = (row for row in report.rows if not row.error)
    assert len(report.rows) == len(full.OURS) + len(full.RIVALS)
    assert {row.error for row in report.rows if row.error} == {"make bench-full goes on with it"}
    assert first.likened.likeness.psnr == second.likened_demo.likeness.psnr == 200.0
    assert first.likened_demo.likeness.psnr == pytest.approx((20 * np.log10(255) + 20 * np.log10(255 / 2)) / 2)
    assert first.likened_demo.to == "diffusers fp32"
    assert not report.complete
