"""The task file: TOML in, one frozen dataclass out. Every default stands here, with its reason, and nowhere else.

A key that does not exist is refused with the nearest one that does, a value of the wrong type with the type that was
expected. Pure but for `read`. What this does not know: bundles, so a codec is checked against a layout elsewhere.
"""

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from covey_server.policies import POLICIES
from covey_server.toml_checks import Defaults, Table, in_range, known, like, named, one_of, positive, typed
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
    "sign": {},
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


SECTIONS = ("task", "round", "strategy", "server", "upload", "download", "client", "defence", "personal")


def read(path: Path) -> TaskFile:
    """The task in a file; the bundle's path comes out absolute."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise TaskFileError(f"there is no task file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"the task file {path} cannot be read: {error}") from None
    try:
        parsed = parse(text)
    except TaskFileError as error:
        raise TaskFileError(f"{path}: {error}") from None
    bundle = str((path.parent / parsed.task.bundle).resolve())
    return dataclasses.replace(parsed, task=dataclasses.replace(parsed.task, bundle=bundle))


def parse(text: str) -> TaskFile:
    """The task in a TOML text."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a whole number of thousands of digits is a plain ValueError
        raise TaskFileError(f"not valid TOML: {error}") from None
    known("the task file", data, (*SECTIONS, "tier"), "section")
    tables = {name: _table(name, data.get(name, {})) for name in SECTIONS}
    _check_mode(tables["round"])
    strategy = _named_choice("strategy", tables["strategy"], "name", "fedavg", STRATEGIES)
    _check_whole_rounds(strategy, tables)
    _check_strategy(strategy, tables["upload"])
    return TaskFile(
        task=_section(TaskSection, "task", tables["task"]),
        round=_section(RoundSection, "round", tables["round"]),
        strategy=strategy,
        server=_server(tables["server"], strategy),
        upload=_codec("upload", tables["upload"], strategy, "density_up", "sign"),
        download=_codec("download", _but(tables["download"], "since"), strategy, "density_down", "levels"),
        client=_client(tables["client"], strategy),
        defence=_section(DefenceSection, "defence", tables["defence"]),
        personal=_section(PersonalSection, "personal", tables["personal"]),
        tiers=_tiers(data.get("tier", []), strategy),
        since=_since(tables["download"], strategy),
    )


def _check_mode(table: Table) -> None:
    """Refuses a key of the other mode: it would silently do nothing."""
    mode = table.get("mode", "sync")
    for other, keys in (("sync", SYNC_KEYS), ("async", ASYNC_KEYS)):
        found = [key for key in keys if key in table]
        if mode in MODES and mode != other and found:
            raise TaskFileError(f"[round] {found[0]} belongs to mode = {other!r}, this task has {mode!r}; remove it")


def _check_whole_rounds(strategy: Named, tables: dict[str, Table]) -> None:
    """Refuses what strategies of whole factors cannot be combined with."""
    if strategy.name not in WHOLE_ROUNDS:
        return
    if tables["round"].get("mode") == "async":
        raise TaskFileError(
            f"strategy {strategy.name!r} needs all updates of a version to start from the same one; use [round] mode "
            "'sync', or strategy 'fedavg' or 'ffa-lora'"
        )
    server = tables["server"]
    if strategy.name != "rolora" and (server.get("optimizer", "sgd") != "sgd" or server.get("learning_rate", 1.0) != 1):
        raise TaskFileError(
            f"strategy {strategy.name!r} says itself what the next adapter is; remove [server], or use 'fedavg'"
        )


def _tiers(tables: Any, strategy: Named) -> tuple[Tier, ...]:
    """The [[tier]] tables, each a codec as [upload] has it and a name."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise TaskFileError("tiers are written [[tier]], each with a name and a codec")
    if len(tables) > MAX_TIERS:
        raise TaskFileError(f"the task has {len(tables)} tiers, at most {MAX_TIERS} are possible")
    tiers = tuple(_tier(table, strategy) for table in tables)
    names = [tier.name for tier in tiers]
    if len(set(names)) != len(names):
        raise TaskFileError(f"two tiers are called {next(n for n in names if names.count(n) > 1)!r}")
    return tiers


def _tier(table: Table, strategy: Named) -> Tier:
    name = table.get("name")
    if not isinstance(name, str) or "codec" not in table:
        raise TaskFileError("[[tier]] needs a name and a codec")
    where, codec = f"tier {named('[[tier]] name', name)}", _but(table, "name")
    _check_compared(strategy, f"[{where}]", codec)
    return Tier(name=name, codec=_codec_table(where, codec, "sign"))


def _since(table: Table, strategy: Named) -> str:
    """What stands in [download] beside its codec."""
    since = typed("[download] since", table.get("since", "version"), str)
    one_of("[download] since", since, SINCE)
    if since != "version" and is_paper(strategy):
        raise TaskFileError("[download] since means nothing with FLASC's paper mode, which sends weights; remove it")
    if since == "start" and any(name in ("segments", "segment", "adaptive") for name in _codec_names(table)):
        raise TaskFileError(
            "[download] since = 'start' sends each version whole, and this codec sends a segment of it; use 'levels', "
            "or since = 'version'"
        )
    return since


def _but(table: Table, key: str) -> Table:
    return {k: v for k, v in table.items() if k != key}


def _codec_names(table: Table) -> list[Any]:
    """The preset, or the stages, that a section names."""
    stages = table.get("codec")
    return [s.get("name") for s in stages if isinstance(s, dict)] if isinstance(stages, list) else [stages]


def is_paper(strategy: Named) -> bool:
    """FLASC exactly as its paper has it."""
    return strategy.name == "flasc" and strategy.args["mode"] == "paper"


def _server(table: Table, strategy: Named) -> Named:
    default = STRATEGY_SERVER.get(strategy.name, "sgd")
    choice = _named_choice("server", table, "optimizer", default, OPTIMIZERS)
    for key, value in choice.args.items():
        if key in ("learning_rate", "eps"):
            positive(f"[server] {key}", float(value))
        else:
            in_range(f"[server] {key}", float(value), 0.0, 1 - 1e-9)
    return choice


def _client(table: Table, strategy: Named) -> ClientSection:
    client = _section(ClientSection, "client", {**(FLASC_PAPER_CLIENT if is_paper(strategy) else {}), **table})
    client.config()
    if is_paper(strategy) and client.error_feedback:
        raise TaskFileError("[client] error_feedback must be false with FLASC's paper mode, whose devices keep nothing")
    return client


def _check_strategy(strategy: Named, upload: Table) -> None:
    if "attackers" in strategy.args:
        in_range("[strategy] attackers", float(strategy.args["attackers"]), 0.0, 0.499)
    _check_compared(strategy, "[upload]", upload)
    if strategy.name == "cohorts":
        in_range("[strategy] count", int(strategy.args["count"]), 1, 64)
        in_range("[strategy] every", int(strategy.args["every"]), 1, 1_000_000)
        in_range("[strategy] margin", float(strategy.args["margin"]), 0.0, 2.0)
        in_range("[strategy] smallest", int(strategy.args["smallest"]), 1, 1_000_000)
    if strategy.name == "fdlora":
        one_of("[strategy] fusion", str(strategy.args["fusion"]), FUSIONS)
        in_range("[strategy] sync_every", int(strategy.args["sync_every"]), 1, 1_000_000)
    if strategy.name == "flasc":
        one_of("[strategy] mode", str(strategy.args["mode"]), FLASC_MODES)
        for key in ("density_up", "density_down"):
            value = float(strategy.args[key])
            if not 0 < value <= 1:
                raise TaskFileError(f"[strategy] {key} must be above 0 and at most 1, got {value}")


def _check_compared(strategy: Named, where: str, table: Table) -> None:
    """Refuses a sparse codec where updates are compared."""
    sparse = next((name for name in _codec_names(table) if name in SPARSE), None)
    if strategy.name in WHOLE_UPDATES and sparse:
        raise TaskFileError(
            f"strategy {strategy.name!r} compares updates coordinate by coordinate, and {where} codec {sparse!r} lets "
            "each device send others; use 'sign', 'levels' or 'dense', or strategy 'trimmed-mean'"
        )


def _codec(section: str, table: Table, strategy: Named, density: str, default: str) -> Codec:
    """One of [upload] and [download]."""
    if strategy.name == "flasc":
        if table:
            raise TaskFileError(
                f"[{section}] cannot stand beside strategy 'flasc', whose {density} sets the codec; remove [{section}] "
                "or use strategy 'fedavg'"
            )
        return _flasc_codec(strategy, float(strategy.args[density]))
    return _codec_table(section, table, default)


def _codec_table(section: str, table: Table, default: str) -> Codec:
    """A preset by name with its arguments, or a list of stages."""
    codec = table.get("codec", default)
    if isinstance(codec, list):
        known(f"[{section}]", table, ("codec",))
        return tuple(_stage(f"[{section}] codec, stage {i + 1}", stage) for i, stage in enumerate(codec))
    return _named_choice(section, table, "codec", default, PRESETS)


def _flasc_codec(strategy: Named, density: float) -> Codec:
    """Top-k and exact values as the paper sends them, or, in covey mode, values to a tenth of their norm."""
    values: dict[str, Scalar] = {"values": "f32"} if is_paper(strategy) else {"values": "auto", "error": 0.1}
    stages = [] if density == 1 else [Named(name="topk", args={"density": density})]
    return (*stages, Named(name="pack", args=values))


def _stage(where: str, table: Any) -> Named:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise TaskFileError(f"{where} must be a table with a name, such as {{name = 'topk', density = 0.1}}")
    args = {key: value for key, value in table.items() if key != "name"}
    for key, value in args.items():
        if not isinstance(value, bool | int | float | str):
            raise TaskFileError(f"{where}: {key} must be a number, a text or true/false, got {value!r}")
    return Named(name=named(where, table["name"]), args=args)


def _named_choice(section: str, table: Table, key: str, default: str, choices: Defaults) -> Named:
    """A table whose `key` names one of `choices` and whose other keys are that choice's arguments."""
    name = typed(f"[{section}] {key}", table.get(key, default), str)
    one_of(f"[{section}] {key}", name, choices)
    defaults = choices[name]
    known(f"[{section}] with {key} = {name!r}", table, (key, *defaults))
    args = {arg: like(f"[{section}] {arg}", table.get(arg, value), value) for arg, value in defaults.items()}
    return Named(name=name, args=args)


S = TypeVar("S")


def _section(cls: type[S], name: str, table: Table) -> S:
    """A dataclass of scalars from a table, each value of its field's type."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    known(f"[{name}]", table, fields)
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in table:
            raise TaskFileError(f"[{name}] lacks {field.name}")
    kinds = {key: field.type if isinstance(field.type, type) else str for key, field in fields.items()}
    return cls(**{key: typed(f"[{name}] {key}", value, kinds[key]) for key, value in table.items()})


def _table(name: str, value: Any) -> Table:
    if not isinstance(value, dict):
        raise TaskFileError(f"{name} must be a section, written [{name}], got {value!r}")
    return value


# Keys whose change does not contradict what a run has on disk: they say how the next rounds are run.
HARMLESS = ("task.bundle", "task.publish_every", "task.keep_updates")
CHOICES = ("strategy", "server", "upload", "download")  # sections whose keys depend on a name in them
HARMLESS_SECTIONS = ("round", "defence")  # but for the round's mode: assignments are numbered otherwise


def changed_key(stored: str, now: TaskFile, version: int) -> str | None:
    """The first key in which a run's stored task differs from the file in a way that matters, or None.

    `stored` is `to_json` of the run's task, `version` its head. The bundle is compared by digest elsewhere, so it may
    move; `rounds` may grow, or shrink to what is already done. A key that an older covey did not know had its default.
    """
    default = _flat(json.loads(parse('[task]\nbundle = ""').to_json()))
    sections = {key: value for key, value in default.items() if key.split(".")[0] not in CHOICES}
    old, new = {**sections, **_flat(json.loads(stored))}, _flat(json.loads(now.to_json()))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or key in HARMLESS or _harmless(key):
            continue
        if key == "task.rounds" and int(new[key]) >= version:
            continue
        return key
    return None


def _harmless(key: str) -> bool:
    return key.split(".")[0] in HARMLESS_SECTIONS and key != "round.mode"


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; a list counts by position."""
    if isinstance(data, list):
        data = {str(i): value for i, value in enumerate(data)}
    if not isinstance(data, dict):
        return {prefix: data}
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return out
