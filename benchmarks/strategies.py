"""All strategies on one setting, side by side: held-out loss or accuracy, global and personal, and bytes both ways.

    python benchmarks/strategies.py --data-root DATA [--setting shakespeare|newsgroups20] [--quick]

`shakespeare`: a client is a role of one play, the model a Llama of 260,000 parameters (DATA/models/stories260K).
`newsgroups20`: topics dealt out by a Dirichlet of 0.1, the model MiniLM.
`digits`: scikit-learn's, with FLoCoRA's random ResNet-8; of the strategies only those about codecs mean something here.

Nothing is downloaded and HTTP is not used: strategies, codecs, shares and local training are those of `covey serve`
and `covey join`, driven in one process. Every row has the same clients, rounds, local steps and rates.

Writes results/strategies.json (a row for each strategy and seed) and results/strategies.png (loss by bytes).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from clients import RANKS, Setting, prepare
from report import RESULTS, write_report
from simulation import Client, Plan, clients_of, one_round, plan_of, score, with_second
from tqdm import tqdm

from covey_edge import fusion, local
from covey_edge.data import evaluation_batches
from covey_edge.parts import Share, share
from covey_edge.trainers import GraphTrainer
from covey_server import recipe
from covey_shared.layout import Vector

LEVELS = '[upload]\ncodec = "levels"\nerror = 0.1\n[download]\ncodec = "levels"\nerror = 0.1\n'


class Method(NamedTuple):
    """One row of the table: a task file's text, and whether devices differ in rank."""

    text: str
    mixed: bool = False


def strategy(name: str, more: str = "") -> str:
    """A task of this strategy; updates and versions coded to a tenth of their norm."""
    return f'[strategy]\nname = "{name}"\n{more}{LEVELS}'


def coded(up: str, down: str = 'codec = "levels"\nerror = 0.1\n') -> str:
    """FedAvg with other codecs."""
    return f"[upload]\n{up}[download]\n{down}"


METHODS: dict[str, Method] = {
    "local only": Method("local"),
    "dense FedAvg": Method(coded('codec = "dense"\n', 'codec = "dense"\n')),
    "FedAvg": Method(strategy("fedavg")),
    "FFA-LoRA": Method(strategy("ffa-lora")),
    "RoLoRA": Method(strategy("rolora")),
    "LoRA-FAIR": Method(strategy("lora-fair")),
    "FedEx-LoRA": Method(strategy("fedex")),
    "FLoRIST": Method(strategy("florist")),
    "FLoRA": Method(strategy("flora")),
    "FLoRA, ranks 2 4 8": Method(strategy("flora"), mixed=True),
    "FLoRIST, ranks 2 4 8": Method(strategy("florist"), mixed=True),
    "HetLoRA, ranks 2 4 8": Method(strategy("hetlora"), mixed=True),
    "RBLA, ranks 2 4 8": Method(strategy("rbla"), mixed=True),
    "FedSA-LoRA": Method('[personal]\npolicy = "fedsa"\n' + LEVELS),
    "FedPer": Method('[personal]\npolicy = "fedper"\n' + LEVELS),
    "last blocks": Method('[personal]\npolicy = "last-blocks"\nblocks = 2\n' + LEVELS),
    "LG": Method('[personal]\npolicy = "lg"\nblocks = 2\n' + LEVELS),
    "FDLoRA": Method(strategy("fdlora", "sync_every = 5\n")),
    "FDLoRA, concatenated": Method(strategy("fdlora", 'sync_every = 5\nfusion = "concatenated"\n')),
    "FLASC": Method('[strategy]\nname = "flasc"\n'),
    "sign": Method(coded('codec = "sign"\n')),
    "top-k 1/16": Method(coded('codec = [{name = "topk", density = 0.0625}, {name = "pack"}]\n')),
    "importance 1/16": Method(coded('codec = "important"\ndensity = 0.0625\n')),
    "segments of signs": Method(coded('codec = "segments"\ncount = 3\n')),
    "adaptive 1/16": Method(coded('codec = "adaptive"\ndensity = 0.0625\n')),
    "FLoCoRA 8 bits": Method(coded('codec = "affine"\nbits = 8\n', 'codec = "affine"\nbits = 8\n')),
    "FLoCoRA 4 bits": Method(coded('codec = "affine"\nbits = 4\n', 'codec = "affine"\nbits = 4\n')),
    "FLoCoRA 2 bits": Method(coded('codec = "affine"\nbits = 2\n', 'codec = "affine"\nbits = 2\n')),
}  # fmt: skip


class Point(NamedTuple):
    """A version: held-out loss in nats and share of hits, as everybody gets it and with devices' own; bytes so far."""

    version: int
    loss: float
    accuracy: float
    personal_loss: float
    personal_accuracy: float
    up: int
    down: int


def federated(setting: Setting, method: Method, seed: int, bar: Any) -> Iterator[Point]:
    """The versions of one run that are evaluated."""
    plan = plan_of(setting, method.text, seed)
    sharing = plan.divided.division.sharing
    clients = clients_of(setting, fuses=bool(sharing.fusion))
    shares = [
        share(setting.bundle, sharing, seed, RANKS[i % len(RANKS)] if method.mixed else 0) for i in range(len(clients))
    ]
    state, _ = recipe.first(plan.how, plan.divided.begin(), seed)
    up = down = 0
    yield measured(setting, plan, clients, shares, state, up, down)
    for round_ in range(1, setting.rounds + 1):
        updates = []
        for client, part in zip(clients, shares, strict=True):
            entries, size = one_round(setting, plan, client, part, state.view, round_, seed)
            updates.append((entries, plan.how.strategy.weigh(client.data.train.count)))
            up += size
        start = plan.divided.whole(state.view, round_)
        change = recipe.fold_weighted(plan.how.strategy, start, updates)
        state, step = recipe.advance(plan.how, state, plan.divided.down(change))
        down += len(clients) * sum(map(len, step.parts.values()))
        bar.update(1)
        if round_ % setting.eval_every == 0 or round_ == setting.rounds:
            yield measured(setting, plan, clients, shares, state, up, down)


def local_only(setting: Setting, seed: int, bar: Any) -> Iterator[Point]:
    """Every device for itself: as many steps, nothing sent."""
    plan = plan_of(setting, LEVELS, seed)
    clients, config = clients_of(setting, fuses=False), plan.task.client.config()
    part = share(setting.bundle, plan.divided.division.sharing, seed, 0)
    for client in clients:
        client.own = plan.divided.start.copy()
    for round_ in range(setting.rounds + 1):
        if round_:
            for client in clients:
                begin = local.begin(client.own, config)
                stream = local.batch_seed(seed, round_, client.name)
                batch_size = setting.bundle.manifest.batch_size
                *_, last = local.train(setting.trainer, client.data.train, batch_size, config, stream, begin)
                client.own = last.adapter
            bar.update(1)
        if round_ % setting.eval_every == 0 or round_ == setting.rounds:
            alone = [(setting.trainer, client.own, client) for client in clients]
            yield Point(round_, np.nan, np.nan, *score(setting, alone), 0, 0)
    del part


def measured(
    setting: Setting, plan: Plan, clients: Sequence[Client], shares: Sequence[Share], state: recipe.ServerState,
    up: int, down: int,
) -> Point:  # fmt: skip
    """A version on every device's held-out examples, without and with what devices keep."""
    everybody, own = [], []
    for client, part in zip(clients, shares, strict=True):
        adapter, second = part.whole(state.view, np.empty(0, np.float32))
        everybody.append((with_second(setting.trainer, second), adapter, client))
        if part.division.sharing.fusion:
            own.append((*fused(setting, part, client, state.view), client) if len(client.own) else everybody[-1])
        elif part.division.personal(part.rank) is not None:
            adapter, second = part.whole(state.view, client.own)
            own.append((with_second(setting.trainer, second), adapter, client))
    personal = score(setting, own) if own else (np.nan, np.nan)
    return Point(state.version, *score(setting, everybody), *personal, up, down)


def fused(setting: Setting, part: Share, client: Client, shared: Vector) -> tuple[GraphTrainer, Vector]:
    """The shared and the personal adapter as one, searched on examples that were not trained on."""
    manifest = setting.bundle.manifest
    batches = list(evaluation_batches(client.searched, manifest.batch_size, 4))

    def mixed(w1: float, w2: float) -> tuple[GraphTrainer, Vector]:
        if part.division.sharing.fusion == "factorwise" or manifest.frozen is None:
            return setting.trainer, fusion.factorwise(shared, client.own, w1, w2)
        both = fusion.concatenated(manifest.layout, manifest.frozen, shared, client.own, w1, w2)
        return setting.trainer.with_frozen(both[1]), both[0]

    def loss(w1: float, w2: float) -> float:
        trainer, adapter = mixed(w1, w2)
        scores = [trainer.evaluate(adapter, batch) for batch in batches]
        return sum(s.loss_sum for s in scores) / sum(s.tokens for s in scores)

    return mixed(*fusion.search(loss)[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(), help="of shakespeare and newsgroups20")
    parser.add_argument("--setting", choices=["shakespeare", "newsgroups20", "digits"], default="shakespeare")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--eval-batches", type=int, default=4)
    parser.add_argument("--eval-every", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="names of methods")
    parser.add_argument("--quick", action="store_true", help="two rounds, two clients, nothing written")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.steps, args.clients, args.eval_every, args.seeds = 2, 2, 3, 2, 1
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            setting = prepare(args, Path(folder), seed)
            heads = any(t.kind == "head" for t in setting.bundle.manifest.layout.tensors)
            wanted = {
                n: m for n, m in METHODS.items() if (not args.only or n in args.only) and (n != "FedPer" or heads)
            }
            bar = tqdm(total=len(wanted) * args.rounds, desc=f"{args.setting}, seed {seed}")
            for name, method in wanted.items():
                started = time.process_time()
                made = local_only(setting, seed, bar) if name == "local only" else federated(setting, method, seed, bar)
                points = list(made)
                seconds = time.process_time() - started
                rows += [row(name, seed, p, seconds if p is points[-1] else None) for p in points]
                if not args.quick:  # a long run that is stopped leaves what it has
                    save(args, len(setting.data), rows)
            bar.close()
    table(rows)


def save(args: argparse.Namespace, devices: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows and plot, as far as the run has come, beside the rows of other settings that are there already."""
    path = RESULTS / "strategies.json"
    kept = json.loads(path.read_text()) if path.exists() else {"meta": {}, "rows": []}
    others = [r for r in kept["rows"] if r["setting"] != args.setting]
    how = {k: v for k, v in vars(args).items() if k not in ("data_root", "quick", "only", "setting")}
    known = {k: v for k, v in kept["meta"].items() if k.startswith("how_") and k != f"how_{args.setting}"}
    meta = {**known, f"how_{args.setting}": {"devices": devices, **how}}
    write_report("strategies", meta, [*others, *({"setting": args.setting, **r} for r in rows)])
    plot(rows, "strategies" if args.setting == "shakespeare" else f"strategies_{args.setting}")


def row(name: str, seed: int, point: Point, seconds: float | None) -> dict[str, Any]:
    """One version of one run; a number that does not exist is null. `cpu_s`: of the whole run, evaluation included."""
    values = {k: None if v != v else (round(v, 5) if isinstance(v, float) else v) for k, v in point._asdict().items()}
    return {"strategy": name, "seed": seed, **values, "cpu_s": None if seconds is None else round(seconds, 1)}


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The last version of each strategy, averaged over seeds; bytes as shares of dense FedAvg's."""
    ends: dict[str, list[Mapping[str, Any]]] = {}
    for r in rows:
        if r["cpu_s"] is not None:
            ends.setdefault(str(r["strategy"]), []).append(r)

    def mean(name: str, key: str) -> float:
        values = [r[key] for r in ends[name] if r[key] is not None]
        return float(np.mean(values)) if values else float("nan")

    dense = {key: mean("dense FedAvg", key) if "dense FedAvg" in ends else float("nan") for key in ("up", "down")}
    print(f"{'strategy':24}{'loss':>9}{'acc':>8}{'own loss':>10}{'own acc':>9}{'up':>8}{'down':>8}{'cpu s':>8}")
    for name in ends:
        shown = [mean(name, key) for key in ("loss", "accuracy", "personal_loss", "personal_accuracy")]
        bytes_ = [mean(name, key) / dense[key] for key in ("up", "down")]
        print(
            f"{name:24}{shown[0]:9.4f}{shown[1]:8.3f}{shown[2]:10.4f}{shown[3]:9.3f}"
            f"{bytes_[0]:8.3f}{bytes_[1]:8.3f}{mean(name, 'cpu_s'):8.1f}"
        )


def plot(rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Held-out loss by bytes of both ways, a line for each strategy; its own loss where devices keep something."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6))
    names = list(dict.fromkeys(str(r["strategy"]) for r in rows))
    for i, strategy_ in enumerate(names):
        mine = [r for r in rows if r["strategy"] == strategy_ and r["seed"] == 0]
        key = "personal_loss" if mine[-1]["personal_loss"] is not None else "loss"
        points = [((r["up"] + r["down"]) / 1e6, r[key]) for r in mine if r["up"] + r["down"] > 0]
        if points:
            own = " (own)" if key == "personal_loss" else ""
            style = ("-", "--", ":")[i // 10 % 3]
            axes.plot(*zip(*points, strict=True), style, marker=".", label=strategy_ + own)
        elif mine[-1][key] is not None:
            axes.axhline(mine[-1][key], color="grey", linewidth=0.8, label=f"{strategy_} (own)")
    axes.set(xscale="log", xlabel="megabytes, up and down, all devices", ylabel="held-out loss, nats")
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
