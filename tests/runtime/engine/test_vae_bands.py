"""Running a cut autoencoder half on bands of rows: which rows go where, which sums are taken, which bands are freed."""

from __future__ import annotations

import shutil
import threading
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from diffusette.export.graphs import save
from diffusette.export.subgraphs import vae_bands as cutting
from diffusette.models import manifest as manifests
from diffusette.models.bundle import open_bundle, read_manifest, verify
from diffusette.models.errors import BundleError, Cancelled
from diffusette.models.manifest import Bands, Graph, Norm, Tensor
from diffusette.runtime import pipeline
from diffusette.runtime.engine import providers, vae_bands
from diffusette.runtime.engine.components import Components
from diffusette.runtime.engine.memory_plans import Plan
from diffusette.runtime.engine.session_options import SessionOptions
from diffusette.runtime.request import Request

Array = NDArray[np.float32]


def pixels(channels: int) -> Tensor:
    return Tensor("float32", ("batch_size", channels, "rows", "columns"))


def graph(inputs: dict[str, Tensor], outputs: dict[str, Tensor], **described: object) -> tuple[Graph, Bands]:
    found = Bands(**described)  # type: ignore[arg-type]
    return Graph("none.onnx", inputs, outputs, bands=found), found


PIECES = {
    "one": graph({"x": pixels(2)}, {"y": pixels(2)}, rows={"x": 1, "y": 2}, halo=1, norms={}),
    "two": graph({"y": pixels(2)}, {"z": pixels(2)}, rows={"y": 1, "z": 1}, halo=0, norms={"y": Norm(1, 0.0)}),
}
"""Each row plus its neighbours (none beyond the edges), twice; then normalized."""


def blurred(x: Array) -> Array:
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    return (wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]).repeat(2, axis=2).repeat(2, axis=3)


def call(piece: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
    if piece == "one":
        y = blurred(feeds["x"])
        return {"y": y, "y.sums": y.sum(axis=3), "y.squares": np.square(y).sum(axis=3)}
    return {"z": feeds["y"] * feeds["y.scale"] + feeds["y.shift"]}


@pytest.mark.parametrize("size", [1, 500, 1 << 20])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_bands_are_normalized_by_the_statistics_of_the_whole(size: int, offset: float) -> None:
    x = np.random.default_rng(0).standard_normal((3, 2, 7, 5)).astype(np.float32) + np.float32(offset)
    y = blurred(x).astype(np.float64)
    expected = (y - y.mean(axis=(1, 2, 3), keepdims=True)) / y.std(axis=(1, 2, 3), keepdims=True)
    found = vae_bands.run(PIECES, call, {"x": x}, size)
    assert list(found) == ["z"]
    np.testing.assert_allclose(found["z"], expected, atol=2e-3 if offset else 1e-5)


def test_bands_divide_the_rows_evenly_and_a_piece_finishes_before_the_next_begins() -> None:
    seen: list[tuple[str, int]] = []

    def watching(piece: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        seen.append((piece, feeds["x" if piece == "one" else "y"].shape[2]))
        return call(piece, feeds)

    vae_bands.run(PIECES, watching, {"x": np.ones((1, 2, 8, 4), np.float32)}, 4 * 2 * 4 * 5 * 2)
    assert [piece for piece, _ in seen] == sorted(piece for piece, _ in seen)
    assert [rows for piece, rows in seen if piece == "one"] == [3, 4, 4, 3]  # two of their own, and a neighbour at each side
    second = [rows for piece, rows in seen if piece == "two"]
    assert sum(second) == 16
    assert max(second) - min(second) <= 1


def test_a_tensor_from_int8_tensors_is_normalized_by_its_own_statistics_and_stored_as_int8() -> None:
    stored = Tensor("uint8", ("batch_size", 2, "rows", "columns"))
    ports = {name: Tensor("float32", ("batch_size", 2, "rows")) for name in ("y.sums", "y.squares")}
    ends = {name: Tensor("float32", ("batch_size", 2, 1, 1)) for name in ("y.scale", "y.shift")}
    pieces = {
        "one": graph({"x": pixels(2)}, {"s": stored, **ports}, rows={"x": 1, "s": 1, "y": 1}, halo=0, norms={}),
        "two": graph({"s": stored, **ends}, {"z": pixels(2)}, rows={"s": 1, "z": 1}, halo=0, norms={"y": Norm(1, 0.0)}),
    }

    def computed(piece: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if piece == "two":
            assert feeds["s"].dtype == np.uint8
            return {"z": feeds["s"] * np.float32(0.5) * feeds["y.scale"] + feeds["y.shift"]}
        s = np.round(feeds["x"]).astype(np.uint8)
        y = s * np.float32(0.5)
        return {"s": s, "y.sums": y.sum(axis=3), "y.squares": np.square(y).sum(axis=3)}  # type: ignore[dict-item]

    x = np.random.default_rng(0).uniform(0, 255, (3, 2, 7, 5)).astype(np.float32)
    y = np.round(x).astype(np.float64)
    expected = (y - y.mean(axis=(1, 2, 3), keepdims=True)) / y.std(axis=(1, 2, 3), keepdims=True)
    found = vae_bands.run(pieces, computed, {"x": x}, 60)
    assert list(found) == ["z"]
    np.testing.assert_allclose(found["z"], expected, atol=1e-5)


def test_rows_are_freed_as_soon_as_nothing_needs_them() -> None:
    pieces = {
        "one": graph({"x": pixels(16)}, {"y": pixels(16)}, rows={"x": 1, "y": 2}, halo=1, norms={}),
        "two": graph({"y": pixels(16)}, {"w": pixels(16)}, rows={"y": 1, "w": 1}, halo=0, norms={}),
        "zed": graph({"w": pixels(16)}, {"z": pixels(1)}, rows={"w": 1, "z": 1}, halo=0, norms={}),
    }

    def computed(piece: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": blurred(feeds["x"])} if piece == "one" else {"w": -feeds["y"]} if piece == "two" else {"z": feeds["w"][:, :1]}

    x = np.ones((1, 16, 64, 256), np.float32)
    tracemalloc.start()
    found = vae_bands.run(pieces, computed, {"x": x}, 1 << 18)["z"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, -blurred(x)[:, :1])
    assert peak < 1.4 * 4 * x.nbytes  # y is four times x, and w takes its place


@pytest.fixture(scope="module")
def cut_bundle(sd1_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle whose autoencoder is cut."""
    folder = tmp_path_factory.mktemp("cut") / "bundle"
    shutil.copytree(sd1_bundle, folder)
    made = read_manifest(folder)
    halves = {name: cutting.add(folder / name, made.components[name]) for name in cutting.HALVES}
    assert [note for _, note in halves.values()] == ["", ""]
    made = msgspec.structs.replace(made, components={**made.components, **{name: one for name, (one, _) in halves.items()}})
    graphs = [graph.graph for name in halves for graph, _ in made.components[name].pieces.values()]
    made = msgspec.structs.replace(made, files={**made.files, **{path: save.fingerprint(folder / path) for path in graphs}})
    (folder / manifests.FILE_NAME).write_bytes(manifests.encode(made))
    assert not verify(open_bundle(folder))
    return folder


@pytest.mark.parametrize("plan", ["resident", "sequential", "streamed"])
def test_an_image_decoded_in_bands_equals_the_one_decoded_whole(cut_bundle: Path, sd1_bundle: Path, plan: str) -> None:
    request = Request("fox", seed=3, steps=2, width=96, height=128)
    with pipeline.load(sd1_bundle, memory="resident") as drawer:
        expected = np.asarray(drawer.generate(request).images[0], np.int64)
    with pipeline.load(cut_bundle, "cpu", memory=plan) as drawer:
        assert drawer.components.in_bands("vae_decoder")
        assert drawer.components.tile("vae_decoder") == 0
        found = np.asarray(drawer.generate(request).images[0], np.int64)
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - expected).mean() < 0.01


def test_an_image_encoded_in_bands_equals_the_one_encoded_whole(cut_bundle: Path, sd1_bundle: Path) -> None:
    feeds = {"sample": np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 96)).astype(np.float32)}
    parameters: list[Array] = []
    for folder in (cut_bundle, sd1_bundle):
        components = Components(open_bundle(folder), providers.resolve("cpu"), "streamed", SessionOptions(threads=1))
        assert components.in_bands("vae_encoder") == (folder == cut_bundle)
        parameters.append(components.run("vae_encoder", feeds)["latent_parameters"])
        components.close()
    np.testing.assert_allclose(*parameters, rtol=1e-4, atol=1e-5)


def test_a_run_is_cancelled_between_two_bands_and_the_next_one_is_whole(cut_bundle: Path) -> None:
    components = Components(open_bundle(cut_bundle), providers.resolve("cpu"), "sequential", SessionOptions(threads=1))
    feeds = {"latent_sample": np.ones((1, 4, 512, 512), np.float32)}
    raised: list[BaseException] = []

    def run() -> None:
        try:
            components.run("vae_decoder", feeds)
        except Cancelled as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and not components.pool.open:
        thread.join(0.001)
    components.cancel()
    thread.join()
    assert len(raised) == 1
    small = {"latent_sample": feeds["latent_sample"][:, :, :8, :8]}
    assert components.run("vae_decoder", small)["sample"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("plan", ["resident", "sequential"])
def test_pieces_stay_open_between_images_if_memory_is_not_scarce(cut_bundle: Path, plan: Plan) -> None:
    components = Components(open_bundle(cut_bundle), providers.resolve("cpu"), plan, SessionOptions(threads=1))
    feeds = {"latent_sample": np.ones((1, 4, 8, 8), np.float32)}
    components.run("vae_decoder", feeds)
    first = {key: session for key, session in components.pool.open.items() if key[0].startswith("vae_decoder/")}
    components.run("vae_decoder", feeds)
    pieces = components.bundle.manifest.components["vae_decoder"].pieces
    assert len(first) == (len(pieces) if plan == "resident" else 1)
    assert all(components.pool.open.get(key) is session for key, session in first.items()) == (plan == "resident")
    components.close()


def test_other_providers_run_the_whole_graph(cut_bundle: Path) -> None:
    provider = replace(providers.TABLE["cuda"], note="not here, and not asked")
    components = Components(open_bundle(cut_bundle), provider, "resident", SessionOptions())
    assert not components.in_bands("vae_decoder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"nothing": 1}}, "does not fit"),
        ({"halo": -1}, "Expected `int` >= 0"),
        ({"norms": {}}, "does not fit"),
        ({"groups": 3}, "do not divide"),
        ({"groups": 0}, "Expected `int` >= 1"),
    ],
)
def test_a_manifest_with_inconsistent_pieces_is_refused(cut_bundle: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    shutil.copytree(cut_bundle, tmp_path / "bundle")
    made = read_manifest(cut_bundle)
    decoder = made.components["vae_decoder"]
    name, (graph, found) = next((name, piece) for name, piece in decoder.pieces.items() if piece[1].norms)
    if "groups" in change:
        change = {"norms": {key: Norm(change["groups"], norm.epsilon) for key, norm in found.norms.items()}}  # type: ignore[arg-type]
    graphs = {**decoder.graphs, name: msgspec.structs.replace(graph, bands=msgspec.structs.replace(found, **change))}
    components = {**made.components, "vae_decoder": msgspec.structs.replace(decoder, graphs=graphs)}
    data = manifests.encode(msgspec.structs.replace(made, components=components))
    (tmp_path / "bundle" / manifests.FILE_NAME).write_bytes(data)
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / "bundle")
