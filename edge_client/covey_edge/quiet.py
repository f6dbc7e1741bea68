"""Silence for what runtimes say while they load, so that the one sentence that matters can be seen."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing reaches standard error, not even from C++; errors still raise. COVEY_VERBOSE=1 turns it off.

    Not for the middle of anything: other threads are silent too.
    """
    if os.environ.get("COVEY_VERBOSE"):
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
