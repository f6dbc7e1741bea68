"""The demo's processes: a server and a client a device, started as a user would, and followed by their files.

Nothing is shared in memory. The display reads what each client writes with `--events` and what the server answers at
`/v1/status`, as any dashboard could.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covey_shared.errors import UsageError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


@dataclass
class Process:
    """A child with its log; `events` are the JSON lines that it has written so far."""

    name: str
    runtime: str
    child: subprocess.Popen[bytes]
    log: Path
    events_path: Path | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0

    def poll_events(self) -> list[dict[str, Any]]:
        """The lines that are new since the last call; a line still being written is left for the next."""
        if self.events_path is None or not self.events_path.exists():
            return []
        with self.events_path.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        whole, _, _ = data.rpartition(b"\n")
        self._read += len(whole) + 1 if whole else 0
        new = [json.loads(line) for line in whole.splitlines() if line]
        self.events += new
        return new

    def log_tail(self, lines: int = 5) -> str:
        """The last lines of the log, for an error message."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.strip().splitlines()[-lines:])


def spawn(name: str, runtime: str, args: Sequence[str], log: Path, events: Path | None = None) -> Process:
    """Start `covey ARGS` with one computing thread, its output in `log`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "covey_shared.cli", *args],
            stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env,
        )  # fmt: skip
    return Process(name, runtime, child, log, events)


def wait_for_url(server: Process, url_file: Path) -> str:
    """The server's URL once it listens."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if url_file.exists() and (url := url_file.read_text().strip()):
            return url
        if server.child.poll() is not None:
            break
        time.sleep(0.05)
    raise UsageError(f"the server did not start: {server.log_tail(3)} (whole log: {server.log})")


def status(url: str) -> dict[str, Any] | None:
    """What `/v1/status` says, or None while the server does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/v1/status", timeout=3) as answer:
            data: dict[str, Any] = json.load(answer)
            return data
    except (OSError, ValueError):
        return None


def stop(processes: Sequence[Process]) -> None:
    """Ask all to stop, then make them."""
    for process in processes:
        if process.child.poll() is None:
            process.child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.child.kill()
            process.child.wait()
