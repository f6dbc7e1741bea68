"""Running the server: opens the run, listens, says what to type next, and stops without losing anything."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from covey_server import connections, engine, logs, store, task_file, task_sections
from covey_server.admin import make_admin
from covey_server.aggregator import Aggregator, in_words
from covey_server.app import GATE, RUNNER, make_app
from covey_server.blobs import write_durably
from covey_server.guard import DOOR, is_loopback
from covey_server.heaps import share_heaps
from covey_server.limits import is_address
from covey_server.logs import say
from covey_server.operation import STOPPING
from covey_server.run import Run, default_folder, open_run
from covey_server.tls import Tls, open_tls
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
    admin_host: str = "127.0.0.1"
    admin_port: int | None = None
    admin_url_file: Path | None = None
    open: bool = False
    insecure_http: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    proxy: str = ""
    exit_when_done: bool = False
    grace: float = 30.0
    log_json: bool = False


class Side(NamedTuple):
    """An application with the socket that it listens on; without `tls` it is plain HTTP."""

    app: web.Application
    listener: socket.socket
    host: str
    tls: Tls | None

    @property
    def url(self) -> str:
        """What to type to reach it."""
        return f"{'https' if self.tls else 'http'}://{_reachable(self.host)}:{self.listener.getsockname()[1]}"


def serve(options: Options) -> int:
    """Serve one task; returns the exit code. Raises UsageError and its kin before anything listens."""
    logs.configure(options.log_json)
    share_heaps()
    check_exposure(options)
    tls = open_tls(options.tls_cert, options.tls_key)
    task = task_file.read(options.task)
    folder = options.data_dir or default_folder(options.task)
    run = open_run(task, folder, time.time())
    try:
        _signers(run)  # devices would refuse one that does not hold
        return asyncio.run(_serve(run, folder, options, tls))
    finally:
        run.close()


async def _serve(run: Run, folder: Path, options: Options, tls: Tls | None) -> int:
    stop = _stop_at_signals()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(_listen(options.host, options.port, "--port")))
        beside = options.admin_port if options.admin_port is not None else options.port and options.port + 1
        office = stack.enter_context(contextlib.closing(_listen(options.admin_host, beside, "--admin-port")))
        aggregator = Aggregator(run, _publish_folder(run, folder, options), say)
        app = make_app(aggregator, is_open=options.open, proxy=options.proxy)
        admin = make_admin(aggregator, app[DOOR], app[STOPPING])
        sides = [
            Side(app, listener, options.host, tls),
            Side(admin, office, options.admin_host, None if is_loopback(options.admin_host) else tls),
        ]
        runners = [web.AppRunner(each.app, access_log=None, shutdown_timeout=STOP_S, **RUNNER) for each in sides]
        try:
            for runner, side in zip(runners, sides, strict=True):
                await runner.setup()
                await web.SockSite(runner, side.listener, ssl_context=side.tls.context if side.tls else None).start()
            urls = [side.url for side in sides]
            await run.db.do(store.set_meta, {"url": urls[0]})
            _announce(run, folder, options, urls, aggregator)
            watches = [connections.watch(runner) for runner in runners] + ([tls.watch()] if tls else [])
            await _until_stopped(stop, aggregator, options, watches)
        finally:
            await app[GATE].drain(STOP_S)
            for runner in runners:
                await runner.cleanup()
            await aggregator.finish(STOP_S)
            version, losses = await aggregator.held_out()
            if losses:
                say(f"version {version}: {in_words(losses)}")
            if aggregator.state.phase != engine.DONE:
                say(f"stopped at version {aggregator.state.version}; the same command goes on from there")
    return 0


def check_exposure(options: Options) -> None:
    """Raises UsageError for an address beyond this machine that nobody has said may be reached as asked."""
    for what, host in (("--host", options.host), ("--admin-host", options.admin_host)):
        if is_loopback(host):
            continue
        if options.tls_cert is None and not options.insecure_http:
            raise UsageError(
                f"{what} {host} is reachable from other machines, and without --tls-cert and --tls-key who is on the "
                "way can read all that passes; give them, or accept that with --insecure-http"
            )
        if what == "--host" and options.open:
            raise UsageError("--open lets anybody in, so it is for this machine alone; use `covey enroll new`")
    if options.proxy and not is_address(options.proxy):
        raise UsageError(f"--proxy {options.proxy}: write the IP address that the proxy connects from")


def _listen(host: str, port: int, option: str) -> socket.socket:
    """A listening socket, or a sentence about why not."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UsageError(f"cannot listen on {host} port {port} ({reason}); choose another {option} or host") from None


def _publish_folder(run: Run, folder: Path, options: Options) -> Path | None:
    """Where adapters go. Without a PEFT configuration in the bundle nothing is published, and that is said."""
    if BUNDLED_CONFIG in run.bundle.manifest.files:
        return options.publish_dir or folder / "adapters"
    if options.publish_dir is not None:
        raise UsageError(f"the bundle has no {BUNDLED_CONFIG}, so --publish-dir has no use; export the bundle again")
    return None


def _announce(run: Run, folder: Path, options: Options, urls: list[str], aggregator: Aggregator) -> None:
    """What a person needs to know, and the URLs for programs. No code is printed: this may well be a log."""
    task = run.task.task
    say(f"covey serve: task {task.name}, {task.rounds} rounds, at version {aggregator.state.version}")
    entries = run.divided.division.top.size
    say(f"  bundle  {run.bundle.digest[:12]} ({run.bundle.manifest.model}, {entries:,} trained entries)")
    for key in _signers(run):
        say(f"  signed  by {key.text}")
    say(f"  rounds  {_rounds(run.task.round)}")
    say(f"  run     {folder}")
    say(f"  status  {urls[1]}")
    if options.open:
        say("On this machine (--open: no code needed):")
        say(f"  covey join {urls[0]} --data FOLDER")
    else:
        say("One-time codes, one for each device:")
        say(f"  covey enroll new {options.data_dir or options.task} --count {run.task.round.target}")
        say("On each device:")
        say(f"  covey join {urls[0]} --data FOLDER --code CODE")
    if not (urls[0].startswith("https:") or is_loopback(options.host)):
        say("--insecure-http: without TLS whoever is on the way can read adapters and updates; requests stay signed.")
    for path, url in ((options.admin_url_file, urls[1]), (options.url_file, urls[0])):
        if path is not None:
            write_durably(path, f"{url}\n".encode())


def _signers(run: Run) -> tuple[PublicKey, ...]:
    """Who signed the bundle; raises BundleError for a signature that does not hold."""
    return check_all((run.bundle.folder / MANIFEST).read_bytes(), read_signatures(run.bundle.folder))


def _rounds(rounds: task_sections.RoundSection) -> str:
    """What a round waits for: with fewer devices than that nothing seems to happen."""
    if rounds.mode == "async":
        return f"a version is made of {rounds.buffer} updates ([round] buffer)"
    late = f", or for {rounds.needed} once {rounds.deadline_s:g} s have passed" if rounds.needed < rounds.target else ""
    return f"each waits for {rounds.target} updates{late} ([round] target, minimum, deadline_s)"


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


async def _until_stopped(
    stop: asyncio.Event, aggregator: Aggregator, options: Options, watches: list[Coroutine[Any, Any, None]]
) -> None:
    """Returns when told to, or when the task is done and may end; raises what broke the run."""
    work = [stop.wait(), aggregator.watch(), *watches]
    waiting: list[asyncio.Future[Any]] = [asyncio.create_task(each) for each in work]
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
