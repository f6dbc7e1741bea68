"""Aggregation strategies, one a file. A new one is a file, a line here and its arguments in `task_file`."""

from collections.abc import Callable, Mapping

from covey_server.strategies.base import Strategy, Sum
from covey_server.strategies.fedavg import fedavg
from covey_server.strategies.flasc import flasc
from covey_server.strategies.robust import krum, median, trimmed_mean
from covey_shared.messages import Scalar

__all__ = ["Strategy", "Sum", "fedavg", "flasc", "krum", "make_strategy", "median", "trimmed_mean"]


MAKERS: dict[str, Callable[[Mapping[str, Scalar]], Strategy]] = {
    "fedavg": lambda args: fedavg(),
    "flasc": lambda args: flasc(str(args["mode"])),
    "trimmed-mean": lambda args: trimmed_mean(float(args["attackers"])),
    "median": lambda args: median(float(args["attackers"])),
    "krum": lambda args: krum(float(args["attackers"])),
}


def make_strategy(name: str, args: Mapping[str, Scalar]) -> Strategy:
    """The strategy that a task names."""
    return MAKERS[name](args)
