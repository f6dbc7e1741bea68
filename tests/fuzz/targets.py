"""What strangers' bytes reach, as functions of bytes: each takes anything and raises nothing but what it may.

A target returns True when the bytes were good, so that a run can say that it found some of those too. Whatever else
happens (another exception, a second, memory) is a finding. Checksums are made right where they would keep the parser
behind them out of reach.
"""

import base64
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from covey_server import task_file
from covey_server.nonces import Nonces
from covey_server.refusals import Refused
from covey_server.validation import read_entries, read_update
from covey_shared import bundle_signature, messages
from covey_shared.codec import affine, codec_from_spec, levels, presets, spk1
from covey_shared.entries import Entries
from covey_shared.errors import BundleError, MessageError, PayloadError, RemoteError, SignatureError, TaskFileError
from covey_shared.keys import PublicKey
from covey_shared.layout import Layout, Tensor
from covey_shared.manifest import Manifest
from covey_shared.messages import Update
from covey_shared.schema import Message
from covey_shared.signing import parse_signed, verify_request
from tests.helpers_shared import vectors

SIZE, LAYOUT_ID = 1000, 0x11223344
LAYOUT = Layout(
    (
        Tensor(name="a", shape=(4, 100), kind="lora_A", init="kaiming_uniform", rank=4),
        Tensor(name="b", shape=(150, 4), kind="lora_B", init="zeros", rank=4),
    )
)
CODEC = codec_from_spec(presets.dense(), LAYOUT)
MESSAGES = sorted(
    (m for m in vars(messages).values() if isinstance(m, type) and issubclass(m, Message) and m is not Message),
    key=lambda m: m.__name__,
)


class Target(NamedTuple):
    """`run` on any bytes; `seeds` are good ones to begin from."""

    run: Callable[[bytes], bool]
    seeds: Callable[[], Iterator[bytes]]


def _packed(decode: Callable[..., Entries], header: int, frame: int) -> Callable[[bytes], bool]:
    """A decoder of one frame, with both checksums made right first."""

    def run(data: bytes) -> bool:
        payload = bytearray(data)
        if len(payload) >= header + frame:
            payload[header - 4 : header] = struct.pack("<I", zlib.crc32(payload[: header - 4]))
            body = bytes(payload[header : header + frame - 4]) + bytes(payload[header + frame :])
            payload[header + frame - 4 : header + frame] = struct.pack("<I", zlib.crc32(body))
        try:
            entries = decode(bytes(payload), SIZE, LAYOUT_ID)
        except PayloadError:
            return False
        _check_entries(entries, SIZE)
        return True

    return run


def _check_entries(entries: Entries, size: int) -> None:
    """What the rest of the server relies on."""
    assert entries.size == size
    assert np.isfinite(entries.values).all()
    where = np.arange(size)[entries.where] if isinstance(entries.where, slice) else np.asarray(entries.where)
    assert len(where) == len(entries.values) <= size
    assert len(where) == 0 or (np.all(np.diff(where.astype(np.int64)) > 0) and int(where[-1]) < size)


def _aff1(data: bytes) -> bool:
    payload, header = bytearray(data), affine.HEADER.size
    if len(payload) >= header:
        payload[header - 8 : header - 4] = struct.pack("<I", zlib.crc32(bytes(payload[header:])))
        payload[header - 4 : header] = struct.pack("<I", zlib.crc32(bytes(payload[: header - 4])))
    try:
        vector = affine.decode(bytes(payload), LAYOUT, 4)
    except PayloadError:
        return False
    assert vector.shape == (LAYOUT.size,)
    assert np.isfinite(vector).all()
    return True


def _message(data: bytes) -> bool:
    """The first byte says which; what is read writes the same bytes again, or shorter numbers made canonical."""
    kind = MESSAGES[data[0] % len(MESSAGES)] if data else MESSAGES[0]
    try:
        found = kind.from_bytes(data[1:])
    except MessageError:
        return False
    again = found.to_bytes()
    assert kind.from_bytes(again).to_bytes() == again
    return True


def _update(data: bytes) -> bool:
    """An upload's body, up to where it would count."""
    try:
        update = read_update(data, 1, "me", {LAYOUT.digest}, (CODEC.spec,))
        _check_entries(read_entries(update, CODEC, 1e4), LAYOUT.size)
    except RemoteError:
        return False
    return True


def _manifest(data: bytes) -> bool:
    try:
        Manifest.from_bytes(data)
    except BundleError:
        return False
    return True


def _signatures(data: bytes) -> bool:
    """A bundle's signature file."""
    try:
        bundle_signature.check_all(b"manifest", data)
    except (BundleError, SignatureError):
        return False
    return True


def _request(data: bytes) -> bool:
    """Three header lines and a target, as the guard reads them; the nonce as well."""
    digest, given, signature, target, *_ = [*data.decode("latin-1").split("\n"), "", "", "", ""]
    try:
        signed = parse_signed(digest, given, signature)
        key = PublicKey.from_text(signed.key)
        verify_request(key, signed, "PUT", target)
    except SignatureError:
        return False
    try:
        Nonces(window=64).spend(signed.nonce)
    except Refused:
        return True
    raise AssertionError("a nonce that nobody gave out was taken")


def _task(data: bytes) -> bool:
    try:
        task_file.parse(data.decode("utf-8", "replace"))
    except TaskFileError:
        return False
    return True


def _packed_seeds(name: str) -> Iterator[bytes]:
    for file in ("good", "bad"):
        for case in vectors(f"{name}/{file}.json")["cases"]:
            yield b"".join(bytes.fromhex(data) for data, _ in case["payload"])


def _aff1_seeds() -> Iterator[bytes]:
    yield affine.encode(np.linspace(-1, 1, LAYOUT.size, dtype=np.float32), LAYOUT, 4)


def _message_seeds() -> Iterator[bytes]:
    for number, kind in enumerate(MESSAGES):
        try:
            case: dict[str, Any] = vectors(f"messages/{kind.__name__.lower()}.json")
        except FileNotFoundError:
            continue
        yield bytes([number]) + bytes.fromhex(case["bytes"])


def _update_seeds() -> Iterator[bytes]:
    parts, _ = CODEC.encode(np.linspace(-1, 1, LAYOUT.size, dtype=np.float32), CODEC.init(0))
    yield Update(
        client="me", layout=LAYOUT.digest, round=1, attempt=0, version=0, codec=CODEC.spec, parts=parts, examples=9,
        steps=1, loss_before=2.0, loss_after=1.0, seconds=0.1,
    ).to_bytes()  # fmt: skip


def _manifest_seeds() -> Iterator[bytes]:
    from tests.helpers_edge import manifest_of

    yield manifest_of().to_bytes()


def _signature_seeds() -> Iterator[bytes]:
    from covey_shared.keys import generate

    for algorithm in ("ed25519", "p256"):
        key = generate(algorithm)
        yield f"{key.public.text} {base64.b64encode(key.sign(hashlib.sha256().digest())).decode()}\n".encode()


def _request_seeds() -> Iterator[bytes]:
    for row in vectors("signing.json")["cases"]:
        lines = (row["content_digest"], row["signature_input"], row["signature"], row["target"])
        yield "\n".join(lines).encode()


def _task_seeds() -> Iterator[bytes]:
    for rest in (
        '[round]\ntarget = 2\nselection = "uniform"\n[upload]\ncodec = "levels"\n',
        '[strategy]\nname = "flasc"\nmode = "paper"\n[server]\noptimizer = "yogi"\neps = 1e-3\n',
        '[upload]\ncodec = [{name = "topk", density = 0.1}, {name = "pack", values = "auto"}]\n',
    ):
        yield f'[task]\nbundle = "b"\n{rest}'.encode()


TARGETS = {
    "spk1": Target(_packed(spk1.decode, spk1.HEADER.size, spk1.FRAME_HEADER.size), lambda: _packed_seeds("spk1")),
    "lvl1": Target(_packed(levels.decode, levels.HEADER.size, levels.FRAME_HEADER.size), lambda: _packed_seeds("lvl1")),
    "aff1": Target(_aff1, _aff1_seeds),
    "message": Target(_message, _message_seeds),
    "update": Target(_update, _update_seeds),
    "manifest": Target(_manifest, _manifest_seeds),
    "signatures": Target(_signatures, _signature_seeds),
    "request": Target(_request, _request_seeds),
    "task": Target(_task, _task_seeds),
}
