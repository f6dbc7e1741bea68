"""That the runs in one process are what the product does: one configuration over real HTTP, bit for bit the same.

    python benchmarks/flasc/over_http.py --data-root DATA [--method covey-r2] [--clients 4] [--rounds 4]

Starts `covey serve` and `covey join` as users do, each device with one role's speeches in a file, then runs the same
devices, rounds and seed in one process, and compares the published adapters by their digest. A relay between them
counts every byte on the sockets, so what headers, signatures and check-ins add to the counted bodies is seen as well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent))

from clients import speeches
from federation import Method, run
from report import write_report
from run import HERE, methods
from tasks import ADAMW_RATES, TASKS, Federation, Task, prepare
from wire import counting

from covey_edge.data import build_dataset
from covey_edge.texts import Document
from covey_edge.tokens import open_tokenizer
from covey_export.demo.fleet import Process, spawn, stop, wait_for_url
from covey_shared.bundle import Bundle

SEED = 7
RATES = ADAMW_RATES[2]


def devices(data_root: Path, count: int) -> dict[str, str]:
    """Some roles of middling length, by name."""
    texts = speeches(data_root, "train")
    roles = sorted(texts, key=lambda role: (-len("".join(texts[role])), role))[50 : 50 + count]
    return {f"device-{i}": "\n".join(texts[role]) for i, role in enumerate(roles)}


def task_file(task: Task, method: Method, bundle: Path, clients: int, rounds: int) -> str:
    """The method's task file, whole."""
    sections = (method.optimizers or task.optimizers).replace(
        "[client]",
        f"[client]\nlearning_rate = {RATES[0]}\nsteps = {task.steps}\nerror_feedback = {str(method.feedback).lower()}",
    )
    return (
        f'[task]\nbundle = "{bundle.resolve()}"\nrounds = {rounds}\nseed = {SEED}\n[round]\ntarget = {clients}\n'
        f"minimum = {clients}\nretry_s = 1.0\n{sections}{method.task}"
    )


def over_http(text: str, data: dict[str, str], folder: Path) -> dict[str, Any]:
    """The digests of all versions, and the bytes on the devices' sockets."""
    (folder / "task.toml").write_text(text)
    server = spawn(
        "server", "", ["serve", str(folder / "task.toml"), "--port", "0", "--url-file", str(folder / "url"),
                       "--data-dir", str(folder / "server"), "--exit-when-done"], folder / "server.log",
    )  # fmt: skip
    processes: list[Process] = [server]
    try:
        url = wait_for_url(server, folder / "url")
        made = [sys.executable, "-m", "covey_shared.cli", "enroll", "new", str(folder / "server"), "--plain"]
        codes = subprocess.run([*made, "--count", str(len(data))], stdout=subprocess.PIPE, text=True, check=True)
        with counting(urlsplit(url).port or 0) as counter:
            for (name, words), code in zip(data.items(), codes.stdout.split(), strict=True):
                (folder / f"{name}.txt").write_text(words)
                args = ["join", f"http://127.0.0.1:{counter.port}", "--code", code, "--data",
                        str(folder / f"{name}.txt"), "--name", name, "--runtime", "onnx", "--state",
                        str(folder / name), "--cache", str(folder / f"cache-{name}"), "--eval-every", "0",
                        "--eval-batches", "1", "--threads", "1", "--quiet"]  # fmt: skip
                processes.append(spawn(name, "onnx", args, folder / f"{name}.log"))
            for process in processes[1:]:
                if process.child.wait(600):
                    raise SystemExit(f"{process.name} failed: {process.log_tail()}")
            server.child.wait(60)
            up, down = counter.up, counter.down
    finally:
        stop(processes)
    return {"digests": stored_digests(folder / "server"), "up": up, "down": down}


def stored_digests(folder: Path) -> list[str]:
    """Of every version in a server's database."""
    import sqlite3

    with sqlite3.connect(folder / "covey.sqlite") as db:
        return [digest for (digest,) in db.execute("SELECT digest FROM versions ORDER BY version")]


def in_process(
    task: Task, method: Method, bundle: Bundle, data: dict[str, str], federation: Federation, rounds: int
) -> Any:
    """The same devices without a server: the digests of all versions, and the bytes of bodies."""
    coder = open_tokenizer(bundle.manifest.text, bundle.folder)
    sets = {n: build_dataset((Document("", text),), coder, bundle.manifest, 0.2) for n, text in data.items()}
    mine = federation._replace(setting=federation.setting._replace(data=sets), names=tuple(sets))
    seen: list[str] = []
    every = task._replace(cohort=len(sets), every=rounds)
    points = list(run(every, method, mine, RATES, SEED, rounds, seen))
    return seen, points[-1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path())
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--method", default="covey-r2")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args(argv)
    task, method = TASKS["shakespeare"]._replace(watch=8, judge=8), methods()[args.method]
    federation = prepare(task, method.rank, args.data_root, args.cache)
    bundle, data = federation.setting.bundle, devices(args.data_root, args.clients)
    rows = [compared(task, method, bundle, data, federation, rounds) for rounds in (args.rounds, 3 * args.rounds)]
    (few, many), more = [r["beside_bodies"] for r in rows], 2 * args.rounds * args.clients
    for row in rows:  # what is paid once, the bundle and the enrolment, is in both and cancels
        row["beside_bodies_a_client_round"] = round((many - few) / more)
        print(json.dumps(row, indent=1))
    write_report("flasc/http", {}, rows)
    if not all(row["same_bits"] for row in rows):
        raise SystemExit("the two runs differ")


def compared(
    task: Task, method: Method, bundle: Bundle, data: dict[str, str], federation: Federation, rounds: int
) -> dict[str, Any]:
    """One task both ways."""
    here, end = in_process(task, method, bundle, data, federation, rounds)
    with tempfile.TemporaryDirectory() as folder:
        text = task_file(task, method, bundle.folder, len(data), rounds)
        there = over_http(text, data, Path(folder))
    return {
        "method": method.name, "clients": len(data), "rounds": rounds, "same_bits": here == there["digests"],
        "versions": len(here), "body_bytes": end.up + end.down, "socket_bytes": there["up"] + there["down"],
        "beside_bodies": there["up"] + there["down"] - end.up - end.down,
    }  # fmt: skip


if __name__ == "__main__":
    main()
