"""Everything that Diffusette raises on purpose.

```
DiffusetteError
├── BundleError      a model's files: missing, damaged, hostile, or made for something else
├── RequestError     what was asked for cannot be drawn or exported: a size, a name, a prompt, a picture
├── ProviderError    an execution provider is not there, or cannot run this graph
├── ResourceError    memory or disk does not suffice
└── NumericalError   numbers went wrong: NaN or Inf on the way, or parity below the bar
```

Each message says what was expected, what came, and what to do next. Only the command line and the server turn
these into text and codes.
"""

from __future__ import annotations


class DiffusetteError(Exception):
    """The root: catch this to catch everything that is raised on purpose."""


class BundleError(DiffusetteError):
    """A model's files are missing, damaged, hostile, or made for something else."""


class RequestError(DiffusetteError):
    """What was asked for cannot be drawn or exported."""


class ProviderError(DiffusetteError):
    """An execution provider is not there, or cannot run this graph."""


class ResourceError(DiffusetteError):
    """Memory or disk does not suffice."""


class NumericalError(DiffusetteError):
    """Numbers went wrong: NaN or Inf on the way, or parity below the bar."""
