"""Published versions of the adapter: from the one that is held to the one that a message describes. Pure."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from covey_shared.codec import codec_from_spec
from covey_shared.errors import CodecError, LayoutError, MessageError
from covey_shared.layout import Layout, Vector, vector_digest
from covey_shared.messages import Adapter

NOTHING = -1  # the version number of a device that holds none


class Held(NamedTuple):
    """The version that this device has, bit for bit what the server published; float32 [n]."""

    version: int
    adapter: Vector


def advance(held: Held, message: Adapter, layout: Layout, start: Callable[[], Vector]) -> Held:
    """The version that the message leads to, with its digest checked.

    `start()` makes version 0 from the task's seed. Raises LayoutError when the message is for another layout and
    MessageError when it does not lead from what is held to what it states.
    """
    if message.layout != layout.digest:
        raise LayoutError(
            f"the server sends an adapter for layout {message.layout[:12]}, this bundle has {layout.digest[:12]}: "
            "the server runs another task than it announced"
        )
    adapter = _base(held, message.base, layout, start)
    for step in message.steps:
        try:
            entries = codec_from_spec(step.codec, layout).decode(step.parts)
        except CodecError as error:
            raise MessageError(f"version {step.version} of the adapter cannot be decoded here: {error}") from None
        adapter[entries.where] += entries.values
    if vector_digest(adapter) != message.digest:
        raise MessageError(
            f"version {message.version} of the adapter, built from version {message.base} and {len(message.steps)} "
            "steps, does not have the digest that the server states"
        )
    return Held(message.version, adapter)


def _base(held: Held, base: int, layout: Layout, start: Callable[[], Vector]) -> Vector:
    """A fresh copy of the vector that the steps are added to."""
    if base == NOTHING:
        return np.zeros(layout.size, np.float32)
    if base == held.version:
        return held.adapter.copy()
    if base == 0:
        return start().copy()
    raise MessageError(f"the server sends a change to version {base}, this device holds version {held.version}")
