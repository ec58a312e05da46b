"""The key of this installation: made at first use, kept in one file that only its owner can read.

The file holds the private key and its self-signed certificate in PEM, so that the pair is whole or absent. Two processes that make it at
the same time end up with one of the two. The certificate names no person and no computer; images signed with one key can be recognized
as coming from one installation.
"""

from __future__ import annotations

import datetime as dt
import secrets
import stat
import sys
from pathlib import Path
from typing import NamedTuple

from ...models.errors import BundleError, RequestError
from ...models.formats.atomic_file import create_private
from ...models.formats.small_file import read_bytes
from ..user_folders import data_folder

FILE = "installation.pem"
ORGANIZATION = "Diffusette (self-signed)"
_END = b"-----END PRIVATE KEY-----\n"
_FIRST, _LAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
"""Validity of the certificate. It begins before any clock is likely to be: computers set their clocks back."""


class KeyPair(NamedTuple):
    """A certificate chain and its private key, both in PEM."""

    chain: bytes
    key: bytes


def default_folder() -> Path:
    """Return the folder `signing` in the user's data folder.

    Raises:
        RequestError: there is no home folder.
    """
    return data_folder("this installation's key") / "signing"


def kept(folder: Path) -> KeyPair:
    """Return the key in `folder`; it is made if there is none.

    Raises:
        RequestError: the folder cannot be written, others can read the key, or the file is damaged.
    """
    path = folder / FILE
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            pair = fresh()
            create_private(path, pair.key + pair.chain)
    except OSError as error:
        raise RequestError(f"signing: {path} cannot be written ({error.strerror or error}); set DIFFUSETTE_KEYS, or sign off") from error
    return _read(path)


def fresh() -> KeyPair:
    """Return a new ECDSA key on P-256 with its self-signed certificate (C2PA 2.2, section 14.5: digitalSignature, emailProtection)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"Diffusette installation {secrets.token_hex(4)}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder(name, name, public, x509.random_serial_number(), _FIRST, _LAST)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM), pem)


def _read(path: Path) -> KeyPair:
    try:
        data = read_bytes(path, expected="this installation's signing key")
        mode = path.stat().st_mode
    except (BundleError, OSError) as error:
        raise RequestError(f"signing: {error}; move it away to make a new key") from error
    if sys.platform != "win32" and stat.S_IMODE(mode) & 0o077:
        raise RequestError(f"signing: others can read {path} (mode {stat.S_IMODE(mode):o}); expected 600: chmod 600, or move it away")
    key, end, chain = data.partition(_END)
    if not end or b"-----BEGIN CERTIFICATE-----" not in chain:
        raise RequestError(f"signing: {path} is damaged; expected a key and a certificate in PEM; move it away to make a new key")
    return KeyPair(chain, key + end)
