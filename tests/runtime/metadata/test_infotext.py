"""The web UI's text about an image, and the record behind it."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusette.models.errors import RequestError
from diffusette.runtime.metadata import infotext
from diffusette.runtime.metadata.record import Record, from_json, to_json

RECORD = Record(
    prompt="red apple, (flat style:1.2)\non a table",
    negative="blurry, low quality",
    seed=7,
    steps=20,
    guidance=7.5,
    sampler="dpm++2m",
    schedule="karras",
    width=512,
    height=768,
    model="demo, v1: small",
    model_hash="0123456789abcdef" * 4,
    extra={"clip_skip": 1, "strength": 0.6},
)


def test_the_text_has_the_format_of_the_web_ui():
    last = (
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 512x768, Model hash: 0123456789, "
        'Model: "demo, v1: small", Clip skip: 2, Denoising strength: 0.6, Version: Diffusette 0.1.0'
    )
    assert infotext.compose(RECORD) == f"red apple, (flat style:1.2)\non a table\nNegative prompt: blurry, low quality\n{last}"


def test_fields_that_the_web_ui_has_use_its_names():
    extra = {
        "hires": 2.0,
        "hires_steps": 9,
        "hires_strength": 0.4,
        "hires_upscaler": "latent_bicubic",
        "variation": 0.2,
        "variation_seed": 5,
        "only_masked": True,
        "mask_blur": 4.0,
        "mask_padding": 16,
        "init": "ab" * 32,
        "image_guidance": 1.2,
        "refiner": "other [0123456789]",
        "refiner_start": 0.8,
        "sampler_options": {"eta": 0.5, "s_noise": 1.01},
    }
    record = Record(prompt="fox", seed=7, steps=20, guidance=7.5, sampler="ddim", schedule="model", width=512, height=512, extra=extra)
    last = infotext.compose(record).split("\n")[-1]
    for said in (
        "Hires upscale: 2, Hires steps: 9, Denoising strength: 0.4, Hires upscaler: Latent (bicubic)",
        "Variation seed strength: 0.2, Variation seed: 5",
        "Inpaint area: Only masked",
        "Mask blur: 4, Masked area padding: 16",
        "Image CFG scale: 1.2",
        "Refiner: other [0123456789], Refiner switch at: 0.8",
        "Eta: 0.5",
        "Sigma noise: 1.01",
    ):
        assert said in last
    assert "abab" not in last
    found = infotext.parse(infotext.compose(record))
    assert "strength" not in found
    for name in ("hires", "hires_steps", "hires_strength", "variation", "variation_seed", "mask_blur", "mask_padding", "refiner_start"):
        assert found[name] == extra[name]
    assert found["sampler_options"] == {"eta": 0.5, "s_noise": 1.01}
    assert found["only_masked"] is True
    assert found["extra"].keys() == {"Refiner", "Version"}


def test_the_text_is_read_back():
    found = infotext.parse(infotext.compose(RECORD))
    expected = {
        "prompt": RECORD.prompt,
        "negative": RECORD.negative,
        "seed": 7,
        "steps": 20,
        "guidance": 7.5,
        "sampler": "DPM++ 2M",
        "schedule": "Karras",
        "width": 512,
        "height": 768,
        "model": "demo, v1: small",
        "model_hash": "0123456789",
        "clip_skip": 1,
        "strength": 0.6,
        "extra": {"Version": "Diffusette 0.1.0"},
    }
    assert found == expected


def test_a_text_of_the_web_ui_is_read():
    text = (
        "masterpiece, 1girl <lora:detail:0.8>\nBREAK\nforest\n"
        "Negative prompt: bad hands,\nworst quality\n"
        "Steps: 28, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 1234567890, Size: 832x1216, Model hash: abc123def0, "
        'Model: some_model-v3, VAE hash: 235745af8d, Lora hashes: "detail: 1f2e3d, other: 4c5b6a", Hires upscale: 2, Version: v1.10.1'
    )
    found = infotext.parse(text)
    assert found["prompt"] == "masterpiece, 1girl <lora:detail:0.8>\nBREAK\nforest"
    assert found["negative"] == "bad hands,\nworst quality"
    assert (found["seed"], found["steps"], found["guidance"], found["width"], found["height"]) == (1234567890, 28, 7.0, 832, 1216)
    assert found["extra"]["Lora hashes"] == "detail: 1f2e3d, other: 4c5b6a"
    assert found["hires"] == 2


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("", ""),
        ("only words", "only words"),
        ("a ratio of 16:9, and more: yes", "a ratio of 16:9, and more: yes"),
        ("words\nSteps: 1, Seed: 5", "words\nSteps: 1, Seed: 5"),
        ("words\nSteps: many, Seed: 5, Size: big, CFG scale: 7", "words"),
        ('words\nA: "unclosed, B: 2, C: 3', "words"),
    ],
)
def test_the_last_line_counts_as_settings_only_if_it_has_their_form(text, prompt):
    assert infotext.parse(text)["prompt"] == prompt


def test_settings_that_are_not_numbers_are_kept_as_text():
    found = infotext.parse("words\nSteps: many, Seed: 5, Size: big, CFG scale: 7")
    assert found["extra"] == {"Steps": "many", "Size": "big"}


@given(st.lists(st.sampled_from([*'a:,\n"\\ {', "Steps: 1", "Negative prompt:", ", ", ": "]), max_size=60).map("".join))
@settings(max_examples=200, deadline=None)
def test_any_text_is_parsed(text):
    found = infotext.parse(text)
    assert isinstance(found["prompt"], str)


@pytest.mark.parametrize(
    "text", ["a:" * 500_000, 'a:"' * 300_000, "a" * 1_000_000, "a: [" * 250_000, 'a: "' + "\\" * 1_000_000, "\n" * 1_000_000]
)
def test_hostile_texts_take_bounded_time(text):
    begin = time.thread_time()
    infotext.parse(text)
    assert time.thread_time() - begin < 3


@given(st.text(st.sampled_from([*'aé🦊,:"\\\n\r\t\x00\x1f\x7f\u2028\ufffe\uffff']), max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_record_is_read_back_unchanged(text):
    record = msgspec.structs.replace(RECORD, prompt=text, negative=text[::-1], extra={"note": text, "list": [1, 2.5, None, {"a": text}]})
    stored = to_json(record)
    assert from_json(stored) == record
    assert to_json(record) == stored


def test_values_that_are_not_json_are_refused():
    with pytest.raises(RequestError, match="cannot be stored"):
        to_json(msgspec.structs.replace(RECORD, extra={"x": "\ud800"}))
    with pytest.raises(RequestError, match="cannot be stored"):
        to_json(msgspec.structs.replace(RECORD, extra={"x": object()}))


@pytest.mark.parametrize(
    "data", ["", "{}", "[1]", '{"prompt": 1}', "{" * 100_000, "[" * 100_000, "x" * 2_000_000, b"\xff\xfe", '{"prompt":"\\ud800"}']
)
def test_a_damaged_record_is_none(data):
    assert from_json(data) is None


def test_unknown_fields_of_a_newer_record_are_ignored():
    newer = to_json(RECORD)[:-1] + ',"colour_space":"P3"}'
    assert from_json(newer) == RECORD
