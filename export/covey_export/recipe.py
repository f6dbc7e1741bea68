"""What the model engineer asks for: one frozen value, checked before anything heavy is imported."""

from dataclasses import dataclass
from difflib import get_close_matches

from covey_shared.errors import UsageError
from covey_shared.manifest import TARGETS, TASKS

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One export.

    `model` is a Hugging Face folder or hub id, and `model_id` the name that the bundle and its adapters carry (empty:
    the hub id, or the folder's name). `alpha` 0 stands for twice the rank. `batch_size` and `seq_len` are fixed in the
    graphs. `seed` makes the new weights of a classification head.
    """

    model: str
    model_id: str = ""
    task: str = "causal-lm"
    rank: int = 8
    alpha: float = 0.0
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    targets: tuple[str, ...] = TARGETS
    batch_size: int = 4
    seq_len: int = 64
    num_labels: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _known("task", self.task, TASKS)
        for target in self.targets:
            _known("target", target, TARGETS)
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise UsageError(f"--targets needs one or more of {', '.join(TARGETS)}, each once")
        if not self.target_modules:
            raise UsageError(f"--target-modules needs names of modules, or {ALL_LINEAR}")
        if self.rank < 1:
            raise UsageError(f"--rank is {self.rank}; it must be at least 1")
        if not 0 <= self.alpha < float("inf"):
            raise UsageError(f"--alpha is {self.alpha}; it must be a positive number")
        if self.batch_size < 1 or self.seq_len < 2:
            raise UsageError(
                f"--batch is {self.batch_size} and --seq-len is {self.seq_len}; they must be at least 1 and 2"
            )
        if self.num_labels and self.task != "sequence-classification":
            raise UsageError(f"--num-labels is for --task sequence-classification; the task is {self.task}")
        if self.num_labels < 0 or self.num_labels == 1:
            raise UsageError(f"--num-labels is {self.num_labels}; a classifier needs at least 2")

    @property
    def scaled_alpha(self) -> float:
        """LoRA's alpha: the product B A is scaled by alpha / rank."""
        return self.alpha or 2.0 * self.rank


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        near = get_close_matches(name, names, 1, 0.3)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
        raise UsageError(f"{name!r} is no {what} that covey exports; {hint}")
