"""An update between its bytes and the store: read and checked, and what its device is told. Changes nothing."""

import logging
from typing import Any, NamedTuple

from covey_server import store
from covey_server.engine import Refuse
from covey_server.kept import Decoded
from covey_server.refusals import Refused
from covey_server.run import Run
from covey_server.validation import read_entries, read_update
from covey_shared.messages import Receipt

log = logging.getLogger("covey.server")


class Read(NamedTuple):
    """The row of an update, and either why it may not count or what it says."""

    row: store.UpdateRow
    refused: Refuse | None
    decoded: Decoded | None


def read(run: Run, state: Any, round_: int, client: str, body: bytes, sha256: str) -> Read:
    """A body, checked; `sha256` is its digest in hex. Raises Refused, MessageError or PayloadError.

    May run in a thread: the engine's `state` is immutable, and the store looks again.
    """
    update = read_update(body, round_, client, run.divided.allowed(round_), run.divided.codecs)
    refused = run.machine.admits(state, client, round_, update.version)
    decoded = None
    if refused is None:
        codec = run.divided.upload(update.layout, update.codec)
        decoded = Decoded(read_entries(update, codec, run.task.round.max_norm), update.layout)
    row = store.UpdateRow(
        round_, client, sha256, len(body), update.examples, update.steps,
        update.loss_before, update.loss_after, update.seconds, update.version,
    )  # fmt: skip
    return Read(row, refused, decoded)


def closed(run: Run, state: Any, row: store.UpdateRow) -> Refuse:
    """Why the store did not take an update that the engine would have: a version was closed in between."""
    refused = run.machine.admits(state, row.client, row.round, row.version)
    return refused or Refuse("late", f"round {row.round} is closed; check in again")


def receipt(stored: store.UpdateRow, sha256: str, kind: str) -> Receipt:
    """The answer for bytes with this digest, where `stored` is what is counted. Raises Refused for a conflict."""
    if kind == "conflict":
        log.warning("other bytes for round %d than those counted: %s, not %s", stored.round, sha256, stored.sha256)
        raise Refused(
            "conflict",
            f"round {stored.round} already has an update of device {stored.client} with digest {stored.sha256}, "
            f"this one has {sha256}; drop it and check in again",
        )
    return Receipt(
        status=kind, round=stored.round, digest=sha256, payload_bytes=stored.bytes, version=stored.counted_in,
        staleness=stored.staleness,
    )  # fmt: skip
