"""A fleet of real clients against a real server on this machine: durable acknowledgements a second, memory, folding.

    python benchmarks/aggregator.py [--quick] [--flower ENV]

The server is `covey serve --open` as a process of its own: signatures checked, bodies hashed, decoded and checked,
synced and committed before each receipt. The fleet is one process (fleet.py: HTTP/1.1, Ed25519, nonces, a connection a
device), so the two share the machine's cores. A round: every device checks in, then all upload. The rate is that of the
uploads, from the first byte to the last receipt; beside it stands the rate with check-ins, waiting and folding.
Receipts per core-second count the CPU time of the server's process alone, which neighbours on the machine do not change
much; seconds they do. `fold` is averaging alone, in this process on one core: of updates that were decoded when they
came, as a server has most of them, and from their bytes, as after a restart.

With --flower, Flower beside it in the same run: benchmarks/flower_rounds.py says how it is started. Nobody trains.
"""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil  # type: ignore[import-untyped]
from fleet import Device
from report import write_report
from wire import counting

from covey_edge import calls
from covey_edge.transport import Backoff, Traffic, Transport
from covey_server import recipe
from covey_server.strategies import make_strategy
from covey_shared.codec import codec_from_spec, presets
from covey_shared.entries import Entries
from covey_shared.keys import PrivateKey, generate
from covey_shared.layout import Layout, Tensor
from covey_shared.manifest import File, Manifest, Parity, Tokenizer
from covey_shared.messages import CheckIn, Enroll, Spec, StageSpec, Update

ENTRIES = (300_000, 2_400_000, 11_000_000)
PAYLOADS = (5_000, 50_000, 500_000)
DIFFERENT = 8  # updates that are folded again and again, each with entries in other places
BYTES_AN_ENTRY = 4.9  # of top-k with exact values: four for the value, the rest for where it is


@dataclass
class Phase:
    """What was measured: seconds of each upload, and of all uploads and of everything."""

    latencies_s: list[float] = field(default_factory=list)
    upload_s: float = 0.0
    total_s: float = 0.0
    cpu_s: float = 0.0
    fleet_cpu_s: float = 0.0
    rss: list[int] = field(default_factory=list)


def codec_for(entries: int, payload: int) -> Spec:
    """Top-k that comes to about `payload` bytes; dense where that is less."""
    density = payload / BYTES_AN_ENTRY / entries
    if density >= 1:
        return presets.dense()
    return (StageSpec(name="topk", args={"density": density}), StageSpec(name="pack", args={"values": "f32"}))


def write_bundle(folder: Path, layout: Layout) -> None:
    """A bundle that the server hands out and nobody reads."""
    graph = b"no graph"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "train.onnx").write_bytes(graph)
    manifest = Manifest(
        covey="0.1.0", model="load", revision="", licence="Apache-2.0", architecture="none", parameters=0,
        task="causal-lm", batch_size=1, seq_len=8, rank=1, alpha=1.0, target_modules=("q",), precision="float32",
        seed=0, layout=layout, graphs={"onnx": {"train": "onnx/train.onnx"}},
        files={"onnx/train.onnx": File(sha256=hashlib.sha256(graph).hexdigest(), bytes=len(graph))},
        tokenizer=Tokenizer(kind="bytes", offset=3, vocab_size=259, pad_id=0),
        parity={"onnx": Parity(loss_error=0.0, gradient_error=0.0, tolerance=1e-5, peak_bytes=0, step_seconds=0.0)},
        minimum_client="0.1.0",
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(manifest.to_bytes())


def task_text(codec: Spec, devices: int, download: str) -> str:
    """A task without end whose rounds take every device."""
    stages = ", ".join(
        "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in {"name": s.name, **s.args}.items()) + "}" for s in codec
    )
    return (
        f'[task]\nbundle = "bundle"\nrounds = 100000\npublish_every = 0\n[round]\ntarget = {devices}\nretry_s = 0.05\n'
        f"[upload]\ncodec = [{stages}]\n[download]\n{download}\n"
    )


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """`covey serve`, ready."""
    url = folder / "url"
    command = [sys.executable, "-m", "covey_shared.cli", "serve", str(folder / "task.toml"), "--open", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        child = subprocess.Popen([*command, "--url-file", str(url)], stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not url.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start: {(folder / 'log').read_text()}")
            time.sleep(0.05)
        yield url.read_text().strip(), psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(30)


@dataclass
class Client:
    """A device with the client's own transport, for the comparison with Flower: what it sends."""

    name: str
    transport: Transport
    layout: str
    codec: Spec
    parts: dict[str, bytes]

    async def enroll(self) -> None:
        """Its key at the server."""
        await self.transport.exchange("POST", "/v1/enroll", body=Enroll(client=self.name, code="").to_bytes())

    async def prepare(self) -> tuple[int, bytes]:
        """A place in the next round, and the bytes for it."""
        message = CheckIn(client=self.name, layout=self.layout, held=0, examples=9, runtime="onnx")
        while (assignment := await calls.check_in(self.transport, message)).action != "train":
            await asyncio.sleep(assignment.retry_after_s)
        update = Update(
            client=self.name, layout=self.layout, round=assignment.round, attempt=assignment.attempt,
            version=assignment.version, codec=self.codec, parts=self.parts, examples=9, steps=1, loss_before=2.0,
            loss_after=1.0, seconds=0.1,
        )  # fmt: skip
        return assignment.round, update.to_bytes()

    async def upload(self, round_: int, body: bytes) -> float:
        """Seconds until the receipt."""
        begun = time.perf_counter()
        await calls.put_update(self.transport, round_, self.name, body)
        return time.perf_counter() - begun


async def run_fleet(devices: list[Device], rounds: int, at_once: int, process: psutil.Process) -> Phase:
    """So many rounds after one to warm up."""
    phase, gate = Phase(), asyncio.Semaphore(at_once)

    async def upload(device: Device, round_: int, body: bytes) -> float:
        async with gate:
            return await device.upload(round_, body)

    for number in range(rounds + 1):
        begun = time.perf_counter()
        ready = await asyncio.gather(*(device.prepare() for device in devices))
        cpu_ready, fleet_ready, began = sum(process.cpu_times()[:2]), time.process_time(), time.perf_counter()
        seconds = await asyncio.gather(*(upload(d, *r) for d, r in zip(devices, ready, strict=True)))
        if number:
            phase.latencies_s += seconds
            phase.upload_s += time.perf_counter() - began
            phase.cpu_s += sum(process.cpu_times()[:2]) - cpu_ready
            phase.fleet_cpu_s += time.process_time() - fleet_ready
            phase.total_s += time.perf_counter() - begun
        phase.rss.append(process.memory_info().rss)
    return phase


def transport_of(url: str, session: aiohttp.ClientSession, key: PrivateKey) -> Transport:
    """The client's own way to a server, over the fleet's one session."""
    return Transport(url, session, Traffic(), key, backoff=Backoff(0.05, 0.5))


async def measure(url: str, process: psutil.Process, layout: Layout, codec: Spec, args: argparse.Namespace) -> Phase:
    """A fleet against a server."""
    rng = np.random.default_rng(1)
    values = (0.01 * rng.standard_normal(layout.size)).astype(np.float32)
    chain = codec_from_spec(codec, layout)
    parts, _ = chain.encode(values, chain.init(0))
    keys = [generate("ed25519") for _ in range(args.devices)]
    devices = [Device(f"d{i}", key, layout.digest, codec, parts) for i, key in enumerate(keys)]
    for number, device in enumerate(devices):
        await device.connect(url, number)
    phase = await run_fleet(devices, args.rounds, args.at_once, process)
    counted = sum(device.close() for device in devices)
    assert counted == args.devices * (args.rounds + 1)
    return phase


def load(entries: int, payload: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: a size of adapter and a size of payload."""
    layout, codec = layout_of(entries), codec_for(entries, payload)
    with tempfile.TemporaryDirectory(prefix="covey-load-") as name:
        folder = Path(name)
        write_bundle(folder / "bundle", layout)
        (folder / "task.toml").write_text(task_text(codec, args.devices, 'codec = "levels"\nerror = 0.5'))
        with server(folder) as (url, process):
            phase = asyncio.run(measure(url, process, layout, codec, args))
    ms = sorted(1000 * s for s in phase.latencies_s)
    count = len(ms)
    return {
        "entries": entries, "payload_bytes": payload_bytes(layout, codec), "acknowledged": count,
        "acks_per_s": round(count / phase.upload_s, 1), "acks_per_server_core_s": round(count / phase.cpu_s, 1),
        "fleet_ms_an_upload": round(1000 * phase.fleet_cpu_s / count, 3),
        "p50_ms": round(statistics.median(ms), 1), "p99_ms": round(ms[int(0.99 * (count - 1))], 1),
        "acks_per_s_with_rounds": round(count / phase.total_s, 1),
        "rss_first_mb": round(phase.rss[1] / 2**20), "rss_third_mb": round(phase.rss[3] / 2**20),
        "rss_last_mb": round(phase.rss[-1] / 2**20), "rss_most_mb": round(max(phase.rss) / 2**20),
        **fold(layout, codec, args),
    }  # fmt: skip


def layout_of(entries: int) -> Layout:
    """One block: codecs and folds see a flat vector anyway."""
    return Layout((Tensor(name="b", shape=(entries // 100, 100), kind="block", init="zeros"),))


def payload_bytes(layout: Layout, codec: Spec) -> int:
    """What the parts of one update come to."""
    chain = codec_from_spec(codec, layout)
    parts, _ = chain.encode(np.random.default_rng(1).standard_normal(layout.size).astype(np.float32), chain.init(0))
    return sum(map(len, parts.values()))


def fold(layout: Layout, codec: Spec, args: argparse.Namespace) -> dict[str, float]:
    """Updates a second that one core adds: decoded before, as most are when they come, and from their bytes."""
    chain, rng = codec_from_spec(codec, layout), np.random.default_rng(1)
    vectors = (rng.standard_normal(layout.size, np.float32) for _ in range(DIFFERENT))
    sent = [chain.encode(vector, chain.init(i))[0] for i, vector in enumerate(vectors)]
    decoded = list(map(chain.decode, sent))
    count, strategy = args.devices, make_strategy("fedavg", {})
    ways: dict[str, Callable[[int], Entries]] = {
        "fold_updates_per_core_s": lambda i: decoded[i],
        "decode_and_fold_updates_per_core_s": lambda i: chain.decode(sent[i]),
    }
    found = {}
    for name, way in ways.items():
        for _ in range(2):  # the second time in memory that the process has had before, as all rounds but the first
            begun = time.process_time()
            recipe.fold(strategy, layout.size, ((way(i % DIFFERENT), 9) for i in range(count)))
            found[name] = round(count / (time.process_time() - begun), 1)
    return found


def rounds_of_covey(entries: int, clients: int, rounds: int) -> dict[str, Any]:
    """Covey's side of the comparison with Flower: dense float32 both ways, no training, bytes counted by the relay."""
    layout, codec = layout_of(entries), presets.dense()
    values = np.full(entries, 1e-3, np.float32)
    chain = codec_from_spec(codec, layout)
    parts, _ = chain.encode(values, chain.init(0))
    with tempfile.TemporaryDirectory(prefix="covey-load-") as name:
        folder = Path(name)
        write_bundle(folder / "bundle", layout)
        (folder / "task.toml").write_text(task_text(codec, clients, 'codec = "dense"'))
        with server(folder) as (url, _), counting(int(url.rpartition(":")[2])) as counter:
            relay = f"http://127.0.0.1:{counter.port}"

            async def main() -> list[float]:
                async with aiohttp.ClientSession(auto_decompress=False) as session:
                    transports = [transport_of(relay, session, generate("ed25519")) for _ in range(clients)]
                    devices = [Client(f"d{i}", t, layout.digest, codec, parts) for i, t in enumerate(transports)]
                    for device in devices:
                        await device.enroll()
                    seconds = []
                    for version in range(rounds):
                        begun = time.perf_counter()
                        ready = await asyncio.gather(*(device.prepare() for device in devices))
                        await asyncio.gather(*(calls.get_adapter(t, version, version - 1, layout) for t in transports))
                        await asyncio.gather(*(d.upload(*r) for d, r in zip(devices, ready, strict=True)))
                        seconds.append(time.perf_counter() - begun)
                    return seconds

            seconds = asyncio.run(main())
            up, down = counter.up, counter.down
    return {
        "system": "covey", "entries": entries, "clients": clients, "rounds": rounds,
        "median_seconds_a_round": round(statistics.median(seconds), 3),
        "bytes_up_a_round_and_client": up // (rounds * clients),
        "bytes_down_a_round_and_client": down // (rounds * clients),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, few rounds; writes no report")
    parser.add_argument("--devices", type=int, default=128, help="of the fleet, and of a round (default 128)")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--at-once", type=int, default=64, help="uploads in flight (default 64)")
    parser.add_argument("--flower", type=Path, help="a virtual environment with flwr, to compare with")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.devices, args.at_once = 3, 24, 24
    sizes = [(300_000, 50_000)] if args.quick else [(e, p) for e in ENTRIES for p in PAYLOADS]
    rows: list[dict[str, Any]] = []
    for entries, payload in sizes:
        rows.append(load(entries, payload, args))
        print(json.dumps(rows[-1]), flush=True)
    if args.flower:
        from flower_rounds import run_flower

        for clients in (4, 8):
            pair = (
                rounds_of_covey(300_000, clients, 10),
                run_flower(args.flower, entries=300_000, clients=clients, rounds=10),
            )
            print("\n".join(map(json.dumps, pair)), flush=True)
            rows += pair
    if not args.quick:
        about = f"{args.devices} devices, {args.at_once} uploads in flight, {args.rounds} rounds after one to warm up"
        busy = f"{os.getloadavg()[1]:.1f} in the five minutes before the end, of which this run is about 2"
        write_report("aggregator", {"fleet": about, "load_average": busy}, rows)


if __name__ == "__main__":
    main()
