"""Single-use nonces for signed requests, without a row, a lookup or a round trip for each.

A nonce is a number, counted up, with a MAC under a key of this process: only this server can make one, none survives a
restart, and what is remembered is one bit for each of the last `WINDOW` nonces, 512 kB in all. Strangers who ask for
nonces cost nothing. A device's nonces must also rise, so that a request that was held back and let go after a later one
is as stale as a replayed one. Times are of a monotonic clock: nothing here depends on what time it is.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable

from covey_server.refusals import Refused

WINDOW = 2**22  # nonces that can be outstanding: an hour of a thousand answers a second
AGE_S = 3600.0  # a phone may train this long between two requests
MARK_S = 60.0  # how exactly the age is kept
NUMBER, MAC = 8, 16  # bytes of the two parts
STALE = "the nonce is used, too old, or of an earlier start of the server; sign again with the one in Covey-Nonce"


class Nonces:
    """The nonces of one process. `clock` in seconds, never going back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = WINDOW):
        self._clock, self._window = clock, window
        self._secret = secrets.token_bytes(32)
        self._next = 0
        self._oldest = 0  # nonces below are too old
        self._used = bytearray(window // 8)
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])  # all below the number are older than the time
        self._last: dict[str, int] = {}  # device -> its newest nonce; those of stale nonces are forgotten

    def issue(self) -> str:
        """A fresh one: 32 characters."""
        self._age()
        number = self._next
        self._next += 1
        slot = number % self._window
        self._used[slot >> 3] &= ~(1 << (slot & 7))
        head = number.to_bytes(NUMBER, "big")
        return base64.urlsafe_b64encode(head + self._mac(head)).decode()

    def spend(self, text: str) -> int:
        """The number of a nonce, which is used from now on, whatever comes of the request. Raises Refused."""
        try:
            data = base64.b64decode(text, altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise Refused("stale_nonce", STALE) from None
        head, mac = data[:NUMBER], data[NUMBER:]
        self._age()
        number = int.from_bytes(head, "big")
        slot = number % self._window
        bit = 1 << (slot & 7)
        if not hmac.compare_digest(mac, self._mac(head)) or number < self._floor or self._used[slot >> 3] & bit:
            raise Refused("stale_nonce", STALE)
        self._used[slot >> 3] |= bit
        return number

    def in_order(self, device: str, number: int) -> None:
        """Raises Refused when the device has spent a newer nonce already."""
        if number <= self._last.get(device, -1):
            raise Refused("stale_nonce", STALE)
        self._last[device] = number

    @property
    def _floor(self) -> int:
        """Numbers below are stale."""
        return max(self._oldest, self._next - self._window)

    def _age(self) -> None:
        """Let what is older than AGE_S go stale."""
        now_s, last_s = self._clock(), self._marks[-1][0]
        if now_s - last_s < MARK_S:
            return
        self._marks += [(last_s + MARK_S, self._next), (now_s, self._next)]  # none was issued between the two
        while self._marks[0][0] <= now_s - AGE_S:
            self._oldest = self._marks.popleft()[1]
        floor = self._floor
        self._last = {device: number for device, number in self._last.items() if number >= floor}

    def _mac(self, head: bytes) -> bytes:
        return hashlib.blake2b(head, key=self._secret, digest_size=MAC).digest()
