"""Key files and `covey keys`: private ones stay private, and public ones are found in every form."""

import stat
from pathlib import Path

import pytest

from covey_shared import cli
from covey_shared.errors import UsageError
from covey_shared.keyfile import read_key, read_public, write_key
from covey_shared.keys import ALGORITHMS, PublicKey, generate


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_comes_back_in_every_form(algorithm: str, tmp_path: Path) -> None:
    key, path = generate(algorithm), tmp_path / "new" / "k.pem"
    public = write_key(path, key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path).public == key.public
    assert {read_public(text) for text in (key.public.text, str(public), str(path))} == {key.public}


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    write_key(tmp_path / "k", generate())
    before = (tmp_path / "k").read_bytes()
    with pytest.raises(UsageError, match="never replaced"):
        write_key(tmp_path / "k", generate())
    assert (tmp_path / "k").read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    write_key(tmp_path / "k", generate())
    (tmp_path / "k").chmod(mode)
    with pytest.raises(UsageError, match=f"mode 0{mode:o}.*chmod 600"):
        read_key(tmp_path / "k")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"hello", "starts with ed25519: or p256:"),
        (b"\xff\xfe", "is not a public key's file"),
        (b"ed25519:AAAA", "is no public key"),
        (b"x" * 5000, "too long"),
        (b"-----BEGIN PRIVATE KEY-----", "no private key in PEM"),
    ],
)
def test_files_that_hold_no_key(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=sentence) as caught:
        read_public(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "signer.pem"
    assert cli.main(["keys", "new", str(path)]) == 0
    said = capsys.readouterr().out
    text = (tmp_path / "signer.pem.pub").read_text().strip()
    assert text in said
    assert "mode 0600" in said
    for form in (str(path), f"{path}.pub", text):
        assert cli.main(["keys", "show", form]) == 0
        assert capsys.readouterr().out == f"{text}\nfingerprint {PublicKey.from_text(text).fingerprint}\n"
    assert cli.main(["keys", "new", str(path)]) == 1
    assert capsys.readouterr().err.startswith("covey keys new: ")
    assert cli.main(["keys", "show", "nothing"]) == 1
    assert "neither a public key" in capsys.readouterr().err
