"""What breaks around a server: disks, databases, clocks, descriptors, slow strangers, and uploads in pieces."""

import base64
import contextlib
import hashlib
import resource
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from covey_server import app, bodies
from covey_server.refusals import Refused
from covey_server.uploads import Uploads
from covey_shared.bundle import Bundle
from covey_shared.layout import Layout, Tensor
from covey_shared.messages import Receipt, Refusal
from tests.helpers_server import (
    LAYOUT,
    Answer,
    Device,
    ServerProcess,
    call,
    run_to_end,
    served,
    signature,
    signed_head,
    status_of,
    write_task,
)

BIG = Layout((Tensor(name="b", shape=(400, 500), kind="block", init="zeros"),))  # 800 kB
DENSE = '[upload]\ncodec = "dense"\n'
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resource.prlimit is Linux's")


def prepared(url: str, name: str, folder: Path, layout: Layout = LAYOUT) -> tuple[Device, bytes]:
    """A device with an update of round 1 that it has not sent yet."""
    device = Device(url, name, layout)
    device.fetch(0, Bundle.open(folder / "bundle").start(7))
    return device, device.update(device.task(), device.check_in())


def promise(device: Device, body: bytes) -> Answer:
    """Begin an upload in pieces."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    headers = {"Upload-Complete": "?0", "Upload-Length": str(len(body)), "Repr-Digest": f"sha-256=:{digest}:"}
    return call(device.url, "POST", f"/v1/updates/1/{device.name}?version=0", headers=headers)


def patch(url: str, address: str, offset: int, piece: bytes, last: bool = False) -> Answer:
    """Send a piece."""
    headers = {"Upload-Offset": str(offset), "Upload-Complete": "?1" if last else "?0"}
    return call(url, "PATCH", address, piece, {**headers, "Content-Type": "application/partial-upload"})


def test_pieces_in_the_shapes_of_the_draft(tmp_path: Path) -> None:
    with served(write_task(tmp_path, DENSE)) as server:
        device, body = prepared(server.url, "a", tmp_path)
        begun = promise(device, body)
        address = begun.headers["Location"]
        assert (begun.status, begun.headers["Upload-Offset"]) == (201, "0")
        assert begun.headers["Upload-Limit"] == f"max-size={len(body)}, max-age=86400"
        assert promise(device, body).headers["Location"] == address, "asked again, the same"
        sent = patch(server.url, address, 0, body[:100])
        assert (sent.status, sent.headers["Upload-Offset"]) == (204, "100")
        head = call(server.url, "HEAD", address)
        assert (head.status, head.headers["Upload-Offset"], head.headers["Cache-Control"]) == (204, "100", "no-store")
        wrong = patch(server.url, address, 50, body[50:], last=True)
        assert (wrong.status, Refusal.from_bytes(wrong.body).code) == (409, "wrong_offset")
        assert wrong.headers["Upload-Offset"] == "100"
        long = patch(server.url, address, 100, body[100:] + b"x", last=True)
        assert Refusal.from_bytes(long.body).code == "too_large"
        done = patch(server.url, address, 100, body[100:], last=True)
        assert Receipt.from_bytes(done.body).status == "accepted"
        assert call(server.url, "HEAD", address).status == 404
        assert Receipt.from_bytes(promise(device, body).body).status == "duplicate", "200 at once: it is counted"
        assert status_of(server.url)["round"]["accepted"] == ["a"]


def test_pieces_are_for_their_device_alone_and_bounded(tmp_path: Path) -> None:
    with served(write_task(tmp_path, DENSE)) as server:
        device, body = prepared(server.url, "a", tmp_path)
        address = promise(device, body).headers["Location"]
        other = address.replace("/a/", "/b/")
        assert call(server.url, "GET", "/v1/task", who="b").status == 200
        assert call(server.url, "HEAD", other).status == 404
        stranger = Device(server.url, "stranger")
        assert Refusal.from_bytes(promise(stranger, body).body).code == "not_assigned"
        huge = {"Upload-Complete": "?0", "Upload-Length": "9" * 12, "Repr-Digest": f"sha-256=:{'A' * 43}=:"}
        answer = call(server.url, "POST", "/v1/updates/1/a?version=0", headers=huge)
        assert Refusal.from_bytes(answer.body).code == "too_large"
        for bad in ({"Upload-Length": "-1"}, {"Repr-Digest": "md5=:x:"}, {"Upload-Complete": "?1"}):
            answer = call(
                server.url, "POST", "/v1/updates/1/a?version=0", headers={**huge, "Upload-Length": "9", **bad}
            )
            assert Refusal.from_bytes(answer.body).code == "bad_message"
        address = promise(device, body).headers["Location"]
        flipped = patch(server.url, address, 0, body[:-1] + b"\x00", last=True)
        assert Refusal.from_bytes(flipped.body).code == "wrong_digest"
        address = promise(device, body).headers["Location"]
        assert call(server.url, "DELETE", address).status == 204
        assert call(server.url, "HEAD", address).status == 404
        assert not list((tmp_path / "run" / "uploads").iterdir())


def test_unfinished_uploads_expire_and_have_a_bound(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, limit=250, now_s=0.0, max_age_s=10.0)
    first = uploads.create("a", 1, 100, "0" * 64, 0.0)
    uploads.append(first, b"x" * 60)
    assert uploads.create("a", 1, 100, "0" * 64, 1.0) is first
    uploads.create("b", 1, 150, "1" * 64, 5.0)
    with pytest.raises(Refused, match="as many unfinished uploads as it can"):
        uploads.create("c", 1, 1, "2" * 64, 5.0)
    replaced = uploads.create("a", 2, 50, "3" * 64, 6.0)
    assert uploads.promised == 200, "a device has one upload"
    uploads.append(replaced, b"y" * 20)
    again = Uploads(tmp_path, limit=250, now_s=1000.0)
    found = again.find("a", replaced.name, 1000.0)
    assert (found.offset, found.round, again.read(found)) == (20, 2, b"y" * 20), "a restart finds what had arrived"
    (tmp_path / "junk.json").write_text("{")
    assert Uploads(tmp_path, limit=250, now_s=0.0).promised == 200
    assert uploads.sweep(15.5) == 1
    assert uploads.sweep(16.5) == 1
    assert not list(tmp_path.iterdir())


def test_fault_a_stalled_piece_gives_way_to_the_next(tmp_path: Path) -> None:
    """A connection that hangs in the midst of a piece is ended by the device's next one"""
    with served(write_task(tmp_path, DENSE)) as server:
        device, body = prepared(server.url, "a", tmp_path)
        address = promise(device, body).headers["Location"]
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port)) as stalled:
            signed = signature(server.url, "a", "PATCH", address, body)
            head = f"PATCH {address} HTTP/1.1\r\nHost: x\r\nContent-Type: application/partial-upload\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in signed.items())
            stalled.sendall(f"{head}Upload-Offset: 0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:64])
            time.sleep(0.1)
            begun = time.monotonic()
            asked = call(server.url, "HEAD", address)
            assert (asked.status, asked.headers["Upload-Offset"]) == (204, "64"), "what had arrived is kept"
            assert time.monotonic() - begun < 2
            assert patch(server.url, address, 64, body[64:], last=True).status == 200


@linux
def test_fault_disk_full_in_the_midst_of_pieces(tmp_path: Path) -> None:
    """No space for the next piece: 507, the offset stays, and the upload goes on when there is room"""
    task = write_task(tmp_path, DENSE, rounds=1, target=1, layout=BIG)
    with ServerProcess(task, "--data-dir", str(tmp_path / "run")) as server:
        device, body = prepared(server.url(), "a", tmp_path, BIG)
        address = promise(device, body).headers["Location"]
        assert patch(device.url, address, 0, body[:100_000]).status == 204
        _, hard = resource.prlimit(server.child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.child.pid, resource.RLIMIT_FSIZE, (300_000, hard))
        full = patch(device.url, address, 100_000, body[100_000:], last=True)
        assert (full.status, Refusal.from_bytes(full.body).code) == (507, "disk_full")
        offset = int(call(device.url, "HEAD", address).headers["Upload-Offset"])
        assert 100_000 <= offset <= 300_000
        resource.prlimit(server.child.pid, resource.RLIMIT_FSIZE, (hard, hard))
        done = patch(device.url, address, offset, body[offset:], last=True)
        assert Receipt.from_bytes(done.body).status == "accepted"


def test_fault_database_locked(tmp_path: Path) -> None:
    """Another process holds the database's lock: 503 and Retry-After, nothing is acknowledged, later all is well"""
    with served(write_task(tmp_path)) as server:
        device, body = prepared(server.url, "a", tmp_path)
        server.aggregator.run.db.run(lambda c: c.execute("PRAGMA busy_timeout = 100") and None)
        with sqlite3.connect(tmp_path / "run" / "covey.sqlite", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = device.upload(1, body)
            assert (answer.status, Refusal.from_bytes(answer.body).code) == (503, "busy")
            assert int(answer.headers["Retry-After"]) >= 1
            assert call(server.url, "GET", "/healthz").status == 200
            other.execute("ROLLBACK")
        other.close()
        assert device.upload(1, body).status == 200
        assert status_of(server.url)["round"]["accepted"] == ["a"]


@pytest.mark.parametrize("years", [-5, 5])
def test_fault_clock_jumps(years: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's clock jumps by five years, either way, in the midst of a round and of an upload"""
    real = time.time
    with served(write_task(tmp_path, DENSE)) as server:
        devices = [server.device("a"), server.device("b")]
        device, body = prepared(server.url, "a", tmp_path)
        address = promise(device, body).headers["Location"]
        assert patch(server.url, address, 0, body[:50]).status == 204
        monkeypatch.setattr(time, "time", lambda: real() + years * 365 * 86_400)
        server.uploads.sweep(time.monotonic())
        assert Receipt.from_bytes(patch(server.url, address, 50, body[50:], last=True).body).status == "accepted"
        run_to_end(devices, server.start)
        assert server.aggregator.state.version == 3


def test_fault_slow_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 connections that never finish their headers or their body; others are served, and these are closed"""
    monkeypatch.setitem(app.RUNNER, "keepalive_timeout", 1.0)
    monkeypatch.setattr(bodies, "IDLE_S", 1.0)
    with served(write_task(tmp_path)) as server:
        port = urlsplit(server.url).port
        strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
        call(server.url, "GET", "/v1/task", who="x")
        for number, stranger in enumerate(strangers):
            whole = (
                signed_head(server.url, "PUT", "/v1/updates/1/x", bytes(100)) if number % 30 == 0 else b"PUT / HTTP/1.1"
            )
            stranger.sendall(whole + b"\r\nHost: x\r\n" if number % 30 else whole + b"x")
        begun = time.monotonic()
        run_to_end([server.device("a"), server.device("b")], server.start)
        assert time.monotonic() - begun < 20
        assert server.aggregator.state.version == 3
        deadline = time.monotonic() + 20
        for stranger in strangers:
            stranger.settimeout(max(deadline - time.monotonic(), 0.1))
            with contextlib.suppress(ConnectionResetError), stranger:
                while stranger.recv(4096):
                    pass


@linux
def test_fault_no_descriptors_left(tmp_path: Path) -> None:
    """The process may open no more files or connections: who is connected is served, and all is well afterwards"""
    with ServerProcess(write_task(tmp_path, DENSE, rounds=1, target=1)) as server:
        device, body = prepared(server.url(), "a", tmp_path)
        used = len(list(Path(f"/proc/{server.child.pid}/fd").iterdir()))
        soft, hard = resource.prlimit(server.child.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.child.pid, resource.RLIMIT_NOFILE, (used + 8, hard))
        port = urlsplit(device.url).port
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        time.sleep(0.3)
        assert server.child.poll() is None
        for one in crowd:
            one.close()
        resource.prlimit(server.child.pid, resource.RLIMIT_NOFILE, (soft, hard))
        deadline = time.monotonic() + 15
        while True:
            try:
                answer = device.upload(1, body)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert answer.status in (200, 500)
        assert device.upload(1, body).status == 200


def test_fault_two_processes_in_one_folder(tmp_path: Path) -> None:
    """A second server for the same run is refused with one sentence, and the first goes on"""
    task = write_task(tmp_path)
    with ServerProcess(task, "--data-dir", str(tmp_path / "run")) as first:
        url = first.url()
        with ServerProcess(task, "--data-dir", str(tmp_path / "run")) as second:
            code, _, errors = second.result()
        assert code == 1
        assert "is in use by another covey serve" in errors
        assert call(url, "GET", "/readyz").status == 200


def test_fault_everyone_at_once(tmp_path: Path) -> None:
    """Sixteen devices upload in the same instant: they share commits, and each is counted once"""
    with served(write_task(tmp_path, DENSE, rounds=1, target=16)) as server:
        ready = [prepared(server.url, f"d{i}", tmp_path) for i in range(16)]
        barrier, answers = threading.Barrier(16), []

        def upload(device: Device, body: bytes) -> None:
            barrier.wait()
            answers.append(device.upload(1, body).status)

        threads = [threading.Thread(target=upload, args=pair) for pair in ready]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.wait_for_version(1)
        assert answers == [200] * 16
        assert server.aggregator.versions[1].updates == 16
