"""How long the messages of each rank and codec are, and what they lose: of a real change, before any pilot runs."""

from collections.abc import Callable, Sequence

import numpy as np

from covey_edge import local
from covey_edge.device import Device
from covey_edge.encoding import encoded
from covey_edge.local import Progress
from covey_edge.parts import PartTrainer
from covey_edge.plan import Train, Wishes
from covey_edge.planner.pilot import NO_OWN, Stage, cohort
from covey_edge.planner.sizes import Message
from covey_edge.planner.space import DOWN, RATES, UP, Choice, text
from covey_shared.layout import Vector
from covey_shared.simulation import Simulated

WAYS = (("up", UP), ("down", DOWN))
RATE = RATES[len(RATES) // 2]


def measure(
    stage: Stage, ranks: Sequence[int], tell: Callable[[int, int], None]
) -> dict[tuple[int, str, str], Message]:  # fmt: skip
    """Each codec of both ways at each rank, on what devices change in a first round; `tell(done, total)`."""
    out: dict[tuple[int, str, str], Message] = {}
    for rank in ranks:
        made = Made(stage, rank)
        for way, words in WAYS:
            for word in words:
                out[rank, way, word] = made.sent(word) if way == "up" else made.published(word)
                tell(len(out), len(ranks) * (len(UP) + len(DOWN)))
    return out


class Made:
    """What the devices of a first round changed at one rank: each one's change, and all together."""

    def __init__(self, stage: Stage, rank: int):
        self._stage, self._rank = stage, rank
        server = self._begun("exact", "exact")
        self._names = cohort(stage, 1)
        self._rounds = [_trained(stage, server, name) for name in self._names]
        self._bodies = [self._upload(server, i) for i in range(len(self._names))]
        self._origin = server.model()[0]
        server.close_round(self._bodies)
        self._together = server.model()[0]
        alone = self._begun("exact", "exact")
        alone.close_round(self._bodies[:1])
        self._first = alone.model()[0]

    def sent(self, word: str) -> Message:
        """The first device's upload."""
        server = self._begun(word, "exact")
        body = self._upload(server, 0)
        server.close_round([body])
        return Message(len(body), _lost(self._origin, self._first, server.model()[0]))

    def published(self, word: str) -> Message:
        """The download of what all of them changed."""
        server = self._begun("exact", word)
        server.close_round(self._bodies)
        return Message(len(server.adapter(0)), _lost(self._origin, self._together, server.model()[0]))

    def _begun(self, up: str, down: str) -> Simulated:
        choice = Choice(self._rank, up, down, "version", RATE)
        return self._stage.begin(text(choice, self._stage.scene), self._stage.bundle, b"")

    def _upload(self, server: Simulated, device: int) -> bytes:
        name, (last, before) = self._names[device], self._rounds[device]
        update, _ = encoded(_device(self._stage, server, name), name, Train(1, 0, 0, 0.0), last, before, b"")
        return update.body


def _device(stage: Stage, server: Simulated, name: str) -> Device:
    return Device(server.task, stage.bundle, stage.devices[name], stage.trainer, "pilot", Wishes(), stage.eval_batches)


def _trained(stage: Stage, server: Simulated, name: str) -> tuple[Progress, Vector]:
    """One device's first round, and what it started from."""
    device = _device(stage, server, name)
    whole, trainer = device.model(device.start(), NO_OWN, 1)
    part = PartTrainer(trainer, whole, device.share.trained(1))
    before, config = whole[part.where], device.task.local
    size = stage.bundle.manifest.batch_size
    *_, last = local.train(part, device.parts.train, size, config, stage.scene.seed, local.begin(before, config))
    return last, before


def _lost(origin: Vector, target: Vector, came: Vector) -> float:
    """The share of the change's norm that did not arrive."""
    return float(np.linalg.norm(target - came) / (np.linalg.norm(target - origin) or 1.0))
