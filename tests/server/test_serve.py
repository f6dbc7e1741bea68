"""`covey serve` as a person starts it: what it prints, what it refuses, how it stops."""

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from covey_shared.bundle import Bundle
from tests.helpers_server import Device, ServerProcess, call, run_to_end, signed_head, status_of, write_task


def serve(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "covey_shared.cli", "serve", *args], capture_output=True, text=True, timeout=30
    )


def test_it_says_where_it_is_and_what_to_type_next(tmp_path: Path) -> None:
    with ServerProcess(write_task(tmp_path)) as server:
        url = server.url()
        assert url.startswith("http://127.0.0.1:")
        assert status_of(url)["task"] == "test"
        code, out, err = server.stop()
    assert (code, err) == (0, "")
    assert "task test, 3 rounds, at version 0" in out
    assert Bundle.open(tmp_path / "bundle").digest[:12] in out
    assert f"covey join {url} --data FOLDER" in out
    assert "  rounds  each waits for " in out
    assert (tmp_path / "task.run" / "covey.sqlite").exists(), "the run lies beside its task file"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_flight(tmp_path: Path, number: int) -> None:
    with ServerProcess(write_task(tmp_path)) as server:
        url = server.url()
        device = Device(url, "a")
        start = Bundle.open(tmp_path / "bundle").start(7)
        device.fetch(0, start)
        body = device.update(device.task(), device.check_in())
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as slow:
            slow.sendall(signed_head(url, "PUT", "/v1/updates/1/a", body) + body[:20])
            time.sleep(0.2)
            server.child.send_signal(number)
            time.sleep(0.3)
            assert server.child.poll() is None
            slow.sendall(body[20:])
            assert slow.recv(4096).startswith(b"HTTP/1.1 200")
        assert server.result()[0] == 0
    assert not (tmp_path / "task.run" / "covey.sqlite-wal").exists(), "the log is checkpointed"
    with ServerProcess(write_task(tmp_path)) as server:
        assert status_of(server.url())["round"]["accepted"] == ["a"]


HEAVY = ("torch", "transformers", "peft", "onnxruntime", "executorch", "tokenizers", "tqdm", "rich", "matplotlib")
LIGHT = f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); from covey_shared.cli import main; sys.exit(main())"


def test_it_ends_with_the_task_when_asked_to_and_needs_nothing_heavy(tmp_path: Path) -> None:
    """A whole task, published, in a process where importing torch and its kin fails."""
    task = write_task(tmp_path, rounds=2, target=2)
    with ServerProcess(task, "--exit-when-done", "--grace", "20", code=LIGHT) as server:
        url = server.url()
        start = Bundle.open(tmp_path / "bundle").start(7)
        devices = [Device(url, "a"), Device(url, "b")]
        run_to_end(devices, start)
        time.sleep(0.5)
        assert server.child.poll() is None, "devices have yet to fetch and evaluate the last version"
        for device in devices:
            device.fetch(2, start)
            assert device.evaluate().status == 200
        begun = time.monotonic()
        code, out, err = server.result()
    assert (code, err) == (0, "")
    assert time.monotonic() - begun < 5
    assert "round 2/2: 2 updates" in out
    assert "\ntask done at version 2\n" in out
    assert (tmp_path / "task.run" / "adapters" / "latest" / "adapter_model.safetensors").exists()


def test_the_grace_ends_it_without_the_devices(tmp_path: Path) -> None:
    with ServerProcess(write_task(tmp_path, rounds=1, target=1), "--exit-when-done", "--grace", "0.5") as server:
        device = Device(server.url(), "a")
        device.take_part(Bundle.open(tmp_path / "bundle").start(7))
        assert server.result(15)[0] == 0


def damage(folder: Path) -> None:
    (folder / "bundle" / "onnx" / "train.onnx").write_bytes(b"other")


def misspell(folder: Path) -> None:
    (folder / "task.toml").write_text('[task]\nbundl = "b"\n')


def another_bundle(folder: Path) -> None:
    path = folder / "bundle" / "manifest.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "model": "another"}))


def change_seed(folder: Path) -> None:
    path = folder / "task.toml"
    path.write_text(path.read_text().replace("seed = 7", "seed = 8"))


def damage_database(folder: Path) -> None:
    (folder / "task.run" / "covey.sqlite").write_bytes(b"no database at all" * 500)


def damage_state(folder: Path) -> None:
    for path in (folder / "task.run" / "blobs").rglob("*"):
        if path.is_file():
            path.write_bytes(b"x")


def drop_config(folder: Path) -> None:
    path = folder / "bundle" / "manifest.json"
    data = json.loads(path.read_text())
    del data["files"]["peft/adapter_config.json"]
    path.write_text(json.dumps(data))


BEFORE_A_RUN: list[tuple[str, Callable[[Path], None], tuple[str, ...], str]] = [
    ("no bundle", lambda f: (f / "bundle" / "manifest.json").unlink(), (), "make one with: covey export MODEL --out"),
    ("a wrong digest", damage, (), "another digest than the manifest states"),
    ("no task file", lambda f: (f / "task.toml").unlink(), (), "there is no task file"),
    ("an unknown key", misspell, (), "did you mean 'bundle'?"),
    ("an unwritable folder", lambda f: None, ("--data-dir", "/proc/covey"), "cannot be written"),
    ("a file as a folder", lambda f: (f / "x").touch(), ("--data-dir", "{}/x"), "cannot be written"),
    ("a port out of range", lambda f: None, ("--port", "70000"), "cannot listen on 127.0.0.1 port 70000"),
    ("a host that is not ours", lambda f: None, ("--host", "192.0.2.1", "--insecure-http"),
     "cannot listen on 192.0.2.1"),
    ("other machines without TLS", lambda f: None, ("--host", "0.0.0.0"), "or accept that with --insecure-http"),
    ("an operator's side without TLS", lambda f: None, ("--admin-host", "0.0.0.0"), "--admin-host 0.0.0.0 is"),
    ("an open door for other machines", lambda f: None, ("--host", "0.0.0.0", "--insecure-http", "--open"),
     "--open lets anybody in, so it is for this machine alone"),
    ("a certificate without its key", lambda f: None, ("--tls-cert", "x"), "--tls-cert and --tls-key go together"),
    ("files that are no certificate", lambda f: None, ("--tls-cert", "{}/task.toml", "--tls-key", "{}/task.toml"),
     "are no certificate with its key"),
    ("publishing without a config", drop_config, ("--publish-dir", "{}/p"), "export the bundle again"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "spoil", "args", "sentence"), BEFORE_A_RUN, ids=[row[0] for row in BEFORE_A_RUN])
def test_what_cannot_start_says_why(
    tmp_path: Path, what: str, spoil: Callable[[Path], None], args: tuple[str, ...], sentence: str
) -> None:
    task = write_task(tmp_path)
    spoil(tmp_path)
    done = serve(str(task), "--port", "0", *(a.format(tmp_path) for a in args))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.startswith("covey serve: ")
    assert done.stderr.count("\n") == 1


IN_A_RUN: list[tuple[str, Callable[[Path], None], str]] = [
    ("another seed", change_seed, "task.seed differs from the run in"),
    ("another bundle", another_bundle, "belongs to the bundle"),
    ("a damaged database", damage_database, "not a database that can be read"),
    ("a damaged state", damage_state, "is damaged; restore the backup"),
]


@pytest.mark.parametrize(("what", "spoil", "sentence"), IN_A_RUN, ids=[row[0] for row in IN_A_RUN])
def test_a_run_that_does_not_fit_is_left_alone(
    tmp_path: Path, what: str, spoil: Callable[[Path], None], sentence: str
) -> None:
    task = write_task(tmp_path)
    with ServerProcess(task) as server:
        server.url()
        assert server.stop()[0] == 0
    spoil(tmp_path)
    before = {p: hashlib.sha256(p.read_bytes()).digest() for p in (tmp_path / "task.run").rglob("*") if p.is_file()}
    done = serve(str(task), "--port", "0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert sentence in done.stderr
    after = {p: hashlib.sha256(p.read_bytes()).digest() for p in (tmp_path / "task.run").rglob("*") if p.is_file()}
    assert before.items() <= after.items()


def test_a_port_in_use_and_a_folder_in_use(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    with ServerProcess(task) as server:
        port = server.url().rsplit(":", 1)[1]
        done = serve(str(task), "--port", port, "--data-dir", str(tmp_path / "other"))
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in done.stderr
        done = serve(str(task), "--port", "0")
        assert done.returncode == 1
        assert "is in use by another covey serve" in done.stderr
        assert call(server.url(), "GET", "/v1/task").status == 200, "the first one is not disturbed"
        assert server.stop()[0] == 0


def test_weights_that_are_no_longer_finite_end_the_run_with_a_sentence(tmp_path: Path) -> None:
    task = write_task(tmp_path, "[server]\nlearning_rate = 1e38\n", rounds=9, target=1)
    with ServerProcess(task) as server:
        device = Device(server.url(), "a")
        assert device.take_part(Bundle.open(tmp_path / "bundle").start(7)) == "train"
        code, _, err = server.result()
    assert code == 1
    assert err.startswith("covey serve: round 1 cannot be published, ")
    assert err.endswith("start a new run with a lower [server] learning_rate\n")
    assert err.count("\n") == 1


def test_no_module_imports_anything_heavy() -> None:
    code = (
        f"import sys, pkgutil, importlib; sys.modules.update(dict.fromkeys({HEAVY})); import covey_server\n"
        "for found in pkgutil.walk_packages(covey_server.__path__, 'covey_server.'):\n"
        "    importlib.import_module(found.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_line_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import covey_server.cli\n"
        "new = {n.split('.')[0] for n in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) <= {"covey_shared", "covey_server"}
