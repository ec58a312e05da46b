"""Prompt fidelity: the judge against the drawings it must know, and the shares it gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from diffusette.benchmarks.quality import prompt_fidelity
from diffusette.models.bundle import DEMO
from diffusette.models.errors import RequestError
from diffusette.runtime import pipeline
from diffusette.runtime.request import Request


def test_the_judge_tells_its_own_accuracy_on_drawings_spoilt_in_ways_it_did_not_know() -> None:
    known = prompt_fidelity.labels()
    assert (len(known.subject), len(known.style), len(known.background), len(known.prompts)) == (284, 2, 12, prompt_fidelity.PROMPTS)
    assert known.accuracy["unspoilt"]["subject"] > 0.99
    assert 0.4 < known.accuracy["a quarter hidden"]["subject"] < 0.9
    assert {prompt.subject for prompt in known.prompts} <= set(known.subject)
    assert sum(prompt.held_out for prompt in known.prompts) == 50
    assert sum(prompt.style is None for prompt in known.prompts) == 100


def test_pictures_of_the_demo_model_show_what_was_asked_and_the_same_ones_every_time() -> None:
    with pipeline.load(DEMO, "cpu", threads=1) as drawer:
        found = prompt_fidelity.score(drawer, Request("", steps=6), count=4)
        again = prompt_fidelity.score(drawer, Request("", steps=6), count=4)
    assert found.pictures == 4
    assert found.subject >= 0.75
    assert found.background == 1.0
    assert found.seen == again.seen


def test_noise_shows_nothing_that_was_asked() -> None:
    rng = np.random.default_rng(3)
    wanted = [prompt for _, prompt in prompt_fidelity.chosen(20)]
    seen = prompt_fidelity.look([rng.integers(0, 256, size=(128, 128, 3)).astype(np.uint8) for _ in wanted])
    assert prompt_fidelity.judged(wanted, seen).subject < 0.3


def test_shares_count_what_was_asked_and_nothing_else() -> None:
    def prompt(style: str | None, background: str | None, held_out: bool = False) -> prompt_fidelity.Prompt:
        return prompt_fidelity.Prompt("", "fox", style, background, held_out)

    wanted = [prompt(None, None), prompt("flat", "red"), prompt("noto", "blue", held_out=True)]
    seen = [("fox", "noto", "teal"), ("fox", "flat", "red"), ("ant", "noto", "red")]
    found = prompt_fidelity.judged(wanted, seen)
    assert (found.subject, found.style, found.background, found.everything, found.held_out) == (2 / 3, 1.0, 0.5, 0.5, 0.0)
    alone = prompt_fidelity.judged(wanted[:1], seen[:1])
    assert (alone.style, alone.background, alone.everything, alone.held_out) == (None, None, None, None)


def test_a_model_that_the_judge_does_not_know_is_refused(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "other")
    manifest = tmp_path / "other" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"diffusette-demo"', '"somebody-elses"'))
    with pipeline.load(tmp_path / "other", "cpu") as drawer, pytest.raises(RequestError, match="diffusette-demo"):
        prompt_fidelity.score(drawer, count=1)
    with pytest.raises(RequestError, match="200"):
        prompt_fidelity.chosen(201)
