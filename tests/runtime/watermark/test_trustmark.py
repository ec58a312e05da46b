"""TrustMark: its payload, and its networks, for which small ones with the same inputs and outputs stand in."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from diffusette.models.errors import BundleError
from diffusette.runtime.detector import examine
from diffusette.runtime.metadata import image_files
from diffusette.runtime.provenance.marks import Marks
from diffusette.runtime.saving import ImageWriter
from diffusette.runtime.watermark import bch, trustmark
from tests.runtime.watermark.test_watermark import picture

SIDE, BITS = trustmark.SIDE, bch.SIZE


def save(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], outputs: dict[str, list[int]], basis: np.ndarray) -> None:
    tensors = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in part.items()] for part in (inputs, outputs)
    ]
    extra = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in (("flat", [1, -1]), ("whole", [1, 3, SIDE, SIDE]))]
    graph = helper.make_graph(nodes, "stand-in", *tensors, [numpy_helper.from_array(basis, "basis"), *extra])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that adds a coarse pattern for each bit, and a decoder that correlates with the patterns."""
    folder = tmp_path_factory.mktemp("trustmark")
    coarse = np.random.default_rng(0).choice([-1.0, 1.0], (BITS, 3, 32, 32))
    coarse -= coarse.mean(axis=(2, 3), keepdims=True)
    basis = np.kron(coarse, np.ones((8, 8))).reshape(BITS, -1).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["bits", "two"], ["doubled"]),
        helper.make_node("Sub", ["doubled", "one"], ["signs"]),
        helper.make_node("MatMul", ["signs", "basis"], ["sum"]),
        helper.make_node("Mul", ["sum", "small"], ["change"]),
        helper.make_node("Reshape", ["change", "whole"], ["planes"]),
        helper.make_node("Add", ["cover", "planes"], ["marked"]),
    ]
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.float32(value)))
        for name, value in (("two", 2), ("one", 1), ("small", 0.01))
    ]
    cover = {"cover": [1, 3, SIDE, SIDE]}
    save(folder / trustmark.ENCODER, [*constants, *nodes], {**cover, "bits": [1, BITS]}, {"marked": [1, 3, SIDE, SIDE]}, basis)
    nodes = [helper.make_node("Reshape", ["cover", "flat"], ["row"]), helper.make_node("MatMul", ["row", "columns"], ["logits"])]
    nodes.insert(0, helper.make_node("Transpose", ["basis"], ["columns"], perm=[1, 0]))
    save(folder / trustmark.DECODER, nodes, cover, {"logits": [1, BITS]}, basis)
    return folder


def test_the_payload_survives_five_wrong_bits_and_not_six() -> None:
    rng = random.Random(0)
    for _ in range(40):
        payload = rng.getrandbits(bch.DATA)
        bits = bch.encode(payload)
        assert len(bits) == bch.SIZE
        assert bits[-4:] == [0, 0, 0, 1]
        for wrong in range(7):
            spoilt = list(bits)
            for at in rng.sample(range(96), wrong):
                spoilt[at] ^= 1
            assert bch.decode(spoilt) == payload if wrong <= 5 else bch.decode(spoilt) != payload


def test_the_code_words_are_those_of_the_published_polynomial() -> None:
    generator = bch._generator()
    assert generator.bit_length() == 36
    assert generator & 1
    for data in (1, 0x155, (1 << 61) - 1):
        bits = bch.encode(data)
        word = int("".join(map(str, [*bits[:61], 0, 0, 0, *bits[61:96]])), 2)
        while word.bit_length() >= generator.bit_length():
            word ^= generator << (word.bit_length() - generator.bit_length())
        assert word == 0


def test_random_bits_are_seldom_a_payload() -> None:
    rng = random.Random(1)
    assert sum(bch.decode([rng.getrandbits(1) for _ in range(bch.SIZE)]) is not None for _ in range(2000)) <= 2


@pytest.mark.parametrize("size", [(256, 256), (400, 300), (700, 200)])
def test_the_networks_write_and_read_an_identifier_at_any_size(networks: Path, size: tuple[int, int]) -> None:
    mark = trustmark.open_trustmark(networks)
    image = picture().image.resize(size)
    marked = mark.embed(image, 0x1A2B3C4D)
    assert marked.size == size
    payload = mark.read(marked)
    assert payload is not None
    assert trustmark.ours(payload) == 0x1A2B3C4D
    assert mark.read(image) is None


def test_files_carry_it_and_both_watermarks_are_read(networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ImageWriter(Marks(watermark=f"trustmark={networks}", watermark_id=77))
    data = writer.encode(picture(), "PNG")
    record = image_files.read(data).record
    assert record is not None
    assert record.watermark == f"com.adobe.trustmark.Q:1*{77:032b}{0:029b}"
    assert not [one for one in examine(data)[0].findings if one.mark == "watermark" and one.state == "present"]
    monkeypatch.setenv("DIFFUSETTE_WATERMARK", f"trustmark={networks}")
    (found,) = [one for one in examine(data)[0].findings if one.mark == "watermark"]
    assert found.details["identifier"] == 77
    ours = ImageWriter(Marks(watermark="auto", watermark_id=78)).encode(picture(), "PNG")
    assert [one.details["identifier"] for one in examine(ours)[0].findings if one.mark == "watermark"] == [78]


def test_folders_without_the_networks_are_refused(networks: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"encoder_Q\.onnx: no such file"):
        ImageWriter(Marks(watermark=f"trustmark={tmp_path}")).check()
    for name in (trustmark.ENCODER, trustmark.DECODER):
        (tmp_path / name).write_bytes((networks / trustmark.DECODER).read_bytes())
    with pytest.raises(BundleError, match="as TrustMark Q has them"):
        trustmark.open_trustmark(tmp_path)
    assert isinstance(picture().image, Image.Image)
