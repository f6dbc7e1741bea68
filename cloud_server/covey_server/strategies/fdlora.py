"""FDLoRA (Qi et al. 2024, arXiv 2406.07925): a shared and a personal adapter on each device, fused where they are used.

Devices train the shared adapter with AdamW; the server takes an outer step with Nesterov momentum on the plain mean of
their changes ([server] optimizer `nesterov`; without momentum it is averaging). Of what a device trained in its first
round, and then in every round that `sync_every` divides, it keeps a copy as its personal adapter, which never leaves
it. To use the model it fuses both by two weights that it searches on examples held back from training.

The paper's algorithm seeds the shared adapter with the mean of the devices' personal ones, which would show these to
the server; here it starts from the seed. Its `t % H` is read as "every H rounds", as its text says.
"""

from covey_server.strategies.base import Strategy, add_weighted, empty, mean
from covey_shared.messages import Sharing


def fdlora(fusion: str, sync_every: int) -> Strategy:
    """`fusion` is `factorwise` or, with a second adapter in the graphs, `concatenated`."""
    return Strategy("fdlora", empty, add_weighted, mean, sharing=Sharing(fusion=fusion, sync_every=sync_every))
