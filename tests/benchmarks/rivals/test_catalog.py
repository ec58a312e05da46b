"""Other engines: they draw what we draw, one that cannot run is a row that says why, and what is made of their numbers."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from diffusette.benchmarks import profiles, results, tune
from diffusette.benchmarks.measure import statistics
from diffusette.benchmarks.measure.contender import Contender
from diffusette.benchmarks.measure.machine_noise import describe, judge
from diffusette.benchmarks.measure.worker import Job
from diffusette.benchmarks.quality import image_metrics
from diffusette.benchmarks.reporting import contact_sheet, formats, plots
from diffusette.benchmarks.results import Report, Row
from diffusette.benchmarks.rivals import duel, environments
from diffusette.benchmarks.rivals.catalog import RIVALS, Rival
from diffusette.benchmarks.settings import Settings
from diffusette.models.bundle import DEMO, open_bundle
from diffusette.models.errors import RequestError
from diffusette.runtime.engine import hardware, tuned_settings

ENGINES = {"diffusers": "fp32", "onnxruntime": "fp32"}
"""Those that the tests' own environment can run, and how."""


def test_engines_that_start_from_our_noise_draw_our_picture(bundle_of: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    source, bundle = bundle_of("sd1")
    ours = Job(
        str(bundle), "fox", provider="cpu", width=64, height=64, steps=3, guidance=3.0, sampler="ddim", picture=str(tmp_path / "us.png")
    )
    terms = duel.terms(ours, source, tmp_path)
    contenders = [Contender(ours)]
    for name, variant in ENGINES.items():
        job = msgspec.structs.replace(terms, engine=name, variant=variant, picture=str(tmp_path / f"{name}.png"), prepared=str(bundle))
        contenders.append(Contender(job, environments.command(RIVALS[name], Path(sys.executable), job)))
    for contender in contenders:
        with contender:
            contender.draw()
        assert contender.failure == ""
        row = results.row(contender, warmup=-1)
        assert row.engine == contender.job.engine
        assert {"text_encoder", "unet", "vae_decoder"} == set(row.components)
        assert row.start_latency > 0.0
        assert row.max_anonymous > 1 << 20
    expected = image_metrics.read(tmp_path / "us.png")
    for name in ENGINES:
        assert image_metrics.psnr(expected, image_metrics.read(tmp_path / f"{name}.png")) > 45.0


def test_an_engine_that_fails_says_why_in_its_row(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "fox", threads=1, engine="onnxruntime", variant="fp32", prepared=str(tmp_path))
    with Contender(job, environments.command(RIVALS["onnxruntime"], Path(sys.executable), job)) as contender:
        contender.draw()
    row = results.row(contender, warmup=0)
    assert "manifest.json" in row.error
    assert (row.engine, row.precision, row.latency) == ("onnxruntime", "fp32", None)


def test_an_environment_that_cannot_be_made_says_why_and_is_tried_again(tmp_path: Path) -> None:
    rival = Rival("none", ("/nowhere/no-1.0-py3-none-any.whl",), "run_none.py", ("fp32",), "")
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(environments.UnavailableError, match=r"none could not be set up: .*no-1\.0"):
            environments.python_of(rival, tmp_path, said.append)
    assert said.count("none: making an environment") == 2
    assert "no-1.0" in (tmp_path / "logs" / "none.log").read_text()


def test_every_rival_is_pinned_and_its_script_is_there() -> None:
    for rival in RIVALS.values():
        assert (environments.ENGINES / rival.script).is_file()
        assert all("==" in requirement for requirement in rival.requirements), rival


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"against": ("torch",)}, ["'torch'", "openvino"]),
        ({"against": ("diffusers",), "sampler": "euler"}, ["euler", "ddim"]),
        ({"judge": 201}, ["201", "200"]),
        ({"profile": "geekbench"}, ["geekbench", "mlperf"]),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RequestError) as refused:
        Settings(**settings)
    for word in words:
        assert word in str(refused.value)


def test_without_the_source_folder_other_engines_are_refused(sd1_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--source DIR"):
        duel.terms(Job(str(sd1_bundle), "fox"), None, tmp_path)


def row(seconds: float, **fields: object) -> Row:
    known = {"model_name": "m", "folder": "f", "provider": "cpu", "memory": "resident", "threads": 2, "family": "sd1"}
    sizes = {"width": 512, "height": 512, "steps": 20, "count": 1, "throughput": 1 / seconds, "max_anonymous": 5 << 20}
    return Row(**{**known, **sizes, "latencies": (seconds,) * 3, "latency": statistics.latency((seconds,) * 3), **fields})


def report_of(*rows: Row, **fields: object) -> Report:
    known = {"made_by": "t", "date": "2026-11-22", "machine": describe(), "noise": judge([0.1], 0.0), "prompt": "fox", "seed": 0}
    return Report(**{**known, "warmup": 1, "repeats": 3, "rows": rows, **fields})


def test_a_profile_settles_steps_guidance_and_sampler_and_says_that_it_is_not_official() -> None:
    (job,) = Settings(profile="mlperf").jobs()
    assert (job.steps, job.guidance, job.sampler) == (20, 8.0, "euler")
    (line,) = profiles.remarks("mlperf", row(2.0))
    assert "p90 2.000 s" in line
    assert profiles.NOTICE in line
    assert line in formats.text(report_of(row(2.0), profile="mlperf"))


def test_procyons_score_is_5000_for_16_pictures_in_20_seconds() -> None:
    (line,) = profiles.remarks("procyon", row(20 / 16, steps=100))
    assert "score 5000" in line
    assert profiles.NOTICE in line
    (line,) = profiles.remarks("procyon", row(20 / 16, width=128, height=128))
    assert "no score" in line


def test_plots_are_svg_with_every_row_and_the_front_is_what_nothing_beats() -> None:
    def likened(psnr: float) -> results.Likened:
        return results.Likened("diffusers fp32", image_metrics.Likeness(psnr, 0.9, 0.01))

    over_time = ((0.0, 1 << 20, 1 << 19), (1.0, 9 << 20, 5 << 20))
    rows = [
        row(1.0, likened=likened(30.0), memory_over_time=over_time),
        row(2.0, engine="a<b", likened=likened(25.0)),
        row(3.0, engine="slow", likened=likened(60.0)),
    ]
    drawn = plots.svg(report_of(*rows))
    words = "".join(ET.fromstring(drawn).itertext())  # our own
    for word in ("a<b", "slow", "Memory over time", "Time against fidelity"):
        assert word in words
    points, what = plots.points_of(rows, ["x", "y", "z"])
    assert "another engine" in what
    assert [point.name for point in plots.front(points)] == ["x", "z"]


def test_the_contact_sheet_shows_every_picture_with_its_words(tmp_path: Path) -> None:
    from PIL import Image

    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (128, 96), colour).save(tmp_path / f"{number}.png")
    contact_sheet.save([(f"image {number}\nsmall", tmp_path / f"{number}.png") for number in range(3)], tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    for number, colour in enumerate(((255, 0, 0), (0, 0, 255), (0, 128, 0))):
        left = 6 + number * (contact_sheet.CELL + 6)
        assert (pixels[60:220, left + 10 : left + 240] == colour).all()


def test_the_best_row_is_the_fastest_and_of_equal_ones_that_with_fewer_threads() -> None:
    rows = [row(1.0, threads=4), row(1.02, threads=2), row(3.0, threads=1), row(0.1, error="died")]
    assert tune.fastest(rows) == rows[1]
    assert tune.fastest([]) is None


def test_advice_is_followed_where_all_was_left_open_until_it_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSETTE_CACHE", str(tmp_path))
    manifest = open_bundle(DEMO).manifest
    assert tuned_settings.followed(manifest, "auto", 0) == ("auto", 0)
    found = tuned_settings.Advice("cpu", 1, hardware.processor(), "2026-11-22")
    assert tuned_settings.remember(manifest, found).parent == tmp_path
    assert tuned_settings.followed(manifest, "auto", 0) == ("cpu", 1)
    assert tuned_settings.followed(manifest, "auto", 2) == ("auto", 2)
    assert tuned_settings.followed(manifest, "cpu", 0) == ("cpu", 0)
    tuned_settings.remember(manifest, msgspec.structs.replace(found, processor="another"))
    assert tuned_settings.followed(manifest, "auto", 0) == ("auto", 0)
    tuned_settings.remember(manifest, msgspec.structs.replace(found, provider="not-there"))
    assert tuned_settings.followed(manifest, "auto", 0) == ("auto", 0)
    assert tuned_settings.forget() == tmp_path / "advice.json"
    assert tuned_settings.forget() is None
    (tmp_path / "advice.json").write_text("[broken")
    assert tuned_settings.followed(manifest, "auto", 0) == ("auto", 0)


def test_a_grid_of_speeds_is_a_job_each() -> None:
    assert [job.speed for job in replace(Settings(), speeds=("exact", "fast")).jobs()] == ["exact", "fast"]
