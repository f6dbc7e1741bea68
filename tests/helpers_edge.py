"""For the edge tests: a real little model in NumPy, and a server that speaks the protocol over a real socket."""

import hashlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from covey_edge.data import Batch
from covey_edge.trainers import Score
from covey_shared.codec import Codec, codec_from_spec, presets
from covey_shared.layout import Layout, Tensor, Vector, vector_digest
from covey_shared.manifest import Manifest, Parity, Tokenizer
from covey_shared.messages import (
    PROTOCOL,
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
    Spec,
    Step,
    Task,
    Update,
)
from covey_shared.schema import Message

VOCABULARY, RANK = 259, 4
BYTES = Tokenizer(kind="bytes", offset=3, vocab_size=VOCABULARY, pad_id=0, eos_id=1)
LAYOUT = Layout(
    (
        Tensor(name="a", shape=(RANK, VOCABULARY), kind="lora_A", init="kaiming_uniform", rank=RANK),
        Tensor(name="b", shape=(VOCABULARY, RANK), kind="lora_B", init="zeros", rank=RANK),
    )
)
LOCAL = LocalConfig(
    optimizer="adamw", learning_rate=0.05, steps=6, momentum=0.0, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0,
    clip_norm=1.0, error_feedback=True,
)  # fmt: skip


@dataclass
class BigramTrainer:
    """Logits of the next byte = B A[:, byte]: low rank, no base model, and a gradient that fits on a line.

    `slow_s`: seconds that a step takes at least. `poison_at`: the call whose loss is NaN.
    """

    slow_s: float = 0.0
    poison_at: int = -1
    calls: int = 0

    def loss_and_gradient(self, adapter: Vector, batch: Batch) -> tuple[float, Vector]:
        """Mean cross-entropy over counted labels, and its gradient."""
        self.calls += 1
        if self.calls == self.poison_at:
            return math.nan, np.zeros_like(adapter)
        a, b = LAYOUT.split(adapter).values()
        here, there = self._pairs(batch)
        p = self._probabilities(a, b, here)
        loss = -np.log(p[np.arange(len(here)), there]).mean()
        p[np.arange(len(here)), there] -= 1
        p /= len(here)
        grad_a = np.zeros_like(a)
        np.add.at(grad_a.T, here, p @ b)
        return float(loss), LAYOUT.join({"a": grad_a, "b": p.T @ a[:, here].T})

    def evaluate(self, adapter: Vector, batch: Batch) -> Score:
        """Sums over the batch."""
        a, b = LAYOUT.split(adapter).values()
        here, there = self._pairs(batch)
        p = self._probabilities(a, b, here)
        losses = -np.log(p[np.arange(len(here)), there])
        return Score(float(losses.sum()), len(here), int((p.argmax(1) == there).sum()))

    def logits(self, adapter: Vector, inputs: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, T, V]."""
        a, b = LAYOUT.split(adapter).values()
        return np.asarray(a[:, inputs].transpose(1, 2, 0) @ b.T, np.float32)

    @staticmethod
    def _pairs(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        counted = batch.labels[:, 1:] >= 0
        return batch.inputs[:, :-1][counted], batch.labels[:, 1:][counted]

    @staticmethod
    def _probabilities(a: Vector, b: Vector, here: NDArray[np.int64]) -> Vector:
        z = a[:, here].T @ b.T
        e = np.exp(z - z.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True), np.float32)


def manifest_of(**changes: object) -> Manifest:
    """A manifest for the bigram model; it names no files."""
    fields: dict[str, object] = {
        "covey": "0.1.0", "model": "bigram", "revision": "", "licence": "Apache-2.0", "architecture": "bigram",
        "parameters": 0, "task": "causal-lm", "batch_size": 4, "seq_len": 16, "rank": RANK, "alpha": 4.0,
        "target_modules": ("a",), "precision": "float32", "seed": 0, "layout": LAYOUT, "tokenizer": BYTES,
        "graphs": {"onnx": {"train": "onnx/train.onnx"}}, "parity": {"onnx": Parity(loss_error=0.0, gradient_error=0.0,
        tolerance=1e-5, peak_bytes=0, step_seconds=0.0)}, "minimum_client": "0.1.0",
    }  # fmt: skip
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def task_of(manifest: Manifest, **changes: object) -> Task:
    """A task over a manifest: three rounds, signs up."""
    fields: dict[str, object] = {
        "protocol": PROTOCOL, "name": "test", "model": manifest.model,
        "bundle": hashlib.sha256(manifest.to_bytes()).hexdigest(), "layout": manifest.layout.digest, "seed": 7,
        "rounds": 3, "round": 1, "version": 0, "state": "running", "upload_codec": presets.sign(), "local": LOCAL,
        "max_upload_bytes": 1 << 20,
    }  # fmt: skip
    return Task(**{**fields, **changes})  # type: ignore[arg-type]


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class ProtocolServer:
    """The protocol for one device, in memory: round r takes its one update, adds it, publishes version r.

    `faults` are asked before each request; what they return is the answer. `log` is every request's method and path.
    """

    task: Task
    manifest: bytes
    start: Vector
    blobs: dict[str, bytes] = field(default_factory=dict)
    download: Spec = field(default_factory=presets.dense)
    faults: list[Fault] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    deadline_s: float = 60.0
    attempt: int = 1
    url: str = ""

    @property
    def version(self) -> int:
        """The head."""
        return len(self.steps)

    def adapter(self, version: int) -> Vector:
        """A published version."""
        out = self.start.copy()
        for step in self.steps[:version]:
            entries = self._codec(step.codec).decode(step.parts)
            out[entries.where] += entries.values
        return out

    def _codec(self, spec: Spec) -> Codec:
        return codec_from_spec(spec, LAYOUT)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """All routes."""
        self.log.append(f"{request.method} {request.path}")
        for fault in self.faults:
            answer = await fault(request)
            if answer is not None:
                return answer
        kind, *rest = request.path.removeprefix("/v1/").split("/")
        route = getattr(self, f"_{request.method.lower()}_{kind}", None)
        if route is None:
            return refuse(404, "not_found", "there is nothing here")
        answered: web.StreamResponse = await route(request, *rest)
        return answered

    async def _get_hello(self, request: web.Request) -> web.StreamResponse:
        return reply(Hello(protocol=PROTOCOL, enroll="open", nonce="a-nonce-that-nobody-checks"))

    async def _post_enroll(self, request: web.Request) -> web.StreamResponse:
        return reply(Enrolled(client=Enroll.from_bytes(await request.read()).client))

    async def _get_task(self, request: web.Request) -> web.StreamResponse:
        return reply(self.task)

    async def _get_bundle(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self.manifest)

    async def _get_blobs(self, request: web.Request, digest: str) -> web.StreamResponse:
        data = self.blobs[digest]
        first = int(request.headers.get("Range", "bytes=0-")[6:-1])
        if not first:
            return web.Response(body=data)
        headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        return web.Response(body=data[first:], status=206, headers=headers)

    async def _post_checkin(self, request: web.Request) -> web.StreamResponse:
        CheckIn.from_bytes(await request.read())
        done = self.version >= self.task.rounds
        return reply(
            Assignment(
                action="done" if done else "train",
                round=self.version + 1,
                attempt=self.attempt,
                version=self.version,
                deadline_s=self.deadline_s,
                retry_after_s=-1.0,
            )
        )

    async def _get_adapter(self, request: web.Request, version: str) -> web.StreamResponse:
        to, held = int(version), max(0, int(request.query["held"]))
        return reply(
            Adapter(
                version=to,
                base=held,
                layout=LAYOUT.digest,
                digest=vector_digest(self.adapter(to)),
                steps=tuple(self.steps[held:to]),
            )
        )

    async def _put_updates(self, request: web.Request, round_: str, client: str) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        update = Update.from_bytes(body)
        assert (update.round, update.client) == (int(round_), client)
        receipt = {
            "round": update.round, "digest": hashlib.sha256(body).hexdigest(), "payload_bytes": len(body),
            "version": update.round, "staleness": 0,
        }  # fmt: skip
        if update in self.updates:
            return reply(Receipt(status="duplicate", **receipt))  # type: ignore[arg-type]
        if update.round != self.version + 1:
            return refuse(410, "late", f"round {update.round} is closed")
        self.updates.append(update)
        change = self._codec(update.codec).decode(update.parts).dense()
        parts, _ = self._codec(self.download).encode(change, self._codec(self.download).init(0))
        self.steps.append(Step(version=update.round, codec=self.download, parts=parts))
        return reply(Receipt(status="accepted", **receipt))  # type: ignore[arg-type]

    async def _put_evaluations(self, request: web.Request, version: str, client: str) -> web.StreamResponse:
        self.evaluations.append(Evaluation.from_bytes(await request.read()))
        return web.Response()


def reply(message: Message) -> web.Response:
    """200 with a message."""
    return web.Response(body=message.to_bytes(), content_type="application/msgpack")


def refuse(status: int, code: str, message: str, retry_after_s: float = -1.0) -> web.Response:
    """A refusal."""
    headers = {"Retry-After": str(int(retry_after_s))} if retry_after_s >= 0 else {}
    body = Refusal(code=code, message=message, retry_after_s=retry_after_s).to_bytes()
    return web.Response(status=status, body=body, content_type="application/msgpack", headers=headers)


def first(count: int, match: str, answer: Callable[[], web.Response]) -> Fault:
    """A fault that answers the first `count` requests whose 'METHOD path' begins with `match`."""
    left = [count]

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if not f"{request.method} {request.path}".startswith(match) or not left[0]:
            return None
        left[0] -= 1
        return answer()

    return fault


def cut(count: int, match: str) -> Fault:
    """A fault that closes the connection without an answer, after the request was read."""
    left = [count]

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if f"{request.method} {request.path}".startswith(match) and left[0]:
            left[0] -= 1
            await request.read()
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return None

    return fault


class Listening:
    """An aiohttp server on loopback, on a free port unless given, as an async context manager."""

    def __init__(self, handler: Handler, port: int = 0):
        self._port = port
        self._app = web.Application(client_max_size=1 << 26)
        self._app.router.add_route("*", "/{tail:.*}", handler)

    async def __aenter__(self) -> str:
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()
