"""`covey join` as a person runs it, against the real server: real graphs, real processes, real kills."""

import asyncio
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from covey_edge.data import Batch
from covey_edge.events import Events
from covey_edge.join import Options, default_state, join
from covey_edge.state import open_folder
from covey_edge.trainers import RUNTIMES, missing_modules, open_trainer
from covey_edge.transport import ServerError
from covey_shared.bundle import Bundle
from covey_shared.cli import main
from covey_shared.errors import MessageError, UsageError
from covey_shared.layout import vector_digest
from tests.helpers_edge import LAYOUT, Listening, ProtocolServer, manifest_of, task_of
from tests.helpers_edge_serving import serving
from tests.helpers_server import Served, served, status_of

INSTALLED = [r for r in RUNTIMES if not missing_modules(r)]
TEXT = "the cat sat on the mat and the dog lay on the log; a bird sang in the old tree by the river.\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT * 30)
    (folder / "b.md").write_text(TEXT.upper() * 10)
    (folder / "c.png").write_bytes(b"\0\1")
    return folder


def covey(*arguments: object, quiet: bool = True) -> int:
    """The command in this process."""
    return main(["join", *map(str, arguments), *(["--quiet"] if quiet else [])])


def result_of(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((state / "result.json").read_text())
    return found


def places(tmp_path: Path, name: str = "d") -> list[object]:
    return ["--state", tmp_path / name, "--cache", tmp_path / "cache", "--threads", 1, "--name", name]


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_whole_task(runtime: str, lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lm, tmp_path / "server") as server:
        events = tmp_path / "events.jsonl"
        code = covey(
            server.url, "--data", text, "--runtime", runtime, *places(tmp_path), "--events", events, quiet=False
        )
    said = capsys.readouterr()
    result = result_of(tmp_path / "d")
    assert code == 0, said.err
    assert (result["runtime"], result["rounds"], result["version"]) == (runtime, 2, 2)
    assert result["loss_after"] < result["loss_before"] - 0.05
    assert result["bits_per_byte_before"] == pytest.approx(result["loss_before"] / np.log(2))
    assert result["tokens"] == 2 * 8 * 4 * 32
    assert 0 < result["upload_bytes"] < 2 * result["dense_adapter_bytes"] / 6  # headers weigh on 992 entries
    assert result["download_bytes"] > 0
    needed = sum(f.bytes for f in lm.manifest.files_for(runtime).values())
    assert result["bundle_bytes"] == needed + len(lm.manifest.to_bytes())
    log = [json.loads(line) for line in events.read_text().splitlines()]
    assert [e["event"] for e in log if e["event"] in ("joined", "evaluated", "uploaded", "done")] == [
        "joined", "evaluated", "uploaded", "evaluated", "uploaded", "evaluated", "done",
    ]  # fmt: skip
    assert {e["round"] for e in log if e["event"] == "step"} == {1, 2}
    assert all(isinstance(e["time"], float) for e in log)
    assert "skipped 1 file (1 binary): c.png" in said.err
    assert "round 2: 8 steps, training loss" in said.err
    assert said.out.startswith("test: 2 updates of d were counted")
    assert "held-out loss" in said.out
    assert "\r" not in said.err  # no bars where nobody looks


@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs two runtimes")
def test_mixed_runtimes_in_one_task_hold_the_same_bits(lm: Bundle, text: Path, tmp_path: Path) -> None:
    with serving(lm, tmp_path / "server", target=2) as server:
        started = [
            start(server.url, "--data", text, "--runtime", runtime, *places(tmp_path, runtime))
            for runtime in INSTALLED[:2]
        ]
        said = [p.communicate(timeout=120) for p in started]
        digests = [v["digest"] for v in history(server)]
    assert [p.returncode for p in started] == [0, 0], said
    assert [held_digest(tmp_path / runtime) for runtime in INSTALLED[:2]] == [digests[-1]] * 2


STRATEGIES = {
    "dense": '[upload]\ncodec = "dense"\n[download]\ncodec = "dense"\n',
    "flasc": 'error_feedback = false\n[strategy]\nname = "flasc"\n',
    "since-start": '[download]\nsince = "start"\n',
    "flasc-paper": '[strategy]\nname = "flasc"\nmode = "paper"\n',
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies(strategy: str, lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lm, tmp_path / "server", more=STRATEGIES[strategy]) as server:
        code = covey(server.url, "--data", text, "--runtime", "onnx", *places(tmp_path))
        digest = history(server)[-1]["digest"]
    assert code == 0, capsys.readouterr().err
    assert result_of(tmp_path / "d")["rounds"] == 2
    assert held_digest(tmp_path / "d") == digest


def held_digest(state: Path) -> str:
    """Of the version that a device holds."""
    with open_folder(state) as folder:
        client = folder.load_client()[0]
    assert client is not None
    return vector_digest(client.version().adapter)


def test_the_held_out_part_can_be_saved(lm: Bundle, text: Path, tmp_path: Path) -> None:
    """Another program computes the same loss from it."""
    path = tmp_path / "heldout.npz"
    with serving(lm, tmp_path / "server", rounds=1) as server:
        arguments = [server.url, "--data", text, "--runtime", "onnx", "--save-heldout", path, "--eval-batches", 2]
        assert covey(*arguments, *places(tmp_path)) == 0
    with np.load(path) as saved:
        assert saved["input_ids"].shape == saved["labels"].shape == (8, 32)
        trainer = open_trainer(lm, "onnx", 1)
        batches = [Batch(saved["input_ids"][i : i + 4], saved["labels"][i : i + 4]) for i in (0, 4)]
    scores = [trainer.evaluate(lm.start(7), b) for b in batches]
    loss = sum(s.loss_sum for s in scores) / sum(s.tokens for s in scores)
    assert result_of(tmp_path / "d")["loss_before"] == pytest.approx(loss, rel=1e-6)


def test_ctrl_c_loses_nothing(lm: Bundle, text: Path, tmp_path: Path) -> None:
    """A round of many steps and rare checkpoints: stopped in the middle, it goes on from that step."""
    events = [tmp_path / "one", tmp_path / "two"]
    with serving(lm, tmp_path / "server", rounds=1, more="clip_norm = 1.0\n") as server:
        path = tmp_path / "long" / "task.toml"
        path.parent.mkdir()
        path.write_text((tmp_path / "server" / "task.toml").read_text().replace("steps = 8", "steps = 400"))
    with served(path) as server:
        arguments = ["--data", text, "--runtime", "onnx", *places(tmp_path), "--checkpoint", 600, "--events"]
        process = start(server.url, *arguments, events[0])
        while lines(events[0]) < 40:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, "", "covey join: stopped\n")
        assert covey(server.url, *arguments, events[1]) == 0
    done = [[e["done"] for e in map(json.loads, p.read_text().splitlines()) if e["event"] == "step"] for p in events]
    assert done[0][-1] < 400
    assert done[1][0] in (done[0][-1], done[0][-1] + 1)
    assert done[1][-1] == 400


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "covey_shared.cli", "join", *map(str, arguments), "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)


def heed_ctrl_c() -> None:
    """A suite that a shell runs in the background inherits an ignored SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def history(server: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = status_of(server.url)["history"]
    return found


def run_killing(server: Served, text: Path, tmp_path: Path, name: str, kills: int) -> int:
    """Run a client to its end, SIGKILLed up to `kills` times at moments drawn from a fixed stream; how many hit."""
    moments = random.Random(3)
    hit = 0
    arguments = ["--data", text, "--runtime", "onnx", *places(tmp_path, name), "--name", "same", "--checkpoint", 0]
    while True:
        events = tmp_path / f"{name}.{hit}.events"
        process = start(server.url, *arguments, "--events", events)
        if hit < kills:
            wanted = moments.randrange(3, 24)  # events, of which a round has about a dozen
            while process.poll() is None and lines(events) < wanted:
                time.sleep(0.002)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                hit += 1
                continue
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "updates of same were counted" in out
        return hit


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_sigkill_anywhere_and_the_same_bits(lm: Bundle, text: Path, tmp_path: Path) -> None:
    digests = []
    for name, kills in (("whole", 0), ("killed", 6)):
        with serving(lm, tmp_path / f"server-{name}", rounds=4) as server:
            hit = run_killing(server, text, tmp_path, name, kills)
            digests.append([v["digest"] for v in history(server)])
        assert hit >= kills // 2
        assert result_of(tmp_path / name)["rounds"] == 4
    assert len(digests[0]) == 5
    assert digests[0] == digests[1]


def test_a_server_that_stops_in_the_middle_is_waited_for(lm: Bundle, text: Path, tmp_path: Path) -> None:
    """The server goes down after the first round and comes back on its port with its database."""
    serve = [
        sys.executable,
        "-m",
        "covey_shared.cli",
        "serve",
        tmp_path / "server" / "task.toml",
        "--open",
        "--url-file",
    ]
    with serving(lm, tmp_path / "server", rounds=3):
        pass  # writes the task file
    shutil.rmtree(tmp_path / "server" / "run", ignore_errors=True)
    url_file, events = tmp_path / "url", tmp_path / "events"
    first = subprocess.Popen([*map(str, serve), str(url_file), "--port", "0"], stdout=subprocess.DEVNULL)
    try:
        while not url_file.exists() or not url_file.read_text().strip():
            assert first.poll() is None
            time.sleep(0.02)
        url = url_file.read_text().strip()
        client = start(url, "--data", text, "--runtime", "onnx", *places(tmp_path), "--events", events)
        while '"uploaded"' not in (events.read_text() if events.exists() else ""):
            assert client.poll() is None, client.communicate()
            time.sleep(0.002)
    finally:
        first.kill()
        first.wait()
    time.sleep(0.5)
    assert client.poll() is None
    port = url.rsplit(":", 1)[1]
    second = subprocess.Popen([*map(str, serve), str(url_file), "--port", port], stdout=subprocess.DEVNULL)
    try:
        out, err = client.communicate(timeout=60)
    finally:
        second.terminate()
        second.wait()
    assert client.returncode == 0, err
    assert out.startswith("test: 3 updates")


def test_once_and_again(lm: Bundle, text: Path, tmp_path: Path) -> None:
    with serving(lm, tmp_path / "server", rounds=2) as server:
        arguments = [server.url, "--data", text, "--runtime", "onnx", *places(tmp_path), "--once"]
        assert covey(*arguments) == 0
        assert result_of(tmp_path / "d")["rounds"] == 1
        assert covey(*arguments) == 0
    assert result_of(tmp_path / "d")["rounds"] == 2


def test_a_classifier_from_records(classifier: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "films.jsonl.gz"
    rows = [{"review": f"a very {w} film", "y": (w == "good" and 1) or "LABEL_0"} for w in ["good", "bad"] * 20]
    data.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    with serving(classifier, tmp_path / "server", rounds=4) as server:
        code = covey(
            server.url, "--data", data, "--text-field", "review", "--label-field", "y", "--holdout", 0.25,
            *places(tmp_path),
        )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    result = result_of(tmp_path / "d")
    assert (result["examples"], result["heldout"]) == (30, 10)
    assert result["loss_after"] < result["loss_before"]
    assert result["bits_per_byte_after"] is None
    assert "accuracy" in capsys.readouterr().out


def test_another_task_on_the_same_address(
    lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (7, 8):
        with serving(lm, tmp_path / f"server{seed}", rounds=1, seed=seed) as server:
            assert covey(server.url, "--data", text, "--runtime", "onnx", *places(tmp_path), quiet=False) == 0
    assert "the server's task is another one than before (now test): starting afresh" in capsys.readouterr().err
    assert result_of(tmp_path / "d")["rounds"] == 1


def sentence(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one sentence of a command that failed."""
    said = capsys.readouterr()
    assert code == 1
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("covey join: ")
    return said.err


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://a/b", "http://"])
def test_bad_address(url: str, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a server's address: write https://HOST:PORT" in sentence(capsys, covey(url, "--data", text))


def test_no_server(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = covey("http://127.0.0.1:9", "--data", text, "--wait", 0.3, "--state", tmp_path / "s")
    assert "no Covey server answers at http://127.0.0.1:9 (Connection refused)" in sentence(capsys, code)


def test_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = covey("http://127.0.0.1:9", "--data", tmp_path / "nowhere", "--state", tmp_path / "s")
    assert "there is nothing at" in sentence(capsys, code)
    assert not (tmp_path / "s").exists()


def test_empty_data(lm: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("hm")
    with serving(lm, tmp_path / "server") as server:
        code = covey(server.url, "--data", tmp_path / "empty", *places(tmp_path))
        assert "holds no text: it is empty" in sentence(capsys, code)
        assert not (tmp_path / "cache").exists()  # nothing large was downloaded for it
        code = covey(server.url, "--data", tmp_path / "short.txt", *places(tmp_path))
        assert "too little data" in sentence(capsys, code)


def test_text_for_a_classifier(
    classifier: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(classifier, tmp_path / "server") as server:
        code = covey(server.url, "--data", text, *places(tmp_path))
    assert "holds no labelled records (.jsonl): skipped 3 files (3 not .jsonl)" in sentence(capsys, code)


def test_a_runtime_that_the_bundle_lacks(
    classifier: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(classifier, tmp_path / "server") as server:
        code = covey(server.url, "--data", text, *places(tmp_path), "--runtime", "torch")
    assert "the bundle has no graphs for torch, it has onnx: use --runtime onnx" in sentence(capsys, code)


@pytest.mark.parametrize(
    "options", [{"holdout": 0.0}, {"holdout": 0.9}, {"threads": -1}, {"wait_s": -1.0}], ids=lambda o: next(iter(o))
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(options)).removesuffix('_s')}"):
        Options(server="http://a", data=Path(), **options)
    with pytest.raises(MessageError, match="--name must be 1 to 64 letters"):
        Options(server="http://a", data=Path(), name="../x")


def test_two_clients_in_one_folder(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_folder(tmp_path / "s"):
        code = covey("http://127.0.0.1:9", "--data", text, "--state", tmp_path / "s")
    assert f"another covey join (process {os.getpid()}) uses" in sentence(capsys, code)


def test_damaged_state_starts_afresh(
    lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "client").write_bytes(b"COVEYST\x01" + b"\0" * 100)
    with serving(lm, tmp_path / "server", rounds=1) as server:
        assert covey(server.url, "--data", text, "--runtime", "onnx", *places(tmp_path), quiet=False) == 0
    assert "is damaged (its digest is wrong); it was moved to client.damaged" in capsys.readouterr().err
    assert result_of(tmp_path / "d")["rounds"] == 1


def test_a_damaged_bundle_on_the_server(
    lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server's own file changes under it: the device refuses the bytes and keeps none of them."""
    copy = tmp_path / "bundle"
    shutil.copytree(lm.folder, copy)
    with serving(Bundle.open(copy), tmp_path / "server") as server:
        data = bytearray((copy / "onnx" / "weights.bin").read_bytes())
        data[1000] ^= 1
        (copy / "onnx" / "weights.bin").write_bytes(data)
        code = covey(server.url, "--data", text, "--runtime", "onnx", *places(tmp_path))
    assert "weights.bin came with another digest than the bundle's manifest states" in sentence(capsys, code)
    assert not list((tmp_path / "cache").rglob("weights.bin*"))


FULL_DISK = """
import sys
from covey_shared.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_keeps_the_state(lm: Bundle, text: Path, tmp_path: Path) -> None:
    """State on a real file system too small for a checkpoint beside it: one sentence; with room it goes on."""
    if not shutil.which("unshare"):
        pytest.skip("needs unshare to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    size = 4 * lm.manifest.layout.size // 1024 + 16  # kB: the adapter and a little
    script = f'mount -t tmpfs -o size={size}k tmpfs "{small}" && exec "$0" -c "$@"'
    with serving(lm, tmp_path / "server", rounds=2) as server:
        arguments = ["join", server.url, "--data", text, "--runtime", "onnx", "--state", small / "d", "--quiet",
                     "--cache", tmp_path / "cache", "--threads", 1, "--checkpoint", 0]  # fmt: skip
        command = ["unshare", "-Urm", "sh", "-c", script, sys.executable, FULL_DISK, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "unshare" in done.stderr or "mount" in done.stderr:
            pytest.skip(f"this system lets no one mount a small file system: {done.stderr.strip()[:80]}")
        assert done.returncode == 1
        assert "no space is left for" in done.stderr
        assert "what was saved before is kept; free some space and run the same command again" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_layout_mismatch(tmp_path: Path, text: Path) -> None:
    manifest = manifest_of()
    server = ProtocolServer(replace(task_of(manifest), layout="0" * 64), manifest.to_bytes(), LAYOUT.start(7))

    async def run() -> None:
        async with Listening(server.handle) as url:
            await join(Options(server=url, data=text, state=tmp_path / "s", cache=tmp_path / "c"), Events())

    with pytest.raises(UsageError, match=r"the bundle's layout is .*, the task's is 000000000000"):
        asyncio.run(run())


def test_something_else_on_the_port(text: Path, tmp_path: Path) -> None:
    async def blog(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>my blog</html>", content_type="text/html")

    async def run() -> None:
        async with Listening(blog) as url:
            await join(Options(server=url, data=text, state=tmp_path / "s", cache=tmp_path / "c"), Events())

    with pytest.raises(ServerError, match="is not a Covey server"):
        asyncio.run(run())


def test_the_usual_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one = default_state("http://host:8080", Path("a"))
    assert one == default_state("http://host:8080", Path("a"))
    assert one != default_state("http://host:8080", Path("b"))
    assert one != default_state("http://other:8080", Path("a"))
    assert one.parent == tmp_path / "covey"
    assert one.name.startswith("host-8080-")
