"""Whole models on WebGPU: the demo model and every family give the images of the CPU provider; errors, memory and cancelling."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusette.export.export import Options, export_model
from diffusette.models.bundle import DEMO, open_bundle
from diffusette.models.errors import Cancelled
from diffusette.runtime.engine import providers
from diffusette.runtime.engine.components import Components
from diffusette.runtime.engine.provider_table import TABLE
from diffusette.runtime.pipeline import Pipeline, load
from diffusette.runtime.request import Request
from tests.support import tiny_models

MISSING = providers.why_missing(TABLE["webgpu"])
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
PROMPT = "red apple, flat style, blue background"
SOURCE = DEMO.parent / "source"
Export = Callable[[Path, str, str], Path]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Source, target, precision → the bundle; each exported once."""
    made: dict[tuple[Path, str, str], Path] = {}

    def exported(source: Path, target: Any, precision: Any) -> Path:
        key = (source, target, precision)
        if key not in made:
            folder = tmp_path_factory.mktemp("bundles") / f"{target}-{precision}"
            export_model(source, folder, Options(target, precision, prompts=(PROMPT, "fox, noto style")))
            made[key] = folder
        return made[key]

    return exported


def psnr(one: Any, other: Any) -> float:
    error = np.square(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def image_of(bundle: Path, provider: str, **fields: Any) -> Any:
    with load(bundle, provider=provider) as pipeline:
        result = pipeline.generate(Request(**fields))
        assert result.provider == provider
        assert result.notes == () or provider == "cpu"
        return result.images[0]


@pytest.mark.parametrize(("precision", "least"), [
    ("fp32", 70), ("fp16", 38), ("int4", 25),
])  # fmt: skip
def test_the_demo_model_generates_the_image_of_the_cpu(export: Export, precision: str, least: float) -> None:
    fields = {"prompt": PROMPT, "seed": 7, "steps": 4}
    expected = image_of(export(SOURCE, "portable", "fp32"), "cpu", **fields)
    assert psnr(image_of(export(SOURCE, "webgpu", precision), "webgpu", **fields), expected) >= least


def test_no_heavy_work_is_left_to_the_cpu(export: Export) -> None:
    bundle = export(SOURCE, "webgpu", "fp16")
    with load(bundle, provider="webgpu", memory="resident") as pipeline:
        pipeline.generate(PROMPT, steps=1, seed=1)
        components = pipeline.components
        assert isinstance(components, Components)
        placed = [session.placement() for session in components.pool.open.values()]
    assert len(placed) == len(open_bundle(bundle).manifest.components) - 1  # all but the encoder of images
    for nodes in placed:
        assert nodes["WebGpuExecutionProvider"] > 10 * nodes.get("CPUExecutionProvider", 0)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_generates_the_image_of_the_cpu(export: Export, tmp_path: Path, family: str) -> None:
    source = tiny_models.save(tmp_path / family, family)
    fields: dict[str, Any] = {"prompt": "a green cat", "seed": 3, "steps": 2, "width": 64, "height": 64}
    if any(kind in family for kind in ("inpaint", "pix2pix", "refiner")):
        fields |= {"init": np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)}
    if "inpaint" in family:
        fields |= {"mask": np.repeat(np.uint8([[0], [255]]), 32, axis=0) * np.ones((1, 64), np.uint8)}
    expected = image_of(export(source, "portable", "fp32"), "cpu", **fields)
    assert psnr(image_of(export(source, "webgpu", "fp32"), "webgpu", **fields), expected) >= 55


def test_cancelling_ends_a_generation_within_a_second_and_the_next_one_is_right(export: Export) -> None:
    fields = {"prompt": PROMPT, "seed": 7, "steps": 2}
    bundle = export(SOURCE, "webgpu", "fp32")
    with load(bundle, provider="webgpu") as pipeline:
        expected = pipeline.generate(**fields).images[0]
        ended = list[float]()
        began = threading.Event()

        def generate() -> None:
            with pytest.raises(Cancelled):
                pipeline.watch(Request("fox", seed=1, steps=200), lambda _event: began.set())
            ended.append(time.monotonic())

        thread = threading.Thread(target=generate)
        thread.start()
        assert began.wait(60)
        asked = time.monotonic()
        pipeline.cancel()
        thread.join(60)
        assert ended[0] - asked < 10  # a software device finishes what was submitted: one call takes seconds there
        assert psnr(pipeline.generate(**fields).images[0], expected) > 60


def test_closing_gives_the_memory_back_and_the_pipeline_opens_again(export: Export) -> None:
    with load(export(SOURCE, "webgpu", "fp32"), provider="webgpu") as pipeline:
        pipeline.generate(PROMPT, seed=1, steps=1)
        sizes = [_reopened(pipeline) for _ in range(4)]
    assert sizes[-1] - sizes[0] < 60  # MB; the model has 92


def _reopened(pipeline: Pipeline) -> float:
    pipeline.close()
    pipeline.generate(PROMPT, seed=1, steps=1)
    pipeline.close()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize(("model", "words"), [
    (None, "this bundle is made for 'cpu', but the provider 'webgpu' runs 'webgpu'"),
    ("missing", "missing"),
])  # fmt: skip
def test_errors_are_one_line(tmp_path: Path, model: str | None, words: str) -> None:
    given = [] if model is None else ["--model", str(tmp_path / model)]
    command = [sys.executable, "-m", "diffusette", "generate", "fox", "--provider", "webgpu", *given, "-o", str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("diffusette:")]
    assert done.returncode == 1
    assert len(said) == 1
    assert words in said[0]
    assert "Traceback" not in done.stderr


def test_doctor_names_the_device_and_probes_it() -> None:
    done = subprocess.run([sys.executable, "-m", "diffusette", "doctor", "--probe", "--json"], capture_output=True, text=True, check=True)
    assert '"webgpu"' in done.stdout
