"""What a device keeps for itself, encrypted on the device, for a server that can store and delete it but not read it.

    "CVV1" | header length u16 | header | nonce 12 | AES-256-GCM of the padded content, header and names authenticated
    header: scrypt's n, r, p as u32 | salt 16 | nonce 12 | the content's key, 32 bytes, wrapped: AES-256-GCM, 48 bytes

The content has a random key of its own, wrapped by one that scrypt (RFC 7914) makes from a passphrase. So a passphrase
can be changed without the content, and a guess costs scrypt's time and memory. Task and device are authenticated with
both: a server cannot hand a device the vault of another, or of another task. It can hand back an older one of the same
device; `sequence` inside tells.

Content is padded to the next of few sizes, at most an eighth longer, so a size says little about what is in it.
"""

import hashlib
import secrets
import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from covey_shared.errors import RemoteError, UsageError

MAGIC = b"CVV1"
HEADER = struct.Struct("<III16s12s48s")
PREFIX = len(MAGIC) + 2 + HEADER.size
COST = 2**15, 8, 1  # n, r, p: 32 MB and about a tenth of a second, OWASP's choice among those that a phone can bear
MAX_MEMORY = 2**27  # of scrypt's 128 n r bytes: what a hostile header may ask for
SMALLEST = 1024
SHORTEST_PASSPHRASE = 8


class Kept(NamedTuple):
    """What a vault holds: the personal entries' bytes, and a number that grows with each backup."""

    content: bytes
    sequence: int


def seal(kept: Kept, passphrase: str, task: str, client: str) -> bytes:
    """The bytes that the server stores."""
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise UsageError(f"the vault's passphrase has {len(passphrase)} characters; use at least {SHORTEST_PASSPHRASE}")
    names = _names(task, client)
    salt, wrap_nonce, nonce = secrets.token_bytes(16), secrets.token_bytes(12), secrets.token_bytes(12)
    key = AESGCM.generate_key(256)
    cost = struct.pack("<III", *COST)
    wrapped = AESGCM(_derive(passphrase, salt, *COST)).encrypt(wrap_nonce, key, MAGIC + cost + names)
    head = MAGIC + struct.pack("<H", HEADER.size) + HEADER.pack(*COST, salt, wrap_nonce, wrapped)
    plain = struct.pack("<QQ", kept.sequence, len(kept.content)) + kept.content
    plain += bytes(padded_size(len(plain)) - len(plain))
    return head + nonce + AESGCM(key).encrypt(nonce, plain, head + names)


def open_vault(sealed: bytes, passphrase: str, task: str, client: str) -> Kept:
    """The content. Raises RemoteError for bytes that are damaged, of another device or task, or another passphrase."""
    if len(sealed) < PREFIX + 28 or sealed[:4] != MAGIC or sealed[4:6] != struct.pack("<H", HEADER.size):
        raise RemoteError("the vault that the server returned is none that this version of covey wrote")
    n, r, p, salt, wrap_nonce, wrapped = HEADER.unpack_from(sealed, 6)
    if not _reasonable(n, r, p):
        raise RemoteError(f"the vault asks for scrypt with n={n}, r={r}, p={p}, which this device refuses to compute")
    names, head, nonce = _names(task, client), sealed[:PREFIX], sealed[PREFIX : PREFIX + 12]
    try:
        key = AESGCM(_derive(passphrase, salt, n, r, p)).decrypt(wrap_nonce, wrapped, MAGIC + sealed[6:18] + names)
        plain = AESGCM(key).decrypt(nonce, sealed[PREFIX + 12 :], head + names)
    except InvalidTag:
        raise RemoteError(
            "the vault does not open: the passphrase is another, or it belongs to another device or task, or it was "
            "damaged"
        ) from None
    sequence, length = struct.unpack_from("<QQ", plain) if len(plain) >= 16 else (0, len(plain) + 1)
    if length > len(plain) - 16 or len(plain) != padded_size(16 + length) or any(plain[16 + length :]):
        raise RemoteError("the vault's content is not padded as this version of covey does")
    return Kept(plain[16 : 16 + length], sequence)


def address(passphrase: str, task: str, client: str) -> str:
    """64 hex digits under which the server keeps the vault: only who has the passphrase can compute them.

    They say no more about the passphrase than the vault itself: a guess costs scrypt's time and memory either way.
    """
    salt = hashlib.sha256(b"covey vault address" + _names(task, client)).digest()[:16]
    return _derive(passphrase, salt, *COST).hex()


def padded_size(length: int) -> int:
    """The next of 1024, 1152, 1280, ... 2048, 2304, ...: eight sizes from each power of two to the next."""
    if length <= SMALLEST:
        return SMALLEST
    step = 1 << ((length - 1).bit_length() - 4)
    return -(-length // step) * step


def sealed_size(content: int) -> int:
    """Bytes that the server stores for so many bytes of content."""
    return PREFIX + 12 + padded_size(16 + content) + 16


def _reasonable(n: int, r: int, p: int) -> bool:
    return n >= 2**14 and n & (n - 1) == 0 and 1 <= r <= 64 and 1 <= p <= 16 and 128 * n * r <= MAX_MEMORY


def _derive(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase.encode())


def _names(task: str, client: str) -> bytes:
    """Task and device, with their lengths, so that no two pairs look alike."""
    return b"".join(struct.pack("<I", len(name.encode())) + name.encode() for name in (task, client))
