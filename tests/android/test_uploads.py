"""Updates of the JVM client over links that break and in processes that are killed, to the real server.

android_demo/check.sh compiles the client and runs this; COVEY_CLASSPATH says where the classes are.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey_server.uploads import Partial
from covey_shared.layout import Layout, Tensor
from tests.helpers_chaos import Toxics, bad_link
from tests.helpers_server import Served, served, write_task

CLASSPATH = os.environ.get("COVEY_CLASSPATH", "")
pytestmark = pytest.mark.skipif(not CLASSPATH, reason="the JVM client is compiled and tested by android_demo/check.sh")
SHAPE = (400, 410)  # 656 kB of float32: two pieces
LAYOUT = Layout((Tensor(name="b", shape=SHAPE, kind="block", init="zeros"),))
ENDLESS = 'mode = "async"\nbuffer = 100000\nmax_staleness = 1000\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = write_task(tmp_path_factory.mktemp("uploads"), '[upload]\ncodec = "dense"\n', layout=LAYOUT)
    path.write_text(path.read_text().replace("target = 2\n", ENDLESS))
    with served(path) as running:
        yield running


def deliver(url: str, state: Path, name: str) -> "subprocess.Popen[str]":
    command = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", CLASSPATH, "covey.core.cli.DeliverKt", url,
               str(state), name, *map(str, SHAPE)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def delivered(out: str) -> list[str]:
    """What the last line says: round, bytes of the body, status, digest, bytes sent by this process."""
    line = out.strip().splitlines()[-1]
    assert line.startswith("delivered "), out
    return line.split()[1:]


def counted(server: Served, name: str) -> dict[int, str]:
    """The updates of a device as the database has them."""
    query = "SELECT round, sha256 FROM updates WHERE client = ?"
    return dict(server.aggregator.run.db.run(lambda c: c.execute(query, (name,)).fetchall()))


def partial(server: Served, name: str) -> int:
    """How much of an unfinished update of a device the server has."""
    uploads: list[Partial] = list(server.uploads._all.values())
    return sum(p.offset for p in uploads if p.client == name)


@pytest.mark.parametrize("how", ["reset", "limit_data"])
def test_every_connection_is_cut_after_150_kb(how: str, server: Served, tmp_path: Path) -> None:
    async def main() -> tuple[str, int]:
        async with bad_link(server.url, Toxics(**{how: 150_000})) as link:
            process = deliver(link.url, tmp_path / "state", how)
            out, _ = await asyncio.to_thread(process.communicate, timeout=120)
            return out, link.connections

    out, connections = asyncio.run(main())
    round_, size, status, digest, _ = delivered(out)
    assert status == "accepted"
    assert counted(server, how) == {int(round_): digest}
    assert int(size) > 4 * 150_000
    assert connections < 30


async def kill_at(server: Served, offset: int, url: str, state: Path, name: str) -> int:
    """Starts a delivery and kills it once the server has `offset` bytes; how many it has then, 0 for all."""
    process = deliver(url, state, name)
    deadline = time.monotonic() + 60
    while partial(server, name) < offset:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
    process.kill()
    await asyncio.to_thread(process.communicate)
    await asyncio.sleep(0.3)
    return partial(server, name)


def test_killed_at_byte_offsets_it_goes_on_from_the_servers_offset(server: Served, tmp_path: Path) -> None:
    wanted, seen = [1, 90_000, 250_000, 400_000], []

    async def main() -> str:
        async with bad_link(server.url, Toxics(bandwidth=300_000, slicer=2000)) as link:
            seen.extend([await kill_at(server, offset, link.url, tmp_path / "state", "killed") for offset in wanted])
            last = deliver(link.url, tmp_path / "state", "killed")
            out, _ = await asyncio.to_thread(last.communicate, timeout=120)
            return str(out)

    round_, size, status, digest, sent = delivered(asyncio.run(main()))
    assert status == "accepted"
    assert seen == sorted(seen), "the offset never goes back"
    assert all(have >= offset for have, offset in zip(seen, wanted, strict=True))
    assert int(sent) <= int(size) - seen[-1], "the last process sent only the rest"
    assert counted(server, "killed") == {int(round_): digest}
    print(f"killed with {seen} of {size} bytes at the server; the last process sent {sent}")


def test_killed_before_the_receipt_the_update_counts_once(server: Served, tmp_path: Path) -> None:
    async def main() -> tuple[int, str]:
        async with bad_link(server.url, down=Toxics(latency_s=0.5)) as link:
            left = await kill_at(server, 524_288, link.url, tmp_path / "state", "receipt")
            for _ in range(100):  # the second piece was on its way
                if counted(server, "receipt"):
                    break
                await asyncio.sleep(0.05)
        last = deliver(server.url, tmp_path / "state", "receipt")
        out, _ = await asyncio.to_thread(last.communicate, timeout=120)
        return left, str(out)

    _, out = asyncio.run(main())
    round_, _, status, digest, _ = delivered(out)
    assert status in ("accepted", "duplicate")
    assert counted(server, "receipt") == {int(round_): digest}
    print(f"the receipt of round {round_} was lost; the next process heard {status}")
