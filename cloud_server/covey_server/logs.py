"""Logs: readable lines, or one JSON object a line for a program that collects them.

Each request has a random id. It stands in the answer's `Covey-Request` header and in every line that is logged while
the request is handled, so a device's complaint leads to the server's reason. Nothing that a request carries is logged
but its route: no header, no query, no body, no device's name.
"""

import contextvars
import json
import logging
import secrets
import sys
import traceback
from datetime import UTC, datetime

REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="")
FIELDS = ("route", "status", "seconds", "up", "down", "code")  # what a record may carry besides its message
access = logging.getLogger("covey.access")  # a line for each request, where a program reads them
said = logging.getLogger("covey.said")  # what is printed for people, when people read a collector instead


def new_request_id() -> str:
    """An id for the request that is handled in this context."""
    name = secrets.token_hex(8)
    REQUEST.set(name)
    return name


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """`time` in UTC, `level`, `message`; `request`, `error` and the FIELDS where there are any."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if REQUEST.get():
            line["request"] = REQUEST.get()
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line)


class Readable(logging.Formatter):
    """A record for people: the time, the level, the message, and the request where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the request's id at its end."""
        line = super().format(record)
        return f"{line} [request {REQUEST.get()}]" if REQUEST.get() else line


def configure(json_lines: bool) -> None:
    """Log to standard error. With `json_lines` a line for each request too, and what is said to people as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if json_lines else Readable())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    access.disabled = said.disabled = not json_lines


def say(line: str) -> None:
    """One line for people, at once even into a pipe; with JSON logs, a record instead."""
    if said.disabled:
        print(line, flush=True)
    else:
        said.info(line.strip())


access.disabled = said.disabled = True  # until configured otherwise
