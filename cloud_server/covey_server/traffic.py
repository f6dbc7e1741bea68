"""Counting bodies: bytes received and sent, by device and route, as they were on the wire without headers."""

from collections import Counter

from covey_server.store import TrafficRow

UNNAMED = ""  # the device of a request that does not name one


class Traffic:
    """Counters since the last `take`."""

    def __init__(self) -> None:
        self._up: Counter[tuple[str, str]] = Counter()
        self._down: Counter[tuple[str, str]] = Counter()

    def add(self, client: str, route: str, up: int = 0, down: int = 0) -> None:
        """Count a request's body, an answer's, or both."""
        self._up[client, route] += up
        self._down[client, route] += down

    def rows(self) -> list[TrafficRow]:
        """What has been counted since the last `take`, sorted."""
        keys = sorted(self._up.keys() | self._down.keys())
        return [TrafficRow(client, route, self._up[client, route], self._down[client, route]) for client, route in keys]

    def take(self) -> list[TrafficRow]:
        """What has been counted; the counters begin at zero again."""
        rows = self.rows()
        self._up.clear()
        self._down.clear()
        return rows

    def put_back(self, rows: list[TrafficRow]) -> None:
        """Undo a `take` whose rows could not be saved."""
        for row in rows:
            self.add(*row)


def merged(saved: list[TrafficRow], fresh: list[TrafficRow]) -> list[TrafficRow]:
    """The counters on disk and those in memory, added up."""
    total = Traffic()
    total.put_back([*saved, *fresh])
    return total.rows()
