"""What the tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from diffusette.models.manifest import Tensor


@dataclass
class FakeSession:
    """A session that calls `function`; `fed` keeps what it was given."""

    function: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    provider: str = "fake"
    fed: list[dict[str, NDArray[Any]]] = field(default_factory=list)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.fed.append(dict(feeds))
        return self.function(feeds)
