"""A fleet for load tests: signed requests over one connection a device, on bare asyncio protocols.

The client's own transport (aiohttp, retries, bounds) takes about as much CPU for an upload as the server does, and with
both on the same cores its speed would be measured along with the server's. What goes over the wire is the same:
HTTP/1.1, Ed25519 over method, path, query and digest, a nonce of the server's in each request.
"""

import asyncio
import sys
import time
from urllib.parse import urlsplit

from covey_shared.keys import PrivateKey
from covey_shared.messages import Assignment, CheckIn, Enroll, Hello, Receipt, Spec, Update
from covey_shared.signing import sign_request

LINUX = sys.platform == "linux"
MEDIA = "Content-Type: application/msgpack\r\n"


class Link(asyncio.Protocol):
    """A connection that has one request under way at a time."""

    transport: asyncio.Transport
    answer: asyncio.Future[bytes]

    def __init__(self) -> None:
        self._got = bytearray()
        self._needs = 0  # bytes of the answer, once its headers are there

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """What asyncio calls first."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=2**24)

    def data_received(self, data: bytes) -> None:
        """A piece of the answer."""
        self._got += data
        if not self._needs:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return
            self._needs = end + 4 + int(header(self._got, b"content-length") or 0)
        if len(self._got) >= self._needs:
            answer, self._got, self._needs = bytes(self._got), bytearray(), 0
            self.answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits is told."""
        if hasattr(self, "answer") and not self.answer.done():
            self.answer.set_exception(ConnectionError(f"the server hung up: {exc}"))


def header(answer: bytes | bytearray, name: bytes) -> str:
    """A header of an answer, "" where it is not there."""
    head = bytes(answer[: answer.find(b"\r\n\r\n")])
    at = head.lower().find(b"\r\n" + name + b":")
    return head[at + len(name) + 3 :].partition(b"\r\n")[0].strip().decode() if at >= 0 else ""


class Device:
    """One client of the fleet: its name, its key, its connection, and the parts that it sends."""

    def __init__(self, name: str, key: PrivateKey, layout: str, codec: Spec, parts: dict[str, bytes]):
        self.name, self._key, self._nonce = name, key, ""
        self._layout, self._codec, self._parts = layout, codec, parts
        self.receipts: list[bytes] = []

    async def connect(self, url: str, number: int) -> None:
        """Open the connection, and enrol the key. On Linux from a loopback address of its own, as devices have."""
        place = urlsplit(url)
        self._host = f"{place.hostname}:{place.port}"
        own = (f"127.0.1.{number % 250 + 1}", 0) if LINUX else None
        loop = asyncio.get_running_loop()
        _, self._link = await loop.create_connection(Link, place.hostname or "", place.port or 80, local_addr=own)
        hello = Hello.from_bytes(await self._ask("GET", "/v1/hello", b""))
        self._nonce = hello.nonce
        await self._ask("POST", "/v1/enroll", Enroll(client=self.name, code="").to_bytes())

    async def _ask(self, method: str, path: str, body: bytes) -> bytes:
        """The body of the 200 that answers."""
        headers = sign_request(self._key, method, path, body, self._nonce) if self._nonce else {}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{MEDIA}Content-Length: {len(body)}\r\n{lines}\r\n"
        self._link.answer = asyncio.get_running_loop().create_future()
        self._link.transport.write(head.encode() + body)
        answer = await self._link.answer
        self._nonce = header(answer, b"covey-nonce") or self._nonce
        if answer.startswith((b"HTTP/1.1 429 ", b"HTTP/1.1 401 ")):  # many strangers of one address; a stale nonce
            await asyncio.sleep(float(header(answer, b"retry-after") or 0))
            return await self._ask(method, path, body)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{method} {path}: {answer[:400]!r}")
        return answer[answer.find(b"\r\n\r\n") + 4 :]

    async def prepare(self) -> tuple[int, bytes]:
        """A place in the next round, and the bytes for it."""
        message = CheckIn(client=self.name, layout=self._layout, held=0, examples=9, runtime="onnx").to_bytes()
        while (got := Assignment.from_bytes(await self._ask("POST", "/v1/checkin", message))).action != "train":
            await asyncio.sleep(got.retry_after_s)
        update = Update(
            client=self.name, layout=self._layout, round=got.round, attempt=got.attempt, version=got.version,
            codec=self._codec, parts=self._parts, examples=9, steps=1, loss_before=2.0, loss_after=1.0, seconds=0.1,
        )  # fmt: skip
        return got.round, update.to_bytes()

    async def upload(self, round_: int, body: bytes) -> float:
        """Seconds until the receipt, which is kept to be looked at later."""
        begun = time.perf_counter()
        self.receipts.append(await self._ask("PUT", f"/v1/updates/{round_}/{self.name}", body))
        return time.perf_counter() - begun

    def close(self) -> int:
        """Hang up; returns how many updates were counted, each of which its receipt says."""
        self._link.transport.close()
        receipts = [Receipt.from_bytes(data) for data in self.receipts]
        assert all(receipt.status == "accepted" for receipt in receipts), "a receipt that says something else"
        return len(receipts)
