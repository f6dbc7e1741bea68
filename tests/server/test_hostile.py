"""Bytes from strangers: each is refused with its status and one sentence, and nothing changes, on disk or in memory."""

import gzip
import re
import resource
import socket
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_server import bodies
from covey_server.refusals import Refused, refusal
from covey_server.validation import max_upload_bytes, read_entries, read_update
from covey_shared.codec import codec_from_spec, presets
from covey_shared.errors import RemoteError
from covey_shared.layout import Layout, Tensor
from covey_shared.messages import Assignment, Refusal, StageSpec, Task, Update
from tests.helpers_server import (
    LAYOUT,
    MSGPACK,
    Device,
    Served,
    ServerProcess,
    call,
    served,
    signed_head,
    status_of,
    write_task,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    task = write_task(tmp_path_factory.mktemp("hostile"), '[upload]\ncodec = "dense"\n', target=99)
    with served(task) as found:
        yield found


@pytest.fixture
def good(server: Served) -> tuple[Device, Task, Assignment, Update]:
    """A device with a place in the round, and the honest update that it never sends."""
    device = server.device("mallory")
    device.fetch(0, server.start)
    task, assignment = device.task(), device.check_in()
    return device, task, assignment, Update.from_bytes(device.update(task, assignment))


def snapshot(server: Served) -> tuple[object, ...]:
    """Everything that a refused request must leave alone."""
    folder = Path(server.aggregator.run.blobs.folder)
    files = sorted((p.name, p.stat().st_size) for p in folder.rglob("*") if p.is_file())
    with sqlite3.connect(folder.parent / "covey.sqlite") as connection:
        rows = [connection.execute(f"SELECT * FROM {t} ORDER BY 1, 2").fetchall()
                for t in ("updates", "rounds", "versions", "evaluations")]  # fmt: skip
    connection.close()
    return server.aggregator.state, files, rows


def frame(update: Update, change: Callable[[bytearray], None]) -> dict[str, bytes]:
    """The parts with the packed payload changed and its checksums made right again, so that the parser is reached."""
    data = bytearray(update.parts["packed"])
    change(data)
    data[20:24] = struct.pack("<I", zlib.crc32(bytes(data[:20])))
    data[60:64] = struct.pack("<I", zlib.crc32(bytes(data[24:60]) + bytes(data[64:])))
    return {"packed": bytes(data)}


def set_float(at: int, value: float) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into("<f", data, at, value)


def set_u32(at: int, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into("<I", data, at, value)


def levels_bomb() -> bytes:
    """A LEV frame whose token stream inflates to 100 MB."""
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = bomb.compress(bytes(100 * 2**20)) + bomb.flush()
    n = LAYOUT.size
    header = struct.pack("<4sHHIII", b"SPK1", 1, 0, n, n, LAYOUT.short_id)
    header += struct.pack("<I", zlib.crc32(header))
    head = struct.pack("<IIIIIIIff", 2, 0, n, 0, 0, len(stream), 0, 1.0, 1.0)
    return header + head + struct.pack("<I", zlib.crc32(head + stream)) + stream


# What is sent instead of the honest update: the changed fields of the message.
CHANGED: dict[str, Callable[[Update], dict[str, object]]] = {
    "no parts": lambda u: {"parts": {}},
    "an unknown part": lambda u: {"parts": {**u.parts, "more": b""}},
    "an empty payload": lambda u: {"parts": {"packed": b""}},
    "a truncated payload": lambda u: {"parts": {"packed": u.parts["packed"][:-1]}},
    "a payload with a tail": lambda u: {"parts": {"packed": u.parts["packed"] + b"\0"}},
    "a flipped bit": lambda u: {"parts": {"packed": u.parts["packed"][:-3] + b"\xff" + u.parts["packed"][-2:]}},
    "NaN": lambda u: {"parts": frame(u, set_float(64, float("nan")))},
    "infinity": lambda u: {"parts": frame(u, set_float(64, float("inf")))},
    "an unbounded norm": lambda u: {"parts": frame(u, set_float(64, 1e30))},
    "another n": lambda u: {"parts": frame(u, set_u32(8, LAYOUT.size + 1))},
    "four billion entries": lambda u: {"parts": frame(u, set_u32(12, 2**32 - 1))},
    "another layout in the payload": lambda u: {"parts": frame(u, set_u32(16, 1))},
    "an index beyond the end": lambda u: {"parts": frame(u, set_u32(28, LAYOUT.size))},
    "sections longer than the payload": lambda u: {"parts": frame(u, set_u32(44, 2**32 - 1))},
    "an unknown value codec": lambda u: {"parts": frame(u, set_u32(24, 9))},
    "a deflate bomb": lambda u: {"parts": {"packed": levels_bomb()}},
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_hostile_payload_changes_nothing(
    what: str, server: Served, good: tuple[Device, Task, Assignment, Update]
) -> None:
    device, task, assignment, honest = good
    before = snapshot(server)
    started = time.process_time()  # of the server too, which is a thread here
    answer = device.upload(assignment.round, device.update(task, assignment, **CHANGED[what](honest)))
    assert time.process_time() - started < 5
    refusal = Refusal.from_bytes(answer.body)
    assert (answer.status, refusal.code) in [(400, "bad_payload"), (413, "too_large")]
    assert len(refusal.message) < 300
    assert "\n" not in refusal.message
    assert snapshot(server) == before


def unknown_stage(update: Update) -> bytes:
    return Update.from_bytes(update.to_bytes()).to_bytes().replace(b"\xa4pack", b"\xa4pakc", 1)


BODIES: dict[str, tuple[Callable[[Update], bytes], int, str]] = {
    "nothing": (lambda u: b"", 400, "bad_message"),
    "noise": (lambda u: bytes(range(256)), 400, "bad_message"),
    "a truncated message": (lambda u: u.to_bytes()[:-1], 400, "bad_message"),
    "a message with a tail": (lambda u: u.to_bytes() + b"\xc0", 400, "bad_message"),
    "another type": (lambda u: msgpack.packb([1, 2]), 400, "bad_message"),
    "deep nesting": (lambda u: b"\x91" * 100_000, 413, "too_large"),
    "deep nesting within the limit": (lambda u: b"\x81\xa5parts" + b"\x91" * 9_000, 400, "bad_message"),
    "a huge array header": (lambda u: b"\xdd\xff\xff\xff\xff", 400, "bad_message"),
    "an unknown field": (lambda u: msgpack.packb({**msgpack.unpackb(u.to_bytes()), "x": 1}), 400, "bad_message"),
    "a NaN loss": (
        lambda u: msgpack.packb({**msgpack.unpackb(u.to_bytes()), "loss_after": float("nan")}), 400, "bad_message",
    ),
    "no examples": (lambda u: msgpack.packb({**msgpack.unpackb(u.to_bytes()), "examples": 0}), 400, "bad_message"),
    "another device's name": (
        lambda u: msgpack.packb({**msgpack.unpackb(u.to_bytes()), "client": "alice"}), 400, "bad_message",
    ),
    "another round": (lambda u: msgpack.packb({**msgpack.unpackb(u.to_bytes()), "round": 2}), 400, "bad_message"),
    "another version": (
        lambda u: msgpack.packb({**msgpack.unpackb(u.to_bytes()), "version": 9}), 409, "wrong_version",
    ),
    "an unknown stage": (unknown_stage, 409, "wrong_codec"),
    "a gzip file": (lambda u: gzip.compress(u.to_bytes()), 400, "bad_message"),
}  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
def test_a_hostile_body_changes_nothing(
    what: str, server: Served, good: tuple[Device, Task, Assignment, Update]
) -> None:
    device, _, assignment, honest = good
    make, status, code = BODIES[what]
    before = snapshot(server)
    answer = device.upload(assignment.round, make(honest))
    assert (answer.status, Refusal.from_bytes(answer.body).code) == (status, code)
    assert snapshot(server) == before


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x" * 100])
def test_compressed_bodies_are_refused(
    encoding: str, server: Served, good: tuple[Device, Task, Assignment, Update]
) -> None:
    device, _, assignment, honest = good
    body = gzip.compress(honest.to_bytes())
    answer = call(server.url, "PUT", f"/v1/updates/{assignment.round}/{device.name}", body,
                  {**MSGPACK, "Content-Encoding": encoding})  # fmt: skip
    assert (answer.status, Refusal.from_bytes(answer.body).code) == (415, "media_type")


def test_another_content_type_is_refused(server: Served) -> None:
    answer = call(server.url, "POST", "/v1/checkin", b"{}", {"Content-Type": "application/json"})
    assert (answer.status, Refusal.from_bytes(answer.body).code) == (415, "media_type")


def raw(server: Served, framing: str, *pieces: bytes, pause_s: float = 0.0, hang_up: bool = True) -> bytes:
    """An upload framed as no HTTP library would; returns what comes back until the server closes.

    It is signed for a body of the pieces' bytes, and its device is enrolled.
    """
    parts = urlsplit(server.url)
    server.device("mallory").task()
    head = signed_head(server.url, "PUT", "/v1/updates/1/mallory", b"".join(pieces), f"{framing}\r\nConnection: close")
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(head)
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has had enough
        out = b""
        try:
            while data := connection.recv(65536):
                out += data
        except ConnectionResetError:
            pass
        return out


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def test_the_limit_is_exact(server: Served, good: tuple[Device, Task, Assignment, Update]) -> None:
    limit = max_upload_bytes(server.aggregator.run.upload)
    assert server.device("a").task().max_upload_bytes == limit
    device, _, assignment, _ = good
    assert device.upload(assignment.round, bytes(limit)).status == 400
    assert device.upload(assignment.round, bytes(limit + 1)).status == 413


def test_a_chunked_body_over_the_limit_is_cut_off_while_it_streams(server: Served) -> None:
    limit = max_upload_bytes(server.aggregator.run.upload)
    pieces = [chunk(bytes(limit // 2))] * 3
    answer = raw(server, "Transfer-Encoding: chunked", *pieces, b"0\r\n\r\n", hang_up=False)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"too_large" in answer


def test_a_length_over_the_limit_is_refused_before_a_byte_is_sent(server: Served) -> None:
    answer = raw(server, "Content-Length: 999999999", hang_up=False)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_length_that_lies_never_becomes_an_update(server: Served) -> None:
    before = snapshot(server)
    answer = raw(server, "Content-Length: 5000", b"short")
    assert not answer.startswith(b"HTTP/1.1 2")
    assert snapshot(server) == before


def test_bad_chunks_never_become_an_update(server: Served) -> None:
    before = snapshot(server)
    answer = raw(server, "Transfer-Encoding: chunked", b"zz\r\nxx\r\n")
    assert not answer.startswith(b"HTTP/1.1 2")
    assert snapshot(server) == before


def test_bodies_beyond_what_memory_holds_are_asked_to_come_back(
    server: Served, good: tuple[Device, Task, Assignment, Update], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, _, assignment, honest = good
    budget = bodies.Budget(100)
    with budget.reserve(60):
        with pytest.raises(Refused, match="try again"), budget.reserve(60):
            pass
        with budget.reserve(40):
            pass
    with budget.reserve(100):
        pass
    original = bodies.Budget.reserve
    with monkeypatch.context() as patch:
        patch.setattr(bodies.Budget, "reserve", lambda self, size: original(self, 2**50))
        answer = device.upload(assignment.round, honest.to_bytes())
    assert (answer.status, Refusal.from_bytes(answer.body).code, answer.headers["Retry-After"]) == (503, "busy", "2")


def test_silence_and_trickle_are_cut_off(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IDLE_S", 0.3)
    started = time.monotonic()
    assert raw(server, "Content-Length: 5000", b"abc", hang_up=False).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 5
    monkeypatch.setattr(bodies, "SLOW_AFTER_S", 0.3)
    answer = raw(server, "Content-Length: 5000", *[b"x"] * 8, pause_s=0.1, hang_up=False)
    assert answer.startswith(b"HTTP/1.1 408")


CODEC = codec_from_spec(presets.dense(), LAYOUT)


def checked(body: bytes) -> Update:
    """What the server does with a body before it changes anything."""
    update = read_update(body, 1, "mallory", {LAYOUT.digest}, (CODEC.spec,))
    entries = read_entries(update, CODEC, 1e4)
    assert np.isfinite(entries.values).all()
    assert np.linalg.norm(entries.values.astype(np.float64)) <= 1e4
    assert entries.size == LAYOUT.size
    return update


@settings(max_examples=300)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4), st.booleans())
def test_any_damage_is_refused_or_harmless(flips: list[tuple[float, int]], cut: bool) -> None:
    parts, _ = CODEC.encode(np.linspace(-1, 1, LAYOUT.size, dtype=np.float32), CODEC.init(0))
    honest = Update(
        client="mallory", layout=LAYOUT.digest, round=1, attempt=0, version=0, codec=CODEC.spec, parts=parts,
        examples=9, steps=1, loss_before=2.0, loss_after=1.0, seconds=0.1,
    )  # fmt: skip
    body = bytearray(honest.to_bytes())
    for where, bit in flips:
        body[int(where * len(body))] ^= 1 << bit
    damaged = bytes(body[: int(flips[0][0] * len(body))] if cut else body)
    try:
        update = checked(damaged)
    except RemoteError as error:
        assert refusal(error).status in (400, 409, 413)  # noqa: PT017
    else:
        assert update.parts == honest.parts, "only numbers beside the payload may differ"


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def hostile_messages(size: int) -> Iterator[bytes]:
    """Messages of about `size` bytes, each of which some decoder would make much more of."""
    yield b"\x81\xa5codec\xdd" + struct.pack(">I", size) + b"\x90" * (size - 50)
    yield b"\x81\xa5parts\xdf" + struct.pack(">I", size // 3) + b"\xa1a\xc0" * (size // 3 - 50)
    yield b"\x81\xa5parts" + b"\x91" * (size - 50)
    yield b"\xdf\xff\xff\xff\xff" + b"\xa1a\x01" * (size // 3 - 50)
    yield msgpack.packb({"client": "m" * (size - 50)})
    stage = (
        b"\x82\xa4name\xa1a\xa4args\xde" + struct.pack(">H", 1000) + b"".join(b"\xa4%04x\x01" % i for i in range(1000))
    )
    yield b"\x81\xa5codec\xdd" + struct.pack(">I", size // len(stage)) + stage * (size // len(stage))
    parts = b"".join(b"\xa4%04x\xc4\x00" % i for i in range(4096))
    yield b"\x81\xa5parts\xde" + struct.pack(">H", 4096) + parts + b"\xa1a" * (size // 2 - len(parts))
    yield b"\x81\xa5steps\xcf" + b"\xff" * (size - 50)
    yield b"\x81\xa6client" + b"\xd9\x01a" * (size // 3)
    yield bytes(size - 50)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
def test_memory_stays_flat_under_ten_megabyte_inputs(tmp_path: Path) -> None:
    """An honest limit of ten megabytes, hostile messages of that size: a server's memory must not follow."""
    big = Layout((Tensor(name="b", shape=(2000, 1000), kind="block", init="zeros"),))
    with ServerProcess(write_task(tmp_path, '[upload]\ncodec = "dense"\n', layout=big)) as server:
        url = server.url()
        size = Device(url, "m", big).task().max_upload_bytes - 100
        assert size > 9_500_000
        call(url, "PUT", "/v1/updates/1/m", b"\xc1" * size, MSGPACK)  # warm: one body of this size
        before = resident_bytes(server.child.pid)
        for body in hostile_messages(size):
            assert len(body) > 9_000_000
            assert call(url, "PUT", "/v1/updates/1/m", body, MSGPACK).status == 400
        assert resident_bytes(server.child.pid) - before < 64 * 2**20
        assert server.stop()[0] == 0


def test_refusals_do_not_leak_this_machine(server: Served, good: tuple[Device, Task, Assignment, Update]) -> None:
    device, task, assignment, honest = good
    answers = [device.upload(1, make(honest)).body for make, _, _ in BODIES.values()]
    answers += [device.upload(1, device.update(task, assignment, **make(honest))).body for make in CHANGED.values()]
    for body in answers:
        assert not re.search(rb"Traceback|/home|/tmp|\.py|site-packages", body), body


def test_the_honest_update_is_taken_in_the_end(server: Served) -> None:
    device = server.device("honest")
    device.fetch(0, server.start)
    assert device.take_part(server.start) == "train"
    assert "honest" in status_of(server.url)["round"]["accepted"]


def test_a_segment_or_density_that_the_task_did_not_ask_for(tmp_path: Path) -> None:
    """A device that sends more entries than the task's top-k is refused: it would outweigh the others."""
    text = '[upload]\ncodec = [{name = "topk", density = 0.1}, {name = "pack", values = "f32"}]\n'
    with served(write_task(tmp_path, text)) as greedy:
        device = greedy.device("g")
        device.fetch(0, greedy.start)
        task, assignment = device.task(), device.check_in()
        codec = codec_from_spec(presets.flasc(0.5), LAYOUT)
        parts, _ = codec.encode(np.ones(LAYOUT.size, np.float32), codec.init(0))
        answer = device.upload(1, device.update(task, assignment, parts=parts))
        assert answer.status in (400, 413)
        claimed = (StageSpec(name="topk", args={"density": 0.5}), StageSpec(name="pack", args={"values": "f32"}))
        answer = device.upload(1, device.update(task, assignment, parts=parts, codec=claimed))
        assert answer.status == 409
