"""Who signs: this installation, a certificate with its key, or a callback of the host."""

from __future__ import annotations

from pathlib import Path

from ...models.errors import BundleError, RequestError
from ...models.formats.small_file import read_bytes
from . import installation_key
from .installation_key import KeyPair
from .marks import Callback, Marks

_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")


class Credentials:
    """A certificate chain, and what signs with its key."""

    def __init__(self, algorithm: str, chain: bytes, key: bytes | Callback, name: str) -> None:
        self.algorithm = algorithm
        self.chain = chain
        self.key = key
        """The private key in PEM, or a callback in its place."""
        self.name = name
        """Of the key, for messages."""


def credentials_of(marks: Marks) -> Credentials:
    """Return the credentials that `marks` names.

    Raises:
        RequestError: a file is missing or not PEM, the key is encrypted or of a kind that C2PA does not know, or this installation's key
            cannot be made or read.
    """
    if marks.signer is not None:
        if marks.signer.algorithm not in ALGORITHMS:
            raise RequestError(f"signing: algorithm {marks.signer.algorithm!r}, expected one of {', '.join(ALGORITHMS)}")
        return Credentials(marks.signer.algorithm, marks.signer.chain.encode(), marks.signer, "the signer of the application")
    if marks.certificate:
        chain, key = (_pem(Path(path)) for path in (marks.certificate, marks.key))
        return Credentials(_algorithm(key, Path(marks.key)), chain, key, f"the key {marks.key}")
    if marks.keys is None:
        pair, place = installation_key.fresh(), "in memory"
    else:
        folder = Path(marks.keys) if marks.keys else installation_key.default_folder()
        pair, place = installation_key.kept(folder), str(folder / installation_key.FILE)
    return _own(pair, place)


def _own(pair: KeyPair, place: str) -> Credentials:
    return Credentials("es256", pair.chain, pair.key, f"this installation's key {place}")


def _pem(path: Path) -> bytes:
    try:
        data = read_bytes(path, expected="a certificate chain or a private key in PEM")
    except BundleError as error:
        raise RequestError(f"signing: {error}") from error
    if b"-----BEGIN " not in data:
        raise RequestError(f"signing: {path} is not PEM; expected -----BEGIN CERTIFICATE----- or -----BEGIN PRIVATE KEY-----")
    return data


def _algorithm(key: bytes, path: Path) -> str:
    """The algorithm for the kind of the key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(key, password=None)
    except TypeError as error:
        raise RequestError(f"signing: the key {path} is encrypted; expected one without a password, or a callback (Python)") from error
    except Exception as error:
        raise RequestError(f"signing: {path} is not a private key in PEM ({str(error)[:100]})") from error
    if isinstance(found, ec.EllipticCurvePrivateKey) and found.curve.name in _CURVES:
        return _CURVES[found.curve.name]
    if isinstance(found, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(found, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise RequestError(
        f"signing: the key {path} is of a kind that C2PA does not know; expected ECDSA (P-256, P-384, P-521), RSA or Ed25519"
    )
