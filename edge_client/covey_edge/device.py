"""What does not change while a device takes part in a task: its data, its runtime, and its share of the adapter."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from covey_edge import fusion
from covey_edge.data import Dataset, evaluation_batches, split
from covey_edge.fusion import Fusion
from covey_edge.parts import Share, share
from covey_edge.plan import Wishes
from covey_edge.trainers import GraphTrainer, Trainer
from covey_shared.bundle import Bundle
from covey_shared.codec import Codec, codec_from_spec, error_feedback
from covey_shared.layout import Layout, Vector
from covey_shared.messages import Task

SEARCHED = 0.1  # of the training examples are kept back where two adapters are fused
SEARCH_BATCHES = 4  # of an evaluation of a pair of weights
CHECKPOINT_S = 2.0  # between two saves of a round in progress: what a kill costs at most


@dataclass(frozen=True)
class Device:
    """What does not change while a device takes part in a task."""

    task: Task
    bundle: Bundle
    dataset: Dataset
    trainer: Trainer
    runtime: str
    wishes: Wishes
    eval_batches: int
    checkpoint_s: float = CHECKPOINT_S
    rank: int = 0  # of LoRA; 0 is the largest that the task allows

    @cached_property
    def share(self) -> Share:
        """What of the adapter this device holds, trains, sends and keeps; raises BundleError where it cannot."""
        return share(self.bundle, self.task.sharing, self.task.seed, self.rank)

    @cached_property
    def parts(self) -> Dataset:
        """What to train on, and what to search fusion weights on: a tenth of the training examples, if it is needed."""
        if not self.task.sharing.fusion:
            return Dataset(self.dataset.train, self.dataset.train)
        return split(self.dataset.train, SEARCHED, "training examples")

    def start(self) -> Vector:
        """Version 0, from the task's seed."""
        return self.share.start()

    def uploaded(self, round_: int) -> Layout:
        """What is sent of a round's change."""
        return self.share.division.uploaded(round_, self.share.rank)

    def codec(self, round_: int) -> Codec:
        """The codec of a round's upload."""
        plain = codec_from_spec(self.task.upload_codec, self.uploaded(round_))
        return error_feedback(plain) if self.task.local.error_feedback else plain

    def codec_name(self, round_: int) -> str:
        """What a saved codec state must be of to be used again."""
        spec = [s.to_bytes() for s in self.task.upload_codec]
        about = (spec, self.task.local.error_feedback, self.uploaded(round_).digest)
        return hashlib.sha256(repr(about).encode()).hexdigest()

    def model(self, published: Vector, own: Vector, round_: int = 0, cohort: int = 0) -> tuple[Vector, Trainer]:
        """A published version with personal tensors in it: the whole adapter, and the trainer that it goes into."""
        adapter, second = self.share.whole(published, own, round_, cohort)
        if second is None:
            return adapter, self.trainer
        assert isinstance(self.trainer, GraphTrainer)  # only a bundle's graphs take a second adapter
        return adapter, self.trainer.with_frozen(second)

    def fused(self, shared: Vector, own: Vector) -> tuple[Vector, Trainer, Fusion]:
        """The shared adapter and this device's own as one, by the weights that lose least on the searched examples."""
        batches = list(evaluation_batches(self.parts.heldout, self.bundle.manifest.batch_size, SEARCH_BATCHES))
        shared, _ = self.share.whole(shared, np.empty(0, np.float32))

        def mixed(w1: float, w2: float) -> tuple[Vector, Trainer]:
            second = self.bundle.manifest.frozen
            if self.task.sharing.fusion == "factorwise" or second is None:
                return fusion.factorwise(shared, own, w1, w2), self.trainer
            adapter, beside = fusion.concatenated(self.bundle.manifest.layout, second, shared, own, w1, w2)
            assert isinstance(self.trainer, GraphTrainer)
            return adapter, self.trainer.with_frozen(beside)

        def loss(w1: float, w2: float) -> float:
            adapter, trainer = mixed(w1, w2)
            scores = [trainer.evaluate(adapter, batch) for batch in batches]
            return sum(s.loss_sum for s in scores) / sum(s.tokens for s in scores)

        found = fusion.search(loss)
        return (*mixed(found.shared, found.personal), found)


def task_name(task: Task) -> str:
    """What a state folder belongs to: the same name over another model or seed is another task."""
    return f"{task.name}/{hashlib.sha256(f'{task.bundle}{task.layout}{task.seed}'.encode()).hexdigest()[:16]}"
