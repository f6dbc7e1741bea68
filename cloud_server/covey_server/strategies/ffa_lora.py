"""FFA-LoRA (Sun, Li, Li, Ding 2024, arXiv 2403.12313): A keeps its random start, only B is trained and averaged.

With one A for all, the mean of the products B_k A is exactly the product of the mean B: nothing is lost in averaging,
and what travels is linear in what is trained, which is what noise and secure sums want. A comes from the task's seed,
so it is never sent and the traffic is about half. The price is capacity: the weight can only change in the directions
that the random A has, so a larger rank or rate may be needed.
"""

from covey_server.strategies.base import Strategy, add_weighted, empty, mean
from covey_shared.messages import Sharing


def ffa_lora() -> Strategy:
    """The weighted mean of B; heads and norms are trained and averaged as ever."""
    return Strategy("ffa-lora", empty, add_weighted, mean, weigh=float, sharing=Sharing(fixed=("kind:lora_A",)))
