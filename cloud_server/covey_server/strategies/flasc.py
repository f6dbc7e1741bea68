"""FLASC: Federated LoRA with Sparse Communication (Kuo et al. 2024, arXiv 2406.05233).

Devices train densely; what travels is a global top-k, of the weights down and of the change up, the two chosen
independently. The mean is over all devices of the round and unweighted: an entry that one of ten devices sent is
divided by ten. The server's AdamW then steps on it, and the server's own weights stay dense for ever.

`paper` is the algorithm of the authors' code. A download is the largest weights by magnitude and zeros elsewhere, so
that for the first rounds, while lora_B is small, it is nearly all random lora_A.
`covey` sends differences instead: lora_A's start comes from the seed on both sides, a download is the top-k of what
devices do not have yet, and what was left out stays to be sent later.

The densities are codec stages (`topk`), set from the task; nothing here knows about them.
"""

from covey_server.strategies.base import Strategy, add_weighted, empty, mean


def flasc(mode: str) -> Strategy:
    """The strategy in one of its modes, `paper` or `covey`."""
    return Strategy("flasc", empty, add_weighted, mean, absolute=mode == "paper")
