"""The protocol's calls: messages in, messages out, over a Transport. Paths and limits are those of docs/protocol.md."""

from http import HTTPStatus
from typing import TypeVar

from covey_edge.transport import Refused, ServerError, Transport
from covey_shared.bundle_signature import MAX_BYTES
from covey_shared.errors import MessageError, UsageError
from covey_shared.layout import Layout
from covey_shared.manifest import MAX_MANIFEST_BYTES
from covey_shared.messages import (
    PROTOCOL,
    Adapter,
    Assignment,
    CheckIn,
    Enroll,
    Enrolled,
    Evaluation,
    Hello,
    Receipt,
    Task,
    Vault,
)
from covey_shared.schema import Message

M = TypeVar("M", bound=Message)
VAULT = "vault"
ADAPTER, UPDATE, BUNDLE = "adapter", "update", "bundle"  # the counters of Traffic that people ask for


async def enroll(transport: Transport, wish: str, code: str) -> str:
    """The name that this device's key has at the server, enrolled with `code` if it has none yet.

    Raises UsageError when the server speaks another protocol version, or does not know the key and takes no such code.
    """
    hello = _read(Hello, await transport.exchange("GET", "/v1/hello", signed=False), transport)
    if hello.protocol != PROTOCOL:
        raise UsageError(f"the server speaks protocol {hello.protocol}, this client {PROTOCOL}: update the older one")
    message = Enroll(client=wish, code=code)
    try:
        answer = await transport.exchange("POST", "/v1/enroll", body=message.to_bytes())
    except Refused as error:
        raise UsageError(f"{transport.url}: {error}") from None
    return _read(Enrolled, answer, transport).client


async def get_task(transport: Transport, tier: str = "") -> Task:
    """What there is to join, for a device of this tier."""
    return _read(Task, await transport.exchange("GET", "/v1/task" + (f"?tier={tier}" if tier else "")), transport)


async def get_manifest(transport: Transport) -> bytes:
    """The bytes of the bundle's manifest; their digest is not checked here."""
    return await transport.exchange("GET", "/v1/bundle", limit=MAX_MANIFEST_BYTES, kind=BUNDLE)


async def get_signatures(transport: Transport) -> bytes:
    """The bundle's signature file, empty where it has none; not checked here."""
    try:
        return await transport.exchange("GET", "/v1/bundle/signature", limit=MAX_BYTES)
    except Refused as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return b""
        raise


async def check_in(transport: Transport, message: CheckIn) -> Assignment:
    """Offer this device."""
    return _read(Assignment, await transport.exchange("POST", "/v1/checkin", body=message.to_bytes()), transport)


async def get_adapter(
    transport: Transport, version: int, held: int, layout: Layout, cohort: int | None = None
) -> Adapter:  # fmt: skip
    """How to come to a version from the one held, of what all devices have or of a cohort's copies.

    No honest answer is longer than twice the dense adapter.
    """
    path = f"/v1/adapter/{version}?held={held}" + ("" if cohort is None else f"&cohort={cohort}")
    message = _read(
        Adapter, await transport.exchange("GET", path, limit=8 * layout.size + (1 << 20), kind=ADAPTER), transport
    )
    if message.version != version:
        raise ServerError(f"{transport.url} sends version {message.version} of the adapter, asked for {version}")
    return message


async def put_update(transport: Transport, round_: int, client: str, body: bytes) -> Receipt:
    """Upload an update; may be repeated with the same bytes as often as needed, it counts once."""
    return receipt(await transport.exchange("PUT", f"/v1/updates/{round_}/{client}", body=body, kind=UPDATE), transport)


def receipt(data: bytes, transport: Transport) -> Receipt:
    """The receipt in an answer to an upload."""
    return _read(Receipt, data, transport)


async def put_evaluation(transport: Transport, message: Evaluation) -> None:
    """Report a held-out loss; repeating replaces."""
    await transport.exchange("PUT", f"/v1/evaluations/{message.version}/{message.client}", body=message.to_bytes())


async def put_vault(transport: Transport, address: str, sealed: bytes) -> None:
    """Keep a vault in the place of this device's last one."""
    body = Vault(sealed=sealed).to_bytes()
    await transport.exchange("PUT", f"/v1/vaults/{address}", body=body, kind=VAULT)


async def get_vault(transport: Transport, address: str, limit: int) -> bytes:
    """A vault's bytes, of at most `limit`."""
    path = f"/v1/vaults/{address}"
    return _read(Vault, await transport.exchange("GET", path, limit=limit + 1024, kind=VAULT), transport).sealed


async def delete_vault(transport: Transport, address: str) -> None:
    """Delete a vault."""
    await transport.exchange("DELETE", f"/v1/vaults/{address}")


def _read(kind: type[M], data: bytes, transport: Transport) -> M:
    try:
        return kind.from_bytes(data)
    except MessageError as error:
        raise ServerError(f"{transport.url} is not a Covey server of this version: {error}") from None
