"""How often somebody may ask: token buckets in memory, each a number and a time.

A device has a bucket for each kind of route, a stranger one for its address. Buckets that are full again are forgotten,
and the table has an end, so that inventing addresses fills no memory.
"""

import ipaddress
from collections import OrderedDict
from typing import NamedTuple

MOST = 100_000  # buckets; beyond, who was quiet longest is forgotten, which forgives at most one burst


class Rate(NamedTuple):
    """`per_s` requests a second in the long run, `burst` at once."""

    per_s: float
    burst: int


class Buckets:
    """Buckets by who and what. Times in seconds of a clock that does not go back."""

    def __init__(self, most: int = MOST):
        self._most = most
        self._left: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, who: str, what: str, rate: Rate, now_s: float) -> float:
        """Take one token: 0 if there was one, else the seconds until there is."""
        key = (who, what)
        left, then_s = self._left.pop(key, (float(rate.burst), now_s))
        left = min(rate.burst, left + (now_s - then_s) * rate.per_s)
        ok = left >= 1
        self._left[key] = (left - 1 if ok else left, now_s)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return 0.0 if ok else (1 - left) / rate.per_s


def is_address(text: str) -> bool:
    """Whether a text is an IP address.

    >>> is_address("10.0.0.1"), is_address("::1"), is_address("proxy.example")
    (True, True, False)
    """
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def network(address: str) -> str:
    """Whom an address belongs to: itself for IPv4, its /64 for IPv6, where one customer has 2^64 of them.

    >>> network("192.0.2.7"), network("2001:db8::1:2:3:4"), network("")
    ('192.0.2.7', '2001:db8::', '')
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)
