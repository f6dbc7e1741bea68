"""All strategies on one setting, side by side: held-out loss or accuracy, global and personal, and bytes both ways.

    python benchmarks/strategies.py --data-root DATA [--setting NAME] [--only ROW ...] [--quick]
    python benchmarks/strategies.py --render

| `--setting` | devices | model |
| --- | --- | --- |
| `shakespeare` | each a role of one play | a Llama of 260,000 parameters (DATA/models/stories260K) |
| `babyllama` | the same | a Llama of 940,000 parameters on characters (DATA/models/babyllama105) |
| `newsgroups20` | topics dealt out by a Dirichlet of 0.1 | MiniLM with a new head |
| `digits` | scikit-learn's, dealt out by a Dirichlet of 0.5 | FLoCoRA's ResNet-8, random and frozen |

Nothing is downloaded and HTTP is not used: strategies, codecs, shares and local training are those of `covey serve`
and `covey join`, driven in one process. Every row has the same clients, rounds and local steps, and the same local
rate but where the row's name says otherwise.

Writes results/strategies.json (rows of a strategy and seed replace those that were there); `--render` draws
results/strategies_SETTING.png and writes the tables of docs/strategies.md from it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import strategies_report
from clients import RANKS, Setting, prepare
from report import RESULTS, write_report
from simulation import Client, clients_of, held, one_round, plan_of, score, with_second
from tqdm import tqdm

from covey_edge import fusion, local
from covey_edge.data import evaluation_batches
from covey_edge.parts import Share, share
from covey_edge.trainers import GraphTrainer
from covey_server import recipe
from covey_server.prepare import Prepared
from covey_server.regroup import Grouping, cohort_of
from covey_server.sections import step_of
from covey_server.versions import grouped
from covey_shared.entries import Entries
from covey_shared.layout import Layout, Vector, vector_digest
from covey_shared.messages import Adapter, Step

LEVELS = '[upload]\ncodec = "levels"\nerror = 0.1\n[download]\ncodec = "levels"\nerror = 0.1\n'
FASTER = '[server]\noptimizer = "adamw"\nlearning_rate = 0.01\n'
ROLES = {"clients": 8, "batch": 4, "seq": 64, "eval_batches": 12, "eval_every": 2}
# What is not given on the command line. Rates lie between the best few for dense FedAvg and for training alone.
SETTINGS: dict[str, dict[str, int | float]] = {
    "shakespeare": {**ROLES, "rounds": 12, "steps": 8, "rate": 3e-3, "seeds": 3},
    "babyllama": {**ROLES, "rounds": 12, "steps": 6, "rate": 2e-3, "seeds": 1},
    "newsgroups20": {"clients": 6, "rounds": 10, "steps": 5, "batch": 8, "seq": 32, "rate": 3e-3, "seeds": 1,
                     "eval_batches": 6, "eval_every": 2},
    "digits": {"clients": 4, "rounds": 6, "steps": 8, "batch": 16, "seq": 0, "rate": 3e-3, "seeds": 1,
               "eval_batches": 6, "eval_every": 6},
}  # fmt: skip


class Method(NamedTuple):
    """One row: a task file's text, whether devices differ in rank, and what the setting's rate is multiplied with."""

    text: str
    mixed: bool = False
    faster: float = 1.0


def strategy(name: str, more: str = "", then: str = "") -> str:
    """A task of this strategy; updates and versions coded to a tenth of their norm."""
    return f'[strategy]\nname = "{name}"\n{more}{LEVELS}{then}'


def personal(policy: str, more: str = "") -> str:
    """FedAvg with a policy for what devices keep."""
    return f'[personal]\npolicy = "{policy}"\n{more}{LEVELS}'


def coded(up: str, down: str = 'codec = "levels"\nerror = 0.1\n') -> str:
    """FedAvg with other codecs."""
    return f"[upload]\n{up}[download]\n{down}"


def affine(bits: int) -> str:
    """FedAvg with FLoCoRA's quantisation both ways."""
    return coded(*[f'codec = "affine"\nbits = {bits}\n'] * 2)


METHODS: dict[str, Method] = {
    "local only": Method("local"),
    "dense FedAvg": Method(coded('codec = "dense"\n', 'codec = "dense"\n')),
    "FedAvg": Method(strategy("fedavg")),
    "FedAvg, Nesterov": Method(strategy("fedavg", then='[server]\noptimizer = "nesterov"\n')),  # FDLoRA's server step
    "FFA-LoRA": Method(strategy("ffa-lora")),
    "FFA-LoRA, rate x3": Method(strategy("ffa-lora"), faster=3.0),
    "RoLoRA": Method(strategy("rolora")),
    "LoRA-FAIR": Method(strategy("lora-fair")),
    "FedEx-LoRA": Method(strategy("fedex")),
    "FLoRIST": Method(strategy("florist")),
    "FLoRA": Method(strategy("flora")),
    "FLoRA, rate x3": Method(strategy("flora"), faster=3.0),
    "FLoRA, ranks 2 4 8": Method(strategy("flora"), mixed=True),
    "FLoRIST, ranks 2 4 8": Method(strategy("florist"), mixed=True),
    "HetLoRA, ranks 2 4 8": Method(strategy("hetlora"), mixed=True),
    "RBLA, ranks 2 4 8": Method(strategy("rbla"), mixed=True),
    "FedSA-LoRA": Method(personal("fedsa")),
    "FedSA-LoRA, head too": Method(personal("tensors", 'tensors = "kind:lora_B kind:head"\n')),
    "FedPer": Method(personal("fedper")),
    "last blocks": Method(personal("last-blocks", "blocks = 2\n")),
    "LG": Method(personal("lg", "blocks = 2\n")),
    "cohorts": Method(strategy("cohorts", "count = 2\nevery = 2\n")),
    "cohorts of everything": Method(strategy("cohorts", 'count = 2\nevery = 2\ntensors = "*"\n')),
    "FDLoRA": Method(strategy("fdlora", "sync_every = 5\n")),
    "FDLoRA, concatenated": Method(strategy("fdlora", 'sync_every = 5\nfusion = "concatenated"\n')),
    "FLASC": Method('[strategy]\nname = "flasc"\n'),
    "FLASC, server rate x10": Method(f'[strategy]\nname = "flasc"\n{FASTER}'),
    "FLASC, server sgd": Method('[strategy]\nname = "flasc"\n[server]\noptimizer = "sgd"\n'),
    "sign": Method(coded('codec = "sign"\n')),
    "top-k 1/16": Method(coded('codec = [{name = "topk", density = 0.0625}, {name = "pack"}]\n')),
    "importance 1/16": Method(coded('codec = "important"\ndensity = 0.0625\n')),
    "segments of signs": Method(coded('codec = "segments"\ncount = 3\n')),
    "adaptive 1/16": Method(coded('codec = "adaptive"\ndensity = 0.0625\n')),
    "FLoCoRA 8 bits": Method(affine(8)),
    "FLoCoRA 4 bits": Method(affine(4)),
    "FLoCoRA 2 bits": Method(affine(2)),
}  # fmt: skip
HEADED = ("FedPer", "FedSA-LoRA, head too")  # rows that mean something only where the adapter has a head


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
    setting = setting._replace(rate=setting.rate * method.faster)
    plan = plan_of(setting, method.text, seed)
    sharing = plan.divided.division.sharing
    clients = clients_of(setting, fuses=bool(sharing.fusion))
    shares = [
        share(setting.bundle, sharing, seed, RANKS[i % len(RANKS)] if method.mixed else 0) for i in range(len(clients))
    ]
    state, _ = recipe.first(plan.recipe, plan.divided.begin(), seed)
    up = down = 0
    for round_ in range(1, setting.rounds + 1):
        updates = []
        for client, part in zip(clients, shares, strict=True):
            cohort = cohort_of(plan.grouping, state.cohorts, client.name)
            entries, size = one_round(setting, plan, client, part, state.view, round_, seed, cohort)
            updates.append((entries, plan.recipe.strategy.weigh(client.data.train.count)))
            up += size
        start = plan.divided.whole(state.view, round_)
        change = plan.divided.down(recipe.fold_weighted(plan.recipe.strategy, start, updates))
        before = state
        if plan.grouping and round_ % plan.grouping.every == 0:
            state, change = regroup(plan, plan.grouping, state, change, clients, [entries for entries, _ in updates])
        state, step = recipe.advance(plan.recipe, state, change)
        down += sum(download_bytes(plan, client.name, before, state, step) for client in clients)
        bar.update(1)
        if evaluated(setting, round_):
            yield measured(setting, plan, clients, shares, state, up, down)


def regroup(
    plan: Prepared, grouping: Grouping, state: recipe.ServerState, change: Vector, clients: Sequence[Client],
    updates: Sequence[Entries],
) -> tuple[recipe.ServerState, Vector]:  # fmt: skip
    """Cohorts by what devices sent this round, as the server makes them."""
    division, names = plan.divided.division, [client.name for client in clients]
    layout = division.uploaded(state.version + 1)
    where = [division.placed(layout, cohort_of(grouping, state.cohorts, name)) for name in names]
    sent = [entries.dense()[mine] for entries, mine in zip(updates, where, strict=True)]
    return grouped(division, grouping, state, change, names, sent)


def download_bytes(
    plan: Prepared, name: str, before: recipe.ServerState, state: recipe.ServerState, step: Step
) -> int:  # fmt: skip
    """The bodies of the answers that bring a device of every round to a version.

    One that has come to another cohort takes that one's copies whole.
    """
    sections, cohort = plan.recipe.sections, cohort_of(plan.grouping, state.cohorts, name)
    if len(sections) == 1:
        return answer_bytes(sections[0].layout, state.view, step)
    total = 0
    for number in {0, len(sections) - plan.divided.division.sharing.cohorts + cohort}:
        part, mine = sections[number], step_of(step, number)
        if number and cohort != cohort_of(plan.grouping, before.cohorts, name):
            whole = recipe.whole(state.view[part.where], state.version, part.exact)
            assert whole is not None
            mine = whole
        total += answer_bytes(part.layout, state.view[part.where], mine)
    return total


def answer_bytes(layout: Layout, view: Vector, step: Step) -> int:
    """The body of an answer with one step to a version of a layout."""
    message = Adapter(version=step.version, base=0, layout=layout.digest, digest=vector_digest(view), steps=(step,))
    return len(message.to_bytes())


def evaluated(setting: Setting, round_: int) -> bool:
    """Whether a version is measured: every few, and the last."""
    return round_ % setting.eval_every == 0 or round_ == setting.rounds


def local_only(setting: Setting, seed: int, bar: Any) -> Iterator[Point]:
    """Every device for itself: as many steps, nothing sent. Its version 0 is the start of all rows."""
    plan = plan_of(setting, LEVELS, seed)
    clients, config = clients_of(setting, fuses=False), plan.task.client.config()
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
        if evaluated(setting, round_):
            alone = [(setting.trainer, client.own, client) for client in clients]
            yield Point(round_, np.nan, np.nan, *score(setting, alone), 0, 0)


def measured(
    setting: Setting, plan: Prepared, clients: Sequence[Client], shares: Sequence[Share], state: recipe.ServerState,
    up: int, down: int,
) -> Point:  # fmt: skip
    """A version on every device's held-out examples, without and with what devices keep.

    Adapters are fused after the last round only, as in FDLoRA's paper: the search takes as long as rounds of training.
    """
    everybody, own = [], []
    for client, part in zip(clients, shares, strict=True):
        cohort = cohort_of(plan.grouping, state.cohorts, client.name)
        adapter, second = part.whole(held(part, state.view, cohort), np.empty(0, np.float32), cohort=cohort)
        everybody.append((with_second(setting.trainer, second), adapter, client))
        if plan.grouping:  # what a device gets is its cohort's; nobody has a model for all
            own.append(everybody[-1])
        elif part.division.sharing.fusion:
            if state.version == setting.rounds:
                own.append((*fused(setting, part, client, state.view), client))
        elif part.division.personal(part.rank) is not None:
            adapter, second = part.whole(state.view, client.own)
            own.append((with_second(setting.trainer, second), adapter, client))
    alone = score(setting, own) if own else (np.nan, np.nan)
    shared = (np.nan, np.nan) if plan.grouping else score(setting, everybody)
    return Point(state.version, *shared, *alone, up, down)


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


def arguments() -> argparse.Namespace:
    """The command line, completed from the setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(), help="of shakespeare, newsgroups20 and models")
    parser.add_argument("--setting", choices=list(SETTINGS), default="shakespeare")
    for name, value in SETTINGS["shakespeare"].items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), help="instead of the setting's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--only", nargs="*", default=[], help="names of rows")
    parser.add_argument("--quick", action="store_true", help="two rounds, three clients, nothing written")
    parser.add_argument("--render", action="store_true", help="only draw and write the tables of the last results")
    args = parser.parse_args()
    for name, value in SETTINGS[args.setting].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.quick:
        args.rounds, args.steps, args.clients, args.eval_every, args.seeds = 2, 2, 3, 2, 1
    return args


def main() -> None:
    args = arguments()
    if args.render:
        return strategies_report.render(METHODS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds) if args.seed is None else [args.seed]:
            setting = prepare(args, Path(folder), seed)
            heads = any(t.kind == "head" for t in setting.bundle.manifest.layout.tensors)
            wanted = {n: m for n, m in METHODS.items() if n in (args.only or METHODS) and (heads or n not in HEADED)}
            bar = tqdm(total=len(wanted) * args.rounds, desc=f"{args.setting}, seed {seed}", mininterval=10)
            for name, method in wanted.items():
                started = time.process_time()
                made = local_only(setting, seed, bar) if name == "local only" else federated(setting, method, seed, bar)
                points = list(made)
                seconds = time.process_time() - started
                where = {"setting": args.setting, "devices": len(setting.data), "strategy": name, "seed": seed}
                rows += [{**where, **row(p, seconds if p is points[-1] else None)} for p in points]
                if not args.quick:  # a long run that is stopped leaves what it has
                    save(args, rows)
            bar.close()
    print("\n".join(strategies_report.table(rows)))


def save(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as far as the run has come, in place of those of the same setting, strategy and seed."""
    path = RESULTS / "strategies.json"
    kept = json.loads(path.read_text()) if path.exists() else {"meta": {}, "rows": []}
    new = {_key(r) for r in rows}
    every = [*(r for r in kept["rows"] if _key(r) not in new), *rows]
    every.sort(key=lambda r: (list(SETTINGS).index(r["setting"]), list(METHODS).index(r["strategy"]), r["seed"]))
    how = {k: v for k, v in vars(args).items() if k not in ("data_root", "quick", "render", "only", "seed", "setting")}
    known = {k: v for k, v in kept["meta"].items() if k.startswith("how_") and k != f"how_{args.setting}"}
    write_report("strategies", {**known, f"how_{args.setting}": how}, every)


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["setting"], row["strategy"], row["seed"]


def row(point: Point, seconds: float | None) -> dict[str, Any]:
    """One version of one run; a number that does not exist is null. `cpu_s`: of the whole run, evaluation included."""
    values = {k: None if v != v else (round(v, 5) if isinstance(v, float) else v) for k, v in point._asdict().items()}
    return {**values, "cpu_s": None if seconds is None else round(seconds, 1)}


if __name__ == "__main__":
    main()
