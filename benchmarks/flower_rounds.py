"""Flower's side of the comparison: a SuperLink, N SuperNodes and its own FedAvg, as its documentation starts them.

    python benchmarks/flower_rounds.py --flower ENV [--entries 300000] [--clients 8] [--rounds 5]

ENV is a virtual environment with flwr in it (`python -m venv ENV && ENV/bin/pip install flwr`); Flower is no dependency
of Covey and its pins would fight with ours. What is started, each a process of its own:

    flower-superlink --insecure --host 127.0.0.1 --port P --disable-runtime-dependency-installation
    flower-supernode --insecure --superlink 127.0.0.1:RELAY --port ...      N times
    flwr run benchmarks/flower local --run-config "entries=... clients=N rounds=R"

RELAY is `wire.counting`, which counts every byte between SuperNodes and SuperLink. A round is from FedAvg's
configure_train to the end of its aggregate_train. Without TLS and authentication, which is Flower's fastest setting.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wire import counting

APP = Path(__file__).parent / "flower"
CONFIG = '[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'


def run_flower(env: Path, *, entries: int, clients: int, rounds: int) -> dict[str, Any]:
    """Median seconds of a round and bytes of a round and client, both ways, of a whole federation."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        port, out = free_port(), Path(folder) / "out.json"
        home = Path(folder) / "home"
        home.mkdir()
        address = (
            f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        (home / "config.toml").write_text(address)
        environment = {**os.environ, "FLWR_HOME": str(home), "PATH": f"{env / 'bin'}:{os.environ['PATH']}"}

        def start(*command: str) -> None:
            stack.enter_context(running([str(env / "bin" / command[0]), *command[1:]], environment))

        start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port),
              "--disable-runtime-dependency-installation")  # fmt: skip
        wait_for(port)
        counter = stack.enter_context(counting(port))
        for _ in range(clients):
            start("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{counter.port}",
                  "--port", str(free_port()))  # fmt: skip
        config = f'entries={entries} clients={clients} rounds={rounds} out="{out}"'
        command = [str(env / "bin" / "flwr"), "run", str(APP), "local", "--stream", "--run-config", config]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        if not out.exists():
            raise SystemExit(f"Flower did not finish:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        result = json.loads(out.read_text())
        assert abs(result["moved"] - rounds) < 1e-2, "every round must have been averaged"
        return {
            "system": "flower", "entries": entries, "clients": clients, "rounds": rounds,
            "median_seconds_a_round": round(statistics.median(result["seconds"]), 3),
            "bytes_up_a_round_and_client": counter.up // (rounds * clients),
            "bytes_down_a_round_and_client": counter.down // (rounds * clients),
        }  # fmt: skip


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int, seconds: float = 60) -> None:
    """Until something listens."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise SystemExit(f"nothing listens on port {port}")


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """A process, with whatever it starts, for the length of the block."""
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 15)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower", type=Path, required=True, help="a virtual environment with flwr")
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(json.dumps(run_flower(args.flower, entries=args.entries, clients=args.clients, rounds=args.rounds)))


if __name__ == "__main__":
    main()
