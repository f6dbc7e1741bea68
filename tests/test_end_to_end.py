"""The whole chain as a user runs it: real commands, real processes, real sockets, real runtimes, and processes killed.

The demo's shipped model, cut to seconds: two or three devices, a few steps, a few rounds.
"""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from covey_shared.bundle import Bundle
from covey_shared.layout import vector_digest

pytest.importorskip("torch", reason="the demo's export needs torch")

# An export on a slow machine with neighbours takes minutes; everything else here takes seconds.
pytestmark = pytest.mark.timeout(900)

TEXTS = {"ada": "asyncio", "grace": "email", "alan": "json"}
TASK = """
[task]
name = "end-to-end"
bundle = "{bundle}"
rounds = 3
seed = 7
[round]
target = {clients}
minimum = {clients}
deadline_s = 300.0
retry_s = 0.1
[upload]
codec = "sign"
[download]
codec = "levels"
error = 0.3
[client]
learning_rate = 0.003
steps = 6
"""


def covey(*args: str, **kwargs: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "covey_shared.cli", *args],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **kwargs,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    out, _ = process.communicate(timeout=600)
    assert process.returncode == code, out
    return out


def first_layer(model: Path, folder: Path) -> Path:
    """The shipped model's first layer as a model of its own: quicker to export, and with more to learn."""
    config = json.loads((model / "config.json").read_text())
    weights = load_file(model / "model.safetensors")
    kept = {k: v for k, v in weights.items() if ".layers." not in k or ".layers.0." in k}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    (folder / "tokenizer_config.json").write_bytes((model / "tokenizer_config.json").read_bytes())
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for both runtimes of the demo, exported by the real command."""
    from covey_export.demo.cli import MODEL

    folder = tmp_path_factory.mktemp("export")
    model = first_layer(MODEL, folder / "one-layer")
    finish(covey(
        "export", str(model), "--out", str(folder / "bundle"), "--rank", "2", "--batch", "2", "--seq-len", "32",
        "--targets", "onnx,executorch",
    ))  # fmt: skip
    return folder / "bundle"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from covey_export.demo.corpus import write_device

    folder = tmp_path_factory.mktemp("texts")
    for name, package in TEXTS.items():
        write_device(package, folder / name, 6000)
    return folder


class Run:
    """One server and its clients below a folder."""

    def __init__(self, folder: Path, bundle: Path, texts: Path, clients: int):
        self.folder, self.texts, self.names = folder, texts, list(TEXTS)[:clients]
        folder.mkdir()
        self.task = folder / "task.toml"
        self.task.write_text(TASK.format(bundle=bundle, clients=clients))
        self.processes: list[subprocess.Popen[str]] = []
        self.port = "0"

    def serve(self) -> "subprocess.Popen[str]":
        """Start the server, on the same port as the last time, and wait until it answers."""
        url = self.folder / "url"
        url.unlink(missing_ok=True)
        server = covey(
            "serve", str(self.task), "--open", "--port", self.port, "--url-file", str(url),
            "--data-dir", str(self.folder / "data"),
            "--publish-dir", str(self.folder / "adapter"), "--exit-when-done",
        )  # fmt: skip
        self.processes.append(server)
        deadline = time.monotonic() + 60
        while not (url.exists() and url.read_text().strip()):
            assert server.poll() is None, server.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.url = url.read_text().strip()
        self.port = self.url.rpartition(":")[2]
        return server

    def join(self, name: str, runtime: str = "onnx") -> "subprocess.Popen[str]":
        client = covey(
            "join", self.url, "--data", str(self.texts / name), "--name", name, "--runtime", runtime,
            "--state", str(self.folder / name), "--cache", str(self.folder / "cache"), "--threads", "1",
            "--checkpoint", "0",
            "--events", str(self.folder / f"{name}.events"), "--eval-batches", "4",
        )  # fmt: skip
        self.processes.append(client)
        return client

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for(self, name: str, event: str, count: int = 1) -> None:
        deadline = time.monotonic() + 120
        while sum(e["event"] == event for e in self.events(name)) < count:
            assert time.monotonic() < deadline, (name, event, self.events(name)[-3:])
            time.sleep(0.01)

    def adapter(self) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = load_file(self.folder / "adapter" / "latest" / "adapter_model.safetensors")
        return tensors


@pytest.fixture
def new_run(tmp_path: Path, bundle: Path, texts: Path) -> Iterator[Any]:
    runs: list[Run] = []

    def make(name: str, clients: int) -> Run:
        runs.append(Run(tmp_path / name, bundle, texts, clients))
        return runs[-1]

    yield make
    for process in (p for run in runs for p in run.processes if p.poll() is None):
        process.kill()
        process.communicate()


def test_mixed_runtimes_learn_and_everything_is_accounted_for(new_run: Any, bundle: Path) -> None:
    run = new_run("plain", 2)
    server = run.serve()
    clients = [run.join("ada", "onnx"), run.join("grace", "executorch")]
    for client in clients:
        finish(client)
    finish(server)
    for name in run.names:
        result = json.loads((run.folder / name / "result.json").read_text())
        assert result["rounds"] == 3
        assert result["loss_after"] < result["loss_before"]
        # one bit an entry up, a few down; framing and the layout's digest weigh more on a small adapter
        assert result["upload_bytes"] < 3 * result["dense_adapter_bytes"] / 10
        assert result["download_bytes"] < 3 * result["dense_adapter_bytes"] / 5
    config = json.loads((run.folder / "adapter" / "latest" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == 2
    layout = Bundle.open(bundle).manifest.layout
    published = layout.join(run.adapter())
    held = [e for e in run.events("ada") if e["event"] == "version"]
    assert held[-1]["version"] == 3
    assert vector_digest(published) != vector_digest(Bundle.open(bundle).start(7))


def test_killed_client_and_killed_server_end_with_the_same_bits(new_run: Any) -> None:
    calm, rough = new_run("calm", 2), new_run("rough", 2)
    server = calm.serve()
    for process in [*(calm.join(name) for name in calm.names), server]:
        finish(process)

    server = rough.serve()
    victim, witness = rough.join("ada"), rough.join("grace")
    rough.wait_for("ada", "step", 2)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    rough.wait_for("grace", "uploaded")
    server.send_signal(signal.SIGKILL)
    server.communicate()
    server = rough.serve()
    victim = rough.join("ada")
    rough.wait_for("ada", "uploaded")
    server.send_signal(signal.SIGKILL)
    server.communicate()
    server = rough.serve()
    for process in (victim, witness, server):
        finish(process)

    expected, got = calm.adapter(), rough.adapter()
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[k], got[k]) for k in expected)
    rounds = [json.loads((rough.folder / n / "result.json").read_text())["rounds"] for n in rough.names]
    assert rounds == [3, 3]


def test_a_changed_bundle_is_refused_by_the_server(new_run: Any, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    copy.mkdir()
    for path in bundle.rglob("*"):
        target = copy / path.relative_to(bundle)
        if path.is_dir():
            target.mkdir()
        else:
            target.write_bytes(path.read_bytes())
    weights = copy / "onnx" / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    run = new_run("damaged-run", 2)
    run.task.write_text(TASK.format(bundle=copy, clients=2))
    out = finish(covey("serve", str(run.task), "--port", "0", "--data-dir", str(run.folder / "data")), 1)
    assert "weights.bin" in out
    assert "digest" in out
    assert len(out.strip().splitlines()) == 1


def test_server_down_is_one_sentence(tmp_path: Path, texts: Path) -> None:
    out = finish(covey(
        "join", "http://127.0.0.1:9", "--data", str(texts / "ada"), "--state", str(tmp_path), "--wait", "0.5", "--quiet"
    ), 1)  # fmt: skip
    assert out.startswith("covey join: ")
    assert len(out.strip().splitlines()) == 1
    assert "127.0.0.1:9" in out


def test_the_demo_shows_and_reports(tmp_path: Path) -> None:
    out = finish(covey(
        "demo", "--clients", "2", "--rounds", "2", "--steps", "3", "--rank", "2", "--batch", "2", "--seq-len", "32",
        "--device-bytes", "5000", "--learning-rate", "0.003", "--runtimes", "onnx", "--out", str(tmp_path),
    ))  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    expected = {
        "rounds", "clients", "runtimes", "loss_before", "loss_after", "per_client", "upload_bytes", "download_bytes",
        "dense_upload_bytes", "dense_download_bytes", "adapter_path", "seconds",
    }  # fmt: skip
    assert expected <= report.keys()
    assert report["rounds"] == 2
    assert report["clients"] == len(report["per_client"]) == 2
    assert report["loss_after"] < report["loss_before"]
    assert report["peft_agrees"]
    assert report["upload_bytes"] == sum(c["upload_bytes"] for c in report["per_client"])
    assert report["dense_upload_bytes"] == 2 * 2 * 4 * report["entries"]
    assert (Path(report["adapter_path"]) / "adapter_model.safetensors").exists()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "times fewer" in out
    assert tomllib.loads((tmp_path / "run-covey" / "task.toml").read_text())["task"]["rounds"] == 2
