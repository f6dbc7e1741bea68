"""Running the server: opens the run, listens, says what to type next, and stops without losing anything."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from covey_server import engine, logs, task_file
from covey_server.aggregator import Aggregator
from covey_server.app import GATE, RUNNER, make_app
from covey_server.blobs import write_durably
from covey_server.logs import say
from covey_server.run import Run, default_folder, open_run
from covey_shared.bundle import MANIFEST
from covey_shared.bundle_signature import check_all, read_signatures
from covey_shared.errors import UsageError
from covey_shared.keys import PublicKey
from covey_shared.peft_folder import BUNDLED_CONFIG

STOP_S = 10.0  # how long requests in flight may take to finish after a signal
POLL_S = 0.2
QUIET_S = 5.0  # without a request, after which devices that never evaluate count as finished


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `covey serve`."""

    task: Path
    host: str = "127.0.0.1"
    port: int = 8080
    data_dir: Path | None = None
    publish_dir: Path | None = None
    url_file: Path | None = None
    exit_when_done: bool = False
    grace: float = 30.0
    log_json: bool = False


def serve(options: Options) -> int:
    """Serve one task; returns the exit code. Raises UsageError and its kin before anything listens."""
    logs.configure(options.log_json)
    task = task_file.read(options.task)
    folder = options.data_dir or default_folder(options.task)
    run = open_run(task, folder, time.time())
    try:
        _signers(run)  # devices would refuse one that does not hold
        return asyncio.run(_serve(run, folder, options))
    finally:
        run.close()


async def _serve(run: Run, folder: Path, options: Options) -> int:
    stop = _stop_at_signals()
    listener = _listen(options.host, options.port)
    with contextlib.closing(listener):
        aggregator = Aggregator(run, _publish_folder(run, folder, options), say)
        app = make_app(aggregator)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_S, **RUNNER)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            _announce(run, folder, options, listener.getsockname()[1], aggregator)
            await _until_stopped(stop, aggregator, options)
        finally:
            await app[GATE].drain(STOP_S)
            await runner.cleanup()
            await aggregator.finish(STOP_S)
            if aggregator.state.phase != engine.DONE:
                say(f"stopped at version {aggregator.state.version}; the same command goes on from there")
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, or a sentence about why not."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UsageError(f"cannot listen on {host} port {port} ({reason}); choose another --port or --host") from None


def _publish_folder(run: Run, folder: Path, options: Options) -> Path | None:
    """Where adapters go. Without a PEFT configuration in the bundle nothing is published, and that is said."""
    if BUNDLED_CONFIG in run.bundle.manifest.files:
        return options.publish_dir or folder / "adapters"
    if options.publish_dir is not None:
        raise UsageError(f"the bundle has no {BUNDLED_CONFIG}, so --publish-dir has no use; export the bundle again")
    return None


def _announce(run: Run, folder: Path, options: Options, port: int, aggregator: Aggregator) -> None:
    """What a person needs to know, and the URL for programs."""
    url = f"http://{_reachable(options.host)}:{port}"
    task = run.task.task
    say(f"covey serve: task {task.name}, {task.rounds} rounds, at version {aggregator.state.version}")
    say(f"  bundle  {run.bundle.digest[:12]} ({run.bundle.manifest.model}, {run.layout.size:,} trained entries)")
    for key in _signers(run):
        say(f"  signed  by {key.text}")
    say(f"  rounds  {_rounds(run.task.round)}")
    say(f"  run     {folder}")
    say(f"  status  {url}")
    say("On each device:")
    say(f"  covey join {url} --data FOLDER")
    if options.host not in ("127.0.0.1", "::1", "localhost"):
        say("Anyone who reaches this port can take part: there is no enrolment and no TLS. Use a network you trust.")
    if options.url_file is not None:
        write_durably(options.url_file, f"{url}\n".encode())


def _signers(run: Run) -> tuple[PublicKey, ...]:
    """Who signed the bundle; raises BundleError for a signature that does not hold."""
    return check_all((run.bundle.folder / MANIFEST).read_bytes(), read_signatures(run.bundle.folder))


def _rounds(rounds: task_file.RoundSection) -> str:
    """What a round waits for: with fewer devices than that nothing seems to happen."""
    if rounds.mode == "async":
        return f"a version is made of {rounds.buffer} updates ([round] buffer)"
    return (
        f"each waits for {rounds.target} updates, or for {rounds.needed} once {rounds.deadline_s:g} s have passed "
        "([round] target, minimum, deadline_s)"
    )


def _reachable(host: str) -> str:
    """The host to put into a URL: of all addresses, this machine's name."""
    if host in ("0.0.0.0", "::", ""):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _stop_at_signals() -> asyncio.Event:
    """Set by SIGINT and SIGTERM; a second one ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def caught() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, caught)
    return stop


async def _until_stopped(stop: asyncio.Event, aggregator: Aggregator, options: Options) -> None:
    """Returns when told to, or when the task is done and may end; raises what broke the run."""
    waiting: list[asyncio.Future[Any]] = [asyncio.create_task(stop.wait()), asyncio.create_task(aggregator.watch())]
    if options.exit_when_done:
        waiting.append(asyncio.create_task(_until_done(aggregator, options.grace)))
    done, _ = await asyncio.wait([*waiting, aggregator.failure], return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    for finished in done:
        finished.result()


async def _until_done(aggregator: Aggregator, grace_s: float) -> None:
    """Returns once the task is done and every device of the run knows and has evaluated, or after `grace_s`."""
    while aggregator.state.phase != engine.DONE:
        await asyncio.sleep(POLL_S)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and not await aggregator.all_finished(QUIET_S):
        await asyncio.sleep(POLL_S)
    say(f"task done at version {aggregator.state.version}")
