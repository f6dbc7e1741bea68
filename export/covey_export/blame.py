"""Which part of a model a tracer or a compiler stopped at, as half a sentence."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from torch import nn

from covey_shared.errors import CoveyError, UsageError


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn whatever other people's code raises in here into a UsageError: `what`, the module, and its first line."""
    try:
        yield
    except (CoveyError, MemoryError, OSError):
        raise
    except Exception as error:
        raise UsageError(f"{what}{_where(error.__traceback__)}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The innermost cause's first line: it names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


def _where(trace: TracebackType | None) -> str:
    """The deepest of the model's own modules on the way to the error, with its file and line."""
    found = ""
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        path = Path(trace.tb_frame.f_code.co_filename)
        if isinstance(owner, nn.Module) and path.name.startswith("modeling_"):
            found = f" at {type(owner).__name__} ({path.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found
