import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_shared.errors import SignatureError, UsageError
from covey_shared.keys import ALGORITHMS, PrivateKey, PublicKey, generate

KEYS = {name: generate(name) for name in ALGORITHMS}


@pytest.mark.parametrize("name", ALGORITHMS)
@given(message=st.binary(max_size=200))
def test_a_signature_holds_for_its_bytes_and_no_others(name: str, message: bytes) -> None:
    key = KEYS[name]
    signature = key.sign(message)
    key.public.verify(message, signature)
    with pytest.raises(SignatureError):
        key.public.verify(message + b"x", signature)
    with pytest.raises(SignatureError):
        generate(name).public.verify(message, signature)


@pytest.mark.parametrize("name", ALGORITHMS)
@given(signature=st.binary(max_size=100))
def test_bytes_that_are_no_signature_are_refused(name: str, signature: bytes) -> None:
    with pytest.raises(SignatureError):
        KEYS[name].public.verify(b"message", signature)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_text_and_pem_come_back_the_same(name: str) -> None:
    key = KEYS[name]
    assert PublicKey.from_text(key.public.text) == key.public
    again = PrivateKey.from_pem(key.to_pem())
    assert again.public == key.public
    key.public.verify(b"m", again.sign(b"m"))


@given(text=st.text(max_size=150) | st.binary(max_size=70).map(lambda b: "ed25519:" + b.hex()))
def test_texts_that_are_no_key_are_refused(text: str) -> None:
    with pytest.raises(SignatureError):
        PublicKey.from_text(text)


def test_one_text_for_a_key() -> None:
    text = KEYS["p256"].public.text
    for other in (text + "=", text + "\n", text.upper(), " " + text):
        with pytest.raises(SignatureError):
            PublicKey.from_text(other)


def test_a_private_key_does_not_show_itself() -> None:
    key = KEYS["ed25519"]
    assert key.public.text in repr(key)
    assert key.to_pem().split(b"\n")[1].decode() not in repr(key)


@pytest.mark.parametrize("data", [b"", b"-----BEGIN PRIVATE KEY-----\n", KEYS["p256"].to_pem()[:40]])
def test_a_file_that_is_no_private_key_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="no private key"):
        PrivateKey.from_pem(data)
