"""Groups of prompts: their files, their averages and intervals, and the command on real bundles."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy import stats

from diffusette.benchmarks.quality import image_metrics, prompt_fidelity, spread
from diffusette.benchmarks.quality.grouped_prompts import GroupedPrompt, read
from diffusette.models.bundle import DEMO
from diffusette.models.errors import DiffusetteError
from tests.support.guarded_bundles import guarded

ROOT = Path(__file__).parents[3]
DEMO_PROMPTS = ROOT / "benchmarks/quality/demo_spread.jsonl"
RNG = np.random.default_rng(3)


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffusette", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def written(folder: Path, lines: Sequence[object]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_the_demo_models_file_has_every_subject_once_in_each_style_in_one_kind() -> None:
    prompts, known = read(DEMO_PROMPTS), prompt_fidelity.labels()
    found = [(one.expect.subject, one.expect.style) for one in prompts if one.expect]
    assert sorted(found) == sorted((subject, style) for subject in known.subject for style in known.style)
    kinds = {one.expect.subject: one.groups["kind"] for one in prompts if one.expect}
    for one in prompts:
        assert one.expect is not None
        assert one.groups == {
            "kind": kinds[one.expect.subject],
            "style": one.expect.style,
            "background": one.expect.background,
        }
        assert one.prompt.endswith(f", {one.expect.style} style, {one.expect.background} background")
    assert min(sum(one.groups["background"] == background for one in prompts) for background in known.background) >= 47


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "0 prompts, expected 1 to 100,000"),
        (["a fox"], r"line 1: JSON is malformed.*expected an object such as"),
        ([{"prompt": "a fox", "groups": {"kind": "animals"}}, "", {"prompt": "an owl"}], "line 3: .*missing required field `groups`"),
        ([{"prompt": "a fox", "groups": {}}], "line 1: groups: expected 1 to 16 names"),
        ([{"prompt": "a fox", "groups": {"kind": ""}}], "line 1: groups: expected 1 to 16 names"),
        ([{"prompt": "a fox", "groups": {"kind": 3}}], "line 1: Expected `str`, got `int`"),
        ([{"prompt": "a fox", "groups": {"kind": "a"}, "seed": 3}], "line 1: .*unknown field `seed`"),
        ([{"prompt": "a fox", "groups": {"kind": "a"}, "expect": {"subject": "wombat"}}], "line 1: expect: subject 'wombat' is no label"),
        (["[" * 100_000], "line 1: "),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_line(tmp_path: Path, lines: list[object], message: str) -> None:
    with pytest.raises(DiffusetteError, match=message):
        read(written(tmp_path, lines))


@pytest.mark.parametrize("number", [5, 6, 12, 60])
def test_a_mean_has_the_interval_of_students_t(number: int) -> None:
    sample = RNG.normal(size=number).tolist()
    found = spread.mean(sample)
    low, high = stats.t.interval(0.95, number - 1, np.mean(sample), stats.sem(sample))
    assert (found.mean, found.prompts) == (pytest.approx(np.mean(sample)), number)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(high - low, rel=0.01)
    assert found.high + found.low == pytest.approx(high + low)


@pytest.mark.parametrize(("right", "number"), [(0, 5), (7, 10), (40, 40)])
def test_a_share_has_wilsons_interval(right: int, number: int) -> None:
    found = spread.share([1.0] * right + [0.0] * (number - right))
    expected = stats.binomtest(right, number).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=1e-6), pytest.approx(expected.high, abs=1e-6))


def test_few_prompts_have_a_mean_and_no_interval() -> None:
    assert spread.mean([1.0, 2.0]) == spread.Mean(1.5, None, None, 2)
    assert spread.share([1.0, 0.0, 0.0, 1.0]) == spread.Mean(0.5, None, None, 4)


def test_a_prompt_counts_in_each_of_its_groups_and_in_everything() -> None:
    prompts = [GroupedPrompt(str(number), {"kind": kind, "odd": str(number % 2)}) for number, kind in enumerate("aab")]
    found = spread.groups(prompts, [{"brightness": 0.0}, {"brightness": 0.5}, {"saturation": 0.25}], 2)
    assert [(one.name, one.value, one.prompts, one.images) for one in found] == [
        ("all", "", 3, 6),
        ("kind", "a", 2, 4),
        ("kind", "b", 1, 2),
        ("odd", "0", 2, 4),
        ("odd", "1", 1, 2),
    ]
    assert {name: mean.mean for name, mean in found[0].measures.items()} == {"brightness": 0.25, "saturation": 0.25}
    assert found[2].measures.keys() == {"saturation"}


def test_what_images_look_like_is_measured_from_0_to_1() -> None:
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    assert (image_metrics.brightness(black), image_metrics.brightness(white)) == (0.0, pytest.approx(1.0))
    assert (image_metrics.saturation(white), image_metrics.saturation(red)) == (0.0, 1.0)
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    assert image_metrics.detail(white) == 0.0
    assert image_metrics.detail(noise) > 0.05
    assert image_metrics.variety([white]) is None
    assert image_metrics.variety([black, white]) == pytest.approx(1.0)
    assert image_metrics.variety([black, white, white]) == pytest.approx(2 / 3)
    one, other = image_metrics.colours(red), image_metrics.colours(noise)
    assert image_metrics.variety([red, noise]) == pytest.approx(float(np.sqrt(np.mean((one - other) ** 2))))


def test_two_bundles_are_compared_by_group_in_every_form(tmp_path: Path) -> None:
    lines = [
        {"prompt": f"{word}, flat style, blue background", "groups": {"kind": kind}, "expect": {"subject": word, "background": "blue"}}
        for kind, words in {"animals": ("fox", "owl", "bear", "duck", "frog"), "food": ("pear", "taco", "lemon")}.items()
        for word in words
    ]
    lines[0]["expect"] = {"subject": "owl"}  # the prompt says fox
    checked = guarded(DEMO, tmp_path / "checked", threshold=-2.0)
    files = {name: tmp_path / f"r.{name}" for name in ("json", "csv", "md", "svg")}
    outputs = ["-o", files["json"], "--csv", files["csv"], "--markdown", files["md"], "--plot", files["svg"]]
    options = ["--seeds", "2", "--steps", "4", "--provider", "cpu", "--memory", "resident"]
    done = bench("--spread", written(tmp_path, lines), "--model", DEMO, "--model", checked, *options, *outputs)
    assert done.returncode == 0, done.stderr
    report = json.loads(files["json"].read_text())
    assert (report["complete"], report["prompts"], report["seeds"]) == (True, 8, [0, 1])
    plain, hidden = report["measured"]
    assert (plain["safety"], hidden["safety"]) == ("none", "on")
    everything, animals, food = plain["groups"]
    assert (everything["images"], animals["images"], food["images"]) == (16, 10, 6)
    assert animals["measures"]["subject"]["mean"] <= 0.8
    assert {"prompt": lines[0]["prompt"], "seed": 1, "part": "subject", "expected": "owl", "seen": "fox"} in plain["failures"]
    assert animals["measures"]["brightness"]["low"] is not None
    assert food["measures"]["brightness"]["low"] is None
    assert "flagged" not in everything["measures"]
    assert list(hidden["groups"][0]["measures"]) == ["flagged"]
    assert hidden["groups"][0]["measures"]["flagged"]["mean"] == 1.0
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [(row["bundle"], row["value"]) for row in rows] == [
        (name, value) for name in ("bundle", "checked") for value in ("", "animals", "food")
    ]
    assert float(rows[1]["brightness"]) == animals["measures"]["brightness"]["mean"]
    assert files["md"].read_text().startswith("| group | bundle | prompts | images | flagged | subject |")
    assert "owl as fox (2)" in done.stdout
    assert "no safety checker, so nothing is flagged" in done.stdout
    assert ET.fromstring(files["svg"].read_text()).tag.endswith("svg")


def test_the_same_images_have_no_difference_and_need_no_judge(tmp_path: Path) -> None:
    lines = [{"prompt": word, "groups": {"kind": "animals"}} for word in ("fox", "owl", "bear", "duck", "frog")]
    options = ["--seeds", "1", "--steps", "2", "--provider", "cpu", "--memory", "resident", "--json"]
    shutil.copytree(DEMO, tmp_path / "copy")
    done = bench("--spread", written(tmp_path, lines), "--model", DEMO, "--model", tmp_path / "copy", *options)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["measured"]
    assert (first["label"], second["label"]) == ("bundle", "copy")
    assert first["groups"] == second["groups"]
    assert first["groups"][0]["measures"].keys() == {"brightness", "saturation", "detail"}
    assert {(one["low"], one["mean"], one["high"]) for one in second["differences"][1]["measures"].values()} == {(0.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--judge", "3"), 2, "--spread cannot be combined with --judge"),
        (("--count", "1,2"), 1, "the same bundle with the same settings twice"),
        (("--seeds", "0"), 1, "seeds: 0"),
        (("--size", "72"), 1, "the judge looks at multiples of 64 pixels"),
    ],
)
def test_what_cannot_be_measured_by_group_is_refused(tmp_path: Path, options: tuple[str, ...], code: int, message: str) -> None:
    lines = [{"prompt": "fox", "groups": {"kind": "animals"}, "expect": {"subject": "fox"}}]
    done = bench("--spread", written(tmp_path, lines), *options)
    assert done.returncode == code
    assert message in done.stderr
