"""What a plan can choose: a task as a few words, and the task file that each word stands for. Pure.

A `Choice` names its codecs by the words of `CODECS`, so that it can be stored, compared and read. The words cover the
questions that matter: how precise the values are (exact, affine bits, levels, signs) and which entries are sent (all,
top-k, the important ones, one segment, or top-k and segments in turn).
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

# Rates of the devices' AdamW, or of the server's Adam, half a decade apart: LoRA is rarely happy outside of these.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
ALL, TOP, IMPORTANT, SEGMENTS, ADAPTIVE = "all", "top", "important", "segments", "adaptive"


class Codec(NamedTuple):
    """Which entries it sends, what share of them, how precise values are, and the lines of a task file."""

    sends: str
    density: float
    values: str
    lines: str


def _affine(bits: int) -> Codec:
    return Codec(ALL, 1.0, f"{bits} bits", f'codec = "affine"\nbits = {bits}')


def _levels(error: float) -> Codec:
    return Codec(ALL, 1.0, f"levels, error {error}", f'codec = "levels"\nerror = {error}')


def _top(parts: int, values: str) -> Codec:
    stages = {
        "exact": '{name = "pack", values = "f32"}',
        "levels, error 0.1": '{name = "pack", values = "auto", error = 0.1}',
        "signs": '{name = "tensor_scale"}, {name = "pack", values = "sign"}',
    }
    return Codec(TOP, 1 / parts, values, f'codec = [{{name = "topk", density = {1 / parts}}}, {stages[values]}]')


def _preset(sends: str, parts: int, values: str, key: str) -> Codec:
    name = "important" if sends == IMPORTANT else sends
    given = parts if key == "count" else 1 / parts
    return Codec(sends, 1 / parts, values, f'codec = "{name}"\n{key} = {given}')


CODECS: dict[str, Codec] = {
    "exact": Codec(ALL, 1.0, "exact", 'codec = "dense"'),
    "affine 8": _affine(8),
    "affine 4": _affine(4),
    "affine 2": _affine(2),
    "levels 0.1": _levels(0.1),
    "levels 0.2": _levels(0.2),
    "levels 0.3": _levels(0.3),
    "levels 0.5": _levels(0.5),
    "levels 0.7": _levels(0.7),
    "sign": Codec(ALL, 1.0, "signs", 'codec = "sign"'),
    "sign rows": Codec(ALL, 1.0, "signs, long rows with scales of their own", 'codec = "sign"\nrows = 64'),
    **{f"top 1/{n} exact": _top(n, "exact") for n in (4, 16, 64)},
    **{f"top 1/{n} levels": _top(n, "levels, error 0.1") for n in (4, 16, 64)},
    **{f"top 1/{n} sign": _top(n, "signs") for n in (4, 16, 64)},
    **{f"important 1/{n}": _preset(IMPORTANT, n, "levels, error 0.1", "density") for n in (4, 16, 64)},
    **{f"segments {n}": _preset(SEGMENTS, n, "signs", "count") for n in (4, 16, 64)},
    **{f"adaptive 1/{n}": _preset(ADAPTIVE, n, "signs or levels", "density") for n in (16, 64)},
}
# Downloads: every device depends on them, so nothing coarser than signs; what the server drops it carries itself.
DOWN = ("exact", "affine 8", "affine 4", "levels 0.1", "levels 0.2", "levels 0.3", "levels 0.5", "levels 0.7",
        "sign", "top 1/4 levels", "top 1/16 levels")  # fmt: skip
# What a version is coded from. From the start, what a codec drops of one version is not sent later, so it must be fine.
SINCE_START = ("exact", "affine 8", "affine 4", "levels 0.1", "levels 0.2", "levels 0.3")
UP = tuple(CODECS)


class Optimizers(NamedTuple):
    """Lines of [client] and [server]; `{rate}` is the choice's rate."""

    client: str
    server: str
    why: str = "What becomes of the devices' mean change."


ADAMW = 'optimizer = "adamw"\nlearning_rate = {rate}'
# Words for the optimizers: what devices train with, and what becomes of their mean change.
SERVERS: dict[str, Optimizers] = {
    "mean": Optimizers(ADAMW, 'optimizer = "sgd"\nlearning_rate = 1.0'),
    "mean x 2": Optimizers(ADAMW, 'optimizer = "sgd"\nlearning_rate = 2.0'),
    "momentum": Optimizers(ADAMW, 'optimizer = "momentum"\nlearning_rate = 0.3\nmomentum = 0.9'),
    "adam": Optimizers(ADAMW, 'optimizer = "adam"\nlearning_rate = {rate}'),
    "adam of sgd": Optimizers(
        'optimizer = "sgd"\nlearning_rate = 0.1\nmomentum = 0.9', 'optimizer = "adam"\nlearning_rate = {rate}',
        "SGD on devices and Adam on the server: worth a try where devices differ much, with few classes each.",
    ),
}  # fmt: skip
# What the search begins with: the servers that rates are compared for, each with its rates.
PROBED: dict[str, tuple[float, ...]] = {"mean": RATES, "adam of sgd": (1e-3, 3e-3, 1e-2)}


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """One task that can be tried. `rank` 0: the bundle trains no LoRA."""

    rank: int
    up: str
    down: str
    since: str
    rate: float
    server: str = "mean"

    @property
    def sends(self) -> str:
        """Which entries an upload has."""
        return CODECS[self.up].sends

    @property
    def words(self) -> str:
        """One line for people."""
        rank = f"rank {self.rank}, " if self.rank else ""
        since = ", from the start" if self.since == "start" else ""
        server = "" if self.server == "mean" else f", server {self.server}"
        return f"{rank}up {self.up}, down {self.down}{since}, rate {self.rate:g}{server}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


class Scene(NamedTuple):
    """What all pilots of a plan share: local steps, devices of a round, the seed."""

    steps: int
    cohort: int
    seed: int


def sections(choice: Choice, scene: Scene) -> dict[str, str]:
    """A choice as the sections of a task file, by name: lines without comments."""
    rank, how = f"\nrank = {choice.rank}" if choice.rank else "", SERVERS[choice.server]
    return {
        "task": f"seed = {scene.seed}{rank}",
        "round": f"target = {scene.cohort}",
        "client": f"{how.client.format(rate=choice.rate)}\nsteps = {scene.steps}\nerror_feedback = true",
        "upload": CODECS[choice.up].lines,
        "download": f'{CODECS[choice.down].lines}\nsince = "{choice.since}"',
        "server": how.server.format(rate=choice.rate),
    }


def text(choice: Choice, scene: Scene) -> str:
    """The task file that a pilot runs."""
    head = 'bundle = "."\nname = "pilot"\nrounds = 1000000\n'
    return "\n".join(
        f"[{name}]\n{head if name == 'task' else ''}{lines}\n" for name, lines in sections(choice, scene).items()
    )


def neighbours(choice: Choice) -> list[Choice]:
    """The same with one other rate or server, and with the other origin of downloads where that makes sense."""
    at = RATES.index(choice.rate)
    out = [replace(choice, rate=rate) for rate in RATES[max(0, at - 1) : at + 2]]
    out += [replace(choice, server=server) for server in SERVERS]
    other = "start" if choice.since == "version" else "version"
    out += [replace(choice, since=other)] if choice.down in SINCE_START else []
    return [c for c in dict.fromkeys(out) if c != choice]
