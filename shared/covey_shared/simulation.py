"""A server without a socket: what trying out a task needs of the server's component, as an interface.

`covey plan` trains short pilots of many tasks. What a device does in them is the client's own code; what the server
does must be the server's, or the plan would be about something else than what `covey serve` does. But components do not
import each other. So the server's component registers a function under the entry-point group `covey.simulation`, and
whoever wants to simulate loads it by name, as `covey` loads commands.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Protocol

from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from covey_shared.layout import Vector
from covey_shared.messages import Task

GROUP = "covey.simulation"


class Simulated(Protocol):
    """A task that is served to nobody: messages in, messages out, in memory."""

    @property
    def task(self) -> Task:
        """What a device would be told at GET /v1/task."""

    @property
    def version(self) -> int:
        """The newest version."""

    def adapter(self, held: int) -> bytes:
        """The body of the answer to a device that holds version `held` (-1: nothing) and wants the newest."""

    def close_round(self, updates: Sequence[bytes]) -> None:
        """Count a round's uploads, each the body of an Update of the newest version, and make the next version.

        Raises CoveyError where the server would refuse one of them or could not publish.
        """

    def model(self) -> tuple[Vector, Vector | None]:
        """(adapter of the bundle's layout, second adapter) of the newest version, as everybody gets it."""

    def to_bytes(self) -> bytes:
        """Where it stands, so that it can go on in another process; for the `begin` that made it."""


# (the task file's text, the bundle, where an earlier one stood or nothing). Raises TaskFileError as `covey serve` does.
Begin = Callable[[str, Bundle, bytes], Simulated]


def server() -> Begin:
    """The function that begins a simulated task; refuses an installation without the server's component."""
    for point in entry_points(group=GROUP):
        begin: Begin = point.load()
        return begin
    raise UsageError("trying out tasks needs the server's component: pip install 'covey[server]'")
