"""The request is declared once: bounds, types and descriptions come from one place and agree with what type checkers see."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from diffusette.models.errors import RequestError
from diffusette.runtime.request import Fields, Request, check_numbers, specs


def test_every_field_is_declared_with_a_description_and_has_its_twin_in_the_keyword_arguments() -> None:
    names = [field.name for field in dataclasses.fields(Request)]
    assert list(specs()) == names
    assert all(spec.description.endswith(".") or spec.description.endswith("…") for _, _, spec in specs().values())
    twins = {name: annotation.__forward_arg__ for name, annotation in Fields.__annotations__.items()}
    assert twins == {field.name: field.type for field in dataclasses.fields(Request) if field.name != "prompt"}


def test_every_number_has_bounds() -> None:
    for name, (annotation, _, spec) in specs().items():
        if annotation.removesuffix(" | None") in {"int", "float"}:
            assert spec.low is not None, name
            assert spec.high is not None, name


def test_help_describes_every_field_with_bounds_and_default() -> None:
    text = Request.__doc__ or ""
    for name in specs():
        assert f"    {name} (" in text
    assert "height (int | None): Height in pixels, a multiple of 8. From 8 to 4096. Default: init's or the model's." in text


def test_numbers_of_numpy_are_numbers() -> None:
    found = check_numbers(Request("fox", seed=np.int64(5), guidance=np.float32(2.5), crop=(np.int32(1), np.int8(2))))
    assert (found.seed, found.guidance, found.crop) == (5, 2.5, (1, 2))
    assert (type(found.seed), type(found.guidance)) == (int, float)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("width", "64", "width: '64', expected a multiple of 8 from 8 to 4096"),
        ("steps", 2.5, "steps: 2.5, expected a whole number"),
        ("steps", 10**5000, "steps: a number of thousands of digits, expected"),
        ("count", True, "count: True, expected a whole number"),
        ("guidance", float("nan"), "guidance: nan, expected a number from 0 to 100"),
        ("guidance", float("inf"), "guidance: inf"),
        ("crop", (1,), r"crop: \(1,\), expected 2 numbers"),
        ("guidance_interval", (0.5, 2.0), "guidance_interval: 2.0, expected a number from 0 to 1"),
        ("variation", None, "variation: None, expected a number"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_a_wrong_number_is_refused_with_its_field_and_bounds(field: str, value: Any, said: str) -> None:
    with pytest.raises(RequestError, match=f"^{said}"):
        check_numbers(Request("fox", **{field: value}))
