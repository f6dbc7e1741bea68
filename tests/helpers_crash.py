"""The crash harness: a server that is killed again and again, devices that never give up, and the oracle.

Servers are forked from a process that has everything imported, so that a restart takes hundredths of a second. A kill
is a failpoint of the server's, or SIGKILL at a random moment. Devices send bytes, lose answers, repeat and duplicate;
what they were told is held against the database at the end, and every version against a run that nobody disturbed.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from covey_shared.bundle import Bundle
from covey_shared.layout import Vector
from covey_shared.messages import Assignment, Receipt, Refusal, Task
from tests.helpers_server import Device, replay, signed_head, write_task

NAMES = ("a", "b", "c")
FOREVER = 1_000_000
ADAMW = '[server]\noptimizer = "adamw"\nlearning_rate = 0.01\n'
SETTLED_S = 60.0
ENOUGH = 40  # receipts that the oracle should have to count, on a machine however busy

# Where a server is killed, and on which arrivals there; a log that is being checkpointed is killed a moment later.
POINTS = {
    "beginning": (1,), "received": (1, 2, 9), "body": (1, 2, 9), "appended": (1, 2, 9), "synced": (1, 2, 9),
    "committing": (2, 5, 9), "committed": (1, 4, 9), "assigned": (1, 2, 9), "frozen": (1, 2, 4),
    "blob-written": (1, 2, 9), "blob-renamed": (1, 2, 9), "publishing": (1, 2, 4), "published": (1, 2, 4),
    "deleting": (1, 2, 4), "adapter-written": (1, 2), "adapter-linked": (1, 2), "checkpoint": (1, 2),
}  # fmt: skip
PLACES = [f"{name}:{hit}" + ":0.0003" * (name == "checkpoint") for name, hits in POINTS.items() for hit in hits]

# Forks a server for each line of its input: [failpoint, arguments of covey serve]. Answers with the process id, and
# with the exit status once it has ended.
ZYGOTE = """
import json, os, sys, traceback
from covey_server import aggregator, database, failpoints, serve
from covey_server.cli import configure
import argparse
import covey_server.publish, covey_shared.peft_folder, safetensors.numpy
database.CHECKPOINT_BYTES = 30_000
aggregator.RETRY_S = 0.05
parser = argparse.ArgumentParser()
configure(parser)
for line in sys.stdin:
    point, argv, log = json.loads(line)
    pid = os.fork()
    if pid == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        failpoints.arm(point)
        code = 1
        try:
            args = parser.parse_args(argv)
            names = serve.Options.__annotations__
            code = serve.serve(serve.Options(**{k: v for k, v in vars(args).items() if k in names}))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Zygote:
    """Starts servers quickly; one at a time."""

    def __init__(self) -> None:
        quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # fork copies no threads
        self.child = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet
        )

    def start(self, point: str, argv: list[str], log: Path) -> int:
        """A server's process id."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps([point, argv, str(log)]) + "\n")
        self.child.stdin.flush()
        return int(self.child.stdout.readline())

    def wait(self) -> int:
        """The exit code of the server that was started last, negative for a signal."""
        assert self.child.stdout
        return os.waitstatus_to_exitcode(int(self.child.stdout.readline()))

    def close(self) -> None:
        """End it."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.close()
        self.child.wait()
        self.child.stdout.close()


@dataclass
class Told:
    """What a device was told: receipts by assignment, refusals, and the newest version that it saw."""

    receipts: dict[int, Receipt] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    newest: int = 0
    duplicates: int = 0


class Persistent(threading.Thread):
    """A device that goes on whatever happens to the server: it keeps its bytes until it has a receipt."""

    def __init__(self, url: str, name: str, start: Vector, seed: int):
        super().__init__(daemon=True)
        self.device, self.vector, self.random = Device(url, name), start, random.Random(f"{seed}/{name}")
        self.told = Told()
        self.stopping = threading.Event()  # finish what is pending, then end
        self.failure: BaseException | None = None
        self._task: Task | None = None

    def run(self) -> None:
        """Until told to stop and nothing is pending."""
        pending: tuple[int, bytes] | None = None
        try:
            while pending is not None or not self.stopping.is_set():
                try:
                    pending = self.send(*pending) if pending else self.train()
                except (OSError, http.client.HTTPException):
                    time.sleep(0.005)
        except BaseException as error:
            self.failure = error

    def train(self) -> tuple[int, bytes] | None:
        """The next update, encoded, if the server has work."""
        device = self.device
        self._task = self._task or device.task()
        assignment: Assignment = device.check_in()
        assert assignment.version >= self.told.newest - 50, "never far behind"
        if assignment.action != "train":
            self.see(assignment.version)
            time.sleep(0.005)
            return None
        device.fetch(assignment.version, self.vector)
        device.bodies.clear()
        return assignment.round, device.update(self._task, assignment)

    def see(self, version: int) -> None:
        """The head never moves back."""
        assert version >= self.told.newest, f"the head moved back from {self.told.newest} to {version}"
        self.told.newest = version

    def send(self, round_: int, body: bytes) -> tuple[int, bytes] | None:
        """One try; sometimes one more whose answer is lost, sometimes a duplicate after the receipt."""
        if self.random.random() < 0.1:
            self.send_and_hang_up(round_, body)
        answer = self.device.upload(round_, body)
        if answer.status >= 500:
            time.sleep(0.005)
            return round_, body
        if answer.status != 200:
            self.told.refused[Refusal.from_bytes(answer.body).code] += 1
            assert round_ not in self.told.receipts, "what was acknowledged is refused"
            return None
        self.acknowledged(round_, Receipt.from_bytes(answer.body))
        if not self.told.duplicates or self.random.random() < 0.1:
            again = self.device.upload(round_, body)
            if again.status == 200:
                self.acknowledged(round_, Receipt.from_bytes(again.body))
                self.told.duplicates += 1
        return None

    def acknowledged(self, round_: int, receipt: Receipt) -> None:
        """A receipt says the same for ever, apart from being a duplicate."""
        known = self.told.receipts.setdefault(round_, receipt)
        assert (known.digest, known.version) == (receipt.digest, receipt.version), (known, receipt)

    def send_and_hang_up(self, round_: int, body: bytes) -> None:
        """An upload whose answer nobody reads; cut short half of the time."""
        parts = urlsplit(self.device.url)
        path = f"/v1/updates/{round_}/{self.device.name}"
        with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
            data = signed_head(self.device.url, "PUT", path, body) + body
            connection.sendall(data if self.random.random() < 0.5 else data[: self.random.randrange(len(data))])


def free_port() -> int:
    """A port that nobody listens on, to be used again after each kill: below those that systems give to connections,
    else a device that asks while the server is down may be connected to itself.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Campaign:
    """One run that is killed many times, in one mode."""

    def __init__(self, folder: Path, mode: str, seed: int = 0):
        self.folder, self.mode, self.random = folder, mode, random.Random(seed)
        self.task = crash_task(folder, mode)
        self.port = free_port()
        self.data = folder / "run"
        self.zygote = Zygote()
        self.kills: Counter[str] = Counter()
        start = Bundle.open(folder / "bundle").start(7)
        url = f"http://127.0.0.1:{self.port}"
        self.devices = [Persistent(url, name, start, seed) for name in NAMES]
        for device in self.devices:
            device.start()

    def serve(self, point: str = "") -> int:
        """Start a server; returns its process id."""
        argv = [str(self.task), "--port", str(self.port), "--data-dir", str(self.data), "--open"]
        return self.zygote.start(point, argv, self.folder / "log")

    def kill_at(self, point: str, seconds: float = 20.0) -> None:
        """One server, killed by its own failpoint; SIGTERM if that is only reached at the end."""
        pid = self.serve(point)
        timer = threading.Timer(seconds, os.kill, (pid, signal.SIGTERM))
        timer.start()
        code = self.zygote.wait()
        timer.cancel()
        assert code == -signal.SIGKILL, f"{point} was not reached (exit code {code}): {self.log()}"
        self.kills[point.split(":")[0]] += 1
        self.check_devices()

    def kill_after(self, seconds: float) -> None:
        """One server, killed after a while."""
        pid = self.serve()
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        assert self.zygote.wait() == -signal.SIGKILL, self.log()
        self.kills["random"] += 1
        self.check_devices()

    def log(self) -> str:
        """The end of what the servers said."""
        path = self.folder / "log"
        return path.read_text()[-2000:] if path.exists() else ""

    def check_devices(self) -> None:
        """Nobody has seen what must not happen."""
        for device in self.devices:
            if device.failure is not None:
                raise device.failure

    def finish(self) -> dict[str, int]:
        """Let every device end in peace, stop the server as an operator does, and ask the oracle."""
        pid = self.serve()
        self.wait_until_ready()
        enough = time.monotonic() + 20
        while sum(len(d.told.receipts) for d in self.devices) < ENOUGH and time.monotonic() < enough:
            time.sleep(0.05)
        for device in self.devices:
            device.stopping.set()
        for device in self.devices:
            device.join(SETTLED_S)
            assert not device.is_alive(), f"{device.device.name} did not come to an end: {self.log()}"
        self.check_devices()
        os.kill(pid, signal.SIGTERM)
        code = self.zygote.wait()
        assert code == 0, f"exit code {code}: {self.log()}"
        self.zygote.close()
        return self.oracle()

    def wait_until_ready(self) -> None:
        """Until the server answers."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                self.devices[0].device.task()
                return
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)
        raise AssertionError(f"the server does not answer: {self.log()}")

    def oracle(self) -> dict[str, int]:
        """Each acknowledged update once, none besides, no version without its blobs, and the bits of a quiet run."""
        told = {(round_, d.device.name): r for d in self.devices for round_, r in d.told.receipts.items()}
        with sqlite3.connect(self.data / "covey.sqlite") as db:
            rows = {(round_, client): rest for round_, client, *rest in db.execute(
                "SELECT round, client, sha256, counted_in FROM updates")}  # fmt: skip
            versions = db.execute("SELECT version, parent, digest, step, state, updates FROM versions ORDER BY version")
            history = versions.fetchall()
            integrity = db.execute("PRAGMA integrity_check").fetchone()
        db.close()
        lost = [key for key in told if key not in rows]
        assert integrity == ("ok",)
        assert not lost, f"acknowledged and lost: {lost}"
        assert rows == {key: [r.digest, r.version] for key, r in told.items()}, "counted and never acknowledged"
        head = history[-1][0]
        assert [version for version, *_ in history] == list(range(head + 1))
        assert all(parent == version - 1 for version, parent, *_ in history[1:])
        counted = Counter(version for _, version in rows.values())
        assert [counted[version] for version in range(1, head + 1)] == [row[5] for row in history[1:]]
        blobs = {path.name for path in (self.data / "blobs").rglob("*") if path.is_file()}
        assert blobs >= {blob for row in history for blob in row[3:5] if blob}
        adapters = self.data / "adapters"
        whole = [
            (path / "adapter_model.safetensors").stat().st_size for path in adapters.iterdir() if path.name[0] != "."
        ]
        assert all(whole), "a published folder is whole"
        assert max(d.told.newest for d in self.devices) <= head
        assert replay(self.task, self.data) == [row[2] for row in history], "other bits than a run without faults"
        return {
            "kills": sum(self.kills.values()), "acknowledged": len(told), "lost": len(lost),
            "counted_twice": sum(row[5] for row in history) - sum(v <= head for _, v in rows.values()),
            "versions": head, "duplicates": sum(d.told.duplicates for d in self.devices),
            "refused": sum(sum(d.told.refused.values()) for d in self.devices),
        }  # fmt: skip


def crash_task(folder: Path, mode: str) -> Path:
    """A task that never ends and keeps what was sent, so that the oracle can count again."""
    path = write_task(folder, ADAMW, rounds=FOREVER, target=len(NAMES))
    text = path.read_text().replace("seed = 7\n", "seed = 7\nkeep_updates = true\npublish_every = 2\n")
    if mode == "async":
        text = text.replace("target = 3\n", 'mode = "async"\nbuffer = 4\nmax_staleness = 3\n')
    path.write_text(text)
    return path
