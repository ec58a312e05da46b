"""Metadata of other tools and damaged text of the web UI: readable parts are read."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from diffusette.runtime.metadata import infotext
from diffusette.runtime.metadata.image_files import read

TEXT = "a cat\nNegative prompt: lowres\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 512x768"
WANTED = {"prompt": "a cat", "negative": "lowres", "steps": 20, "seed": 123}
COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 123, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "karras"}
        | {"positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0], "model": ["4", 0]},
    },
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "lowres", "clip": ["4", 1]}},
}


def png(tmp_path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    return tmp_path / "x.png"


def jpeg(tmp_path: Path, payload: bytes) -> Path:
    table = struct.pack("<2sHIHHHIIIHHHIII", b"II", 42, 8, 1, 0x8769, 4, 1, 26, 0, 1, 0x9286, 7, 8 + len(payload), 44, 0)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", exif=b"Exif\0\0" + table + b"UNICODE\0" + payload)
    return tmp_path / "x.jpg"


@pytest.mark.parametrize(
    "more",
    [
        ', Hashes: {"model": "abcdef0123", "lora:ink": "0123456789"}',
        ', Civitai resources: [{"type":"checkpoint","modelVersionId":1},{"type":"lora","weight":0.8}], Civitai metadata: {}',
        ", Cutoff.enabled: True",
        ', Cutoff targets: [red, blue], Lora hashes: "ink: 01, glow: 02"',
        ", no pair at all, {half: [",
        ', Broken: "never closed',
    ],
)
def test_one_unreadable_pair_does_not_affect_the_others(more: str, tmp_path: Path) -> None:
    found = read(png(tmp_path, parameters=TEXT + more)).settings()
    assert {name: found[name] for name in WANTED} == WANTED
    assert (found["width"], found["height"]) == (512, 768)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_a_comment_in_either_order_of_utf_16_is_read(encoding: str, tmp_path: Path) -> None:
    found = read(jpeg(tmp_path, TEXT.encode(encoding))).settings()
    assert {name: found[name] for name in WANTED} == WANTED


@pytest.mark.parametrize(
    ("tool", "texts"),
    [
        (
            "SwarmUI",
            {"parameters": json.dumps({"sui_image_params": {"prompt": "a cat", "negativeprompt": "lowres", "seed": 123, "steps": 20}})},
        ),
        ("Fooocus", {"parameters": json.dumps({"prompt": "a cat", "negative_prompt": "lowres", "seed": "123", "steps": 20})}),
        (
            "InvokeAI",
            {"invokeai_metadata": json.dumps({"positive_prompt": "a cat", "negative_prompt": "lowres", "seed": 123, "steps": 20})},
        ),
        ("NovelAI", {"Software": "NovelAI", "Comment": json.dumps({"prompt": "a cat", "uc": "lowres", "seed": 123, "steps": 20})}),
        ("ComfyUI", {"prompt": json.dumps(COMFY)}),
    ],
)
def test_the_settings_of_another_tool_are_read_and_the_tool_is_named(tool: str, texts: dict[str, str], tmp_path: Path) -> None:
    facts = read(png(tmp_path, **texts)).facts()
    assert facts["source"] == tool
    assert {name: facts[name] for name in WANTED} == WANTED


@pytest.mark.parametrize(
    "damage", ["{", "{}", '{"prompt": {}}', "[" * 100_000, '{"3": {"class_type": "KSampler", "inputs": {"positive": ["3", 0]}}}']
)
@pytest.mark.parametrize("key", ["parameters", "prompt", "invokeai_metadata"])
def test_damaged_metadata_of_another_tool_raises_nothing(key: str, damage: str, tmp_path: Path) -> None:
    read(png(tmp_path, **{key: damage})).facts()


@pytest.mark.parametrize("text", ['a:"' * 700_000, "a: 1, " * 300_000, "x" * 2_000_000, ("a" * 70 + ",") * 30_000, "[" * 2_000_000])
def test_two_megabytes_of_text_are_read_in_bounded_time(text: str) -> None:
    started = time.monotonic()
    infotext.parse(f"fox\nSteps: 1, Sampler: Euler, Seed: 1, {text}")
    assert time.monotonic() - started < 2.0


def test_a_graph_whose_links_go_round_in_circles_is_read_at_once(tmp_path: Path) -> None:
    circle = {"class_type": "Reroute", "inputs": {f"input_{number}": ["6", 0] for number in range(1000)}}
    started = time.perf_counter()
    found = read(png(tmp_path, prompt=json.dumps({**COMFY, "6": circle}))).settings()
    assert time.perf_counter() - started < 1
    assert "prompt" not in found
    assert (found["negative"], found["width"]) == ("lowres", 512)
