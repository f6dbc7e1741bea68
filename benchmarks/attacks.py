"""What hostile devices do to a model, and what each defence saves: accuracy beside the run without attackers.

    python benchmarks/attacks.py [--quick] [--rounds 20] [--seeds 1]

Twenty devices classify scikit-learn's handwritten digits (8 x 8 pixels, in the package, nothing is downloaded) with a
small residual network, random and frozen but for LoRA on its convolutions, its norms and its head (8,050 numbers); a
Dirichlet(0.5) draw skews their classes. Two or four of them attack:

    sign flip    the change that would have been sent, turned round
    scale 100    the same, and a hundred times larger
    a little     the honest mean minus 1.5 standard deviations, coordinate by coordinate (Baruch et al. 2019,
                 arXiv 1902.06156), sent by all attackers alike: too small to look odd
    label flip   honest training on wrong labels (y becomes 9 - y)
    absent       nothing at all: what the model loses with these devices' own data, for comparison

Trainer, local loop, codec, strategies, defences and server optimiser are the product's own; only HTTP is left out. The
rules are told that a fifth of the devices may be hostile, whether or not it is. Writes benchmarks/results/attacks.json;
`--render` puts its table into docs/benchmarks.md.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from clients import bundled_digits
from numpy.typing import NDArray
from report import put_table, read_rows, write_report
from tqdm import tqdm

from covey_edge import local
from covey_edge.data import evaluation_batches
from covey_edge.images import ImageExamples
from covey_edge.trainers import Trainer, open_trainer
from covey_export.bundle import export
from covey_export.quiet import quiet
from covey_export.recipe import Recipe as ExportRecipe
from covey_server import recipe
from covey_server.defence import guarded
from covey_server.optimizers import make_optimizer
from covey_server.strategies import make_strategy
from covey_server.task_sections import DefenceSection
from covey_shared.bundle import Bundle
from covey_shared.codec import codec_from_spec, error_feedback, presets
from covey_shared.layout import Vector
from covey_shared.messages import LocalConfig
from covey_shared.prng import derive
from covey_shared.schema import Scalar

CLASSES = 10
ATTACKS = ("absent", "sign flip", "scale 100", "a little", "label flip")
SHARES = (0.1, 0.2)
STRENGTH = 1.5  # standard deviations of "a little"; Baruch et al. use up to 1.5


class Rule(NamedTuple):
    """One row's defence."""

    strategy: str
    args: dict[str, Scalar]
    defence: DefenceSection = DefenceSection()


RULES = {
    "mean": Rule("fedavg", {}),
    "mean, clipped": Rule("fedavg", {}, DefenceSection(clip="adaptive", device_share=0.1)),
    "trimmed mean": Rule("trimmed-mean", {"attackers": 0.2}),
    "median": Rule("median", {"attackers": 0.2}),
    "Krum": Rule("krum", {"attackers": 0.2}),
}
UPLOADS = {"dense": presets.dense(), "sign": presets.sign(), "top-1/4": presets.flasc(0.25)}


class Device(NamedTuple):
    """One device's images, and the same with wrong labels."""

    name: str
    honest: ImageExamples
    flipped: ImageExamples


class Setting(NamedTuple):
    """What all rows share."""

    bundle: Bundle
    trainer: Trainer
    devices: list[Device]
    heldout: ImageExamples
    config: LocalConfig
    rounds: int


def prepare(folder: Path, args: argparse.Namespace, seed: int) -> Setting:
    """Bundle, trainer and devices; the digits of one seed are split in the same way for every row."""
    if not (folder / "bundle").exists():
        with quiet():
            export(network(folder / "network"), folder / "bundle")
    bundle = Bundle.open(folder / "bundle")
    images, labels = digits(seed)
    held = len(labels) // 5
    owners = dirichlet_split(labels[held:], args.devices, 0.5, seed)
    make = maker(bundle)
    devices = [
        Device(f"device-{i:02d}", make(images[held:][mine], labels[held:][mine]),
               make(images[held:][mine], CLASSES - 1 - labels[held:][mine]))
        for i, mine in enumerate(owners)
    ]  # fmt: skip
    config = LocalConfig(
        optimizer="adamw", learning_rate=args.learning_rate, steps=args.steps, momentum=0.0, beta1=0.9, beta2=0.999,
        eps=1e-8, weight_decay=0.0, clip_norm=1.0, error_feedback=True,
    )  # fmt: skip
    trainer = open_trainer(bundle, "onnx", 1)
    return Setting(bundle, trainer, devices, make(images[:held], labels[:held]), config, args.rounds)


def network(folder: Path) -> ExportRecipe:
    """A random residual network of two stages, and what of it trains."""
    torch.manual_seed(0)
    shape: Any = transformers.ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=CLASSES
    )
    transformers.ResNetForImageClassification(shape).save_pretrained(folder)
    return ExportRecipe(
        model=str(folder), task="image-classification", image=(1, 8, 8), num_labels=CLASSES, batch_size=16, rank=8,
        target_modules=("all-conv",), train_full=("norms",), targets=("onnx",),
    )  # fmt: skip


def digits(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Shuffled uint8 [N, 8, 8, 1] and int64 [N]."""
    images, labels = bundled_digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    return images[order], labels[order]


def dirichlet_split(labels: NDArray[np.int64], devices: int, alpha: float, seed: int) -> list[NDArray[np.int64]]:
    """Positions of each device: each class is dealt out in proportions drawn from a Dirichlet; none gets under 8."""
    rng = np.random.default_rng(seed)
    while True:
        shares = rng.dirichlet([alpha] * devices, CLASSES)
        parts: list[list[int]] = [[] for _ in range(devices)]
        for label, share in enumerate(shares):
            mine = np.flatnonzero(labels == label)
            cuts = (np.cumsum(share)[:-1] * len(mine)).astype(int)
            for part, piece in zip(parts, np.split(mine, cuts), strict=True):
                part.extend(piece)
        if min(len(p) for p in parts) >= 8:
            return [np.array(sorted(p)) for p in parts]


def maker(bundle: Bundle) -> Callable[[NDArray[np.uint8], NDArray[np.int64]], ImageExamples]:
    """Examples as the bundle wants them."""
    image = bundle.manifest.image
    assert image is not None
    return lambda images, labels: ImageExamples(images, labels, image)


def run(setting: Setting, rule: Rule, upload: str, attack: str, attackers: int, seed: int, bar: Any) -> float:
    """Accuracy after the last round, in percent."""
    layout = setting.bundle.manifest.layout
    uplink = codec_from_spec(UPLOADS[upload], layout)
    wrapped = uplink if upload == "dense" else error_feedback(uplink)
    strategy = make_strategy(rule.strategy, rule.args)
    plan = recipe.Recipe(
        strategy, make_optimizer("sgd", {"learning_rate": 1.0}), codec_from_spec(presets.levels(0.1), layout)
    )
    state, _ = recipe.first(plan, setting.bundle.start(seed), seed)
    hostile = set(np.random.default_rng(seed).choice(len(setting.devices), attackers, replace=False).tolist())
    codecs = [wrapped.init(derive(seed, "codec", d.name)) for d in setting.devices]
    for round_ in range(1, setting.rounds + 1):
        try:
            changes = honest_changes(setting, round_, state.view, hostile if attack == "label flip" else set(), seed)
        except local.TrainingError:  # the attackers have broken the model for good
            bar.update(setting.rounds - round_ + 1)
            break
        changes = attacked(changes, attack, hostile)
        received, senders = [], []
        for i, (device, change) in enumerate(zip(setting.devices, changes, strict=True)):
            if attack == "absent" and i in hostile:
                continue
            parts, codecs[i] = wrapped.encode(change, codecs[i])
            received.append(uplink.decode(parts))
            senders.append(device)
        counts = [strategy.weigh(d.honest.count) for d in senders]
        names = [d.name for d in senders]
        updates = guarded(rule.defence, lambda: iter(received), counts, names, names)  # noqa: B023
        state, _ = recipe.advance(plan, state, recipe.fold_weighted(strategy, state.view, updates))
        bar.update(1)
    return accuracy(setting, state.view)


def honest_changes(setting: Setting, round_: int, start: Vector, flipped: set[int], seed: int) -> list[Vector]:
    """Each device's change of one round; those in `flipped` train on wrong labels."""
    out = []
    for i, device in enumerate(setting.devices):
        examples = device.flipped if i in flipped else device.honest
        order = local.batch_seed(seed, round_, device.name)
        begin, batch = local.begin(start, setting.config), setting.bundle.manifest.batch_size
        *_, last = local.train(setting.trainer, examples, batch, setting.config, order, begin)
        out.append(last.adapter - start)
    return out


def attacked(changes: list[Vector], attack: str, hostile: set[int]) -> list[Vector]:
    """The changes that are sent."""
    honest = np.stack([c for i, c in enumerate(changes) if i not in hostile])
    little = np.asarray(honest.mean(0) - STRENGTH * honest.std(0), np.float32)
    factor = {"sign flip": np.float32(-1), "scale 100": np.float32(-100)}.get(attack, np.float32(1))
    sent = [little if attack == "a little" else factor * change for change in changes]
    return [sent[i] if i in hostile else change for i, change in enumerate(changes)]


def accuracy(setting: Setting, adapter: Vector) -> float:
    """Held-out accuracy, in percent."""
    batches = evaluation_batches(setting.heldout, setting.bundle.manifest.batch_size, 10**6)
    scores = [setting.trainer.evaluate(adapter, batch) for batch in batches]
    return 100.0 * sum(s.correct for s in scores) / sum(s.tokens for s in scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten devices, 6 rounds, one seed, dense uploads only")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--uploads", nargs="*", choices=list(UPLOADS), default=["dense", "sign", "top-1/4"])
    parser.add_argument("--render", action="store_true", help="only write the last result's table into the docs")
    args = parser.parse_args()
    if args.render:
        return render()
    if args.quick:
        args.rounds, args.devices, args.seeds, args.uploads = 6, 10, 1, ["dense"]
    cases = [("none", 0.0), *((attack, share) for attack in ATTACKS for share in SHARES)]
    table = [(u, r) for u in args.uploads for r in RULES if u != "top-1/4" or r in ("mean", "trimmed mean")]
    rows, started = [], time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=len(table) * len(cases) * args.seeds * args.rounds, unit="round") as bar,
    ):
        settings = [prepare(Path(folder), args, seed) for seed in range(args.seeds)]
        for upload, name in table:
            calm = 0.0
            for attack, share in cases:
                attackers = round(share * args.devices)
                got = [run(s, RULES[name], upload, attack, attackers, i, bar) for i, s in enumerate(settings)]
                calm = float(np.mean(got)) if attack == "none" else calm
                rows.append({
                    "upload": upload, "rule": name, "attack": attack, "attackers_percent": round(100 * share),
                    "accuracy_percent": round(float(np.mean(got)), 2), "lowest_of_seeds": round(min(got), 2),
                    "points_lost": round(calm - float(np.mean(got)), 2),
                })  # fmt: skip
                bar.write(line(rows[-1]))
    chosen = ("rounds", "devices", "steps", "seeds", "learning_rate", "quick")
    meta = {k: getattr(args, k) for k in chosen} | {"entries": settings[0].bundle.manifest.layout.size}
    write_report("attacks", meta | {"seconds": round(time.perf_counter() - started)}, rows)


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['upload']:8} {row['rule']:14} {row['attack']:11} {row['attackers_percent']:3} %  accuracy "
        f"{row['accuracy_percent']:6.2f}  (lost {row['points_lost']:6.2f}, worst seed {row['lowest_of_seeds']:.2f})"
    )


def render() -> None:
    """Put the committed result into docs/benchmarks.md: a row for each upload and rule, a column for each attack."""
    rows = read_rows("attacks")
    cases = list(dict.fromkeys((row["attack"], row["attackers_percent"]) for row in rows))
    heads = [f"{attack} {percent} %" if percent else attack for attack, percent in cases]
    lines = [f"| upload | rule | {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * len(heads)]
    for upload, rule in dict.fromkeys((row["upload"], row["rule"]) for row in rows):
        found = [f"{row['accuracy_percent']:.1f}" for row in rows if (row["upload"], row["rule"]) == (upload, rule)]
        lines.append(f"| {upload} | {rule} | {' | '.join(found)} |")
    put_table("benchmarks.md", "attacks", lines)


if __name__ == "__main__":
    main()
