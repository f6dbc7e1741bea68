"""Adapters on their way to devices: the steps that a device lacks, or the whole when that is fewer bytes.

Each answer is put together once for a pair of versions and kept while memory allows, so that a thousand devices that
ask for the same cost one encoding.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from covey_server.refusals import Refused
from covey_server.store import VersionRow
from covey_shared.messages import Adapter, Step
from covey_shared.schema import MAX_ITEMS


class Plan(NamedTuple):
    """How to come to `version`: from `base` by the steps of these versions, or by one whole step from zero.

    `section` is the number of the part that is downloaded, see sections.py.
    """

    version: int
    base: int
    steps: tuple[int, ...]
    whole: bool
    section: int = 0


def plan(rows: Sequence[VersionRow], held: int, version: int, whole_bytes: int) -> Plan:
    """The cheapest way from `held` (-1 for nothing, as is anything unknown) to `version`.

    `rows` are all versions in order. `whole_bytes` is what the whole adapter would take; it exists for the head alone.
    """
    base, steps = _walk(rows, held, version)
    cost = sum(rows[v].step_bytes for v in steps)
    if version == rows[-1].version and steps and (cost > whole_bytes or len(steps) > MAX_ITEMS):
        return Plan(version, -1, (), True)
    if len(steps) > MAX_ITEMS:
        raise Refused("wrong_version", f"version {version} is {len(steps):,} steps away; ask for the newest version")
    return Plan(version, base, steps, False)


def _walk(rows: Sequence[VersionRow], held: int, version: int) -> tuple[int, tuple[int, ...]]:
    """Back from `version` along the bases, to the version held, the seeded start or the zero vector.

    Base 0 always means the seeded start; a version 0 that is not the start has a step, which is sent again.
    """
    steps: list[int] = []
    at = version
    while rows[at].step is not None and (at != held or at == 0):
        steps.append(at)
        at = rows[at].base
        if at == -1:
            break
    return at, tuple(reversed(steps))


def message(chosen: Plan, rows: Sequence[VersionRow], layout: str, steps: Sequence[Step]) -> bytes:
    """The answer's bytes."""
    digest = rows[chosen.version].digest
    adapter = Adapter(version=chosen.version, base=chosen.base, layout=layout, digest=digest, steps=tuple(steps))
    return adapter.to_bytes()


class Cache:
    """Answers by plan, the least recently used dropped beyond `limit` bytes; each is made once at a time."""

    def __init__(self, limit: int):
        self._limit = limit
        self._size = 0
        self._done: OrderedDict[Plan, bytes] = OrderedDict()
        self._making: dict[Plan, asyncio.Task[bytes]] = {}

    async def get(self, key: Plan, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer for `key`, made now if need be. Those who ask meanwhile wait for the same one."""
        if key in self._done:
            self._done.move_to_end(key)
            return self._done[key]
        if key not in self._making:
            self._making[key] = asyncio.create_task(self._make(key, make))
        return await asyncio.shield(self._making[key])  # one device hanging up must not cancel the others' answer

    async def _make(self, key: Plan, make: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            data = await make()
        finally:
            del self._making[key]
        self._done[key] = data
        self._size += len(data)
        while self._size > self._limit and len(self._done) > 1:
            self._size -= len(self._done.popitem(last=False)[1])
        return data
