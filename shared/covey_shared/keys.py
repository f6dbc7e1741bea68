"""Keys that sign: Ed25519 (RFC 8032) and ECDSA on P-256 with SHA-256 (FIPS 186-5), as text, PEM and bytes.

A public key's text is `ed25519:BASE64URL` of its 32 bytes or `p256:BASE64URL` of its 65-byte uncompressed point,
without padding; there is one text for each key, so texts can be compared. Android's Keystore makes P-256 keys, hence
the second algorithm. A P-256 signature is DER, as every platform writes it.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from covey_shared.errors import SignatureError, UsageError

ALGORITHMS = ("ed25519", "p256")
LENGTHS = {"ed25519": 32, "p256": 65}
MAX_TEXT = 128
MAX_SIGNATURE = 80  # bytes: a DER signature on P-256 has at most 72


@dataclass(frozen=True)
class PublicKey:
    """A key that verifies. Two are equal when their texts are."""

    algorithm: str
    raw: bytes

    @property
    def text(self) -> str:
        """The one text form."""
        return f"{self.algorithm}:{base64.urlsafe_b64encode(self.raw).decode().rstrip('=')}"

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of the text: enough for people to compare."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @classmethod
    def from_text(cls, text: str) -> "PublicKey":
        """The inverse of `text`; raises SignatureError for anything else, another spelling of the same key included."""
        algorithm, _, encoded = text.partition(":")
        if algorithm not in ALGORITHMS or len(text) > MAX_TEXT:
            raise SignatureError(f"a public key starts with {' or '.join(f'{a}:' for a in ALGORITHMS)}")
        try:
            raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            key = cls(algorithm, raw)
            key._loaded  # noqa: B018  (raises for what is no point of the curve)
        except (ValueError, binascii.Error):
            raise SignatureError(f"the text after {algorithm}: is no public key") from None
        if key.text != text:
            raise SignatureError(f"the text after {algorithm}: is not the usual spelling of its key")
        return key

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises SignatureError unless this key's owner signed exactly these bytes."""
        if len(signature) > MAX_SIGNATURE:
            raise SignatureError("the signature is too long to be one")
        key = self._loaded
        try:
            if self.algorithm == "ed25519":
                key.verify(signature, message)
            else:
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise SignatureError("the signature is not this key's over these bytes") from None

    @cached_property
    def _loaded(self) -> Any:
        if len(self.raw) != LENGTHS[self.algorithm]:
            raise ValueError("wrong length")
        if self.algorithm == "ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(self.raw)
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), self.raw)


@dataclass(frozen=True, repr=False)
class PrivateKey:
    """A key that signs. It never shows itself: `repr` prints the public half."""

    algorithm: str
    key: Any

    def __repr__(self) -> str:
        return f"PrivateKey of {self.public.text}"

    @property
    def public(self) -> PublicKey:
        """The other half."""
        if self.algorithm == "ed25519":
            encoding, form = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        else:
            encoding, form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        return PublicKey(self.algorithm, self.key.public_key().public_bytes(encoding, form))

    def sign(self, message: bytes) -> bytes:
        """The signature: 64 bytes for Ed25519, DER for P-256."""
        signature: bytes = (
            self.key.sign(message) if self.algorithm == "ed25519" else self.key.sign(message, ec.ECDSA(hashes.SHA256()))
        )
        return signature

    def to_pem(self) -> bytes:
        """PKCS 8 in PEM, not encrypted: keep the file to yourself (mode 0600)."""
        pem: bytes = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem

    @classmethod
    def from_pem(cls, data: bytes) -> "PrivateKey":
        """The inverse of `to_pem`; raises UsageError for what is no private key of the two algorithms."""
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError):
            raise UsageError("the file is no private key in PEM without a passphrase") from None
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return cls("ed25519", key)
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return cls("p256", key)
        raise UsageError("the private key is neither Ed25519 nor ECDSA on P-256")


def generate(algorithm: str = "ed25519") -> PrivateKey:
    """A new key from the system's randomness."""
    if algorithm == "ed25519":
        return PrivateKey(algorithm, ed25519.Ed25519PrivateKey.generate())
    if algorithm == "p256":
        return PrivateKey(algorithm, ec.generate_private_key(ec.SECP256R1()))
    raise UsageError(f"there is no key algorithm {algorithm!r}; known are {', '.join(ALGORITHMS)}")
