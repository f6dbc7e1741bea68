"""Updates over bad links: a real server, the real client's delivery, and a proxy in between that breaks."""

import asyncio
import contextlib
import hashlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from covey_edge import calls, uploads
from covey_edge import transport as transport_module
from covey_edge.transport import Backoff, Refused, Traffic, Transport, connect
from covey_edge.uploads import Parcel, deliver
from covey_server.uploads import Partial
from covey_shared.bundle import Bundle
from covey_shared.layout import Layout, Tensor
from covey_shared.messages import Receipt
from tests.helpers_chaos import GOOD, Link, Toxics, bad_link
from tests.helpers_crash import free_port
from tests.helpers_server import LAYOUT, Device, Served, ServerProcess, key_of, served, write_task

BIG = Layout((Tensor(name="b", shape=(40, 410), kind="block", init="zeros"),))  # 65.6 kB of float32
ROOT = Path(__file__).parent.parent.parent
ENDLESS = 'mode = "async"\nbuffer = 100000\nmax_staleness = 1000\n'


def endless_task(folder: Path, layout: Layout = LAYOUT) -> Path:
    """A task in which a device gets one assignment after the other, all of version 0."""
    path = write_task(folder, '[upload]\ncodec = "dense"\n', layout=layout)
    path.write_text(path.read_text().replace("target = 2\n", ENDLESS))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(endless_task(tmp_path_factory.mktemp("small"))) as server:
        yield server


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(endless_task(tmp_path_factory.mktemp("large"), BIG)) as server:
        yield server


def parcel_of(device: Device, start: object) -> Parcel:
    """The device's next update, encoded."""
    assignment = device.check_in()
    if device.version != assignment.version:
        device.fetch(assignment.version, start)  # type: ignore[arg-type]
    device.bodies.clear()
    return Parcel(assignment.round, assignment.version, device.name, device.update(device.task(), assignment))


@contextlib.asynccontextmanager
async def link_to(
    server: Served, name: str, up: Toxics = GOOD, down: Toxics = GOOD
) -> AsyncIterator[tuple[Link, Transport]]:
    """A transport of the device `name` that goes through a proxy."""
    async with bad_link(server.url, up, down) as link, connect(link.url, key_of(name), Traffic()) as transport:
        transport.backoff = Backoff(0.001, 0.01)
        assert transport.session.connector is not None
        transport.session.connector._force_close = True  # each request a connection of its own, to be broken alone
        yield link, transport


def counted(server: Served, name: str) -> dict[int, str]:
    """The updates of a device as the database has them."""
    query = "SELECT round, sha256 FROM updates WHERE client = ?"
    return dict(server.aggregator.run.db.run(lambda c: c.execute(query, (name,)).fetchall()))


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_fault_connection_reset_at_every_byte_of_an_upload(stride: int, small: Served, tmp_path: Path) -> None:
    """RST at every eleventh byte of headers and body, at every single one in the slow tests, one connection each"""
    device, told = small.device(f"every-byte-{stride}"), {}

    async def main() -> None:
        async with link_to(small, device.name) as (link, transport):
            parcel = parcel_of(device, small.start)
            for offset in range(1, len(parcel.body) + 330, stride):
                link.break_once(reset=offset)
                receipt = await deliver(transport, tmp_path / "upload", parcel)
                told[parcel.round] = receipt.digest
                parcel = await asyncio.to_thread(parcel_of, device, small.start)

    asyncio.run(main())
    assert counted(small, device.name) == told, "each once, none besides"


def test_fault_connection_lost_in_the_midst_of_a_large_upload(large: Served, tmp_path: Path) -> None:
    """RST or a closed connection at many offsets of a 64 kB upload, which then goes on in pieces"""
    device, told, rng = large.device("midst"), {}, random.Random(3)
    sent = 0

    async def main() -> None:
        nonlocal sent
        async with link_to(large, "midst") as (link, transport):
            for number in range(16):
                parcel = await asyncio.to_thread(parcel_of, device, large.start)
                offset = number if number < 4 else rng.randrange(len(parcel.body) + 300)
                link.break_once(**{("reset", "limit_data")[number % 2]: 1 + offset})
                told[parcel.round] = (await deliver(transport, tmp_path / "upload", parcel)).digest
            sent = transport.traffic.sent["update"]

    asyncio.run(main())
    assert counted(large, "midst") == told


def test_fault_connection_lost_again_and_again(large: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection is cut after 20 kB: pieces go on where the server is, and no byte is sent for nothing twice"""
    monkeypatch.setattr(uploads, "SMALL", 0)

    async def main() -> None:
        async with link_to(large, "again", Toxics(limit_data=20_000)) as (link, transport):
            device = large.device("again")
            parcel = await asyncio.to_thread(parcel_of, device, large.start)
            receipt = await deliver(transport, tmp_path / "upload", parcel)
            assert receipt.digest == parcel.sha256
            assert link.connections <= 12
            assert not (tmp_path / "upload").exists()

    asyncio.run(main())
    assert len(counted(large, "again")) == 1


LINKS = {
    "latency and jitter": (Toxics(latency_s=0.01, jitter_s=0.02), Toxics(latency_s=0.01, jitter_s=0.02)),
    "little bandwidth": (Toxics(bandwidth=200_000), Toxics(bandwidth=200_000)),
    "pieces of 7 bytes": (Toxics(slicer=700), Toxics(slicer=7)),
    "a slow close": (Toxics(slow_close_s=0.3), Toxics(slow_close_s=0.3)),
}


@pytest.mark.parametrize("kind", LINKS)
def test_fault_slow_and_jerky_links(kind: str, large: Served, tmp_path: Path) -> None:
    """Latency, jitter, 200 kB a second, packets of a few bytes, connections that close late"""

    async def main() -> Receipt:
        async with link_to(large, kind.replace(" ", "-"), *LINKS[kind]) as (_, transport):
            parcel = await asyncio.to_thread(parcel_of, large.device(kind.replace(" ", "-")), large.start)
            return await deliver(transport, tmp_path / "upload", parcel)

    assert asyncio.run(main()).status == "accepted"


@pytest.mark.parametrize("way", ["up", "down"])
def test_fault_silence(way: str, large: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link swallows everything after some bytes and tells nobody, on the way up or on the way down"""
    monkeypatch.setattr(transport_module, "IDLE_S", 0.3)

    async def main() -> Receipt:
        async with link_to(large, f"silence-{way}") as (link, transport):
            parcel = await asyncio.to_thread(parcel_of, large.device(f"silence-{way}"), large.start)
            await calls.get_task(transport)  # brings a nonce for the upload
            silent = Toxics(timeout=30_000 if way == "up" else 10)
            link.up, link.down = (silent, GOOD) if way == "up" else (GOOD, silent)
            link.times = 1
            return await deliver(transport, tmp_path / "upload", parcel)

    assert asyncio.run(main()).status == ("accepted" if way == "up" else "duplicate")


def test_fault_client_killed_at_any_byte(large: Served, tmp_path: Path) -> None:
    """SIGKILL of the client at random moments of an upload; the next process goes on from the server's offset"""
    device = large.device("killed")
    parcel = parcel_of(device, large.start)
    (tmp_path / "body").write_bytes(parcel.body)
    script = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom covey_edge import uploads\n"
        "from covey_edge.transport import Traffic, connect\nfrom tests.helpers_server import key_of\n"
        "uploads.SMALL, uploads.PIECE = 0, 8192\n"
        "async def main():\n"
        "    async with connect(sys.argv[1], key_of('killed'), Traffic()) as transport:\n"
        f"        parcel = uploads.Parcel({parcel.round}, {parcel.version}, 'killed', Path(sys.argv[2]).read_bytes())\n"
        "        receipt = await uploads.deliver(transport, Path(sys.argv[3]), parcel)\n"
        "        print(receipt.status, transport.traffic.sent['update'])\n"
        "asyncio.run(main())\n"
    )
    rng, kills = random.Random(5), 0
    offsets: list[int] = []

    async def main() -> str:
        nonlocal kills
        async with bad_link(large.url, Toxics(bandwidth=60_000, slicer=500)) as link:
            while True:
                arguments = [sys.executable, "-c", script, link.url, str(tmp_path / "body"), str(tmp_path / "upload")]
                child = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    seconds = 0.6 + 0.5 * rng.random() if kills < 4 else 60.0
                    out, errors = await asyncio.to_thread(child.communicate, timeout=seconds)
                    assert child.returncode == 0, errors
                    return out
                child.send_signal(signal.SIGKILL)
                await asyncio.to_thread(child.communicate)
                kills += 1
                await asyncio.sleep(0.05)
                offsets.extend(p.offset for p in partials(large))

    out = asyncio.run(main())
    assert kills > 0
    assert offsets == sorted(offsets), "the offset never goes back"
    assert out.split()[0] in ("accepted", "duplicate"), "a duplicate where the kill came between acceptance and receipt"
    assert int(out.split()[1]) < len(parcel.body) or not any(offsets), "the last process sent only the rest"
    assert counted(large, "killed") == {parcel.round: parcel.sha256}


def partials(server: Served) -> list[Partial]:
    """The unfinished uploads that the server knows."""
    return [p for p in server.uploads._all.values() if p.client == "killed"]


def test_fault_server_killed_in_an_upload(tmp_path: Path) -> None:
    """SIGKILL of the server in the midst of pieces: the next one has what had arrived"""
    task = endless_task(tmp_path, BIG)
    port = free_port()
    data = str(tmp_path / "run")

    def arrived() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "run" / "uploads").glob("*.part"))

    async def main() -> tuple[Receipt, int]:
        first = ServerProcess(task, "--data-dir", data, "--port", str(port))
        device = Device(await asyncio.to_thread(first.url), "a", BIG)
        parcel = await asyncio.to_thread(parcel_of, device, Bundle.open(tmp_path / "bundle").start(7))
        slow = Toxics(bandwidth=60_000, slicer=500)
        async with bad_link(device.url, slow) as link, connect(link.url, key_of("a"), Traffic()) as transport:
            transport.backoff = Backoff(0.01, 0.05)
            uploading = asyncio.create_task(uploads.Pieces(transport, tmp_path / "upload", parcel).deliver())
            while not arrived() and not uploading.done():  # however slow this machine is
                await asyncio.sleep(0.01)
            await asyncio.to_thread(first.kill)
            kept = arrived()
            with ServerProcess(task, "--data-dir", data, "--port", str(port)) as second:
                await asyncio.to_thread(second.url)
                receipt = await uploading
                assert await asyncio.to_thread(second.stop) is not None
        return receipt, kept

    receipt, kept = asyncio.run(main())
    assert receipt.status == "accepted"
    assert kept > 0
    assert not list((tmp_path / "run" / "uploads").iterdir())
    with sqlite3.connect(Path(data) / "covey.sqlite") as db:
        assert db.execute("SELECT count(*) FROM updates").fetchone() == (1,)
    db.close()


def test_fault_one_delivery_five_times_and_out_of_order(small: Served, tmp_path: Path) -> None:
    """Five copies of an upload at once, and a copy of an earlier one that comes after a later one"""

    async def main() -> None:
        async with link_to(small, "copies") as (_, transport):
            device = small.device("copies")
            first = await asyncio.to_thread(parcel_of, device, small.start)
            copies = [deliver(transport, tmp_path / f"upload{i}", first) for i in range(5)]
            receipts = await asyncio.gather(*copies)
            assert sorted(r.status for r in receipts) == ["accepted", *["duplicate"] * 4]
            second = await asyncio.to_thread(parcel_of, device, small.start)
            assert (await deliver(transport, tmp_path / "upload", second)).status == "accepted"
            assert (await deliver(transport, tmp_path / "upload", first)).status == "duplicate"
            assert counted(small, "copies") == {p.round: p.sha256 for p in (first, second)}

    asyncio.run(main())


def test_fault_two_devices_with_one_identity(small: Served, tmp_path: Path) -> None:
    """Two devices say the same name: one update for each assignment is counted, the other device hears of it"""
    one, two = small.device("twin"), small.device("twin")
    a = parcel_of(one, small.start)
    b = parcel_of(two, small.start)
    two.bodies.clear()
    assert a.round == b.round
    other = two.update(two.task(), two.check_in(), loss_after=0.5)
    b = Parcel(b.round, b.version, b.client, other)

    async def main() -> None:
        async with link_to(small, "twin") as (_, transport):
            assert (await deliver(transport, tmp_path / "a", a)).status == "accepted"
            with pytest.raises(Refused, match="already has an update of device twin") as refused:
                await deliver(transport, tmp_path / "b", b)
            assert refused.value.code == "conflict"
            with pytest.raises(Refused, match="already has an update of device twin"):
                await uploads.Pieces(transport, tmp_path / "b", b).deliver()

    asyncio.run(main())
    assert counted(small, "twin") == {a.round: hashlib.sha256(a.body).hexdigest()}


def test_an_upload_that_the_server_knows_no_more_is_begun_anew(large: Served, tmp_path: Path) -> None:
    """A HEAD's answer has no body: that the address is gone, or the receipt was lost, is read off its status"""
    device = large.device("gone")
    parcel = parcel_of(device, large.start)
    record = {"address": f"/v1/uploads/{device.name}/{'x' * 22}", "sha256": parcel.sha256}
    (tmp_path / "upload").write_text(json.dumps(record))

    async def main() -> Receipt:
        async with link_to(large, device.name) as (_, transport):
            return await deliver(transport, tmp_path / "upload", parcel)

    assert asyncio.run(main()).digest == parcel.sha256
    assert counted(large, "gone") == {parcel.round: parcel.sha256}
