"""Diffusette: Stable Diffusion, small enough to ship.

```python
import diffusette

with diffusette.load() as pipeline:  # the demo model, or load("my-bundle")
    result = pipeline.generate("red apple, flat style, blue background", seed=7)
    result.images[0].save("apple.png")
```

Everything here is imported when it is first used, so `import diffusette` costs nothing. `diffusette.export` exports models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .models.errors import BundleError, Cancelled, DiffusetteError, NumericalError, ProviderError, RequestError, ResourceError
    from .runtime.pipeline import Pipeline, generate, load
    from .runtime.provenance.marks import Callback, Marks
    from .runtime.request import Request
    from .runtime.result import Note, Picture, Result, Step
    from .runtime.saving import save

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "Callback",
    "Cancelled",
    "DiffusetteError",
    "Marks",
    "Note",
    "NumericalError",
    "Picture",
    "Pipeline",
    "ProviderError",
    "Request",
    "RequestError",
    "ResourceError",
    "Result",
    "Step",
    "generate",
    "load",
    "save",
]

_HOMES = {
    "models.errors": ("BundleError", "Cancelled", "DiffusetteError", "NumericalError", "ProviderError", "RequestError", "ResourceError"),
    "runtime.pipeline": ("Pipeline", "generate", "load"),
    "runtime.provenance.marks": ("Callback", "Marks"),
    "runtime.request": ("Request",),
    "runtime.result": ("Note", "Picture", "Result", "Step"),
    "runtime.saving": ("save",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
