"""The export with a progress bar and without other people's noise."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from covey_export.place import check_place
from covey_export.quiet import quiet
from covey_export.recipe import Recipe
from covey_export.threads import wait_passively
from covey_shared.bundle import Bundle
from covey_shared.keys import PrivateKey

BAR = "{desc} {bar} {n_fmt}/{total_fmt} {elapsed}"


def export_with_progress(recipe: Recipe, out: Path, *, force: bool, key: PrivateKey | None = None) -> Bundle:
    """Run the export; the bar is on stderr, and only on a terminal."""
    wait_passively()
    check_place(out, force)  # before the libraries load, which takes seconds
    with (
        tqdm(total=1, desc=f"{'load libraries':<24}", disable=None, file=sys.stderr, bar_format=BAR) as bar,
        _ticking(bar),
        quiet(),  # the imports too: peft's are the loudest
    ):
        from covey_export.bundle import export, stages

        bar.total = stages(recipe) + 1

        def step(name: str) -> None:
            bar.update()
            bar.total = max(bar.total, bar.n + 1)
            bar.set_description(f"{name:<24.24}")

        bundle = export(recipe, out, force=force, key=key, step=step)
        bar.update()
        bar.set_description(f"{'done':<24}")
    return bundle


@contextlib.contextmanager
def _ticking(bar: "tqdm[None]") -> Iterator[None]:
    """Redraw the bar each second: lowering a model is one step and may take minutes."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
