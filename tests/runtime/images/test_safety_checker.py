"""The safety checker: the same scores as diffusers' class, and the handling of flagged images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from onnx import TensorProto, helper
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil

from diffusette.cli import inputs
from diffusette.models import manifest as manifests
from diffusette.models.bundle import read_manifest
from diffusette.models.errors import BundleError, NumericalError, RequestError
from diffusette.models.formats import onnx_reader
from diffusette.models.formats.safetensors_file import save_weights
from diffusette.models.manifest import Component
from diffusette.runtime import pipeline
from diffusette.runtime.images import safety_checker
from diffusette.runtime.metadata import image_files
from tests.support import small_graphs
from tests.support.guarded_bundles import add, guarded

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SIZE, WIDTH = 32, 16


@pytest.fixture(scope="module")
def checker() -> StableDiffusionSafetyChecker:
    """diffusers' class with tiny random weights and thresholds that some random images exceed."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 8,
    }
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=WIDTH)).eval()
    for name in ("concept_embeds", "special_care_embeds"):
        embeds = getattr(model, name)
        embeds.data = torch.randn(embeds.shape)
    return model


def concepts_of(model: StableDiffusionSafetyChecker, path: Path, size: int = SIZE) -> tuple[safety_checker.View, safety_checker.Concepts]:
    names = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
    arrays = {name: getattr(model, name).detach().numpy() for name in names}
    save_weights(path, arrays, {"size": json.dumps(size), "mean": json.dumps(MEAN), "std": json.dumps(STD)})
    return safety_checker.read_concepts(path)


def test_many_random_images_are_flagged_exactly_as_in_diffusers(checker: StableDiffusionSafetyChecker, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    seen = torch.from_numpy(rng.standard_normal((400, 3, SIZE, SIZE), np.float32))
    with torch.no_grad():
        embeds = checker.visual_projection(checker.vision_model(seen)[1]).numpy()
    cosines = safety_checker.normalized(embeds) @ safety_checker.normalized(checker.concept_embeds.detach().numpy()).T
    special = safety_checker.normalized(embeds) @ safety_checker.normalized(checker.special_care_embeds.detach().numpy()).T
    checker.concept_embeds_weights.data = torch.from_numpy(np.quantile(cosines, 0.97, axis=0).astype(np.float32))
    checker.special_care_embeds_weights.data = torch.from_numpy(np.quantile(special, 0.8, axis=0).astype(np.float32))
    _, concepts = concepts_of(checker, tmp_path / "concepts.safetensors")
    _, expected = checker(seen, [np.zeros((2, 2, 3))] * len(seen))
    found = safety_checker.unsafe(embeds, concepts)
    assert 40 < sum(expected) < 360
    assert found.tolist() == expected
    without_care = safety_checker.unsafe(
        embeds, safety_checker.Concepts(**(vars(concepts) | {"special_thresholds": np.ones(3, np.float32)}))
    )
    assert (found != without_care).any()  # the adjustment for special care decides for some
    assert (found >= without_care).all()


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (50, 131), (8, 8)])
def test_an_image_is_preprocessed_as_in_transformers(checker: StableDiffusionSafetyChecker, tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD
    )
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    found = safety_checker.prepared(image, concepts_of(checker, tmp_path / "concepts.safetensors")[0])
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5


def test_not_a_number_is_an_error_and_never_an_image_that_passed(checker: StableDiffusionSafetyChecker, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="safety checker"):
        safety_checker.unsafe(np.full((1, WIDTH), np.nan), concepts_of(checker, tmp_path / "concepts.safetensors")[1])


@pytest.mark.parametrize(
    ("metadata", "arrays", "message"),
    [
        ({"size": "0"}, {}, "size 0"),
        ({"size": "big"}, {}, "size, mean or std"),
        ({"std": "[1, 0, 1]"}, {}, "three numbers"),
        ({"mean": "[1, 2]"}, {}, "three numbers"),
        ({}, {"concept_embeds_weights": np.ones(3, np.float32)}, "thresholds"),
        ({}, {"concept_embeds": np.full((2, 4), np.nan, np.float32)}, "finite"),
        ({}, {"concept_embeds": np.ones((2, 5), np.float32)}, "equal width"),
        ({}, {"concept_embeds": None}, "no tensor 'concept_embeds'"),
    ],
)
def test_damaged_concepts_are_refused(tmp_path: Path, metadata: dict[str, str], arrays: dict[str, np.ndarray | None], message: str) -> None:
    whole: dict[str, np.ndarray | None] = {
        "concept_embeds": np.ones((2, 4), np.float32),
        "concept_embeds_weights": np.ones(2, np.float32),
        "special_care_embeds": np.ones((1, 4), np.float32),
        "special_care_embeds_weights": np.ones(1, np.float32),
    } | arrays
    said = {"size": "8", "mean": "[0, 0, 0]", "std": "[1, 1, 1]"} | metadata
    save_weights(tmp_path / "c.safetensors", {name: array for name, array in whole.items() if array is not None}, said)
    with pytest.raises(BundleError, match=message):
        safety_checker.read_concepts(tmp_path / "c.safetensors")


def older_checker(threshold: float) -> onnx.ModelProto:
    """clip_input, images → has_nsfw_concepts: whether the two together are brighter than `threshold`."""
    nodes = [
        helper.make_node("ReduceMean", ["clip_input", "axes"], ["a"], keepdims=0),
        helper.make_node("ReduceMean", ["images", "axes"], ["b"], keepdims=0),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Greater", ["c", "threshold"], ["has_nsfw_concepts"]),
    ]
    inputs = {"clip_input": (TensorProto.FLOAT, ["n", 3, 224, 224]), "images": (TensorProto.FLOAT, ["n", "h", "w", 3])}
    weights = {"axes": np.array([1, 2, 3]), "threshold": np.float32([threshold])}
    return small_graphs.model(nodes, inputs, {"has_nsfw_concepts": (TensorProto.BOOL, ["n"])}, weights)


@pytest.mark.parametrize("plan", ["resident", "sequential"])
def test_a_flagged_image_is_black_and_marked_everywhere(sd1_bundle: Path, tmp_path: Path, plan: str) -> None:
    with pipeline.load(guarded(sd1_bundle, tmp_path / "bundle", threshold=-2.0), memory=plan) as opened:
        result = opened.generate("a red apple", seed=3, steps=2, count=2)
    assert result.safety == "on"
    for picture, image in zip(result.pictures, result.images, strict=True):
        assert picture.flagged
        assert not np.asarray(image).any()
        assert picture.record.extra["safety"] == "flagged"
        assert any(note.startswith(f"seed {picture.seed}: the safety checker flagged the image") for note in result.notes)


def test_a_flagged_image_is_blurred_if_asked(sd1_bundle: Path, tmp_path: Path) -> None:
    with pipeline.load(guarded(sd1_bundle, tmp_path / "bundle", threshold=-2.0), flagged="blur") as opened:
        result = opened.generate("a red apple", seed=3, steps=2)
    with pipeline.load(sd1_bundle) as opened:
        unchecked = opened.generate("a red apple", seed=3, steps=2)
    assert result.pictures[0].flagged
    assert any("the safety checker flagged the image, so it is blurred" in note for note in result.notes)
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(safety_checker.hidden(unchecked.images[0], "blur")))
    with pytest.raises(RequestError, match="flagged 'pink' is not known: choose one of black, blur"):
        pipeline.load(sd1_bundle, flagged="pink")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("width", "height"), [(512, 512), (768, 384), (64, 128), (16, 16)])
def test_nothing_but_the_mean_of_each_area_is_left_of_a_blurred_image(width: int, height: int) -> None:
    side = max(8, max(width, height) // 8)
    draw = np.random.default_rng(1).integers
    means = draw(60, 190, (height // side, width // side, 3)).repeat(side, 0).repeat(side, 1)
    half = draw(-60, 60, (height, width // side, side // 2, 3))
    detailed = means + np.concatenate([half, -half], 2).reshape(height, width, 3)
    blurred, expected = (
        np.asarray(safety_checker.hidden(Image.fromarray(pixels.astype(np.uint8)), "blur")) for pixels in (detailed, means)
    )
    assert np.abs(detailed - means).max() > 50
    assert blurred.shape == (height, width, 3)
    assert np.array_equal(blurred, expected)


def test_an_image_that_passes_equals_that_of_a_bundle_without_a_checker(sd1_bundle: Path, tmp_path: Path) -> None:
    with pipeline.load(sd1_bundle) as plain, pipeline.load(guarded(sd1_bundle, tmp_path / "bundle", threshold=2.0)) as opened:
        expected, result = (one.generate("a red apple", seed=3, steps=2) for one in (plain, opened))
    assert (expected.safety, result.safety) == ("none", "on")
    assert not result.pictures[0].flagged
    assert "safety" not in result.metadata[0].extra
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(expected.images[0]))


def test_with_the_checker_off_nothing_is_checked_and_result_and_file_record_it(sd1_bundle: Path, tmp_path: Path) -> None:
    bundle = guarded(sd1_bundle, tmp_path / "bundle", threshold=-2.0)
    with pipeline.load(bundle, safety=False) as opened:
        result = opened.generate("a red apple", seed=3, steps=2)
    assert result.safety == "off"
    assert not result.pictures[0].flagged
    assert np.asarray(result.images[0]).any()
    assert "the safety checker is turned off" in result.notes
    assert "safety_checker" not in result.timings
    image_files.write(result.images[0], tmp_path / "a.png", result.metadata[0])
    found = image_files.read(tmp_path / "a.png").record
    assert found is not None
    assert found.extra["safety"] == "off"
    with pipeline.load(bundle) as opened:  # reproduced, it is checked again
        assert opened.generate(inputs.request_of(None, inputs.recorded(tmp_path / "a.png"), {})).pictures[0].flagged


def test_a_checker_without_its_concepts_is_refused_when_the_bundle_is_opened(sd1_bundle: Path, tmp_path: Path) -> None:
    bundle = guarded(sd1_bundle, tmp_path / "bundle", threshold=0.0)
    manifest = read_manifest(bundle)
    path = bundle / "safety_checker/concepts.safetensors"
    path.unlink()
    kept = {name: file for name, file in manifest.files.items() if not name.endswith("concepts.safetensors")}
    (bundle / manifests.FILE_NAME).write_bytes(manifests.encode(msgspec.structs.replace(manifest, files=kept)))
    with pytest.raises(BundleError, match=r"safety_checker: .*concepts\.safetensors is missing"):
        pipeline.load(bundle)


def test_the_checker_of_a_plain_folder_is_called_with_its_own_inputs(sd1_bundle: Path, tmp_path: Path) -> None:
    for threshold, flagged in ((-100.0, True), (100.0, False)):
        bundle = shutil.copytree(sd1_bundle, tmp_path / str(threshold))
        path = small_graphs.save(older_checker(threshold), bundle / "safety_checker/model.onnx")
        graph = onnx_reader.read(path)
        add(bundle, Component("safety_checker/model.onnx", "fp32", dict(graph.inputs), dict(graph.outputs)), [path])
        with pipeline.load(bundle) as opened:
            assert opened.generate("a red apple", seed=3, steps=2).pictures[0].flagged is flagged
