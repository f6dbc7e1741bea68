"""RoLoRA (Chen, Guo, Ju, Dalal, Khisti 2024, arXiv 2409.02346): a round trains B, the next one A, and so on.

While one factor stands still for all devices, the mean of the other is exact, as in FFA-LoRA, and yet both are learned.
Only the half that was trained is sent. B goes first: it starts at zero, and until it has moved A has no gradient.
Heads, norms and other tensors go with B. What error feedback holds back of a half is sent when its turn comes again.
"""

from covey_server.strategies.base import Strategy, add_weighted, empty, mean
from covey_shared.messages import Sharing

TURNS = (("kind:lora_B", "kind:head", "kind:norm", "kind:block"), ("kind:lora_A",))


def rolora() -> Strategy:
    """The weighted mean of the half that a round trains."""
    return Strategy("rolora", empty, add_weighted, mean, weigh=float, sharing=Sharing(phases=TURNS))
