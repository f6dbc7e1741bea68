"""Writes the golden files of this folder, which the Python and the Kotlin tests both read.

    python -m tests.vectors.make

The files fix what bytes mean, never how a vector must be encoded: DEFLATE output may differ between platforms, so
only decoding, messages, start values and random numbers are compared. A change here is a change of the protocol.

Payloads stand as `[[hex, what it is], ...]`. Vectors stand as float32 bits in hex, so that no reader rounds them.
"""

import base64
import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from covey_shared import prng, signing
from covey_shared.codec import affine, codec_from_spec, framing, levels, spk1
from covey_shared.entries import Entries
from covey_shared.errors import MessageError, PayloadError
from covey_shared.keys import PrivateKey
from covey_shared.layout import Layout, vector_digest
from covey_shared.messages import (
    Adapter,
    Assignment,
    CheckIn,
    Enroll,
    Enrolled,
    Evaluation,
    Hello,
    LocalConfig,
    Receipt,
    Refusal,
    Sharing,
    StageSpec,
    Step,
    Task,
    Update,
    Vault,
)
from covey_shared.schema import Message
from tests.helpers_shared import LAYOUT, float_bits, layout_of
from tests.vectors.packed_cases import LAYOUT_ID, SIZE, Pieces, lvl1_bad, lvl1_good, spk1_bad, spk1_good

Json = dict[str, Any]
HERE = Path(__file__).parent


# ---- files ----


def annotated(pieces: Pieces) -> list[list[str]]:
    """A payload as it stands in a file."""
    return [[data.hex(), what] for data, what in pieces]


def joined(pieces: Pieces) -> bytes:
    """A payload."""
    return b"".join(data for data, _ in pieces)


def decoded(entries: Entries) -> Json:
    """What a payload means: the run or the indices, and the values; digests of both where there are many."""
    run = isinstance(entries.where, slice)
    where: Json = {"start": entries.where.start, "stop": entries.where.stop} if isinstance(entries.where, slice) else {}
    if entries.count <= 64:
        return {
            **(where if run else {"indices": np.asarray(entries.where).tolist()}),
            "values": float_bits(entries.values),
        }
    if not isinstance(entries.where, slice):
        where = {"indices_sha256": hashlib.sha256(entries.where.astype("<u4").tobytes()).hexdigest()}
    return {**where, "values_sha256": vector_digest(entries.values)}


def good_file(about: str, decode: Callable[..., Entries], cases: Iterator[tuple[str, int, Pieces]]) -> Json:
    """A file of payloads that decode."""
    rows = []
    for name, size, pieces in cases:
        entries = decode(joined(pieces), size, LAYOUT_ID)
        rows.append(
            {"name": name, "size": size, "layout_id": LAYOUT_ID, "payload": annotated(pieces), **decoded(entries)}
        )
    return {"about": about, "cases": rows}


def bad_file(about: str, decode: Callable[..., Entries], cases: Iterator[tuple[str, Pieces, Json]]) -> Json:
    """A file of payloads that must be refused; the sentence is what the Python decoder says."""
    rows = []
    for name, pieces, changes in cases:
        receiver = {"size": SIZE, "layout_id": LAYOUT_ID, "max_entries": changes.get("size", SIZE), **changes}
        try:
            decode(joined(pieces), **receiver)
        except PayloadError as error:
            row = {"name": name, **receiver, "payload": annotated(pieces), "error": str(error), "status": error.status}
            rows.append(row)
        else:
            raise AssertionError(f"{name} is accepted")
    return {"about": about, "cases": rows}


def prng_file() -> Json:
    """SplitMix64 and what is made of it."""
    seeds = (0, 1, 42, 2**63 - 1, 2**64 - 1)
    derived: list[list[int | str]] = [
        [],
        [0],
        [1, 2],
        [2, 1],
        ["a"],
        ["a", "b"],
        ["ab"],
        ["a longer name than eight bytes", 7],
        ["\u00e9"],
    ]
    return {
        "about": "SplitMix64: outputs as hex uint64; uniform as float32 bits; seeds derived from parts; shuffles.",
        "draws": [{"seed": str(s), "first": f, "outputs": hexes(prng.draws(s, f, 4))} for s in seeds for f in (0, 5)],
        "uniform": [{"seed": str(s), "first": 0, "values": float_bits(prng.uniform(s, 0, 6))} for s in seeds],
        "derive": [{"parts": parts, "seed": f"{prng.derive(*parts):016x}"} for parts in derived],
        "permutation": [{"seed": str(s), "count": 10, "order": prng.permutation(s, 10).tolist()} for s in seeds],
    }


def hexes(numbers: Any) -> list[str]:
    """uint64 as hex."""
    return [f"{int(x):016x}" for x in numbers]


def start_file() -> Json:
    """How an adapter starts, and the identities of a layout and of a vector."""
    stored = np.array([0.5, -1.25, 3.0], np.float32)
    starts = {seed: LAYOUT.start(seed, stored) for seed in (0, 1, 2**63 - 1)}
    return {
        "about": "A layout, its digest (SHA-256 of `canonical`), and version 0 of the adapter as float32 bits by seed.",
        "layout": LAYOUT.to_json(),
        "canonical": LAYOUT.canonical.decode(),
        "digest": LAYOUT.digest,
        "short_id": LAYOUT.short_id,
        "stored": float_bits(stored),
        "starts": [
            {"seed": str(seed), "start": float_bits(start), "vector_digest": vector_digest(start)}
            for seed, start in starts.items()
        ],
    }


def chains_layout() -> Layout:
    """40 entries in three tensors, the last one with two rows."""
    *first, last = layout_of(40).tensors
    return Layout((*first, dataclasses.replace(last, shape=(2, last.size // 2))))


def codec_file() -> Json:
    """Whole chains: a spec, the parts that it wrote, and what they decode to."""
    layout = chains_layout()
    vector = np.array([((i * 7919) % 41 - 20) * (1 if i < 20 else 1e-6) for i in range(40)], np.float32)
    chains: list[list[tuple[str, Json]]] = [
        [("pack", {"values": "f32"})],
        [("topk", {"density": 0.25}), ("pack", {"values": "f32"})],
        [("tensor_scale", {}), ("pack", {"values": "sign"})],
        [("segment", {"count": 3}), ("tensor_scale", {}), ("pack", {"values": "f16"})],
        [("topk", {"density": 0.5}), ("tensor_scale", {}), ("pack", {"values": "lev", "error": 0.05})],
        [("levels", {"error": 0.2})],
        [("segment", {"count": 2}), ("levels", {"error": 0.2})],
        [("importance", {"density": 0.25}), ("pack", {"values": "f32"})],
        [("adaptive", {"density": 0.25}), ("tensor_scale", {}), ("pack", {"values": "auto", "error": 0.65})],
        [("tensor_scale", {"rows": 5}), ("pack", {"values": "sign"})],
    ]
    rows = []
    for chain in chains:
        spec = tuple(StageSpec(name=name, args=args) for name, args in chain)
        codec = codec_from_spec(spec, layout)
        parts, _ = codec.encode(vector, codec.init(1))
        named = [{"name": name, "args": args} for name, args in chain]
        rows.append({"spec": named, "parts": {k: v.hex() for k, v in parts.items()}, **decoded(codec.decode(parts))})
    return {
        "about": "Codec chains: `parts` decode to the entries. A scale is bfloat16, the upper half of a float32.",
        "layout": layout.to_json(),
        "cases": rows,
        "bad": list(bad_parts(rows)),
    }


def bad_parts(rows: list[Json]) -> Iterator[Json]:
    """Parts that a chain must refuse."""
    layout = chains_layout()
    sign, segment, top = rows[2], rows[3], rows[1]
    two_segments = spk1.encode(Entries(40, slice(10, 20), np.ones(10, np.float32)), layout.short_id)
    cases: list[tuple[str, Json, Json]] = [
        ("a part missing", sign, {"scale": None}),
        ("a part that is not known", sign, {"extra": ""}),
        ("scales a byte short", sign, {"scale": sign["parts"]["scale"][:-2]}),
        ("scales too long", sign, {"scale": sign["parts"]["scale"] + "0000"}),
        ("a negative scale", sign, {"scale": "8080" + sign["parts"]["scale"][4:]}),
        ("a scale of minus zero", sign, {"scale": "0080" + sign["parts"]["scale"][4:]}),
        ("an infinite scale", sign, {"scale": "807f" + sign["parts"]["scale"][4:]}),
        ("a scale that is not a number", sign, {"scale": "c07f" + sign["parts"]["scale"][4:]}),
        ("a value times its scale overflows", segment, {"scale": "7f7f7f7f7f7f"}),
        ("more entries than the density allows", top, {"packed": rows[0]["parts"]["packed"]}),
        ("entries of two segments", segment, {"packed": two_segments.hex()}),
        ("a part that is far too long", top, {"packed": "00" * 4000}),
    ]  # fmt: skip
    for name, row, changes in cases:
        parts = {k: v for k, v in {**row["parts"], **changes}.items() if v is not None}
        codec = codec_from_spec(tuple(StageSpec(**s) for s in row["spec"]), layout)
        try:
            codec.decode({k: bytes.fromhex(v) for k, v in parts.items()})
        except PayloadError as error:
            yield {"name": name, "spec": row["spec"], "parts": parts, "error": str(error), "status": error.status}
        else:
            raise AssertionError(f"{name} is accepted")


def aff1_file() -> Json:
    """AFF1: payloads with their layout, and some to refuse."""
    vector = np.array([((i * 37) % 23 - 11) / 8 for i in range(LAYOUT.size)], np.float32)
    flat = np.where(np.arange(LAYOUT.size) < 12, np.float32(0.1), vector)  # two channels of one value each
    named = [("rows", vector), ("constant channels", flat), ("zeros", np.zeros(LAYOUT.size, np.float32))]
    rows = []
    for bits in affine.BITS:
        for name, values in named:
            payload = affine.encode(values, LAYOUT, bits)
            back = float_bits(affine.decode(payload, LAYOUT, bits))
            rows.append({"name": f"{name}, {bits} bits", "bits": bits, "payload": payload.hex(), "values": back})
    return {
        "about": "AFF1 payloads and the vectors that they decode to; under `bad` payloads to refuse.",
        "layout": LAYOUT.to_json(),
        "cases": rows,
        "bad": list(aff1_bad(affine.encode(vector, LAYOUT, 2))),
    }


def aff1_bad(good: bytes) -> Iterator[Json]:
    """Payloads of 2 bits that must be refused; from the sixth on the checksums are right."""
    body = good[32:]
    changed = {
        "cut": good[:-1],
        "bytes left over": good + b"\0",
        "damaged header": good[:8] + b"\1" + good[9:],
        "damaged body": good[:40] + b"\1" + good[41:],
        "another format": b"LVL1" + good[4:],
        "other bits": _sealed(good[:20] + struct.pack("<I", 8), body),
        "flags": _sealed(good[:6] + b"\1\0" + good[8:24], body),
        "another layout": _sealed(good[:16] + b"\0\0\0\0" + good[20:24], body),
        "another size": _sealed(good[:8] + struct.pack("<I", 7) + good[12:24], body),
        "fewer entries": _sealed(good[:12] + struct.pack("<I", 7) + good[16:24], body),
        "a body that is too short": _sealed(good[:24], body[:-4]),
        "a negative scale": _sealed(good[:24], b"\0\0\x80\xbf" + body[4:]),
        "a scale of minus zero": _sealed(good[:24], b"\0\0\0\x80" + body[4:]),
        "an offset that is not a number": _sealed(good[:24], body[:16] + b"\0\0\xc0\x7f" + body[20:]),
        "a value that is not finite": _sealed(good[:24], b"\xff\xff\x7f\x7f" + body[4:]),
        "a plain value that is not finite": _sealed(good[:24], body[:-4] + b"\0\0\x80\x7f"),
    }
    for name, payload in changed.items():
        try:
            affine.decode(payload, LAYOUT, 2)
        except PayloadError as error:
            yield {"name": name, "bits": 2, "payload": payload.hex(), "error": str(error), "status": error.status}
        else:
            raise AssertionError(f"{name} is accepted")


def _sealed(fields: bytes, body: bytes) -> bytes:
    """An AFF1 payload of the 24 header bytes before the checksums, and a body."""
    return framing.seal(fields + struct.pack("<I", zlib.crc32(body))) + body


# ---- messages ----

DIGEST = "".join(f"{i:02x}" for i in range(32))
SPEC = (StageSpec(name="topk", args={"density": 0.25}), StageSpec(name="pack", args={"values": "auto", "error": 0.1}))
LOCAL = LocalConfig(
    optimizer="adamw", learning_rate=0.001, steps=20, momentum=0.0, beta1=0.9, beta2=0.999, eps=1e-8,
    weight_decay=0.01, clip_norm=1.0, error_feedback=True,
)  # fmt: skip
MESSAGES: dict[str, Message] = {
    "task": Task(
        protocol=1, name="notes", model="hub/model-1b", bundle=DIGEST, layout=DIGEST[::-1], seed=2**63 - 1, rounds=20,
        round=3, version=2, state="running", upload_codec=SPEC, local=LOCAL, max_upload_bytes=1_000_000,
        sharing=Sharing(
            personal=("kind:head", "*.h.3.*"), fresh=("kind:lora_A",), phases=(("kind:lora_B",), ("*", "x")),
            ranks=(2, 8), second=True, cohort=("*.h.2.*",), cohorts=3, fusion="factorwise", sync_every=5,
        ),
    ),
    "hello": Hello(protocol=1, enroll="code", nonce="AAAAAAAAAAcHBwcHBwcHBwcHBwcHBwcH"),
    "enroll": Enroll(client="phone-1", code="K7QF-9RTA-4MWX-Z2PC-8HNB"),
    "enrolled": Enrolled(client="phone-1"),
    "checkin": CheckIn(client="phone-1", layout=DIGEST, held=-1, examples=128, runtime="executorch"),
    "assignment": Assignment(
        action="train", round=3, attempt=0, version=2, deadline_s=600.0, retry_after_s=0.0, cohort=2
    ),
    "adapter": Adapter(
        version=4, base=2, layout=DIGEST, digest=DIGEST,
        steps=(Step(version=3, codec=SPEC, parts={"packed": b"\x00\x01\xff"}), Step(version=4, codec=SPEC, parts={})),
    ),
    "update": Update(
        client="phone-1", layout=DIGEST, round=3, attempt=1, version=2, codec=SPEC,
        parts={"scale": b"\x80\x3f", "packed": bytes(300)}, examples=128, steps=20, loss_before=2.5, loss_after=1.25,
        seconds=12.5,
    ),
    "receipt": Receipt(status="accepted", round=3, digest=DIGEST, payload_bytes=302, version=3, staleness=0),
    "evaluation": Evaluation(
        client="phone-1", layout=DIGEST, version=2, loss_sum=1234.5, tokens=1000, correct=250, kind="personal"
    ),
    "vault": Vault(sealed=b"CVV1\x00\xff"),
    "refusal": Refusal(code="round_closed", message="round 3 is closed; ask again", retry_after_s=5.0),
}  # fmt: skip


# ---- signed requests ----

NONCE = "AAAAAAAAAAcHBwcHBwcHBwcHBwcHBwcH"
SEED, SCALAR = bytes(range(32)), int.from_bytes(range(1, 33), "big")
REQUESTS: list[tuple[str, str, str, bytes]] = [
    ("no body and no query", "GET", "/v1/task", b""),
    ("a query", "GET", "/v1/adapter/3?held=2", b""),
    ("a query that is empty", "GET", "/v1/adapter/3?", b""),
    ("a body", "PUT", "/v1/updates/3/kitchen", b"\x81\xa1a\x01"),
    ("the long name of a device", "PUT", f"/v1/evaluations/12/{'x' * 64}", bytes(1000)),
]


def signing_keys() -> dict[str, PrivateKey]:
    """One of each kind, from fixed numbers: for tests alone."""
    return {
        "ed25519": PrivateKey("ed25519", ed25519.Ed25519PrivateKey.from_private_bytes(SEED)),
        "p256": PrivateKey("p256", ec.derive_private_key(SCALAR, ec.SECP256R1())),
    }


def signing_file() -> Json:
    """What is signed of a request, and signatures that hold. Another P-256 signer makes others: verify those here."""
    rows = []
    for name, method, target, body in REQUESTS:
        digest = signing.content_digest(hashlib.sha256(body).digest())
        for algorithm, key in signing_keys().items():
            params = signing.signature_params(key.public.text, NONCE)
            base = signing.signature_base(method, target, digest, params)
            rows.append({
                "name": f"{name}, {algorithm}", "algorithm": algorithm, "method": method, "target": target,
                "body": body.hex(), "nonce": NONCE, "keyid": key.public.text, "base": base.decode(),
                "content_digest": digest, "signature_input": f"covey={params}",
                "signature": f"covey=:{base64.b64encode(deterministic(key, base)).decode()}:",
            })  # fmt: skip
    return {
        "about": "Signed requests: `base` is what is signed, in UTF-8, its lines joined by one LF. Ed25519 signatures "
        "come out as here; P-256 ones are r and s and differ each time, those here are by RFC 6979.",
        "private_keys": {"ed25519": SEED.hex(), "p256": SCALAR.to_bytes(32, "big").hex()},
        "cases": rows,
        "bad": list(bad_signatures(rows)),
    }


def deterministic(key: PrivateKey, base: bytes) -> bytes:
    """A signature as it stands in the header, the same at each call."""
    if key.algorithm == "ed25519":
        return key.sign(base)
    der = key.key.sign(base, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return b"".join(n.to_bytes(32, "big") for n in decode_dss_signature(der))


def bad_signatures(rows: list[Json]) -> Iterator[Json]:
    """Changes of a signed request, each of which must be refused."""
    changes: list[tuple[str, Json]] = [
        ("another method", {"method": "POST"}),
        ("another path", {"target": "/v1/updates/4/kitchen"}),
        ("a query added", {"target": "/v1/updates/3/kitchen?a=1"}),
        ("another body", {"body": "81a16102"}),
        ("another digest", {"content_digest": signing.EMPTY_DIGEST}),
        ("another nonce", {"signature_input": rows[6]["signature_input"].replace("AAAA", "AAAB", 1)}),
        ("the key of another", {"signature_input": rows[7]["signature_input"]}),
        ("another tag", {"signature_input": rows[6]["signature_input"].replace("covey-1", "covey-2")}),
        ("fewer components", {"signature_input": rows[6]["signature_input"].replace(' "content-digest"', "")}),
        ("components in another order", {
            "signature_input": rows[6]["signature_input"].replace('"@method" "@path"', '"@path" "@method"')}),
        ("a signature of zeros", {"signature": f"covey=:{base64.b64encode(bytes(64)).decode()}:"}),
        ("a short signature", {"signature": f"covey=:{base64.b64encode(bytes(63)).decode()}:"}),
        ("no signature", {"signature": "", "signature_input": "", "content_digest": ""}),
    ]  # fmt: skip
    for name, change in changes:
        yield {**rows[6], "name": name, **change}


def to_json(value: Any) -> Any:
    """A message's fields; bytes become `{"hex": ...}`, and integers beyond 2^53 stay integers."""
    if isinstance(value, Message):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def message_file(message: Message) -> Json:
    """One message and its bytes."""
    return {"type": type(message).__name__, "fields": to_json(message), "bytes": message.to_bytes().hex()}


def bad_messages() -> Json:
    """Bytes that are no Receipt, and why."""
    good = MESSAGES["receipt"].to_bytes()
    cases = {
        "empty": b"",
        "cut": good[:-1],
        "bytes left over": good + b"\xc0",
        "a list": b"\x90",
        "a field missing": b"\x85" + good[1:].rpartition(b"\xa9staleness")[0],
        "a field twice": good[:1] + good[1:].rpartition(b"\xa9staleness")[0] + b"\xa5round\x03",
        "an unknown field": good.replace(b"\xa5round", b"\xa5sound"),
        "a string for a number": good.replace(b"\xa5round\x03", b"\xa5round\xa13"),
        "a boolean for a number": good.replace(b"\xa5round\x03", b"\xa5round\xc3"),
        "a float for a number": good.replace(b"\xa5round\x03", b"\xa5round\xca\x40\x40\x00\x00"),
        "nothing for a number": good.replace(b"\xa5round\x03", b"\xa5round\xc0"),
        "an extension for a number": good.replace(b"\xa5round\x03", b"\xa5round\xd4\x01\x00"),
        "bytes for a string": good.replace(b"\xa8accepted", b"\xc4\x08accepted"),
        "a status that is not known": good.replace(b"\xa8accepted", b"\xa8rejected"),
        "a digest in capitals": good.replace(b"0a0b0c", b"0A0B0C"),
        "not UTF-8": good.replace(b"\xa8accepted", b"\xa8accept\xff\xfe"),
        "a map of 2^32 - 1 fields": b"\xdf\xff\xff\xff\xff",
        "a string of 2^32 - 1 bytes": b"\x84\xdb\xff\xff\xff\xff",
        "a list within a list within a list": b"\x84\xa6status" + b"\x91" * 1000,
    }  # fmt: skip
    rows = []
    for name, data in cases.items():
        try:
            Receipt.from_bytes(data)
        except MessageError as error:
            rows.append({"name": name, "type": "Receipt", "bytes": data.hex(), "error": str(error)})
        else:
            raise AssertionError(f"{name} is accepted")
    return {"about": "Bytes that must be refused as the message of this type.", "cases": rows}


def pretty(value: Any, indent: str = "") -> str:
    """JSON with what is short on one line, so that payloads read as a table."""
    line = json.dumps(value)
    if len(indent) + len(line) <= 118 or not isinstance(value, list | dict):
        return line
    inner = indent + " "
    if isinstance(value, list):
        items = [pretty(v, inner) for v in value]
    else:
        items = [f"{json.dumps(k)}: {pretty(v, inner)}" for k, v in value.items()]
    brackets = "[]" if isinstance(value, list) else "{}"
    return f"{brackets[0]}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{brackets[1]}"


def build() -> dict[str, Json]:
    """Every file's content by its path."""
    return {
        "prng.json": prng_file(),
        "start.json": start_file(),
        "codec.json": codec_file(),
        "aff1.json": aff1_file(),
        "spk1/good.json": good_file("Valid SPK1 payloads.", spk1.decode, spk1_good()),
        "spk1/bad.json": bad_file("SPK1 payloads to refuse, one for each check.", spk1.decode, spk1_bad()),
        "lvl1/good.json": good_file("Valid LVL1 payloads.", levels.decode, lvl1_good()),
        "lvl1/bad.json": bad_file("LVL1 payloads to refuse, one for each check.", levels.decode, lvl1_bad()),
        "signing.json": signing_file(),
        **{f"messages/{name}.json": message_file(message) for name, message in MESSAGES.items()},
        "messages/bad.json": bad_messages(),
    }


if __name__ == "__main__":
    for path, content in build().items():
        (HERE / path).parent.mkdir(exist_ok=True)
        (HERE / path).write_text(pretty(content) + "\n")
