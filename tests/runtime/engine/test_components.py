"""Memory plans: what is open when, what happens when memory runs out, and that it comes back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from diffusette.models.bundle import open_bundle
from diffusette.models.errors import BundleError
from diffusette.runtime import pipeline
from diffusette.runtime.engine import graph_cache, memory_plans, session_pool
from diffusette.runtime.engine.components import TILE, Components
from diffusette.runtime.engine.providers import TABLE, Provider
from diffusette.runtime.engine.session import SessionOptions
from diffusette.runtime.images import vae
from diffusette.runtime.pipeline import Pipeline
from diffusette.runtime.request import Fields
from tests.support import small_graphs

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of a process and /proc are Linux's")

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from diffusette.models.bundle import Bundle
from diffusette.models.errors import ResourceError
from diffusette.models.manifest import Component, Defaults, Latent, Manifest, Noise, Source, Tensor
from diffusette.runtime.engine import components, providers
from diffusette.runtime.engine.session import SessionOptions
from tests.support import small_graphs

folder, plan, adaptive = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "adaptive"
zeros = Component("model.onnx", "fp32", {"shape": Tensor("int64", (1,))}, {"y": Tensor("float32", ("n",))})
manifest = Manifest(
    "sd1", "cpu", {name: zeros for name in ("unet", "text_encoder")}, {}, Noise(), Latent(), Defaults(64, 64), Source("zeros"), {}
)
small_graphs.zeros(folder / "model.onnx")
bundle = Bundle(folder, manifest, {}, {})
found = components.Components(bundle, providers.resolve("cpu"), plan, SessionOptions(threads=1), adaptive=adaptive)
megabytes = lambda number: {"shape": np.array([number << 18])}
found.run("text_encoder", megabytes(400))  # its session keeps what it took
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (150 << 20), resource.RLIM_INFINITY))
for need in (450, 2000, 1):
    try:
        print(need, found.run("unet", megabytes(need))["y"].size >> 18, found.plan)
    except ResourceError as error:
        print(need, "ResourceError", found.plan, error)
print(found.notes())
"""


def limited(folder: Path, plan: str, adaptive: str) -> list[str]:
    """What a process prints that runs out of memory for real."""
    command = [sys.executable, "-c", LIMITED, str(folder), plan, adaptive]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@linux
def test_out_of_memory_the_next_leaner_plan_is_tried_and_said(tmp_path: Path) -> None:
    first, second, third, notes = limited(tmp_path, "resident", "adaptive")
    assert first == "450 450 sequential"
    assert second.startswith("2000 ResourceError streamed")  # the leanest plan cannot do it either
    assert "not enough memory" in second
    assert third == "1 1 streamed"
    assert notes == (
        "('not enough memory for the plan resident: continued with sequential', "
        "'not enough memory for the plan sequential: continued with streamed')"
    )


@linux
def test_out_of_memory_a_plan_that_was_asked_for_is_kept_and_the_sessions_are_usable_again(tmp_path: Path) -> None:
    first, second, third, notes = limited(tmp_path, "resident", "fixed")
    assert first.startswith("450 ResourceError resident")
    assert "--memory sequential or streamed" in first
    assert second.startswith("2000 ResourceError resident")
    assert third == "1 1 resident"
    assert notes == "()"


DECODED = """
import resource, sys
from diffusette.runtime import pipeline
from diffusette.runtime.request import Request

def limit(event):
    if isinstance(event, pipeline.Step):
        size = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (size + (int(sys.argv[1]) << 20), resource.RLIM_INFINITY))

with pipeline.load(memory="auto", threads=1) as drawer:
    result = drawer.watch(Request("fox", seed=1, steps=1, width=512, height=512, guidance=1.0, sampler="euler"), limit)
    print(result.plan, result.images[0].size, *result.notes, sep="|")
"""


@linux
def test_a_picture_that_cannot_be_decoded_whole_is_decoded_in_tiles_and_that_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", DECODED, "80"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan, size, *notes = done.stdout.strip().split("|")
    assert (plan, size) == ("resident", "(512, 512)")
    assert "not enough memory to decode the image whole: it was decoded in tiles" in notes


CYCLES = """
import diffusette
for cycle in range(20):
    with diffusette.load(threads=1, memory="resident") as drawer:
        drawer.generate("fox", seed=1, steps=1)
    with open("/proc/self/status") as file:
        print(next(line for line in file if line.startswith("VmRSS")).split()[1])
"""


class Counting(Components):
    """Components that remember the batches that the U-Net was given, and how many sessions of a component were open at once."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.batches: list[int] = []
        self.most = 0

    def run(self, name: str, feeds: Mapping[str, np.ndarray], variant: session_pool.Variant | None = None) -> dict[str, np.ndarray]:
        self.batches += [len(feeds["encoder_hidden_states"])] if name in {"unet", "unet/full"} else []
        try:
            return super().run(name, feeds, variant)
        finally:
            self.most = max(self.most, *(sum(key[0] == name for key in self.pool.open) for name in self.bundle.manifest.components))


def counted(bundle: Path, provider: Provider, plan: memory_plans.Plan = "resident") -> Pipeline:
    opened = open_bundle(bundle)
    return Pipeline(opened, Counting(opened, provider, plan, SessionOptions()))


def test_where_memory_is_a_devices_own_a_prompt_and_its_negative_are_one_batch_unless_memory_is_scarce(sd1_bundle: Path) -> None:
    fields: Fields = {"negative": "blurry", "seed": 1, "steps": 3, "guidance": 4.0}
    with counted(sd1_bundle, TABLE["cpu"]) as drawer:
        wanted = np.asarray(drawer.generate("a red apple", **fields).images[0], np.int16)
        assert drawer.components.batches == [1] * 6  # type: ignore[attr-defined]
    for plan, speed, batches in (("resident", "exact", [2] * 3), ("sequential", "exact", [1] * 6)):
        with counted(sd1_bundle, replace(TABLE["cpu"], device="cpu"), plan) as drawer:
            found = np.asarray(drawer.generate("a red apple", speed=speed, **fields).images[0], np.int16)
            assert drawer.components.batches == batches  # type: ignore[attr-defined]
        assert np.abs(found - wanted).max() <= 1


def test_where_shapes_have_to_be_fixed_each_size_has_a_session_and_those_not_used_for_longest_close(sd1_bundle: Path) -> None:
    sizes = [(16, 16), (24, 16), (32, 16), (16, 16)]
    with counted(sd1_bundle, TABLE["cpu"]) as free, counted(sd1_bundle, replace(TABLE["cpu"], fixed_shapes=True)) as fixed:
        for width, height in sizes:
            fields: Fields = {"seed": 1, "steps": 1, "width": width, "height": height}
            one, other = (np.asarray(drawer.generate("a red apple", **fields).images[0], np.int16) for drawer in (free, fixed))
            assert np.abs(one - other).max() <= 1
        assert fixed.components.most == session_pool.SHAPES  # type: ignore[attr-defined]
        assert free.components.most == 1  # type: ignore[attr-defined]


@linux
def test_memory_comes_back_when_a_pipeline_closes_twenty_times() -> None:
    done = subprocess.run([sys.executable, "-c", CYCLES], capture_output=True, text=True, check=True)
    kilobytes = [int(line) for line in done.stdout.split()]
    assert len(kilobytes) == 20
    assert kilobytes[-1] - kilobytes[1] < 6 << 10


@pytest.mark.parametrize("tile", [9, 16, 17, 36, TILE])
def test_tiles_cover_everything_overlap_and_are_as_few_as_can_be(tile: int) -> None:
    for length in range(1, 200):
        spans = vae._spans(length, tile)
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert all(end - start <= tile for start, end in spans)
        assert all(left[1] - right[0] >= vae.OVERLAP for left, right in pairwise(spans))
        assert len(spans) == max(1, -(-(length - vae.OVERLAP) // (tile - vae.OVERLAP)))


def test_tiles_of_something_local_are_the_whole() -> None:
    picture = np.random.default_rng(0).standard_normal((1, 3, 80, 104), np.float32)
    wanted = np.repeat(np.repeat(picture, 2, axis=2), 2, axis=3)
    found = vae._in_tiles(lambda part: np.repeat(np.repeat(part, 2, axis=2), 2, axis=3), picture, TILE, 2, 1)
    assert np.abs(found - wanted).max() < 1e-5
    found = vae._in_tiles(lambda part: part[..., ::8, ::8], np.repeat(np.repeat(picture, 8, axis=2), 8, axis=3), TILE, 1, 8)
    assert np.abs(found - picture).max() < 1e-5


def padded(bundle: Path, folder: Path) -> Path:
    """A copy of `bundle` whose U-Net is large enough to be cached: a sparse file lies beside it."""
    shutil.copytree(bundle, folder)
    with (folder / "unet/padding").open("wb") as file:
        file.truncate(graph_cache.MINIMUM)
    return folder


def test_large_graphs_are_cached_small_ones_and_those_of_the_leanest_plan_are_not(sd1_bundle: Path, tmp_path: Path) -> None:
    bundle, cache = padded(sd1_bundle, tmp_path / "bundle"), tmp_path / "cache"
    drawn: list[Image.Image] = []
    for plan, entries in (("streamed", 0), ("resident", 2), ("sequential", 3)):  # the U-Net in two graphs, and in one
        with pipeline.load(bundle, memory=plan, cache=cache) as drawer:
            drawn.append(drawer.generate("fox", seed=1, steps=2).images[0])
        assert len(list(cache.iterdir()) if cache.exists() else []) == entries
    assert np.array_equal(np.asarray(drawn[1]), np.asarray(drawn[2]))
    assert graph_cache.size(cache) > 0
    with pipeline.load(sd1_bundle, memory="resident", cache=tmp_path / "other") as drawer:
        drawer.generate("fox", seed=1, steps=1)
    assert not (tmp_path / "other").exists()


HOMELESS = """
import sys
from diffusette.runtime import pipeline
with pipeline.load(sys.argv[1], **({"cache": None} if sys.argv[2:] else {})) as drawer:
    print(*drawer.generate("fox", seed=1, steps=1).notes, sep="|")
"""


@linux
def test_where_nothing_can_be_cached_pictures_come_and_that_is_said_unless_no_cache_is_wanted(sd1_bundle: Path, tmp_path: Path) -> None:
    bundle = padded(sd1_bundle, tmp_path / "bundle")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DIFFUSETTE_"))}
    for more, expected in (((), "the optimized graph is not cached: /proc/none/.cache/diffusette cannot be written"), (("off",), "")):
        done = subprocess.run(
            [sys.executable, "-c", HOMELESS, str(bundle), *more],
            capture_output=True,
            text=True,
            check=True,
            env=keep | {"HOME": "/proc/none"},
        )
        assert done.stdout.strip().startswith(expected)
        assert bool(done.stdout.strip()) == bool(expected)


@pytest.mark.parametrize(
    ("scales", "shape"), [([1, 1, 1, 1], "[1, 3, 8, 8]"), ([1, 2, 8, 8], "[1, 6, 64, 64]"), ([1, 1, 16, 16], "[1, 3, 128, 128]")]
)
def test_outputs_of_another_shape_than_the_manifest_says_are_refused(tmp_path: Path, scales: list[int], shape: str) -> None:
    folder = small_graphs.plain_folder(tmp_path / "model")
    graph = onnx.load(folder / "vae_decoder/model.onnx")
    (old,) = [tensor for tensor in graph.graph.initializer if tensor.name == "scales"]
    old.CopyFrom(numpy_helper.from_array(np.array(scales, np.float32), "scales"))
    (folder / "vae_decoder/model.onnx").write_bytes(graph.SerializeToString())
    bundle = open_bundle(folder)
    found = Components(bundle, TABLE["cpu"], "resident", SessionOptions())
    with pytest.raises(BundleError, match=re.escape(f"returned sample as {shape}") + r"|returned " + re.escape(f"{shape} as sample")):
        vae.decode(found.get("vae_decoder"), np.zeros((1, 4, 8, 8), np.float32), bundle.manifest.latent)
