"""Stable codes of errors: the words that programs compare, while messages may change."""

from __future__ import annotations

import errno
import re

from ...models.errors import BundleError, Cancelled, DiffusetteError, NumericalError, ProviderError, RequestError, ResourceError
from ...runtime.request import specs

CODES: dict[str, str] = {
    "malformed": "The line is not a JSON object with a known type and an id.",
    "too_large": "The line is longer than the limit in the ready line.",
    "invalid_request": "A field is unknown, has the wrong type, or a value that the model cannot use.",
    "not_found": "No request with that id is queued or running.",
    "forbidden": "A path is outside the folders that the process may read.",
    "queue_full": "Too many requests are waiting, or too many bytes.",
    "model_error": "A model's files are missing, damaged, hostile, or made for something else.",
    "provider_error": "An execution provider is missing, or cannot run the model.",
    "out_of_memory": "There is not enough memory. The process stays usable.",
    "disk_full": "There is not enough space on the disk. No half file is left.",
    "numerical_error": "NaN or Inf appeared on the way.",
    "cancelled": "The request was cancelled, or the process is ending.",
    "internal": "A bug in Diffusette; the traceback is on stderr.",
}
"""Code → meaning. `docs/host.md` has the same table."""

_BY_CLASS: dict[type[DiffusetteError], str] = {
    BundleError: "model_error",
    RequestError: "invalid_request",
    ProviderError: "provider_error",
    ResourceError: "out_of_memory",
    NumericalError: "numerical_error",
    Cancelled: "cancelled",
}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Refusal(Exception):  # noqa: N818  # an answer, not a fault
    """A request that is answered with an error of that code; `field` is the field at fault, if one is."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        assert code in CODES
        self.code = code
        self.field = field


def refusal_of(error: Exception) -> Refusal:
    """`error` with its code, and the request field that its message begins with."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MemoryError):
        return Refusal("out_of_memory", "not enough memory: generate a smaller image, or use the memory plan streamed")
    if not isinstance(error, DiffusetteError):
        return Refusal("internal", f"{type(error).__name__}: {error}")
    code = next((code for kind, code in _BY_CLASS.items() if isinstance(error, kind)), "internal")
    if code == "out_of_memory" and getattr(error.__cause__, "errno", None) in _NO_SPACE:
        code = "disk_full"
    first = re.match(r"\w*", str(error))
    return Refusal(code, str(error), first[0] if first and code == "invalid_request" and first[0] in specs() else None)
