"""For the server tests: a tiny bundle, a device that is honest NumPy, and the real server in a thread or a process."""

import asyncio
import functools
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ed25519

from covey_server import recipe, store, task_file
from covey_server.admin import make_admin
from covey_server.aggregator import Aggregator
from covey_server.app import RUNNER, make_app
from covey_server.guard import DOOR, Door
from covey_server.operation import STOPPING
from covey_server.run import open_run
from covey_server.upload_handlers import UPLOADS
from covey_server.uploads import Uploads
from covey_server.versions import next_version
from covey_shared.bundle import Bundle
from covey_shared.codec import codec_from_spec
from covey_shared.keys import PrivateKey
from covey_shared.layout import Layout, Tensor, Vector, vector_digest
from covey_shared.manifest import File, Manifest, Parity, Tokenizer
from covey_shared.messages import (
    Adapter,
    Assignment,
    CheckIn,
    Enroll,
    Evaluation,
    Hello,
    Receipt,
    Refusal,
    Task,
    Update,
)
from covey_shared.signing import sign_request

MSGPACK = {"Content-Type": "application/msgpack"}
LAYOUT = Layout(
    (
        Tensor(name="base_model.model.q.lora_A.weight", shape=(4, 6), kind="lora_A", init="kaiming_uniform", rank=4),
        Tensor(name="base_model.model.q.lora_B.weight", shape=(5, 4), kind="lora_B", init="zeros", rank=4),
        Tensor(name="base_model.model.classifier.weight", shape=(3,), kind="head", init="stored"),
    )
)


def make_bundle(folder: Path, layout: Layout = LAYOUT, config: bytes | None = None) -> Bundle:
    """A bundle with a fake graph: the server only hands it out."""
    stored = np.arange(1, layout.stored_size + 1, dtype="<f4") / 8
    contents = {
        "onnx/train.onnx": b"not really a graph " * 100,
        "start.bin": stored.tobytes(),
        "peft/adapter_config.json": config or b'{"peft_type": "LORA", "r": 4}',
    }
    files = {}
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        files[name] = File(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    manifest = Manifest(
        covey="0.1.0", model="tiny", revision="", licence="Apache-2.0", architecture="none", parameters=0,
        task="causal-lm", batch_size=4, seq_len=16, rank=4, alpha=4.0, target_modules=("q",), precision="float32",
        seed=0, layout=layout, start="start.bin", graphs={"onnx": {"train": "onnx/train.onnx"}}, files=files,
        tokenizer=Tokenizer(kind="bytes", offset=3, vocab_size=259, pad_id=0),
        parity={"onnx": Parity(loss_error=0.0, gradient_error=0.0, tolerance=1e-5, peak_bytes=0, step_seconds=0.0)},
        minimum_client="0.1.0",
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return Bundle.open(folder)


def write_task(folder: Path, text: str = "", *, rounds: int = 3, target: int = 2, layout: Layout = LAYOUT) -> Path:
    """A task file beside its bundle; `text` is more of it, `[round]` open at its beginning."""
    if not (folder / "bundle").exists():
        make_bundle(folder / "bundle", layout)
    path = folder / "task.toml"
    path.write_text(
        f'[task]\nname = "test"\nbundle = "bundle"\nrounds = {rounds}\nseed = 7\n'
        f"[round]\ntarget = {target}\nretry_s = 0.05\n{text}"
    )
    return path


@dataclass
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str]


def call(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    who: str = "tester",
) -> Answer:
    """One request, signed by a device that enrolls itself where it is not known; on a connection of its own.

    Who it is about signs it: the name at the end of an address of updates and evaluations, else `who`.
    """
    parts = path.partition("?")[0].split("/")
    if path.startswith(("/v1/updates/", "/v1/evaluations/", "/v1/uploads/")):
        who = parts[3] if path.startswith("/v1/uploads/") else parts[-1]
        who = who if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", who) else "tester"
    given = headers if headers is not None else (MSGPACK if body else {})
    while True:
        answer = send(url, method, path, body, {**given, **signature(url, who, method, path, body or b"")})
        if "Covey-Nonce" in answer.headers:
            NONCES[url, who] = answer.headers["Covey-Nonce"]
        code = code_of(answer.body) if answer.status in (401, 429) and answer.body else ""
        if code == "slow_down":
            time.sleep(Refusal.from_bytes(answer.body).retry_after_s)
        elif code == "unknown_device":
            enrolled = enroll(url, who)
            if enrolled.status != 200:
                return enrolled
        elif code != "stale_nonce":
            return answer


NONCES: dict[tuple[str, str], str] = {}
ADMIN: dict[str, str] = {}  # a server's address for devices -> the one for its operator


@functools.cache
def key_of(who: str) -> PrivateKey:
    """The key of a name, the same in every test."""
    seed = hashlib.sha256(who.encode()).digest()
    return PrivateKey("ed25519", ed25519.Ed25519PrivateKey.from_private_bytes(seed))


def signature(url: str, who: str, method: str, path: str, body: bytes) -> dict[str, str]:
    """Headers that sign a request as the device `who`."""
    return sign_request(key_of(who), method, path, body, NONCES.pop((url, who), "") or hello(url))


def hello(url: str) -> str:
    """A nonce for who has none, asked for again when too many strangers ask."""
    while True:
        answer = send(url, "GET", "/v1/hello")
        if answer.status != 429:
            return Hello.from_bytes(answer.body).nonce
        time.sleep(Refusal.from_bytes(answer.body).retry_after_s)


def signed_head(url: str, method: str, path: str, body: bytes, framing: str = "") -> bytes:
    """The head of a request as bytes, signed by whom its address names; `framing` instead of its Content-Length."""
    headers = {"Host": "x", **MSGPACK, **signature(url, path.rpartition("/")[2], method, path, body)}
    lines = [f"{name}: {value}" for name, value in headers.items()]
    framing = framing or f"Content-Length: {len(body)}"
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, framing, "", ""]).encode()


def enroll(url: str, who: str, code: str = "") -> Answer:
    """The answer to an enrolment under the name `who`."""
    body = Enroll(client=who, code=code).to_bytes()
    return send(url, "POST", "/v1/enroll", body, {**MSGPACK, **signature(url, who, "POST", "/v1/enroll", body)})


def code_of(body: bytes) -> str:
    """The code of a refusal."""
    return Refusal.from_bytes(body).code


def send(url: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
    """One request as a stranger would send it."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.read(), dict(response.headers))
    finally:
        connection.close()


@dataclass
class Device:
    """A device that pulls the adapter towards a target of its own. Deterministic, whatever the server does."""

    url: str
    name: str
    layout: Layout = LAYOUT
    version: int = -1
    view: Vector = field(default_factory=lambda: np.empty(0, np.float32))
    bodies: dict[int, bytes] = field(default_factory=dict)

    def task(self) -> Task:
        """The task."""
        return Task.from_bytes(call(self.url, "GET", "/v1/task", who=self.name).body)

    def check_in(self) -> Assignment:
        """Offer."""
        message = CheckIn(client=self.name, layout=self.layout.digest, held=self.version, examples=9, runtime="onnx")
        answer = call(self.url, "POST", "/v1/checkin", message.to_bytes(), who=self.name)
        assert answer.status == 200, answer
        return Assignment.from_bytes(answer.body)

    def fetch(self, version: int, start: Vector) -> Adapter:
        """Come to a version, as the protocol says, digest included."""
        answer = call(self.url, "GET", f"/v1/adapter/{version}?held={self.version}", who=self.name)
        assert answer.status == 200, answer
        message = Adapter.from_bytes(answer.body)
        bases = {self.version: self.view, 0: start, -1: np.zeros(self.layout.size, np.float32)}
        view = bases[message.base].copy()
        for step in message.steps:
            entries = codec_from_spec(step.codec, self.layout).decode(step.parts)
            view[entries.where] += entries.values
        assert vector_digest(view) == message.digest
        self.version, self.view = version, view
        return message

    def change(self, round_: int) -> Vector:
        """Trained minus started."""
        seed = int.from_bytes(hashlib.sha256(f"{self.name}/{round_}".encode()).digest()[:4], "little")
        target = np.random.default_rng(seed).standard_normal(self.layout.size).astype(np.float32)
        return np.asarray(np.float32(0.1) * (target - self.view), np.float32)

    def update(self, task: Task, assignment: Assignment, **changes: Any) -> bytes:
        """The body of this round's upload; the same bytes whenever it is asked for."""
        if assignment.round not in self.bodies or changes:
            codec = codec_from_spec(task.upload_codec, self.layout)
            parts, _ = codec.encode(self.change(assignment.round), codec.init(0))
            fields: dict[str, Any] = {
                "client": self.name, "layout": self.layout.digest, "round": assignment.round,
                "attempt": assignment.attempt, "version": assignment.version, "codec": task.upload_codec,
                "parts": parts, "examples": 9, "steps": 1, "loss_before": 2.0, "loss_after": 1.0, "seconds": 0.1,
            }  # fmt: skip
            body = Update(**{**fields, **changes}).to_bytes()
            if changes:
                return body
            self.bodies[assignment.round] = body
        return self.bodies[assignment.round]

    def upload(self, round_: int, body: bytes) -> Answer:
        """PUT the update."""
        return call(self.url, "PUT", f"/v1/updates/{round_}/{self.name}", body, MSGPACK)

    def take_part(self, start: Vector) -> str:
        """One check-in and what follows from it; returns the action."""
        assignment = self.check_in()
        if assignment.action == "train":
            self.fetch(assignment.version, start)
            answer = self.upload(assignment.round, self.update(self.task(), assignment))
            assert answer.status == 200, answer
            assert Receipt.from_bytes(answer.body).status in ("accepted", "duplicate")
        return assignment.action

    def evaluate(self, loss: float = 1.0, tokens: int = 10) -> Answer:
        """Report a held-out loss of the version held."""
        message = Evaluation(
            client=self.name, layout=self.layout.digest, version=self.version, loss_sum=loss * tokens, tokens=tokens,
            correct=0,
        )  # fmt: skip
        return call(self.url, "PUT", f"/v1/evaluations/{self.version}/{self.name}", message.to_bytes())


def run_to_end(devices: list[Device], start: Vector, seconds: float = 30.0) -> None:
    """Devices take turns until each has been sent home."""
    waiting = list(devices)
    deadline = time.monotonic() + seconds
    while waiting:
        assert time.monotonic() < deadline, "the task did not end"
        waiting = [d for d in waiting if d.take_part(start) != "done"]
        time.sleep(0.01)


def status_of(url: str) -> dict[str, Any]:
    """The JSON of /v1/status."""
    answer = send(ADMIN[url], "GET", "/v1/status")
    while answer.status == 429:
        time.sleep(0.05)
        answer = send(ADMIN[url], "GET", "/v1/status")
    found: dict[str, Any] = json.loads(answer.body)
    return found


@dataclass
class Served:
    """A server in a thread: real socket, real database."""

    url: str
    start: Vector
    aggregator: Aggregator
    lines: list[str]
    door: Door
    admin: str
    uploads: Uploads

    def device(self, name: str) -> Device:
        """A device of this server."""
        return Device(self.url, name, self.aggregator.run.layout)

    def wait_for_version(self, version: int, seconds: float = 20.0) -> None:
        """Until a version is the head."""
        deadline = time.monotonic() + seconds
        while self.aggregator.state.version < version:
            assert time.monotonic() < deadline, f"version {version} did not come: {self.lines}"
            time.sleep(0.01)


@contextmanager
def served(
    task: Path, data: Path | None = None, publish: Path | None = None, *, is_open: bool = True, proxy: str = ""
) -> Iterator[Served]:
    """Serve a task file in a thread on a free loopback port; closed as `covey serve` closes."""
    run = open_run(task_file.read(task), data or task.parent / "run", time.time())
    ready = threading.Event()
    found: list[tuple[Served, asyncio.AbstractEventLoop, asyncio.Event]] = []
    failures: list[BaseException] = []

    async def main() -> None:
        lines: list[str] = []
        aggregator = Aggregator(run, publish, lines.append)
        app = make_app(aggregator, is_open=is_open, proxy=proxy)
        runners = [
            web.AppRunner(each, access_log=None, shutdown_timeout=5.0, **RUNNER)
            for each in (app, make_admin(aggregator, app[DOOR], app[STOPPING]))
        ]
        urls = []
        for runner in runners:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ADMIN[urls[0]] = urls[1]
        stop = asyncio.Event()
        answering = Served(urls[0], run.bundle.start(7), aggregator, lines, app[DOOR], urls[1], app[UPLOADS])
        found.append((answering, asyncio.get_running_loop(), stop))
        watching = asyncio.create_task(aggregator.watch())
        ready.set()
        await stop.wait()
        watching.cancel()
        for runner in runners:
            await runner.cleanup()
        await aggregator.finish(5.0)

    def body() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=body)
    thread.start()
    ready.wait()
    try:
        if failures:
            raise failures[0]
        yield found[0][0]
    finally:
        for _, loop, stop in found:
            with suppress(RuntimeError):  # the loop may have ended by itself
                loop.call_soon_threadsafe(stop.set)
        thread.join()
        run.close()
    if failures:
        raise failures[0]


class ServerProcess:
    """`covey serve --open` as a user starts it, or without it where "--codes" is among `args`.

    Killed with SIGKILL and started again as often as a test likes.
    """

    def __init__(self, task: Path, *args: str, code: str = ""):
        self.url_file, self.admin_file = task.parent / "url", task.parent / "admin-url"
        for stale in (self.url_file, self.admin_file):
            stale.unlink(missing_ok=True)
        access = [] if "--codes" in args else ["--open"]
        args = tuple(arg for arg in args if arg != "--codes")
        start = ["-c", code] if code else ["-m", "covey_shared.cli"]
        self.child = subprocess.Popen(
            [sys.executable, *start, "serve", str(task), "--port", "0", "--url-file", str(self.url_file),
             "--admin-url-file", str(self.admin_file), *access, *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def url(self, seconds: float = 60.0) -> str:
        """The URL, once it answers."""
        deadline = time.monotonic() + seconds
        while not self.url_file.exists():
            assert self.child.poll() is None, self.child.communicate()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        url = self.url_file.read_text().strip()
        ADMIN[url] = self.admin_file.read_text().strip()
        return url

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL, as a power cut would; nothing if it has ended already."""
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdout, self.child.stderr):
            if pipe is not None:
                pipe.close()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """A signal; returns exit code, output and errors."""
        self.child.send_signal(number)
        return self.result()

    def result(self, seconds: float = 30.0) -> tuple[int, str, str]:
        """Exit code, output and errors of a process that ends by itself."""
        out, err = self.child.communicate(timeout=seconds)
        return self.child.returncode, out, err


def replay(task: Path, data: Path) -> list[str]:
    """The digests of all versions as a run without any fault would have them, from the updates that a run has kept.

    Needs `keep_updates = true`, and the server stopped.
    """
    run = open_run(task_file.read(task), data, time.time())
    try:
        state, _ = recipe.first(run.recipe, run.divided.begin(), run.task.task.seed)
        digests = [vector_digest(state.view)]
        for version in run.versions[1:]:
            rows = run.db.run(store.updates_of, version.version)
            state, _ = next_version(run, state, rows)
            digests.append(vector_digest(state.view))
        return digests
    finally:
        run.close()
