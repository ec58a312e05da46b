"""The errors that Diffusette raises on purpose.

```
DiffusetteError
├── BundleError      a model's files are missing, damaged, hostile, or made for something else
├── RequestError     the request cannot be generated or exported: a size, a name, a prompt, an image
├── ProviderError    an execution provider is missing, or cannot run this graph
├── ResourceError    not enough memory or disk
├── NumericalError   NaN or Inf on the way, or parity below the bar
└── Cancelled        the caller stopped a running call
```

Each message states what was expected, what came, and what to do next. Only the command line and the server turn errors into text and
exit codes.
"""

from __future__ import annotations

MAX_LETTERS = 1500
"""Of a message. What others wrote, such as a value in a config, may have megabytes."""


class DiffusetteError(Exception):
    """The root of the tree: catch it to catch every error that Diffusette raises on purpose."""

    def __str__(self) -> str:
        text = super().__str__()
        half = MAX_LETTERS // 2
        return text if len(text) <= MAX_LETTERS else f"{text[:half]} … {text[-half:]}"


class BundleError(DiffusetteError):
    """A model's files are missing, damaged, hostile, or made for something else. Verify or export the model again."""


class RequestError(DiffusetteError):
    """The request cannot be generated or exported. The message names the field and the values that it accepts."""


class ProviderError(DiffusetteError):
    """An execution provider is missing, or cannot run this graph. The message names the package to install or another target."""


class ResourceError(DiffusetteError):
    """Not enough memory or disk. The pipeline stays usable: generate smaller images, or use a leaner memory plan."""


class NumericalError(DiffusetteError):
    """NaN or Inf appeared on the way, or a component's parity is below its bar."""


class Cancelled(DiffusetteError):  # noqa: N818  # the caller's wish, not a fault
    """The caller stopped a running call (`Pipeline.cancel`). The pipeline is as usable as before."""
