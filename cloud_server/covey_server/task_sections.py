"""The sections of a task file, each a frozen dataclass that checks itself. Every default stands here, with its reason.

Strategies, optimizers and codec presets take arguments by name; their tables of defaults stand here as well, and what
they do is elsewhere.
"""

import dataclasses
import json
import math
from dataclasses import dataclass

from covey_server.policies import POLICIES
from covey_server.toml_checks import in_range, named, one_of
from covey_shared.errors import MessageError, TaskFileError
from covey_shared.messages import LocalConfig
from covey_shared.schema import Scalar

# Arguments of each server optimizer with their defaults. An optimizer takes these and no others.
OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {"learning_rate": 1.0},  # 1 is plain averaging: the new adapter is the old one plus the mean change
    "nesterov": {"learning_rate": 1.0, "momentum": 0.5},  # FDLoRA's outer step, as far as is known
    "momentum": {"learning_rate": 1.0, "momentum": 0.9},  # FedAvgM (Hsu et al. 2019) tried 0.7 to 0.99; 0.9 is usual
    # torch's defaults, which are FLASC's too: its server steps torch.optim.AdamW(lr=1e-3)
    "adamw": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    "adam": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    # FedYogi (Reddi et al. 2021): a larger eps, so that coordinates that hardly moved are not blown up
    "yogi": {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3},
}

# Arguments of each strategy with their defaults.
STRATEGIES: dict[str, dict[str, Scalar]] = {
    "fedavg": {},
    # a quarter of the entries each way is the density of FLASC's own example
    "flasc": {"mode": "covey", "density_up": 0.25, "density_down": 0.25},
    # the share of a round's devices that may be hostile; a tenth is more than enrolled fleets are likely to see
    "trimmed-mean": {"attackers": 0.1},
    "median": {"attackers": 0.1},
    "krum": {"attackers": 0.1},
    "ffa-lora": {},
    "rolora": {},
    "fedex": {},
    # lora_B is what is particular (FedSA-LoRA); a margin of a few hundredths is above the noise of a round's cosines
    "cohorts": {"count": 2, "every": 3, "margin": 0.05, "smallest": 2, "tensors": "kind:lora_B", "pins": ""},
    # H = 5, which implementations of FDLoRA use; the form that every bundle can do
    "fdlora": {"fusion": "factorwise", "sync_every": 5},
    # a ridge of a hundredth, the lambda that LoRA-FAIR's authors found best
    "lora-fair": {"ridge": 0.01},
    # FLoRIST's default share of the squared singular values, for what is sent anew each round; a warm start keeps all
    "flora": {"energy": 0.99},
    "florist": {"energy": 1.0},
    "hetlora": {},
    "rbla": {},
}
# Strategies that reckon with what devices end with: all updates of a version must start from the same one.
WHOLE_ROUNDS = ("rolora", "cohorts", "fedex", "lora-fair", "flora", "florist", "hetlora")
WHOLE_UPDATES = ("krum",)  # strategies that compare updates, which must then have the same coordinates

# Where a strategy's paper fixes what the others leave open.
STRATEGY_SERVER: dict[str, str] = {"flasc": "adamw", "fdlora": "nesterov"}
FLASC_PAPER_CLIENT: dict[str, Scalar] = {
    "optimizer": "sgd",
    "learning_rate": 1e-3,
    "momentum": 0.9,
    "clip_norm": 0.0,
    "error_feedback": False,
}

# Arguments of each codec preset with their defaults; the presets themselves are in covey_shared.codec.
PRESETS: dict[str, dict[str, Scalar]] = {
    "dense": {},
    "sign": {"rows": 0},  # 0: a scale a tensor
    "levels": {"error": 0.1},  # a tenth of the norm: below it training does not notice, above it bytes hardly fall
    "flasc": {"density": 0.25},
    "affine": {"bits": 8},
    "segments": {"count": 16},
    "adaptive": {"density": 1 / 64},  # about a thirtieth of dense signs; error feedback sends the rest in time
    "important": {"density": 0.25},
}

SELECTIONS = ("first-come", "uniform")
MODES = ("sync", "async")
STALENESS = ("polynomial", "constant", "none")
SINCE = ("version", "start")
MAX_TIERS = 64
# Keys of [round] that mean something in one mode only; the others hold in both.
SYNC_KEYS = ("target", "over_selection", "minimum", "selection", "pool_s")
ASYNC_KEYS = ("buffer", "concurrency", "max_staleness", "staleness", "staleness_power", "staleness_factor")
FUSIONS = ("factorwise", "concatenated")
FLASC_MODES = ("paper", "covey")
CLIPS = ("none", "adaptive")
SPARSE = ("topk", "segment", "flasc")  # codec stages and presets by which devices send different coordinates


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSection:
    """[task]. `bundle` is a folder, relative to the task file."""

    bundle: str
    name: str = "covey"
    rounds: int = 20  # enough to see a curve; a finished task goes on when this grows
    seed: int = 0  # gives version 0 of the adapter and every draw
    rank: int = 0  # the largest that devices train, of those that the bundle was exported with; 0: its largest
    publish_every: int = 1  # versions between two published adapters; 0 publishes only the last
    keep_updates: bool = False  # devices' updates are deleted once counted: nobody needs them, and they tell about data

    def __post_init__(self) -> None:
        named("[task] name", self.name)
        in_range("[task] rounds", self.rounds, 1, 1_000_000)
        in_range("[task] seed", self.seed, 0, 2**63 - 1)
        in_range("[task] rank", self.rank, 0, 2**20 - 1)
        in_range("[task] publish_every", self.publish_every, 0, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSection:
    """[round]. Times in seconds."""

    mode: str = "sync"  # `async`: nobody waits for the slowest; see buffers.py
    target: int = 10  # updates that close a round; FLASC and most of its kin use 10
    over_selection: float = 1.0  # devices asked per update wanted; 1.3 is usual for phones, which drop out
    deadline_s: float = 600.0  # from the first assignment of an attempt: ten minutes is a slow phone's round
    minimum: int = 0  # updates that a round needs at its deadline; 0 means half the target
    selection: str = "first-come"  # `uniform` draws from those who ask within `pool_s`: no bias towards fast devices
    pool_s: float = 5.0
    max_norm: float = 1e4  # L2 norm of one change; honest ones stay below 100, and one of 1e30 would end the run
    retry_s: float = 1.0  # how long a waiting device is told to wait; raise it with the number of devices
    buffer: int = 10  # updates of a version; FedBuff finds 10 enough, whatever the number of devices
    concurrency: int = 0  # devices that train at the same time; 0 means any number
    max_staleness: int = 20  # versions; an update that is older says more about the past than about the model
    staleness: str = "polynomial"  # how staler updates weigh less
    staleness_power: float = 0.5  # (1 + staleness)^-power: FedBuff's one over the root
    staleness_factor: float = 0.5  # of `constant`: what every stale update is multiplied with

    def __post_init__(self) -> None:
        in_range("[round] target", self.target, 1, 1_000_000)
        in_range("[round] over_selection", self.over_selection, 1.0, 100.0)
        in_range("[round] deadline_s", self.deadline_s, 0.1, 1e8)
        in_range("[round] pool_s", self.pool_s, 0.0, 1e6)
        in_range("[round] max_norm", self.max_norm, 1e-6, 1e9)
        in_range("[round] retry_s", self.retry_s, 0.05, 86_400.0)
        in_range("[round] buffer", self.buffer, 1, 1_000_000)
        in_range("[round] concurrency", self.concurrency, 0, 10_000_000)
        in_range("[round] max_staleness", self.max_staleness, 0, 1_000_000)
        in_range("[round] staleness_power", self.staleness_power, 0.0, 10.0)
        in_range("[round] staleness_factor", self.staleness_factor, 0.0, 1.0)
        one_of("[round] mode", self.mode, MODES)
        one_of("[round] staleness", self.staleness, STALENESS)
        one_of("[round] selection", self.selection, SELECTIONS)
        if not 0 <= self.minimum <= self.target:
            raise TaskFileError(
                f"[round] minimum must be 0 to target ({self.target}), got {self.minimum}; 0 means half the target"
            )

    @property
    def needed(self) -> int:
        """Updates without which a round is not closed."""
        return self.minimum or math.ceil(self.target / 2)

    @property
    def cohort(self) -> int:
        """Devices that are asked: the target with its reserve."""
        return math.ceil(self.target * self.over_selection - 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenceSection:
    """[defence]: what one device can do to a round. Off by default: a fleet of your own boards needs none."""

    clip: str = "none"  # `adaptive`: no update keeps a larger norm than the quantile of its round's
    quantile: float = 0.5  # the median cannot be moved by fewer than half of the devices
    device_share: float = 1.0  # the most that one device weighs in a round; it states its own number of examples
    issuer_share: float = 1.0  # the most that all devices weigh that enrolled with codes of one label

    def __post_init__(self) -> None:
        one_of("[defence] clip", self.clip, CLIPS)
        in_range("[defence] quantile", self.quantile, 0.0, 1.0)
        in_range("[defence] device_share", self.device_share, 1e-6, 1.0)
        in_range("[defence] issuer_share", self.issuer_share, 1e-6, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalSection:
    """[personal]: what of the adapter each device keeps to itself."""

    policy: str = "none"
    blocks: int = 1  # of last-blocks and lg
    tensors: str = ""  # of policy `tensors`: patterns of names, or kind:K, separated by spaces

    def __post_init__(self) -> None:
        one_of("[personal] policy", self.policy, POLICIES)
        in_range("[personal] blocks", self.blocks, 1, 10_000)
        if (self.policy == "tensors") != bool(self.tensors.split()):
            raise TaskFileError("[personal] policy = 'tensors' and the key tensors, which names them, come together")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSection:
    """[client]: what each device does between download and upload; becomes the LocalConfig that devices receive."""

    optimizer: str = "adamw"  # LoRA trains with Adam-like steps: the two factors have very different scales
    learning_rate: float = 1e-3  # LoRA takes about ten times the rate of full fine-tuning
    steps: int = 10  # batches a round: more drift apart on data that differ, fewer waste the round trip
    momentum: float = 0.9  # of sgd
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0  # a round is a few steps, decay belongs to the server
    clip_norm: float = 1.0  # one strange text must not throw a device's few steps
    error_feedback: bool = True  # what a lossy codec drops is sent later; needs a device that keeps its state

    def config(self) -> LocalConfig:
        """The message form; raises TaskFileError for a value that devices would refuse."""
        try:
            return LocalConfig(**dataclasses.asdict(self))
        except MessageError as error:
            raise TaskFileError(f"[client] {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A choice by name with its own arguments: a strategy, a server optimizer, a codec preset or a codec stage."""

    name: str
    args: dict[str, Scalar]


Codec = tuple[Named, ...] | Named  # the stages of a chain, or one preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """[[tier]]: devices that upload with a codec of their own, as their links allow."""

    name: str
    codec: Codec


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """A whole task, every default filled in."""

    task: TaskSection
    round: RoundSection
    strategy: Named
    server: Named
    upload: Codec
    download: Codec
    client: ClientSection
    defence: DefenceSection = DefenceSection()
    personal: PersonalSection = PersonalSection()
    tiers: tuple[Tier, ...] = ()  # devices differ in what their links carry
    since: str = "version"  # of [download]: what a version is coded from; `start` where a device seldom comes by

    def to_json(self) -> str:
        """The canonical text that is stored with a run."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)
