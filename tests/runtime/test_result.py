"""The public classes of the runtime: their documentation names what they have."""

from __future__ import annotations

import dataclasses
import re

import pytest

from diffusette.runtime.result import Note, Picture, Result, Step


@pytest.mark.parametrize("public", [Step, Note, Picture, Result])
def test_the_documented_attributes_of_an_event_are_its_fields(public: type) -> None:
    attributes = (public.__doc__ or "").partition("Attributes:")[2]
    assert re.findall(r"^        (\w+):", attributes, re.MULTILINE) == [field.name for field in dataclasses.fields(public)]
