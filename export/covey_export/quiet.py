"""Silence for what other people's libraries say while we work, so that the one sentence that matters can be seen."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it: no warnings, no log records below CRITICAL, and nothing printed to `sys.stdout` and `sys.stderr`.

    Set COVEY_VERBOSE=1 to hear everything.
    """
    if os.environ.get("COVEY_VERBOSE"):
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            _hide_bars()
            yield
    finally:
        logging.disable(before)


def _hide_bars() -> None:
    """Hugging Face's own progress bars would break ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if find_spec("transformers") is None:
        return
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
