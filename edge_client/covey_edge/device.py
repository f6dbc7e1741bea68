"""What does not change while a device takes part in a task: its data, its runtime, and its share of the adapter."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from covey_edge.data import Dataset
from covey_edge.parts import Share, share
from covey_edge.plan import Wishes
from covey_edge.trainers import GraphTrainer, Trainer
from covey_shared.bundle import Bundle
from covey_shared.codec import Codec, codec_from_spec, error_feedback
from covey_shared.layout import Layout, Vector
from covey_shared.messages import Task

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


def task_name(task: Task) -> str:
    """What a state folder belongs to: the same name over another model or seed is another task."""
    return f"{task.name}/{hashlib.sha256(f'{task.bundle}{task.layout}{task.seed}'.encode()).hexdigest()[:16]}"
