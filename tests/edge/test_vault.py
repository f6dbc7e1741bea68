"""The vault: what goes in comes out, for this device and this passphrase only."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_edge import vault
from covey_edge.vault import Kept, open_vault, padded_size, seal, sealed_size
from covey_shared.errors import RemoteError, UsageError

CONTENT = np.linspace(-1, 1, 700, dtype=np.float32).tobytes()
WORDS = "a quiet covey"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "COST", (2**14, 1, 1))


def test_round_trip_and_nothing_shows() -> None:
    sealed = seal(Kept(CONTENT, 7), WORDS, "task", "phone-1")
    assert open_vault(sealed, WORDS, "task", "phone-1") == Kept(CONTENT, 7)
    assert len(sealed) == sealed_size(len(CONTENT))
    assert CONTENT[:16] not in sealed
    assert WORDS.encode() not in sealed
    assert seal(Kept(CONTENT, 7), WORDS, "task", "phone-1") != sealed, "keys and nonces are new each time"


@pytest.mark.parametrize(
    ("words", "task", "client"),
    [("another one", "task", "phone-1"), (WORDS, "task2", "phone-1"), (WORDS, "task", "phone-2"),
     (WORDS, "taskp", "hone-1"), ("", "task", "phone-1")],
)  # fmt: skip
def test_only_this_device_with_this_passphrase(words: str, task: str, client: str) -> None:
    with pytest.raises(RemoteError, match="does not open"):
        open_vault(seal(Kept(CONTENT, 0), WORDS, "task", "phone-1"), words, task, client)


def test_every_bit_is_protected() -> None:
    sealed = seal(Kept(b"layers", 1), WORDS, "task", "phone-1")
    for at in {*range(0, vault.PREFIX + 12, 5), *range(vault.PREFIX, len(sealed), 97), len(sealed) - 1}:
        damaged = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(RemoteError):
            open_vault(damaged, WORDS, "task", "phone-1")
    for length in (0, 3, 50, vault.PREFIX, len(sealed) - 1):
        with pytest.raises(RemoteError):
            open_vault(sealed[:length], WORDS, "task", "phone-1")


@pytest.mark.parametrize("cost", [(2**31, 8, 1), (2**20, 2**20, 1), (2**14 + 1, 8, 1), (2, 1, 1), (2**14, 8, 2**31)])
def test_a_hostile_header_costs_nothing(cost: tuple[int, int, int]) -> None:
    sealed = seal(Kept(b"", 0), WORDS, "task", "phone-1")
    with pytest.raises(RemoteError, match="refuses to compute"):
        open_vault(sealed[:6] + struct.pack("<III", *cost) + sealed[18:], WORDS, "task", "phone-1")


@given(st.integers(0, 10**9))
def test_padding(length: int) -> None:
    size = padded_size(length)
    assert length <= size <= max(1024, length * 9 / 8)
    assert padded_size(size) == size


def test_sizes_say_little() -> None:
    assert len({padded_size(n) for n in range(100_000, 200_000)}) <= 10


def test_a_short_passphrase() -> None:
    with pytest.raises(UsageError, match="at least 8"):
        seal(Kept(b"", 0), "short", "task", "phone-1")


@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    with pytest.raises(RemoteError):
        open_vault(data, WORDS, "task", "phone-1")
    with pytest.raises(RemoteError):
        open_vault(vault.MAGIC + struct.pack("<H", vault.HEADER.size) + data, WORDS, "task", "phone-1")


def test_another_passphrase_for_the_same_content() -> None:
    old = open_vault(seal(Kept(CONTENT, 3), WORDS, "task", "phone-1"), WORDS, "task", "phone-1")
    assert open_vault(seal(old, "a louder covey", "task", "phone-1"), "a louder covey", "task", "phone-1") == old
