"""Signed requests: HTTP Message Signatures (RFC 9421) over method, path, query and Content-Digest (RFC 9530).

One fixed form of what RFC 9421 allows, so that a verifier needs three regular expressions and no parser:

    Content-Digest: sha-256=:BASE64 OF THE BODY'S SHA-256:
    Signature-Input: covey=("@method" "@path" "@query" "content-digest");nonce="N";keyid="ed25519:K";tag="covey-1"
    Signature: covey=:BASE64 OF 64 BYTES:

What is signed are five lines, joined by one LF, without one at the end; "@query" is a lone ? where there is no query:

    "@method": PUT
    "@path": /v1/updates/3/kitchen
    "@query": ?
    "content-digest": sha-256=:...:
    "@signature-params": ("@method" "@path" "@query" "content-digest");nonce="N";keyid="ed25519:K";tag="covey-1"

The nonce comes from the server and is good once; `keyid` is the public key's text. There is no time in it: a device's
clock may be wrong. An Ed25519 signature has 64 bytes, one on P-256 is r and s of 32 bytes each (RFC 9421, 3.3.4).
"""

import base64
import hashlib
import re
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from covey_shared.errors import SignatureError
from covey_shared.keys import PrivateKey, PublicKey

NONCE = "Covey-Nonce"  # the header with which a server hands out the next one
DIGEST, INPUT, SIGNATURE = "Content-Digest", "Signature-Input", "Signature"
COMPONENTS = '("@method" "@path" "@query" "content-digest")'
TAG = "covey-1"

_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_SIGNATURE = re.compile(r"covey=:([A-Za-z0-9+/]{86}==):")
_INPUT = re.compile(
    "covey=("
    + re.escape(COMPONENTS)
    + r';nonce="([A-Za-z0-9_-]{8,64})";keyid="((?:ed25519|p256):[A-Za-z0-9_-]{43,87})";tag="'
    + TAG
    + '")'
)


class Signed(NamedTuple):
    """What the three headers say. Nothing of it is verified yet. `digest` is the text of Content-Digest."""

    key: str
    nonce: str
    params: str
    digest: str
    signature: bytes


def content_digest(body_sha256: bytes) -> str:
    """The header's text for a body with this SHA-256.

    >>> content_digest(hashlib.sha256(b"").digest())
    'sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:'
    """
    return f"sha-256=:{base64.b64encode(body_sha256).decode()}:"


EMPTY_DIGEST = content_digest(hashlib.sha256(b"").digest())


def signature_params(key: str, nonce: str) -> str:
    """What stands after `covey=` in Signature-Input, and in the last line of what is signed."""
    return f'{COMPONENTS};nonce="{nonce}";keyid="{key}";tag="{TAG}"'


def signature_base(method: str, target: str, digest: str, params: str) -> bytes:
    """The bytes that are signed. `target` is path and query exactly as they stand in the request line."""
    path, _, query = target.partition("?")
    return (
        f'"@method": {method}\n"@path": {path}\n"@query": ?{query}\n"content-digest": {digest}\n'
        f'"@signature-params": {params}'
    ).encode()


def sign_request(key: PrivateKey, method: str, target: str, body: bytes, nonce: str) -> dict[str, str]:
    """The three headers for a request. Sign again with another nonce for every try."""
    digest = content_digest(hashlib.sha256(body).digest())
    params = signature_params(key.public.text, nonce)
    signature = key.sign(signature_base(method, target, digest, params))
    fixed = _fixed(signature) if key.algorithm == "p256" else signature
    return {
        DIGEST: digest,
        INPUT: f"covey={params}",
        SIGNATURE: f"covey=:{base64.b64encode(fixed).decode()}:",
    }


def parse_signed(digest: str, given: str, signature: str) -> Signed:
    """The headers Content-Digest, Signature-Input and Signature, empty where absent. Raises SignatureError."""
    if not (digest or given or signature):
        raise SignatureError("the request is not signed; devices sign each one with the key that they enrolled")
    params, content, value = _INPUT.fullmatch(given), _DIGEST.fullmatch(digest), _SIGNATURE.fullmatch(signature)
    if params is None:
        raise SignatureError(f"{INPUT} is not covey={COMPONENTS} with nonce, keyid and tag {TAG}, in this order")
    if content is None:
        raise SignatureError(f"{DIGEST} is not sha-256=:BASE64: of the body")
    if value is None:
        raise SignatureError(f"{SIGNATURE} is not covey=:BASE64: of 64 bytes")
    return Signed(params[3], params[2], params[1], digest, base64.b64decode(value[1]))


def verify_request(key: PublicKey, signed: Signed, method: str, target: str) -> None:
    """Raises SignatureError unless the key signed this method, target, digest and nonce. The body is for the caller."""
    signature = _der(signed.signature) if key.algorithm == "p256" else signed.signature
    try:
        key.verify(signature_base(method, target, signed.digest, signed.params), signature)
    except SignatureError:
        raise SignatureError(
            "the signature does not hold for this method, address, body digest and nonce; a proxy must not change them"
        ) from None


def _fixed(der: bytes) -> bytes:
    """r and s of 32 bytes each, from DER."""
    r, s = decode_dss_signature(der)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _der(fixed: bytes) -> bytes:
    """The inverse of `_fixed`."""
    return encode_dss_signature(int.from_bytes(fixed[:32], "big"), int.from_bytes(fixed[32:], "big"))
