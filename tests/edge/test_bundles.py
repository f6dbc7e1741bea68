import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from covey_edge import bundles
from covey_edge.transport import Backoff, Traffic, connect
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, UsageError
from covey_shared.manifest import File, Manifest
from tests.helpers_edge import LAYOUT, Listening, ProtocolServer, cut, first, manifest_of, refuse, task_of

WEIGHTS = bytes(range(256)) * 4000  # about a megabyte
CONTENT = {"onnx/train.onnx": b"graph", "onnx/weights.bin": WEIGHTS, "torch/w.bin": b"other", "empty": b""}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files() -> dict[str, File]:
    return {
        name: File(sha256=digest(data), bytes=len(data), targets=(name.split("/")[0],) if "/" in name else ())
        for name, data in CONTENT.items()
    }


def serving(manifest: Manifest) -> ProtocolServer:
    return ProtocolServer(
        task_of(manifest), manifest.to_bytes(), LAYOUT.start(7), blobs={digest(d): d for d in CONTENT.values()}
    )


def fetch(
    server: ProtocolServer, cache: Path, target: str = "onnx", times: int = 1
) -> tuple[Bundle, list[int], Traffic]:
    """What `join` does to get its bundle, `times` at once."""
    seen: list[int] = []

    async def one(url: str) -> tuple[Bundle, Traffic]:
        async with connect(url, None, Traffic()) as transport:
            transport.backoff = Backoff(0.01, 0.05, 2.0)
            _, data = await bundles.fetch_manifest(transport, server.task)
            bundle = await bundles.fetch_bundle(transport, data, target, cache, lambda done, total: seen.append(done))
            return bundle, transport.traffic

    async def main() -> tuple[Bundle, Traffic]:
        async with Listening(server.handle) as url:
            return (await asyncio.gather(*(one(url) for _ in range(times))))[0]

    bundle, traffic = asyncio.run(main())
    return bundle, seen, traffic


def blobs(server: ProtocolServer) -> int:
    return sum("blobs" in line for line in server.log)


def test_only_what_the_runtime_needs_and_only_once(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files()))
    bundle, seen, _ = fetch(server, tmp_path)
    bundle.verify("onnx")
    found = sorted(str(p.relative_to(bundle.folder)) for p in bundle.folder.rglob("*") if p.is_file())
    assert found == ["empty", "manifest.json", "onnx/train.onnx", "onnx/weights.bin"]
    assert seen == sorted(seen)
    assert seen[-1] == len(WEIGHTS) + 5
    assert bundle.digest == server.task.bundle
    asked = blobs(server)
    fetch(server, tmp_path)
    assert blobs(server) == asked
    with pytest.raises(BundleError, match="exported for onnx, not for torch"):
        fetch(server, tmp_path, "torch")


def test_a_cut_download_goes_on_where_it_was(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files()))
    ranges: list[str] = []

    async def slice_by_slice(request: web.Request) -> web.StreamResponse | None:
        """Sends 300 kB of what is asked for and hangs up."""
        if not request.path.endswith(digest(WEIGHTS)):
            return None
        ranges.append(request.headers.get("Range", ""))
        start = int(ranges[-1][6:-1]) if ranges[-1] else 0
        headers = {"Content-Length": str(len(WEIGHTS) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        await response.prepare(request)
        await response.write(WEIGHTS[start : start + 300_000])
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    server.faults.append(slice_by_slice)
    bundle, _, traffic = fetch(server, tmp_path)
    bundle.verify("onnx")
    assert ranges[0] == ""
    assert len(ranges) >= 4
    starts = [int(r[6:-1]) for r in ranges[1:]]
    assert starts == sorted(set(starts))
    assert traffic.received["bundle"] < len(WEIGHTS) * 1.2 + len(server.manifest)


def test_a_server_without_ranges_starts_over(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files()))
    part = tmp_path / server.task.bundle / "onnx" / "weights.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:1000])

    async def whole(request: web.Request) -> web.StreamResponse | None:
        return web.Response(body=WEIGHTS) if request.path.endswith(digest(WEIGHTS)) else None

    server.faults.append(whole)
    fetch(server, tmp_path)[0].verify("onnx")


@pytest.mark.parametrize("left", [b"not the beginning", b"x" * 5_000_000, WEIGHTS[:-1] + b"!"])
def test_a_damaged_part_is_thrown_away(tmp_path: Path, left: bytes) -> None:
    server = serving(manifest_of(files=files()))
    part = tmp_path / server.task.bundle / "onnx" / "weights.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    fetch(server, tmp_path)[0].verify("onnx")


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files()))
    bundle, _, _ = fetch(server, tmp_path)
    (bundle.folder / "onnx" / "weights.bin").write_bytes(WEIGHTS[:-1] + b"!")
    fetch(server, tmp_path)[0].verify("onnx")


def test_wrong_bytes_from_the_server(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files()))
    server.blobs[digest(WEIGHTS)] = WEIGHTS[:-1] + b"!"
    with pytest.raises(BundleError, match=r"weights.bin came with another digest than the bundle's manifest states"):
        fetch(server, tmp_path)
    server.blobs[digest(WEIGHTS)] = WEIGHTS + b"!"
    with pytest.raises(BundleError, match="more than the 1,024,000 bytes that the manifest states"):
        fetch(server, tmp_path)
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("weights.bin"))


def test_a_file_that_the_server_does_not_give(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files()))
    server.faults.append(first(99, "GET /v1/blobs", lambda: refuse(404, "not_found", "no such file")))
    with pytest.raises(BundleError, match=r"the server does not give the bundle's file train.onnx: no such file"):
        fetch(server, tmp_path)


def test_a_manifest_of_another_bundle(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files()))
    server.manifest = server.manifest.replace(b"Apache-2.0", b"Apache-9.9")
    with pytest.raises(BundleError, match="the server's manifest is not the one of bundle"):
        fetch(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_layout(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files()))
    server.task = replace(server.task, layout="0" * 64)
    with pytest.raises(BundleError, match="the task's is 000000000000"):
        fetch(server, tmp_path)


def test_a_bundle_for_a_newer_client(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files(), minimum_client="99.0.0"))
    with pytest.raises(BundleError, match=r"needs covey 99.0.0 or newer, this is .*: pip install -U covey"):
        fetch(server, tmp_path)


def test_no_room(tmp_path: Path) -> None:
    big = {**files(), "onnx/huge": File(sha256="0" * 64, bytes=1 << 60, targets=("onnx",))}
    server = serving(manifest_of(files=big))
    with pytest.raises(UsageError, match=r"need 1152921504607.* MB, .* left: free some, or choose another place"):
        fetch(server, tmp_path)
    assert not blobs(server)


def test_devices_of_one_machine_share_a_download(tmp_path: Path) -> None:
    server = serving(manifest_of(files=files()))
    server.faults.append(cut(1, "GET /v1/blobs"))
    fetch(server, tmp_path, times=4)[0].verify("onnx")
    assert blobs(server) == 3  # one was cut, two files


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/graph.onnx", "onnx/absent.onnx", "torch/w.bin"])
def test_a_manifest_may_only_point_at_its_own_files(path: str, tmp_path: Path) -> None:
    server = serving(manifest_of(files=files(), graphs={"onnx": {"train": path}}))
    with pytest.raises(BundleError, match="which is not among its files for onnx"):
        fetch(server, tmp_path)
    assert not blobs(server)
