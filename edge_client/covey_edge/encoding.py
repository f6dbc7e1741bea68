"""From a trained round to the bytes that are uploaded: the change, coded, and the message around it. Pure."""

from covey_edge.device import Device
from covey_edge.local import Progress
from covey_edge.plan import Train
from covey_edge.state import Pending
from covey_shared.codec import dump_state, load_state
from covey_shared.errors import UsageError
from covey_shared.layout import Vector
from covey_shared.messages import Update
from covey_shared.prng import derive


def encoded(
    device: Device, client: str, action: Train, progress: Progress, before: Vector, known: bytes
) -> tuple[Pending, bytes]:
    """The round's change as an update to send, and the codec's state until that is acknowledged.

    `before` float32 [k] is what the round's tensors started from, `known` the codec's saved state or nothing.
    """
    codec, task, share = device.codec(action.round), device.task, device.share
    state = load_state(known) if known else codec.init(derive(task.seed, "codec", client))
    seen = codec.look(share.sent(progress.adapter, action.round), state)
    parts, after = codec.encode(share.sent(progress.adapter - before, action.round), seen)
    body = update(device, client, action, progress, parts).to_bytes()
    if len(body) > task.max_upload_bytes:
        raise UsageError(
            f"the update has {len(body):,} bytes, the server takes at most {task.max_upload_bytes:,}: "
            "its operator has to raise the limit or choose a smaller codec"
        )
    kind = {"round": action.round, "attempt": action.attempt, "version": action.version}
    name = device.codec_name(action.round)
    return Pending(**kind, body=body, codec=name, codec_after=dump_state(after)), dump_state(state)


def update(device: Device, client: str, action: Train, progress: Progress, parts: dict[str, bytes]) -> Update:
    """The message that is uploaded."""
    return Update(
        client=client, layout=device.uploaded(action.round).digest, round=action.round, attempt=action.attempt,
        version=action.version, codec=device.task.upload_codec, parts=parts, examples=device.parts.train.count,
        steps=progress.step, loss_before=progress.loss_before, loss_after=progress.loss_after,
        seconds=progress.seconds,
    )  # fmt: skip
