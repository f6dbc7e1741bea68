"""Whose bundle a device trains: pinned keys, trust on first use, and nothing downloaded for a wrong signature."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from covey_edge import bundles, calls
from covey_edge.events import Events
from covey_edge.signers import KEPT, check_signer, read_kept
from covey_edge.transport import Traffic, connect
from covey_shared.bundle import Bundle
from covey_shared.bundle_signature import SIGNATURE, sign_folder
from covey_shared.cli import main
from covey_shared.errors import BundleError
from covey_shared.keyfile import write_key
from covey_shared.keys import PrivateKey, generate
from tests.helpers_edge_serving import serving
from tests.helpers_server import Served, key_of, served, write_task

MINE, THEIRS = generate(), generate()


def check(server: Served, state: Path, *wanted: str) -> list[str]:
    """What `join` does before it downloads anything large; the sentences that a person reads."""
    said: list[str] = []
    state.mkdir(exist_ok=True)

    def listen(record: dict[str, Any]) -> None:
        said.append(record.get("message", ""))

    async def run() -> None:
        async with connect(server.url, key_of("me"), Traffic()) as transport:
            await calls.enroll(transport, "me", "")
            _, data = await bundles.fetch_manifest(transport, await calls.get_task(transport))
            await check_signer(transport, data, wanted, state, Events(listen))

    asyncio.run(run())
    return said


def signed(folder: Path, *keys: PrivateKey) -> None:
    (folder / "bundle" / SIGNATURE).unlink(missing_ok=True)
    for key in keys:
        sign_folder(folder / "bundle", key)


def test_a_pinned_key(tmp_path: Path) -> None:
    task, state = write_task(tmp_path), tmp_path / "s"
    with served(task) as server:
        with pytest.raises(BundleError, match=f"is not signed, and {MINE.public.text} is required"):
            check(server, state, MINE.public.text)
        signed(tmp_path, THEIRS)
        with pytest.raises(BundleError, match=f"signed by {THEIRS.public.text}, and {MINE.public.text} is required"):
            check(server, state, MINE.public.text)
        assert not (state / KEPT).exists()
        signed(tmp_path, THEIRS, MINE)
        assert "as --bundle-key requires" in check(server, state, MINE.public.text)[0]
        write_key(tmp_path / "k", MINE)
        assert MINE.public.fingerprint in check(server, state, str(tmp_path / "k.pub"))[0]
    assert read_kept(state / KEPT) == [MINE.public]


def test_trust_on_first_use(tmp_path: Path) -> None:
    task, state = write_task(tmp_path), tmp_path / "s"
    with served(task) as server:
        assert check(server, state) == []  # nothing signed, nothing kept
        signed(tmp_path, MINE)
        assert "seen for the first time: trusted now and required from here on" in check(server, state)[0]
        assert check(server, state) == []
        signed(tmp_path)
        with pytest.raises(BundleError, match=r"is not signed.*kept that key since it first saw it"):
            check(server, state)
        signed(tmp_path, THEIRS)
        with pytest.raises(BundleError, match="--bundle-key and the new key"):
            check(server, state)
        check(server, state, THEIRS.public.text)
        assert check(server, state) == []
        check(server, state, "any")
        assert not (state / KEPT).exists()


@pytest.mark.parametrize("data", [b"", b"rubbish", b"\xff"])
def test_damaged_memory_does_not_open_the_door(data: bytes, tmp_path: Path) -> None:
    (tmp_path / KEPT).write_bytes(data)
    with pytest.raises(BundleError, match="is damaged"):
        read_kept(tmp_path / KEPT)


def test_signatures_that_are_no_signatures(tmp_path: Path) -> None:
    task, state = write_task(tmp_path), tmp_path / "s"
    with served(task) as server:
        for data in (b"hello\n", bytes(range(256)), (MINE.public.text + " AAAA\n").encode()):
            (tmp_path / "bundle" / SIGNATURE).write_bytes(data)
            with pytest.raises(BundleError):
                check(server, state)
            with pytest.raises(BundleError):
                check(server, state, MINE.public.text)


def test_a_server_with_a_broken_signature_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = write_task(tmp_path)
    signed(tmp_path, MINE)
    path = tmp_path / "bundle" / "manifest.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert main(["serve", str(task), "--port", "0", "--exit-when-done"]) == 1
    assert "does not hold: the manifest was changed after it was signed" in capsys.readouterr().err


def test_join_downloads_nothing_for_a_wrong_signer(
    lm: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 100)
    with serving(lm, tmp_path / "server", rounds=1) as server:
        code = main([
            "join", server.url, "--data", str(tmp_path / "a.txt"), "--state", str(tmp_path / "s"), "--quiet",
            "--cache", str(tmp_path / "cache"), "--bundle-key", MINE.public.text,
        ])  # fmt: skip
    assert code == 1
    assert "is not signed" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
