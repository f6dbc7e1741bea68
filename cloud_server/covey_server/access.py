"""Who may come in: one-time codes, enrolled devices, administrators' tokens. SQL functions and the alphabet of secrets.

    codes    hash of each code, until when it is good, the key that used it
    devices  one row a key: its name, and since when it is revoked
    tokens   hash of each administrator's token with its role

Codes and tokens are random, shown once and kept as SHA-256, which is enough for what nobody can guess: a copy of the
database opens nothing. `covey enroll` and `covey admin` write here beside a running server, which reads for each
request, so that what they do holds at once.
"""

import hashlib
import secrets
import sqlite3
from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from covey_server.refusals import Refused
from covey_shared.errors import UsageError
from covey_shared.schema import check_name

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U
GROUPS, GROUP = 5, 4  # 20 characters are 100 bits: beyond guessing, and still typed in half a minute
P = ParamSpec("P")
T = TypeVar("T")
VIEWER, OPERATOR, PUBLISHER = ROLES = ("viewer", "operator", "publisher")
TTL_S, MAX_TTL_S = 86_400.0, 366 * 86_400.0
MAX_CODES = 1000  # made at once
SHOWN = 8  # digits of a hash that name a code or a token to people


class Device(NamedTuple):
    """An enrolled device; times in Unix seconds, `revoked` None while it is welcome, `label` that of its code."""

    key: str
    name: str
    enrolled: float
    revoked: float | None
    label: str = ""

    @property
    def fingerprint(self) -> str:
        """Enough of the key for people to compare."""
        return digest(self.key)[:16]


class Code(NamedTuple):
    """A code as it can be shown: `id` begins its hash, `name` is the device name that it fixes, if any."""

    id: str
    name: str
    created: float
    expires: float
    used_by: str | None
    label: str = ""


class Token(NamedTuple):
    """An administrator's token as it can be shown."""

    id: str
    role: str
    label: str
    created: float
    expires: float


def make_code() -> str:
    """A new code, in groups.

    >>> len(make_code())
    24
    """
    return "-".join("".join(secrets.choice(ALPHABET) for _ in range(GROUP)) for _ in range(GROUPS))


def plain_code(text: str) -> str:
    """A code as people type it, without its dashes and with look-alikes put right.

    >>> plain_code(" k7qf-9rta-OIl0-zzzz 2222")
    'K7QF9RTA0110ZZZZ2222'
    """
    letters = "".join(c for c in text.upper() if c.isalnum())
    return letters.translate(str.maketrans("OIL", "011"))


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


# Codes.


def check_codes(count: int, ttl_s: float, name: str, label: str = "") -> None:
    """Raises UsageError for codes that nobody should want."""
    if not 1 <= count <= MAX_CODES:
        raise UsageError(f"codes are made 1 to {MAX_CODES:,} at a time, not {count:,}")
    if not 1 <= ttl_s <= MAX_TTL_S:
        raise UsageError("a code is good for 1 second to 366 days")
    if name:
        if count != 1:
            raise UsageError("a name belongs to one device: ask for one code")
        check_name("the device's name", name)
    if label:
        check_name("the codes' label", label)


def codes_said(count: int, ttl_s: float, name: str, label: str) -> str:
    """New codes in a few words, for the audit list.

    >>> codes_said(2, 3600.0, "", "shop 3")
    '2, good for 1 h, label shop 3'
    """
    words = [f"{count}", f"good for {ttl_s / 3600:g} h", name and f"for {name}", label and f"label {label}"]
    return ", ".join(word for word in words if word)


def add_codes(db: sqlite3.Connection, count: int, ttl_s: float, name: str, now: float, label: str = "") -> list[str]:
    """New codes, each good for one device until `ttl_s` seconds from now. This is the only time that they are seen.

    `label` says who hands them out; a task can bound what all devices of one label weigh together.
    """
    codes = [make_code() for _ in range(count)]
    db.executemany(
        "INSERT INTO codes VALUES (?, ?, ?, ?, NULL, NULL, ?)",
        [(digest(plain_code(code)), name, now, now + ttl_s, label) for code in codes],
    )
    return codes


def codes(db: sqlite3.Connection) -> list[Code]:
    """All codes, the newest last."""
    query = (
        f"SELECT substr(c.hash, 1, {SHOWN}), c.name, c.created, c.expires, d.name, c.label FROM codes c"
        " LEFT JOIN devices d ON d.key = c.key ORDER BY c.created, c.hash"
    )
    return [Code(*row) for row in db.execute(query)]


def drop_code(db: sqlite3.Connection, id_: str) -> None:
    """Forget an unused code. Raises UsageError when there is none."""
    found = db.execute("DELETE FROM codes WHERE substr(hash, 1, ?) = ? AND key IS NULL", (SHOWN, id_)).rowcount
    if not found:
        raise UsageError(f"there is no unused code {id_!r}: `covey enroll list` shows those that there are")


# Devices.


def enroll(db: sqlite3.Connection, key: str, wish: str, code: str, is_open: bool, now: float) -> str:
    """The name that belongs to this key: the one it has, or `wish`, or what its code fixes. Raises Refused.

    The same key with the same code is answered again and again with the same name: the first answer may be lost.
    """
    found = find(db, key)
    if found is not None:
        require_welcome(found)
        return found.name
    hashed = digest(plain_code(code)) if code else None
    fixed, label = ("", "") if code == "" and is_open else _use_code(db, hashed, key, now)
    name = fixed or wish
    if db.execute("SELECT 1 FROM devices WHERE name = ?", (name,)).fetchone():
        raise Refused("name_taken", f"another device is enrolled as {name}; choose another --name")
    db.execute("INSERT INTO devices VALUES (?, ?, ?, ?, NULL, ?)", (key, name, now, hashed, label))
    return name


def _use_code(db: sqlite3.Connection, hashed: str | None, key: str, now: float) -> tuple[str, str]:
    """The name that a good code fixes, and its label; from now on it is used. Strangers are not told which reason
    holds.
    """
    if hashed is None:
        raise Refused(
            "unknown_device", "this device is not enrolled here: ask the operator for a code, and join with --code"
        )
    query = "SELECT name, label FROM codes WHERE hash = ? AND key IS NULL AND expires > ?"
    row = db.execute(query, (hashed, now)).fetchone()
    if row is None:
        raise Refused("bad_code", "the code is unknown, used or expired: ask the operator for a new one")
    db.execute("UPDATE codes SET key = ?, used = ? WHERE hash = ?", (key, now, hashed))
    name, label = row
    return str(name), str(label)


def find(db: sqlite3.Connection, key: str) -> Device | None:
    """The device of a key."""
    row = db.execute("SELECT key, name, enrolled, revoked, label FROM devices WHERE key = ?", (key,)).fetchone()
    return Device(*row) if row else None


def require_welcome(device: Device) -> None:
    """Raises Refused for a revoked device."""
    if device.revoked is not None:
        raise Refused("revoked", f"the operator has revoked {device.name}; nothing of it is taken any more")


def still_welcome(db: sqlite3.Connection, name: str) -> None:
    """Raises Refused when the device of this name has been revoked: asked again in the transaction that counts."""
    row = db.execute("SELECT key, name, enrolled, revoked, label FROM devices WHERE name = ?", (name,)).fetchone()
    if row is not None:
        require_welcome(Device(*row))


def if_welcome(
    name: str, work: Callable[Concatenate[sqlite3.Connection, P], T]
) -> Callable[Concatenate[sqlite3.Connection, P], T]:
    """A piece of a transaction for a device, unless it has been revoked since its request came in."""

    def checked(db: sqlite3.Connection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        still_welcome(db, name)
        return work(db, *args, **kwargs)

    return checked


def devices(db: sqlite3.Connection) -> list[Device]:
    """All enrolled devices by name."""
    return [Device(*row) for row in db.execute("SELECT key, name, enrolled, revoked, label FROM devices ORDER BY name")]


def issuers(db: sqlite3.Connection) -> dict[str, str]:
    """By device name, the label of the code that it enrolled with; those without a label are left out."""
    return dict(db.execute("SELECT name, label FROM devices WHERE label != ''"))


def revoke(db: sqlite3.Connection, name: str, now: float) -> None:
    """Refuse a device from now on, in the middle of whatever it does. Raises UsageError for a name nobody has."""
    if not db.execute("UPDATE devices SET revoked = coalesce(revoked, ?) WHERE name = ?", (now, name)).rowcount:
        raise UsageError(f"no device is enrolled as {name!r}: `covey enroll list` shows those that are")


# Administrators.


def check_label(label: str) -> None:
    """Raises MessageError for a label that is no name."""
    check_name("the token's label", label)


def add_token(db: sqlite3.Connection, role: str, label: str, ttl_s: float, now: float) -> str:
    """A new token; this is the only time that it is seen. Raises UsageError for a label that is in use."""
    token = f"covey_{role}_{secrets.token_urlsafe(24)}"
    try:
        db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", (digest(token), role, label, now, now + ttl_s))
    except sqlite3.IntegrityError:
        raise UsageError(f"there is a token {label!r} already: drop it, or choose another --label") from None
    return token


def tokens(db: sqlite3.Connection) -> list[Token]:
    """All tokens by label."""
    query = f"SELECT substr(hash, 1, {SHOWN}), role, label, created, expires FROM tokens ORDER BY label"
    return [Token(*row) for row in db.execute(query)]


def drop_token(db: sqlite3.Connection, label: str) -> None:
    """End a token. Raises UsageError when there is none of this label."""
    if not db.execute("DELETE FROM tokens WHERE label = ?", (label,)).rowcount:
        raise UsageError(f"there is no token {label!r}: `covey admin list` shows those that there are")


class Bearer(NamedTuple):
    """Who sent a token."""

    role: str
    label: str


def bearer_of(db: sqlite3.Connection, token: str, now: float) -> Bearer | None:
    """The bearer of a token that is good now."""
    row = db.execute("SELECT role, label FROM tokens WHERE hash = ? AND expires > ?", (digest(token), now)).fetchone()
    return Bearer(*row) if row else None
