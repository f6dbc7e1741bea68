"""Signed requests: golden vectors, the laws of signing, and a parser that takes one spelling and no other."""

import base64
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_shared import keys
from covey_shared.errors import SignatureError
from covey_shared.keys import PrivateKey, PublicKey
from covey_shared.signing import (
    DIGEST,
    INPUT,
    SIGNATURE,
    content_digest,
    parse_signed,
    sign_request,
    signature_base,
    verify_request,
)
from tests.helpers_shared import vectors

GOLDEN = vectors("signing.json")
NONCE = "abcdefgh"
KEYS = {name: keys.generate(name) for name in keys.ALGORITHMS}


def check(row: dict[str, Any]) -> None:
    """What a server does, from the headers to the body."""
    signed = parse_signed(row["content_digest"], row["signature_input"], row["signature"])
    verify_request(PublicKey.from_text(signed.key), signed, row["method"], row["target"])
    if content_digest(hashlib.sha256(bytes.fromhex(row["body"])).digest()) != signed.digest:
        raise SignatureError("another body")


@pytest.mark.parametrize("row", GOLDEN["cases"], ids=lambda r: r["name"])
def test_golden(row: dict[str, Any]) -> None:
    check(row)
    signed = parse_signed(row["content_digest"], row["signature_input"], row["signature"])
    assert (signed.key, signed.nonce) == (row["keyid"], row["nonce"])
    assert signature_base(row["method"], row["target"], signed.digest, signed.params).decode() == row["base"]


@pytest.mark.parametrize("row", GOLDEN["bad"], ids=lambda r: r["name"])
def test_golden_refusals(row: dict[str, Any]) -> None:
    with pytest.raises(SignatureError) as caught:
        check(row)
    assert caught.value.status == 401


def test_signing_makes_the_golden_signature() -> None:
    row = next(r for r in GOLDEN["cases"] if r["name"] == "a body, ed25519")
    seed = bytes.fromhex(GOLDEN["private_keys"]["ed25519"])
    key = PrivateKey("ed25519", ed25519.Ed25519PrivateKey.from_private_bytes(seed))
    made = sign_request(key, row["method"], row["target"], bytes.fromhex(row["body"]), row["nonce"])
    assert made == {DIGEST: row["content_digest"], INPUT: row["signature_input"], SIGNATURE: row["signature"]}


def test_the_golden_p256_key_is_the_one_in_the_vectors() -> None:
    scalar = int(GOLDEN["private_keys"]["p256"], 16)
    key = PrivateKey("p256", ec.derive_private_key(scalar, ec.SECP256R1()))
    assert key.public.text in {row["keyid"] for row in GOLDEN["cases"]}


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(keys.ALGORITHMS), st.sampled_from(["GET", "PUT"]), st.binary(max_size=64), st.integers(0, 10**9),
    st.data(),
)  # fmt: skip
def test_any_change_is_noticed(algorithm: str, method: str, body: bytes, number: int, data: st.DataObject) -> None:
    key = KEYS[algorithm]
    target = f"/v1/updates/{number}/me?held={number}"
    headers = sign_request(key, method, target, body, NONCE)
    signed = parse_signed(headers[DIGEST], headers[INPUT], headers[SIGNATURE])
    verify_request(key.public, signed, method, target)
    at = data.draw(st.integers(0, len(target) - 1))
    other = target[:at] + chr(ord(target[at]) ^ 1) + target[at + 1 :]
    with pytest.raises(SignatureError):
        verify_request(key.public, signed, method, other)
    with pytest.raises(SignatureError):
        verify_request(key.public, signed, "DELETE", target)
    bit = data.draw(st.integers(0, 511))
    broken = bytearray(signed.signature)
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SignatureError):
        verify_request(key.public, signed._replace(signature=bytes(broken)), method, target)


@given(st.text(max_size=80), st.text(max_size=200), st.text(max_size=100))
def test_any_text_is_refused_with_one_sentence(digest: str, given_: str, signature: str) -> None:
    with pytest.raises(SignatureError) as caught:
        parse_signed(digest, given_, signature)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_signature_says_nothing_of_another_key() -> None:
    headers = sign_request(KEYS["ed25519"], "GET", "/", b"", NONCE)
    signed = parse_signed(headers[DIGEST], headers[INPUT], headers[SIGNATURE])
    with pytest.raises(SignatureError):
        verify_request(keys.generate().public, signed, "GET", "/")
    with pytest.raises(SignatureError):
        verify_request(KEYS["p256"].public, signed, "GET", "/")


def test_one_line_cannot_become_two() -> None:
    """A target with a line break would let a signature for one request hold for another: HTTP has none."""
    base = signature_base("GET", "/a?b", content_digest(bytes(32)), "x")
    assert base.count(b"\n") == 4
    assert base64.b64decode(content_digest(bytes(32))[9:-1]) == bytes(32)
