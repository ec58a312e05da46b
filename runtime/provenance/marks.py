"""The settings of an image's marks, one set for the command line, the servers and Python.

A field that is not given comes from the environment variable of `VARIABLES`, so that an application names itself once for every process
that it starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from ...models.errors import RequestError

Sign = Literal["auto", "on", "off"]
MAX_NAME = 200
"""Characters of a name."""
VARIABLES = {
    "sign": "DIFFUSETTE_SIGN",
    "certificate": "DIFFUSETTE_SIGN_CERTIFICATE",
    "key": "DIFFUSETTE_SIGN_KEY",
    "timestamp": "DIFFUSETTE_TIMESTAMP",
    "issuer": "DIFFUSETTE_ISSUER",
    "system": "DIFFUSETTE_SYSTEM",
    "system_version": "DIFFUSETTE_SYSTEM_VERSION",
    "prompt_writer": "DIFFUSETTE_PROMPT_WRITER",
    "keys": "DIFFUSETTE_KEYS",
    "watermark": "DIFFUSETTE_WATERMARK",
    "watermark_id": "DIFFUSETTE_WATERMARK_ID",
    "watermark_key": "DIFFUSETTE_WATERMARK_KEY",
}
"""Field → environment variable."""


@dataclass(frozen=True)
class Callback:
    """A signer of the host, for keys that stay in a keychain, a hardware module or on a server.

    Attributes:
        sign: gets the bytes to sign and returns the signature; for ECDSA, r and s one after the other (64 bytes for es256).
        chain: the certificates in PEM, the signer's first.
        algorithm: es256, es384, es512, ps256, ps384, ps512 or ed25519.
    """

    sign: Callable[[bytes], bytes]
    chain: str
    algorithm: str = "es256"


def _from_environment(name: str, default: str = "") -> Any:
    return field(default_factory=lambda: os.environ.get(VARIABLES[name], "") or default)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How images are marked.

    Attributes:
        sign: "auto" signs where the extra `sign` is installed, "on" refuses to generate without a signature, "off" does not sign.
        certificate: path of the certificate chain in PEM, the signer's first; empty uses the key of this installation.
        key: path of its private key in PEM.
        signer: a callback of the host in their place.
        timestamp: URL of a time stamp authority (RFC 3161); empty uses no network, and the manifest says that there is no time stamp.
        sign_prompt: put the prompts into the signed manifest and into XMP's AIPromptInformation.
        issuer: who offers the system to its users, such as the company behind an application.
        system: name of the system; empty is Diffusette.
        system_version: its version.
        prompt_writer: who wrote the prompt; written only with `sign_prompt`.
        keys: folder of this installation's key and identifier; empty is the user's data folder, and None keeps a key in memory only.
        watermark: "auto" watermarks images from 256 × 256 pixels, "on" refuses smaller ones, "off" writes none, and "trustmark=DIR" uses
            Adobe's networks in that folder.
        watermark_id: what the watermark says, 0 to 4,294,967,295; empty is a number made from `issuer` and `system`, or else this
            installation's own.
        watermark_key: whoever knows it can read the watermark; empty is the published one.
    """

    sign: Sign = _from_environment("sign", "auto")
    certificate: str | Path = _from_environment("certificate")
    key: str | Path = _from_environment("key")
    signer: Callback | None = None
    timestamp: str = _from_environment("timestamp")
    sign_prompt: bool = False
    issuer: str = _from_environment("issuer")
    system: str = _from_environment("system")
    system_version: str = _from_environment("system_version")
    prompt_writer: str = _from_environment("prompt_writer")
    keys: str | Path | None = _from_environment("keys")
    watermark: str = _from_environment("watermark", "auto")
    watermark_id: int | str = _from_environment("watermark_id")
    watermark_key: str = _from_environment("watermark_key")

    def __post_init__(self) -> None:
        if self.sign not in {"auto", "on", "off"}:
            raise RequestError(f"sign: {self.sign!r}, expected auto, on or off")
        if self.watermark not in {"auto", "on", "off"} and not re.fullmatch("trustmark=.+", self.watermark):
            raise RequestError(f"watermark: {self.watermark[:100]!r}, expected auto, on, off or trustmark=DIR")
        if bool(self.certificate) != bool(self.key):
            raise RequestError("sign: a certificate without its key, or a key without its certificate; expected both, as PEM files")
        if self.timestamp and not self.timestamp.startswith(("http://", "https://")):
            raise RequestError(f"timestamp: {self.timestamp!r}, expected the http or https address of a time stamp authority")
        for name in ("issuer", "system", "system_version", "prompt_writer"):
            _check_name(name, getattr(self, name))

    @property
    def asked(self) -> bool:
        """Whether a signature was asked for, so that an image without one is an error."""
        return self.sign == "on" or (self.sign == "auto" and bool(self.certificate or self.signer or self.timestamp))


def _check_name(field_name: str, text: str) -> None:
    if len(text) > MAX_NAME or not text.isprintable():
        raise RequestError(f"{field_name}: {text[:40]!r}, expected at most {MAX_NAME} printable characters")


def marks_of(given: dict[str, Any]) -> Marks:
    """The settings in `given`; fields that are missing or None come from the environment.

    Raises:
        RequestError: a field has a value that is not accepted.
    """
    return Marks(**{name: value for name, value in given.items() if value is not None})


def kept_in(marks: Marks, data: Path | None) -> Marks:
    """`marks` for a process that writes to the folder `data` only: its key is kept there, or in memory without a folder.

    A folder that `marks` names stays.
    """
    return replace(marks, keys=None if data is None else data / "signing") if marks.keys == "" else marks


def unmarked(marks: Marks) -> Marks:
    """`marks` for files that do not say that AI made the image.

    Raises:
        RequestError: a signature was asked for, which says so.
    """
    if marks.asked:
        raise RequestError("no AI mark: the signature says that AI made the image; leave out either --sign or --no-ai-mark")
    return replace(marks, sign=cast("Sign", "off"))
