"""Aggregation strategies, one a file. A new one is a file, a line here and its arguments in `task_file`."""

from collections.abc import Callable, Mapping

from covey_server.strategies.base import Strategy, Sum
from covey_server.strategies.fedavg import fedavg
from covey_server.strategies.flasc import flasc
from covey_shared.messages import Scalar

__all__ = ["Strategy", "Sum", "fedavg", "flasc", "make_strategy"]


MAKERS: dict[str, Callable[[Mapping[str, Scalar]], Strategy]] = {
    "fedavg": lambda args: fedavg(),
    "flasc": lambda args: flasc(str(args["mode"])),
}


def make_strategy(name: str, args: Mapping[str, Scalar]) -> Strategy:
    """The strategy that a task names."""
    return MAKERS[name](args)
