"""`covey serve`: its arguments. Imports nothing heavy, so that `covey --help` stays quick."""

import argparse
from pathlib import Path

from covey_shared.cli import Command


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `covey serve`."""
    parser.add_argument("task", type=Path, help="the task file, described in docs/server.md")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on, 0 for any free one")
    parser.add_argument("--data-dir", type=Path, help="folder of the run (default: beside the task file, .run)")
    parser.add_argument("--publish-dir", type=Path, help="folder for adapters in PEFT's format (default: in the run)")
    parser.add_argument("--url-file", type=Path, help="write the server's URL to this file once it answers")
    parser.add_argument(
        "--open", action="store_true", help="let devices of this machine enrol without a code, to try things out"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM file of the certificate and its chain")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM file of its private key")
    parser.add_argument(
        "--insecure-http", action="store_true",
        help="serve other machines without TLS: who is on the way can read all that passes",
    )  # fmt: skip
    parser.add_argument(
        "--proxy", default="", metavar="ADDRESS", help="a reverse proxy in front, whose X-Forwarded-For is believed"
    )
    parser.add_argument("--admin-host", default="127.0.0.1", help="where the operator's side listens (%(default)s)")
    parser.add_argument("--admin-port", type=int, help="its port, 0 for any free one (default: --port plus one)")
    parser.add_argument("--admin-url-file", type=Path, help="write the URL of the operator's side to this file")
    parser.add_argument("--exit-when-done", action="store_true", help="stop once the task and its devices are done")
    parser.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="with --exit-when-done: wait at most this long (seconds)"
    )
    parser.add_argument("--log-json", action="store_true", help="logs as JSON lines on standard error")


def run(args: argparse.Namespace) -> int:
    """Serve until done, or until a signal."""
    from covey_server.serve import Options, serve

    return serve(Options(**{name: value for name, value in vars(args).items() if name in Options.__annotations__}))


SERVE = Command("run the aggregator that devices join", configure, run, "server")
