"""Export PyTorch weights to bundles.

```python
from diffusette.export import Options, export_model

report = export_model("stable-diffusion-v1-5", "my-bundle", Options(target="cpu"))
```

Start at `export.py`, the whole flow in one file. This package may import `models`; only `runtime_bridge.py` and `calibration.py` may
import `runtime`, to record the real pipeline. The public names are imported on first use, so `import diffusette.export` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .export import Options, Report, export_model

# huggingface_hub reads this on import.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__all__ = ["Options", "Report", "export_model"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module(".export", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
