"""Checking an update before anything changes: every byte of it comes from a stranger. Pure."""

from collections.abc import Sequence, Set

from covey_server.defence import norm
from covey_server.refusals import Refused
from covey_shared.codec import Codec
from covey_shared.entries import Entries
from covey_shared.errors import PayloadError
from covey_shared.messages import Spec, Update

MESSAGE_BYTES = 16 * 1024  # of an Update around its parts: names, codec and numbers


def max_upload_bytes(codec: Codec) -> int:
    """The longest body that an honest update can have."""
    return codec.max_bytes + MESSAGE_BYTES


def read_update(body: bytes, round_: int, client: str, layouts: Set[str], codecs: Sequence[Spec]) -> Update:
    """The message of a body that was sent to /v1/updates/{round_}/{client}, for one of these layouts and codecs."""
    update = Update.from_bytes(body)
    if (update.round, update.client) != (round_, client):
        raise Refused(
            "bad_message",
            f"the update names round {update.round} and device {update.client}, its address {round_} and {client}",
        )
    if update.layout not in layouts:
        ours = ", ".join(sorted(layout[:12] for layout in layouts))
        raise Refused(
            "wrong_layout",
            f"the update is of layout {update.layout[:12]}, this round takes {ours}: what the task shares of the "
            "adapter, and nothing of what is personal or fixed; get the task again",
        )
    if update.codec not in codecs:
        asked = " or ".join(map(names, codecs))
        raise Refused("wrong_codec", f"the update is coded with {names(update.codec)}, the task asks for {asked}")
    return update


def check_layout(theirs: str, ours: str) -> None:
    """Refuses another layout: the device trains something else."""
    if theirs != ours:
        raise Refused("wrong_layout", f"the device has layout {theirs[:12]}, the task has {ours[:12]}; get the bundle")


def read_entries(update: Update, codec: Codec, max_norm: float) -> Entries:
    """The decoded change, every value finite, its L2 norm at most `max_norm`. Raises PayloadError."""
    entries = codec.decode(update.parts)
    size = norm(entries)
    if not size <= max_norm:
        raise PayloadError(f"the change has norm {size:.3g}, at most {max_norm:g} is accepted")
    return entries


def names(codec: Spec) -> str:
    """A codec as people write it, cut short where a stranger made it long."""
    text = " -> ".join(f"{stage.name}{stage.args or ''}" for stage in codec)
    return text if len(text) <= 200 else text[:200] + "..."
