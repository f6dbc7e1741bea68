"""Aggregation strategies, one a file. A new one is a file, a line here and its arguments in `task_sections`."""

from collections.abc import Callable, Mapping

from covey_server.strategies.base import Strategy, Sum
from covey_server.strategies.cohorts import cohorts
from covey_server.strategies.fdlora import fdlora
from covey_server.strategies.fedavg import fedavg
from covey_server.strategies.fedex import fedex
from covey_server.strategies.ffa_lora import ffa_lora
from covey_server.strategies.flasc import flasc
from covey_server.strategies.flora import flora
from covey_server.strategies.florist import florist
from covey_server.strategies.hetlora import hetlora
from covey_server.strategies.lora_fair import lora_fair
from covey_server.strategies.rbla import rbla
from covey_server.strategies.robust import krum, median, trimmed_mean
from covey_server.strategies.rolora import rolora
from covey_server.strategies.space import Space
from covey_shared.layout import Layout, Tensor
from covey_shared.schema import Scalar

__all__ = ["Space", "Strategy", "Sum", "fedavg", "flasc", "krum", "make_strategy", "median", "trimmed_mean"]


MAKERS: dict[str, Callable[[Mapping[str, Scalar], Space], Strategy]] = {
    "fedavg": lambda args, space: fedavg(),
    "flasc": lambda args, space: flasc(str(args["mode"])),
    "trimmed-mean": lambda args, space: trimmed_mean(float(args["attackers"])),
    "median": lambda args, space: median(float(args["attackers"])),
    "krum": lambda args, space: krum(float(args["attackers"])),
    "fdlora": lambda args, space: fdlora(str(args["fusion"]), int(args["sync_every"])),
    "cohorts": lambda args, space: cohorts(int(args["count"]), str(args["tensors"])),
    "ffa-lora": lambda args, space: ffa_lora(),
    "rolora": lambda args, space: rolora(),
    "flora": lambda args, space: flora(space, float(args["energy"])),
    "florist": lambda args, space: florist(space.alone, float(args["energy"])),
    "fedex": lambda args, space: fedex(space),
    "lora-fair": lambda args, space: lora_fair(space.alone, float(args["ridge"])),
    "hetlora": lambda args, space: hetlora(space.alone),
    "rbla": lambda args, space: rbla(space.alone),
}
_NO_LORA = Space(Layout((Tensor(name="any", shape=(1,), kind="block", init="zeros"),)))


def make_strategy(name: str, args: Mapping[str, Scalar], space: Space = _NO_LORA) -> Strategy:
    """The strategy that a task names. `space` is for those that know of LoRA; raises TaskFileError for a wrong one."""
    return MAKERS[name](args, space)
