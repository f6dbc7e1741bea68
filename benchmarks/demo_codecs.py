"""Which codec chain for `covey demo`? Its devices, model and data, each method in process, in bytes of real messages.

    python benchmarks/demo_codecs.py [--quick] [--only NAME ...] [--rounds 16]

Everything is the product's own: the ONNX trainer, the local loop, the codec chain with its error feedback, the server's
fold, optimiser and broadcast. Only HTTP is left out: bytes are the lengths of the encoded `Update` and `Adapter`
messages, which are what crosses the socket. Writes benchmarks/results/demo_codecs.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from report import RESULTS, put_table, write_report
from tqdm import tqdm

from covey_edge import local
from covey_edge.data import Dataset, build_dataset, evaluation_batches
from covey_edge.texts import read_texts
from covey_edge.tokens import open_tokenizer
from covey_edge.trainers import Trainer, open_trainer
from covey_export.bundle import export
from covey_export.demo.cli import MODEL
from covey_export.demo.corpus import DEVICE_PACKAGES, write_device
from covey_export.quiet import quiet
from covey_export.recipe import Recipe as ExportRecipe
from covey_server import recipe
from covey_server.optimizers import make_optimizer
from covey_server.strategies import make_strategy
from covey_shared.bundle import Bundle
from covey_shared.codec import codec_from_spec, error_feedback, presets
from covey_shared.codec.chain import Codec
from covey_shared.layout import Layout, Vector, vector_digest
from covey_shared.messages import Adapter, LocalConfig, Spec, Step, Update
from covey_shared.prng import derive
from covey_shared.schema import Scalar


class Method(NamedTuple):
    """One row: how changes travel and how the server uses them."""

    upload: Spec
    download: Spec
    feedback: bool = False
    server: Mapping[str, Scalar] = {"name": "sgd", "learning_rate": 1.0}
    strategy: Mapping[str, Scalar] = {"name": "fedavg"}
    client: Mapping[str, Any] = {}


PAPER = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "clip_norm": 0.0}
ADAMW: dict[str, Scalar] = {
    "name": "adamw",
    "learning_rate": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.01,
}


def make_methods() -> dict[str, Method]:
    """The table of methods; the first is the baseline."""
    dense, sign, flasc, levels = presets.dense(), presets.sign(), presets.flasc, presets.levels
    return {
        "dense": Method(dense, dense),
        "sign / levels 0.5, feedback": Method(sign, levels(0.5), True),
        "sign / levels 0.5": Method(sign, levels(0.5)),
        "sign / levels 0.3, feedback": Method(sign, levels(0.3), True),
        "sign / sign, feedback": Method(sign, sign, True),
        "levels 0.5 both ways, feedback": Method(levels(0.5), levels(0.5), True),
        "top-1/4 both ways, feedback": Method(flasc(0.25), flasc(0.25), True),
        "top-1/16 both ways, feedback": Method(flasc(1 / 16), flasc(1 / 16), True),
        "flasc covey 1/4": Method(flasc(0.25), flasc(0.25), False, ADAMW, {"name": "flasc", "mode": "covey"}),
        "flasc paper 1/4": Method(flasc(0.25), flasc(0.25), False, ADAMW, {"name": "flasc", "mode": "paper"}, PAPER),
    }


class Device(NamedTuple):
    """One package's data."""

    name: str
    data: Dataset


class Setting(NamedTuple):
    """What all methods share."""

    bundle: Bundle
    trainer: Trainer
    devices: list[Device]
    config: dict[str, Any]
    rounds: int
    seed: int


def evaluate(setting: Setting, adapter: Vector) -> list[float]:
    """Held-out loss of each device, nats per token."""
    losses = []
    for device in setting.devices:
        scores = [
            setting.trainer.evaluate(adapter, batch)
            for batch in evaluation_batches(device.data.heldout, setting.bundle.manifest.batch_size, 16)
        ]
        losses.append(sum(s.loss_sum for s in scores) / sum(s.tokens for s in scores))
    return losses


def update_bytes(layout: Layout, spec: Spec, parts: dict[str, bytes], device: Device) -> int:
    """Length of the upload's body."""
    message = Update(
        client=device.name, layout=layout.digest, round=1, attempt=0, version=1, codec=spec, parts=parts,
        examples=device.data.train.count, steps=1, loss_before=1.0, loss_after=1.0, seconds=1.0,
    )  # fmt: skip
    return len(message.to_bytes())


def adapter_bytes(layout: Layout, view: Vector, step: Step, absolute: bool) -> int:
    """Length of the download's body for a device that holds the version before."""
    base = -1 if absolute else step.version - 1
    message = Adapter(version=step.version, base=base, layout=layout.digest, digest=vector_digest(view), steps=(step,))
    return len(message.to_bytes())


def train_device(setting: Setting, config: LocalConfig, device: Device, round_: int, start: Vector) -> Vector:
    """One device's change in one round."""
    seed = local.batch_seed(setting.seed, round_, device.name)
    progress = local.begin(start, config)
    batch_size = setting.bundle.manifest.batch_size
    for after in local.train(setting.trainer, device.data.train, batch_size, config, seed, progress):
        progress = after
    return progress.adapter - start


def simulate(setting: Setting, name: str, method: Method, bar: Any) -> dict[str, Any]:
    """All rounds of one method: a row of the table, with its history."""
    layout = setting.bundle.manifest.layout
    uplink = codec_from_spec(method.upload, layout)
    wrapped: Codec = error_feedback(uplink) if method.feedback else uplink
    config = LocalConfig(**{**setting.config, **method.client, "error_feedback": method.feedback})
    strategy_args = dict(method.strategy)
    server_args = {k: float(v) for k, v in method.server.items() if k != "name"}
    plan = recipe.Recipe(
        make_strategy(str(strategy_args.pop("name")), strategy_args),
        make_optimizer(str(method.server["name"]), server_args),
        codec_from_spec(method.download, layout),
    )
    state, step = recipe.first(plan, setting.bundle.start(setting.seed), setting.seed)
    states = {d.name: wrapped.init(derive(setting.seed, "codec", d.name)) for d in setting.devices}
    up = 0
    down = 0 if step is None else adapter_bytes(layout, state.view, step, True) * len(setting.devices)
    first, history, started = evaluate(setting, state.view), [], time.perf_counter()
    for round_ in range(1, setting.rounds + 1):
        received = []
        for device in sorted(setting.devices, key=lambda d: d.name):
            change = train_device(setting, config, device, round_, state.view)
            parts, states[device.name] = wrapped.encode(change, states[device.name])
            up += update_bytes(layout, uplink.spec, parts, device)
            received.append((uplink.decode(parts), device.data.train.count))
            bar.update(1)
        state, step = recipe.advance(plan, state, recipe.fold(plan.strategy, layout.size, received))
        down += adapter_bytes(layout, state.view, step, plan.strategy.absolute) * len(setting.devices)
        if round_ % 5 == 0 or round_ == setting.rounds:
            losses = evaluate(setting, state.view)
            history.append({"round": round_, "loss": float(np.mean(losses)), "bytes": up + down})
    dense = 2 * 4 * layout.size * len(setting.devices) * setting.rounds
    return {
        "method": name, "loss_before": float(np.mean(first)), "loss_after": float(np.mean(losses)),
        "worst_change": float(max(b - a for a, b in zip(first, losses, strict=True))),
        "upload_bytes": up, "download_bytes": down, "fewer_bytes_than_float32": dense / (up + down),
        "seconds": time.perf_counter() - started, "history": str([(h["round"], round(h["loss"], 4)) for h in history]),
    }  # fmt: skip


def prepare(folder: Path, args: argparse.Namespace) -> Setting:
    """Bundle, data and trainer."""
    with quiet():
        export(
            ExportRecipe(model=args.model, batch_size=args.batch, seq_len=128, rank=args.rank, targets=("onnx",)),
            folder / "bundle",
        )
    bundle = Bundle.open(folder / "bundle")
    coder = open_tokenizer(bundle.manifest.text, bundle.folder)
    devices = []
    for package in DEVICE_PACKAGES[: args.clients]:
        write_device(package, folder / package, 160_000)
        texts = read_texts(folder / package, records=False)
        devices.append(Device(package, build_dataset(texts.documents, coder, bundle.manifest, 0.15)))
    config = {
        "optimizer": "adamw", "learning_rate": args.learning_rate, "steps": args.steps, "momentum": 0.0, "beta1": 0.9,
        "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0,
    }  # fmt: skip
    return Setting(bundle, open_trainer(bundle, "onnx", args.threads), devices, config, args.rounds, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 devices, 3 rounds, three methods")
    parser.add_argument("--only", nargs="*", help="methods by name (default all)")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--render", action="store_true", help="only write the last result's table into docs/demo.md")
    args = parser.parse_args()
    if args.render:
        return render()
    methods = make_methods()
    names = args.only or list(methods)
    if args.quick:
        args.rounds, args.clients, names = 3, 4, ["dense", "sign / levels 0.5, feedback", "flasc covey 1/4"]
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(Path(folder), args)
        rows = []
        with tqdm(total=len(names) * args.rounds * len(setting.devices), unit="device-round") as bar:
            for name in names:
                bar.set_description(name)
                rows.append(simulate(setting, name, methods[name], bar))
                bar.write(summary(rows[-1], rows[0]))
    if not args.no_write:
        chosen = ("clients", "rounds", "steps", "rank", "batch", "learning_rate", "quick")
        meta = {name: getattr(args, name) for name in chosen} | {"entries": setting.bundle.manifest.layout.size}
        write_report("demo_codecs", meta, rows)


def render() -> None:
    """Put the committed result into docs/demo.md, so that no number there is typed by hand."""
    data = json.loads((RESULTS / "demo_codecs.json").read_text())
    base = data["rows"][0]
    lines = [
        "| up / down | held-out loss (nats) | against dense | fewer bytes than float32 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in data["rows"]:
        change = row["loss_after"] / base["loss_after"] - 1
        ratio = row["fewer_bytes_than_float32"]
        lines.append(f"| {row['method']} | {row['loss_after']:.4f} | {change:+.2%} | {ratio:.1f} |")
    lines.append(f"\n{data['meta']['rounds']} rounds, one seed; before training {base['loss_before']:.4f}.")
    put_table("demo.md", "results", lines)


def summary(row: dict[str, Any], baseline: dict[str, Any]) -> str:
    """One line of the table."""
    return (
        f"{row['method']:32s} loss {row['loss_before']:.4f} -> {row['loss_after']:.4f} "
        f"({row['loss_after'] / baseline['loss_after'] - 1:+.2%} of {baseline['method']}), "
        f"worst device {row['worst_change']:+.4f}, {row['fewer_bytes_than_float32']:.1f}x fewer bytes, "
        f"{row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
