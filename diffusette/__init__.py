"""Diffusette: Stable Diffusion, small enough to ship.

```python
import diffusette

pipeline = diffusette.load()  # the model that ships inside, or load("a/bundle")
result = pipeline.generate("red apple, flat style, blue background", seed=7)
result.images[0].save("apple.png")
```

Everything here is imported when it is first used, so that `import diffusette` costs nothing.
"""

# The folders become one namespace when they are installed, so a type checker does not find them from here.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .models.errors import BundleError, DiffusetteError, NumericalError, ProviderError, RequestError, ResourceError
    from .runtime.pipeline import Picture, Pipeline, Result, Step, load
    from .runtime.request import Request

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "DiffusetteError",
    "NumericalError",
    "Picture",
    "Pipeline",
    "ProviderError",
    "Request",
    "RequestError",
    "ResourceError",
    "Result",
    "Step",
    "load",
]

_HOMES = {
    "models.errors": ("BundleError", "DiffusetteError", "NumericalError", "ProviderError", "RequestError", "ResourceError"),
    "runtime.pipeline": ("Picture", "Pipeline", "Result", "Step", "load"),
    "runtime.request": ("Request",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
