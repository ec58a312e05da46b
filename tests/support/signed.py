"""Images, certificates and c2pa's own reader, for tests of signatures."""

from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from diffusette.runtime.metadata.record import Record
from diffusette.runtime.result import Picture

TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
RECORD = Record(
    prompt="red apple\x00 <b>",
    negative="blurry",
    seed=7,
    steps=20,
    guidance=7.5,
    sampler="dpm++2m",
    schedule="karras",
    width=64,
    height=48,
    model="demo",
    model_hash="0123456789abcdef" * 4,
)
PICTURE = Picture(Image.fromarray(PIXELS), 7, RECORD)


def c2pa_reads(data: bytes, kind: str = "PNG") -> dict[str, Any]:
    """What c2pa's own reader says, with its default settings except that nothing is fetched."""
    import c2pa

    settings = {"verify": {"remote_manifest_fetch": False}}
    with c2pa.Reader(TYPES[kind], io.BytesIO(data), context=c2pa.Context.from_dict(settings)) as reader:
        return json.loads(reader.json())


def active(found: dict[str, Any]) -> dict[str, Any]:
    return found["manifests"][found["active_manifest"]]


def assertion(found: dict[str, Any], label: str) -> dict[str, Any]:
    return next(one["data"] for one in active(found)["assertions"] if one["label"] == label)


def certificate(folder: Path, name: str = "host", *, kind: str = "ec", days: int = 30, usage: bool = True) -> tuple[Path, Path]:
    """Paths of a self-signed certificate of `Example Ltd` and of its key."""
    key = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP384R1() if kind == "p384" else ec.SECP256R1())
    )
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "Example Paint"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example Ltd")]
    )
    now = dt.datetime.now(dt.UTC)
    flags = {name: name == "digital_signature" for name in _FLAGS}
    builder = x509.CertificateBuilder(
        subject, subject, key.public_key(), x509.random_serial_number(), now - dt.timedelta(days=60), now + dt.timedelta(days=days)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(**flags), critical=True)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    made = builder.sign(key, hashes.SHA256())
    paths = folder / f"{name}-cert.pem", folder / f"{name}-key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return paths


_FLAGS = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
