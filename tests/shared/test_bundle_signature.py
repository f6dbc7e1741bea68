"""A bundle's signatures: they hold for one manifest, and anything that was done to either is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_shared.bundle_signature import (
    MAX_BYTES,
    MAX_SIGNERS,
    SIGNATURE,
    check_all,
    from_bytes,
    read_signatures,
    require_signer,
    sign,
    sign_folder,
    to_bytes,
)
from covey_shared.errors import BundleError
from covey_shared.keys import generate

MINE, THEIRS, ODD = generate(), generate(), generate("p256")
MANIFEST = b'{"a": 1}\n'
GOOD = to_bytes([sign(MANIFEST, MINE), sign(MANIFEST, ODD)])


@pytest.mark.parametrize("key", [MINE, ODD], ids=["ed25519", "p256"])
def test_a_trusted_signer_is_found_among_several(key: object) -> None:
    public = key.public  # type: ignore[attr-defined]
    assert require_signer(MANIFEST, GOOD, [THEIRS.public, public]) == public
    assert check_all(MANIFEST, GOOD) == (MINE.public, ODD.public)


@pytest.mark.parametrize(
    ("manifest", "signatures", "sentence"),
    [
        (MANIFEST + b" ", GOOD, "does not hold"),
        (MANIFEST, b"", "is not signed"),
        (MANIFEST, to_bytes([sign(MANIFEST, THEIRS)]), "is signed by ed25519:"),
        (MANIFEST, GOOD[:-1], "damaged: it is cut"),
        (MANIFEST, GOOD[:-30], "damaged"),
        (MANIFEST, GOOD + GOOD, "one form"),
        (MANIFEST, b"x" * (MAX_BYTES + 1), "more than"),
        (MANIFEST, to_bytes([sign(MANIFEST, THEIRS)._replace(key=MINE.public)]), "does not hold"),
    ],
)
def test_what_is_refused(manifest: bytes, signatures: bytes, sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence) as caught:
        require_signer(manifest, signatures, [MINE.public])
    assert len(str(caught.value).splitlines()) == 1


def test_a_signature_of_other_bytes_does_not_stand_for_a_manifest() -> None:
    """The domain: what the key signed elsewhere is no signature here."""
    bare = sign(MANIFEST, MINE)._replace(signature=MINE.sign(MANIFEST))
    assert not bare.holds(MANIFEST)
    with pytest.raises(BundleError, match="changed after it was signed"):
        check_all(MANIFEST, to_bytes([bare]))


@given(data=st.binary(max_size=600))
def test_hostile_files_are_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(BundleError):
        from_bytes(data)


@given(where=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_no_byte_can_be_changed(where: int, value: int) -> None:
    changed = GOOD[:where] + bytes([value]) + GOOD[where + 1 :]
    if changed == GOOD:
        return
    with pytest.raises(BundleError):
        check_all(MANIFEST, changed)


def test_signing_a_folder_keeps_what_still_holds(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(MANIFEST)
    assert read_signatures(tmp_path) == b""
    sign_folder(tmp_path, MINE)
    sign_folder(tmp_path, THEIRS)
    sign_folder(tmp_path, MINE)
    assert set(check_all(MANIFEST, read_signatures(tmp_path))) == {MINE.public, THEIRS.public}
    (tmp_path / "manifest.json").write_bytes(b"{}")
    sign_folder(tmp_path, ODD)
    assert check_all(b"{}", read_signatures(tmp_path)) == (ODD.public,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", SIGNATURE]


def test_there_is_an_end_to_signers(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(MANIFEST)
    for _ in range(MAX_SIGNERS):
        sign_folder(tmp_path, generate())
    with pytest.raises(BundleError, match="as many as fit"):
        sign_folder(tmp_path, MINE)
