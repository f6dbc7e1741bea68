"""The real server over a bundle, for the tests of the client."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from covey_shared.bundle import Bundle
from tests.helpers_server import Served, served


@contextlib.contextmanager
def serving(
    bundle: Bundle,
    folder: Path,
    *,
    rounds: int = 2,
    target: int = 1,
    seed: int = 7,
    rank: int = 0,
    keep_updates: bool = False,
    more: str = "",
    is_open: bool = True,
    publish: Path | None = None,
) -> Iterator[Served]:
    """A task of small steps and short waits, in `folder/task.toml`. Without a target, `more` has its [round]."""
    folder.mkdir(exist_ok=True)
    path = folder / "task.toml"
    path.write_text(
        f'[task]\nname = "test"\nbundle = "{bundle.folder}"\nrounds = {rounds}\nseed = {seed}\nrank = {rank}\n'
        f"keep_updates = {'true' if keep_updates else 'false'}\n"
        + (f"[round]\ntarget = {target}\nretry_s = 0.05\n" if target else "")
        + f"[client]\nsteps = 8\nlearning_rate = 0.02\n{more}"
    )
    with served(path, publish=publish, is_open=is_open) as server:
        yield server
