"""What the model engineer asks for: one frozen value, checked before anything heavy is imported."""

from dataclasses import dataclass
from difflib import get_close_matches

from covey_shared.errors import UsageError
from covey_shared.manifest import PRECISIONS, TARGETS, TASKS

ALL_LINEAR, ALL_CONV, NO_LORA = "all-linear", "all-conv", "none"
NORMS = "norms"
GROUPS = (32, 64, 128)
CLASSIFICATION = ("sequence-classification", "image-classification")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One export.

    `model` is a Hugging Face folder or hub id, or a network of ours (`covey:resnet8`), and `model_id` the name that the
    bundle and its adapters carry (empty: the hub id, or the folder's name).

    What trains: LoRA of `rank`, or of the largest of `ranks`, on `target_modules`; `rank_of` gives some modules another
    rank. `alpha` 0 stands for twice the rank; alpha / rank is the scale of every module, whatever its rank.
    `train_full` names modules that train whole. With `blocks`, whole blocks train in place of LoRA. `frozen_rank`
    gives the graphs a second adapter of that rank, added and not trained.

    `base` is how the frozen weights are held, with one scale for `group` inputs each (0: a row for int8, 32 for int4);
    `sample` is a text file on which the loss of rounding is measured. With `recompute`, each block's activations are
    computed again for its gradient and not kept.

    `batch_size` and `seq_len` are fixed in the graphs, and so is `image`, (channels, height, width). `num_labels` or
    `labels` make a new head, whose weights come from `seed`.
    """

    model: str
    model_id: str = ""
    task: str = "causal-lm"
    rank: int = 8
    ranks: tuple[int, ...] = ()
    alpha: float = 0.0
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    rank_of: tuple[tuple[str, int], ...] = ()
    train_full: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    frozen_rank: int = 0
    targets: tuple[str, ...] = TARGETS
    batch_size: int = 4
    seq_len: int = 64
    num_labels: int = 0
    labels: tuple[str, ...] = ()
    image: tuple[int, int, int] | None = None
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    seed: int = 0
    base: str = "float32"
    group: int = 0
    sample: str = ""
    recompute: bool = False

    def __post_init__(self) -> None:
        _known("task", self.task, TASKS)
        for target in self.targets:
            _known("target", target, TARGETS)
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise UsageError(f"--targets needs one or more of {', '.join(TARGETS)}, each once")
        if self.batch_size < 1 or self.seq_len < 2:
            raise UsageError(
                f"--batch is {self.batch_size} and --seq-len is {self.seq_len}; they must be at least 1 and 2"
            )
        self._check_training()
        self._check_labels()
        self._check_image()
        self._check_base()

    def _check_training(self) -> None:
        if not self.target_modules:
            raise UsageError(f"--target-modules needs names of modules, {ALL_LINEAR}, {ALL_CONV} or {NO_LORA}")
        for option, rank in (("--rank", self.rank), *(("--ranks", r) for r in self.ranks), *self.rank_of):
            if rank < 1:
                what = option if option.startswith("--") else f"--rank-of {option}"
                raise UsageError(f"{what} is {rank}; it must be at least 1")
        if not 0 <= self.alpha < float("inf"):
            raise UsageError(f"--alpha is {self.alpha}; it must be a positive number")
        high = [name for name, rank in self.rank_of if rank > self.largest_rank]
        if len(self.ranks) > 1 and high:
            raise UsageError(f"--rank-of {high[0]} is more than the largest of --ranks, which no device trains beyond")
        if self.frozen_rank < 0:
            raise UsageError(f"--frozen-rank is {self.frozen_rank}; it must be at least 1")
        if self.blocks and self.target_modules not in ((ALL_LINEAR,), (NO_LORA,)):
            raise UsageError("--block trains whole blocks and no LoRA; leave out --target-modules")
        if not self.has_lora and (self.frozen_rank or self.rank_of or self.ranks):
            raise UsageError("--ranks, --rank-of and --frozen-rank are about LoRA, of which this export has none")

    def _check_labels(self) -> None:
        if (self.num_labels or self.labels) and self.task not in CLASSIFICATION:
            raise UsageError(f"--num-labels and --labels are for --task {CLASSIFICATION[0]} or {CLASSIFICATION[1]}; "
                             f"the task is {self.task}")  # fmt: skip
        if self.num_labels < 0 or self.num_labels == 1:
            raise UsageError(f"--num-labels is {self.num_labels}; a classifier needs at least 2")
        if self.labels and (len({*self.labels}) != len(self.labels) or len(self.labels) < 2):
            raise UsageError("--labels needs two or more names, each once")
        if self.labels and self.num_labels not in (0, len(self.labels)):
            raise UsageError(f"--num-labels is {self.num_labels}, but --labels has {len(self.labels)} names")

    def _check_image(self) -> None:
        if self.task != "image-classification":
            if self.image or self.image_mean or self.image_std:
                raise UsageError(f"--image options are for --task image-classification; the task is {self.task}")
            return
        if self.image and (self.image[0] not in (1, 3) or min(self.image) < 1):
            raise UsageError(f"--image is {'x'.join(map(str, self.image))}; it must be 1 or 3 x height x width")

    def _check_base(self) -> None:
        _known("base", self.base, PRECISIONS)
        if self.group and (self.base == "float32" or self.group not in GROUPS):
            raise UsageError(
                f"--group is {self.group} with --base {self.base}; "
                f"it is {', '.join(map(str, GROUPS))} with int8 or int4"
            )
        if self.sample and (self.base == "float32" or self.task != "causal-lm"):
            raise UsageError("--sample is text for --base int8 or int4 of a causal-lm, whose loss it measures")

    @property
    def bits(self) -> int:
        """Bits of a frozen weight, 32 where it is not rounded."""
        return {"float32": 32, "int8": 8, "int4": 4}[self.base]

    @property
    def has_lora(self) -> bool:
        """Whether anything trains as LoRA."""
        return not self.blocks and self.target_modules != (NO_LORA,)

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """The ranks of the bundle, ascending; none without LoRA."""
        return tuple(sorted({*(self.ranks or (self.rank,))})) if self.has_lora else ()

    @property
    def largest_rank(self) -> int:
        """The rank of the graph."""
        return max(self.ranks, default=self.rank)

    @property
    def scaled_alpha(self) -> float:
        """LoRA's alpha at the largest rank: the product B A is scaled by alpha / rank."""
        return self.alpha or 2.0 * self.largest_rank

    @property
    def scale(self) -> float:
        """alpha / rank, for every module and at every rank."""
        return self.scaled_alpha / self.largest_rank

    @property
    def label_count(self) -> int:
        """Classes of a new head; 0 = what the checkpoint has."""
        return len(self.labels) or self.num_labels


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        near = get_close_matches(name, names, 1, 0.3)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
        raise UsageError(f"{name!r} is no {what} that covey exports; {hint}")
