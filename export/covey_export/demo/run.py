"""The demo from end to end: export, write the devices' data, serve, join, check, report.

The settings of the default run were chosen with `benchmarks/demo_codecs.py`; docs/demo.md has the table.
"""

import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from covey_export.demo import report
from covey_export.demo.corpus import DEVICE_PACKAGES, write_device
from covey_export.demo.display import Display, Row
from covey_export.demo.fleet import Process, spawn, status, stop, wait_for_url
from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from covey_shared.keyfile import PUBLIC, write_key
from covey_shared.keys import generate

POLL_S = 0.2
LOSS_TOLERANCE = 1e-3  # relative, between PEFT in eager PyTorch and what the devices saw on their runtimes


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line chose. Text sizes in bytes."""

    model: str
    out: Path
    strategy: str
    mode: str
    compare_dense: bool
    clients: int
    rounds: int
    steps: int
    rank: int
    batch: int
    seq_len: int
    learning_rate: float
    runtimes: tuple[str, ...]
    device_bytes: int
    seed: int
    prompt: str


# Upload codec, download codec, server optimiser and strategy by the name that --strategy takes.
STRATEGIES: dict[str, str] = {
    "covey": """
[upload]
codec = "sign"
[download]
codec = "levels"
error = 0.5
""",
    "flasc": """
[strategy]
name = "flasc"
mode = "covey"
density_up = 0.25
density_down = 0.25
""",
    "flasc-paper": """
[strategy]
name = "flasc"
mode = "paper"
density_up = 0.25
density_down = 0.25
""",
    "dense": """
[upload]
codec = "dense"
[download]
codec = "dense"
""",
}


def task_text(options: Options, strategy: str, bundle: Path) -> str:
    """The task file of one run."""
    client = ""
    if not strategy.startswith("flasc-"):
        client = f'[client]\noptimizer = "adamw"\nlearning_rate = {options.learning_rate}\nsteps = {options.steps}\n'
    return f"""[task]
name = "demo-{strategy}"
bundle = "{bundle.resolve()}"
rounds = {options.rounds}
seed = {options.seed}
publish_every = 0
[round]
{round_text(options)}
deadline_s = 120.0
retry_s = 0.2
{STRATEGIES[strategy]}
{client}"""


def round_text(options: Options) -> str:
    """How a version's updates are gathered: all devices once, or as many updates from whoever is ready."""
    if options.mode == "async":
        return f'mode = "async"\nbuffer = {options.clients}'
    return f"target = {options.clients}\nminimum = {max(1, options.clients - 1)}"


def run_demo(options: Options, console: Console) -> int:
    """Everything; returns the exit code: 0 when every device got better and the adapter checks out."""
    begun = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    packages = DEVICE_PACKAGES[: options.clients]
    for package in packages:
        shutil.rmtree(options.out / "devices" / package, ignore_errors=True)
        write_device(package, options.out / "devices" / package, options.device_bytes)
    console.print(
        f"[bold]1[/] {len(packages)} devices, each with its own package of the standard library: {', '.join(packages)}"
    )
    bundle = export_bundle(options, console)
    console.print(
        f"[bold]3[/] server and {len(packages)} clients as processes of their own, over HTTP on the loopback interface"
    )
    run = federate(options, options.strategy, bundle, console)
    dense = federate(options, "dense", bundle, console) if options.compare_dense else None
    console.print("[bold]4[/] the published adapter, loaded with PeftModel.from_pretrained")
    checks = check_adapter(options, bundle, run, console)
    return finish(options, bundle, run, dense, checks, time.monotonic() - begun, console)


def export_bundle(options: Options, console: Console) -> Bundle:
    """The bundle, exported by the command that users type; an identical earlier export is used again."""
    folder = options.out / "bundle"
    args = [
        "export", options.model, "--out", str(folder), "--rank", str(options.rank), "--batch", str(options.batch),
        "--seq-len", str(options.seq_len), "--targets", ",".join(dict.fromkeys(options.runtimes)),
        "--sign", str(signing_key(options)), "--force",
    ]  # fmt: skip
    console.print(f"[bold]2[/] covey {' '.join(args)}")
    stamp, wanted = options.out / "bundle.args", "\n".join(args)
    if stamp.exists() and stamp.read_text() == wanted:
        try:
            found = Bundle.open(folder)
            console.print("  the bundle of the last demo is still good")
            return found
        except UsageError:
            stamp.unlink()
    done = subprocess.run([sys.executable, "-m", "covey_shared.cli", *args], stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UsageError(f"the export failed with exit code {done.returncode}; its message is above")
    stamp.write_text(wanted)
    return Bundle.open(folder)


def signing_key(options: Options) -> Path:
    """The key that signs the demo's bundle, made once; its devices insist on it."""
    path = options.out / "signer.pem"
    if not path.exists():
        write_key(path, generate())
    return path


def federate(options: Options, strategy: str, bundle: Bundle, console: Console) -> report.Run:
    """One federated run: a server and its clients from start to the last evaluation."""
    folder = options.out / f"run-{strategy}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task = folder / "task.toml"
    task.write_text(task_text(options, strategy, bundle.folder))
    begun = time.monotonic()
    server = spawn(
        "server", "", [
            "serve", str(task), "--port", "0", "--url-file", str(folder / "url"), "--data-dir", str(folder / "server"),
            "--publish-dir", str(folder / "adapter"), "--admin-url-file", str(folder / "admin-url"), "--exit-when-done",
        ], folder / "server.log",
    )  # fmt: skip
    processes: list[Process] = [server]
    try:
        url = wait_for_url(server, folder / "url")
        status_url = (folder / "admin-url").read_text().strip()
        console.print(f"  each enrols with a code of its own and signs its requests; the status page is {status_url}")
        codes = enrollment_codes(folder / "server", options.clients)
        clients = [start_client(options, i, url, code, folder) for i, code in enumerate(codes)]
        processes += clients
        rows = [Row(c.name, c.runtime) for c in clients]
        with Display(console, strategy, rows, options.rounds) as display:
            follow(status_url, clients, rows, display)
        server.child.wait(60)
    finally:
        stop(processes)
    seconds = time.monotonic() - begun
    return collect(options, strategy, bundle, clients, folder / "adapter" / "latest", seconds)


def enrollment_codes(run: Path, count: int) -> list[str]:
    """One-time codes, one for each device, made by the command that an operator types."""
    command = [sys.executable, "-m", "covey_shared.cli", "enroll", "new", str(run), "--count", str(count), "--plain"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def start_client(options: Options, index: int, url: str, code: str, folder: Path) -> Process:
    """One device: its own data, state and log; runtimes take turns."""
    package = DEVICE_PACKAGES[index]
    runtime = options.runtimes[index % len(options.runtimes)]
    events = folder / f"{package}.events"
    args = [
        "join", url, "--code", code, "--data", str(options.out / "devices" / package), "--name", package,
        "--runtime", runtime, "--bundle-key", f"{signing_key(options)}{PUBLIC}",
        "--state", str(folder / "clients" / package), "--cache", str(options.out / "cache"), "--events", str(events),
        "--save-heldout", str(folder / f"{package}.npz"), "--holdout", "0.15", "--eval-every", "4",
        "--threads", "1", "--quiet",
    ]  # fmt: skip
    return spawn(package, runtime, args, folder / f"{package}.log", events)


def follow(url: str, clients: list[Process], rows: list[Row], display: Display) -> None:
    """Feed the display until every client has ended; a client that fails ends the run with its own words."""
    version = 0
    while any(c.child.poll() is None for c in clients):
        for client, row in zip(clients, rows, strict=True):
            for event in client.poll_events():
                row.take(event)
            if client.child.poll() not in (None, 0):
                raise UsageError(f"the client {client.name} stopped: {client.log_tail(3)} (whole log: {client.log})")
        now = status(url)
        version = now["version"] if now else version
        display.update(version)
        time.sleep(POLL_S)
    for client, row in zip(clients, rows, strict=True):
        for event in client.poll_events():
            row.take(event)
    display.update(display.rounds)


def collect(
    options: Options, label: str, bundle: Bundle, clients: list[Process], adapter: Path, seconds: float
) -> report.Run:
    """The record of a run, from what the clients wrote."""
    devices = tuple(device_of(c) for c in clients)
    history = history_of(clients)
    return report.Run(
        label, options.rounds, bundle.manifest.layout.size, devices, history, str(adapter), round(seconds, 1)
    )


def device_of(client: Process) -> report.Device:
    """One device's figures, from its last event."""
    result = client.events[-1]
    if result["event"] != "done":
        raise UsageError(f"the client {client.name} ended early: {client.log_tail(3)} (whole log: {client.log})")
    # Dense LoRA would not send version 0 either: both sides make it from the seed.
    downloads = sum(e["event"] == "version" and e["version"] > 0 for e in client.events)
    return report.Device(
        client.name, client.runtime, result["loss_before"], result["loss_after"], result["upload_bytes"],
        result["download_bytes"], result["rounds"], downloads,
    )  # fmt: skip


def history_of(clients: list[Process]) -> tuple[tuple[int, float, int], ...]:
    """(version, mean held-out loss over devices, bytes of all devices so far) of each version that all evaluated."""
    found: dict[int, list[tuple[float, int]]] = {}
    for client in clients:
        count = 0
        for event in client.events:
            if event["event"] in ("uploaded", "version"):
                count += event["bytes"]
            elif event["event"] == "evaluated":
                found.setdefault(event["version"], []).append((event["loss"], count))
    return tuple(
        (version, sum(loss for loss, _ in rows) / len(rows), sum(count for _, count in rows))
        for version, rows in sorted(found.items())
        if len(rows) >= len(clients)
    )


def check_adapter(options: Options, bundle: Bundle, run: report.Run, console: Console) -> dict[str, Any]:
    """Each device's held-out windows through PEFT; the losses must be those that the devices reported."""
    from covey_export.quiet import quiet

    with quiet():
        from covey_export.demo import check

        base, tuned = check.load_models(options.model, Path(run.adapter_path))
    worst, losses = 0.0, {}
    for device in run.devices:
        with np.load(options.out / f"run-{run.label}" / f"{device.name}.npz", allow_pickle=False) as windows:
            loss = check.mean_loss(tuned, windows["input_ids"], windows["labels"])
        losses[device.name] = loss
        worst = max(worst, abs(loss / device.loss_after - 1))
    ok = worst <= LOSS_TOLERANCE
    verdict = "the same" if ok else f"NOT the same (tolerance {LOSS_TOLERANCE:.0e})"
    console.print(
        f"  loss on every device's held-out text is {verdict} as on the devices: largest difference {worst:.1e}"
    )
    with quiet():
        text = check.sample(base, tuned, options.model, options.prompt)
    return {
        "peft_loss": losses, "peft_largest_difference": worst, "peft_agrees": ok,
        "prompt": text.prompt, "text_before": text.before, "text_after": text.after,
    }  # fmt: skip


def finish(
    options: Options, bundle: Bundle, run: report.Run, dense: report.Run | None, checks: dict[str, Any],
    seconds: float, console: Console,
) -> int:  # fmt: skip
    """Print the tables, write the plot and the report, and say whether the demo did what it promises."""
    bits = bundle.manifest.text.kind == "bytes"
    console.print()
    for each in [run, *([dense] if dense else [])]:
        console.print(report.table(each, bits=bits))
    report.plot(options.out / "loss.png", [run, *([dense] if dense else [])], bits=bits)
    data = report.report_data(run, dense, {**checks, "total_seconds": round(seconds, 1), "strategy": options.strategy})
    report.write_json(options.out / "report.json", data)
    better = all(d.loss_after < d.loss_before for d in run.devices)
    for label in ("before", "after"):
        console.print(f"\n[bold]{label}[/] {options.prompt!r} continues:")
        console.print(_first_lines(checks[f"text_{label}"]), markup=False, highlight=False)
    console.print()
    console.print(
        f"held-out loss fell on {'every device' if better else 'NOT every device'}: "
        f"mean {run.loss_before:.4f} -> {run.loss_after:.4f} nats"
    )
    console.print(
        f"bytes up {report.human(run.upload_bytes)}, down {report.human(run.download_bytes)}: "
        f"[bold]{run.ratio:.1f} times fewer[/] than the same rounds of dense float32 LoRA"
    )
    if dense:
        console.print(
            f"dense LoRA in the same rounds reached {dense.loss_after:.4f}: this run is at "
            f"{data['loss_over_dense'] - 1:+.2%} with {data['fewer_bytes_than_dense']:.1f} times fewer bytes measured"
        )
    console.print(
        f"adapter  {run.adapter_path}\nplot     {options.out / 'loss.png'}\nreport   {options.out / 'report.json'}"
    )
    console.print(f"total    {seconds:.0f} s")
    return 0 if better and checks["peft_agrees"] and math.isfinite(run.loss_after) else 1


def _first_lines(text: str, count: int = 6) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[:count])
