"""Sign image files with c2pa-python, which is imported here, when the first image is signed.

The library reaches for the network only where a time stamp authority is configured: it never fetches manifests that an image points to.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from ...models.errors import RequestError
from . import jumbf
from .claim import Claim, ingredient, manifest
from .credentials import Credentials, credentials_of
from .marks import Callback, Marks

Format = Literal["PNG", "JPEG", "WEBP"]
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
SETTINGS: dict[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
}
INSTALL = 'pip install "diffusette[sign]"'
_TRIAL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
"""A PNG file of one pixel."""


def installed() -> bool:
    """Whether the extra `sign` is installed. Nothing is imported."""
    return find_spec("c2pa") is not None and find_spec("cryptography") is not None


def library() -> Any:
    """Return the C2PA library, which takes a tenth of a second to import."""
    return import_module("c2pa")


class Signer:
    """Signs files with one key. Threads may share it.

    Args:
        credentials: the certificate chain and the key.
        timestamp: URL of a time stamp authority; empty for none.
    """

    def __init__(self, credentials: Credentials, timestamp: str = "") -> None:
        self.credentials = credentials
        self.timestamp = timestamp
        self._turn = threading.Lock()

    def sign(self, data: bytes, kind: Format, claim: Claim, parent: bytes | None = None) -> bytes:
        """Return the file `data` with a signed manifest.

        Args:
            data: a complete image file of the format `kind`.
            kind: the format.
            claim: what is signed.
            parent: the image file that the image started from; its own manifest is kept within the new one.

        Raises:
            RequestError: the key does not fit, the certificate is not accepted, the time stamp authority does not answer.
        """
        with self._turn:
            if parent is not None:
                try:
                    return self._sign(data, kind, claim, parent)
                except RequestError:  # an input that the library refuses: the image is signed without it
                    pass
            return self._sign(data, kind, claim, None)

    def _sign(self, data: bytes, kind: Format, claim: Claim, parent: bytes | None) -> bytes:
        c2pa = library()
        out, raised = io.BytesIO(), list[Exception]()
        try:
            context = c2pa.Context.from_dict(SETTINGS)
            with c2pa.Builder(json.dumps(manifest(claim, parent=parent is not None)), context) as builder:
                if parent is not None:
                    builder.add_ingredient(ingredient(), _type_of(parent), io.BytesIO(parent))
                with self._signer(c2pa, raised) as signer:
                    builder.sign(signer, TYPES[kind], io.BytesIO(data), out)
        except (c2pa.C2paError, OSError, ValueError) as error:
            why = raised[0] if raised else error
            raise RequestError(f"signing with {self.credentials.name}: {_shown(why)}; {self._advice()}") from why
        return out.getvalue()

    def _signer(self, c2pa: Any, raised: list[Exception]) -> Any:
        found = self.credentials
        if isinstance(found.key, Callback):
            algorithm = getattr(c2pa.C2paSigningAlg, found.algorithm.upper())
            return c2pa.Signer.from_callback(_kept(found.key, raised), algorithm, found.chain.decode(), self.timestamp or None)
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo(found.algorithm, found.chain, found.key, self.timestamp or None))

    def _advice(self) -> str:
        stamped = f", a time stamp authority that answers at {self.timestamp}" if self.timestamp else ""
        return f"expected a valid certificate for signing, with the key that belongs to it{stamped}; or turn signing off"


def open_signer(marks: Marks) -> Signer | None:
    """Return a signer for `marks`, tried on a file of one pixel; None if `marks` wants no signature.

    Raises:
        RequestError: it cannot sign; the message says why.
    """
    if marks.sign == "off" or (not marks.asked and not installed()):
        return None
    if not installed():
        raise RequestError(f"signing needs c2pa-python: {INSTALL}, or turn signing off")
    signer = Signer(credentials_of(marks), marks.timestamp)
    trial = Claim(edited=False, agent="trial", agent_version="", system="", system_version="", identifier="", time="2026-01-01T00:00:00Z")
    signer.sign(_TRIAL, "PNG", trial)
    return signer


def _kept(callback: Callback, raised: list[Exception]) -> Callable[[bytes], bytes]:
    """The callback, with its exception kept: the library would lose it."""

    def sign(data: bytes) -> bytes:
        try:
            return callback.sign(data)
        except Exception as error:  # noqa: BLE001  # raised again by the caller
            raised.append(error)
            return b""

    return sign


def _type_of(parent: bytes) -> str:
    """The media type of an input.

    Raises:
        ValueError: its manifest store is too large to take over, damaged, or in a place where none belongs.
    """
    size = jumbf.size_of(parent)
    if size > jumbf.MAX_STORE // 16:
        raise ValueError("the input's manifest store is too large")
    if not jumbf.is_sound(parent) or (not size and b"jumdc2pa" in parent):
        raise ValueError("the input's manifest store is damaged")
    return "image/png" if parent.startswith(b"\x89PNG") else "image/jpeg" if parent.startswith(b"\xff\xd8") else "image/webp"


def _shown(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
