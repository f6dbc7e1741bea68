"""The real server over a bundle, for the tests of the client."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from covey_shared.bundle import Bundle
from tests.helpers_server import Served, served


@contextlib.contextmanager
def serving(
    bundle: Bundle, folder: Path, *, rounds: int = 2, target: int = 1, seed: int = 7, more: str = ""
) -> Iterator[Served]:
    """A task of small steps and short waits; the task file is `folder/task.toml`."""
    folder.mkdir(exist_ok=True)
    path = folder / "task.toml"
    path.write_text(
        f'[task]\nname = "test"\nbundle = "{bundle.folder}"\nrounds = {rounds}\nseed = {seed}\n'
        f"[round]\ntarget = {target}\nretry_s = 0.05\n"
        f"[client]\nsteps = 8\nlearning_rate = 0.02\n{more}"
    )
    with served(path) as server:
        yield server
