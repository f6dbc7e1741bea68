"""What the codec costs: bits against the entropy bound, and time against a copy of the vector and `torch.topk`.

    python benchmarks/codec.py [--quick] [--sizes 327680 2442240 11272192] [--repeats 7]

Sparse: exact top-k, then SPK1 with a relative error of 10 % of the values. Dense: signs, and levels at several errors,
LVL1 (`levels`) beside SPK1 (`lev`). Candidates take turns within one process on one thread, and each time is the median
of CPU times, so that a busy machine disturbs the ratios little. Prints tables and writes benchmarks/results/codec.json.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from report import write_report

from covey_shared.codec import codec_from_spec, topk
from covey_shared.codec import presets as preset
from covey_shared.codec.spk1 import decode, encode
from covey_shared.entries import Entries
from covey_shared.layout import Layout, Tensor, Vector
from covey_shared.messages import Spec, StageSpec

SIZES = (327_680, 2_442_240, 11_272_192)  # LoRA of a toy, of a 135M (r=8) and of a 1B model (r=16), every linear layer
DENSITIES = (4, 16, 64, 256)
ERRORS = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1)
RANK, WIDTH = 16, 2048
Row = dict[str, Any]


def layout_of(n: int) -> Layout:
    """Alternating A [16, 2048] and B [2048, 16], as many as fit, and the rest."""
    size = RANK * WIDTH
    shapes = [(RANK, WIDTH) if i % 2 == 0 else (WIDTH, RANK) for i in range(n // size)]
    shapes += [(n % size, 1)] if n % size else []
    return Layout(tuple(Tensor(name=f"t{i}", shape=s, kind="block", init="zeros") for i, s in enumerate(shapes)))


def iid(n: int, rng: np.random.Generator) -> Vector:
    """Gaussian: nothing for a code to find."""
    return rng.standard_normal(n, np.float32)


def clustered(n: int, rng: np.random.Generator) -> Vector:
    """Gaussian times lognormal scales of tensors (sigma 0.5) and rows (sigma 1), as updates by plain SGD are."""
    x = rng.standard_normal(n, np.float32)
    for tensor, where in layout_of(n).slices():
        scale = np.exp(rng.normal(0, 0.5) + rng.standard_normal((tensor.shape[0], 1)))
        x[where] = (x[where].reshape(tensor.shape) * scale).reshape(-1)
    return x


DATA: dict[str, Callable[[int, np.random.Generator], Vector]] = {"iid": iid, "clustered": clustered}


def bound(n: int, k: int) -> float:
    """log2 C(n, k) / k: the fewest bits an index can take if every choice is as likely."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2) / k


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median CPU time of each, in milliseconds; they take turns, so that what disturbs one disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            began = time.process_time()
            run()
            times[name].append(1000 * (time.process_time() - began))
    return {name: float(np.median(t)) for name, t in times.items()}


def torch_topk(x: Vector, k: int) -> Callable[[], object] | None:
    """`torch.topk` of the magnitudes on one thread; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    magnitude = torch.from_numpy(np.abs(x))
    return lambda: torch.topk(magnitude, k, sorted=False)


def sparse_row(name: str, x: Vector, one_in: int, repeats: int) -> Row:
    """One density."""
    n, k = len(x), len(x) // one_in
    where = topk(x, k)
    kept = Entries(n, where, x[where])
    index_bits = len(encode(kept, 0, "sign")) * 8 / k - 1
    payload = encode(kept, 0)
    copy, server = np.empty_like(x), np.zeros(n, np.float32)

    def decode_and_add() -> None:
        entries = decode(payload, n, 0)
        server[entries.where] += entries.values

    candidates: dict[str, Callable[[], object]] = {
        "memcpy": lambda: np.copyto(copy, x),
        "select": lambda: topk(x, k),
        "encode": lambda: encode(kept, 0),
        "decode": decode_and_add,
    }
    rival = torch_topk(x, k)
    if rival:
        candidates["torch_topk"] = rival
    ms = interleaved(candidates, repeats)
    got = decode(payload, n, 0).values
    row = {
        "kind": "sparse", "data": name, "n": n, "density": f"1/{one_in}", "entries": k, "payload_bytes": len(payload),
        "bits_per_entry": len(payload) * 8 / k, "index_bits": index_bits, "index_bound": bound(n, k),
        "index_excess_percent": 100 * (index_bits / bound(n, k) - 1), "times_smaller_than_dense": 4 * n / len(payload),
        "value_error": float(np.linalg.norm(got - kept.values) / np.linalg.norm(kept.values)),
        **{f"{name}_ms": t for name, t in ms.items()},
        "select_encode_of_memcpy": (ms["select"] + ms["encode"]) / ms["memcpy"],
        "decode_of_memcpy": ms["decode"] / ms["memcpy"],
    }  # fmt: skip
    if rival:
        row["select_encode_of_torch_topk"] = (ms["select"] + ms["encode"]) / ms["torch_topk"]
        row["decode_of_torch_topk"] = ms["decode"] / ms["torch_topk"]
    return row


def dense_rows(name: str, x: Vector, repeats: int) -> Iterator[Row]:
    """Signs, and levels at each error: bits a coordinate against the error of the whole vector."""
    layout = layout_of(len(x))
    chains: dict[str, Spec] = {"sign": preset.sign()}
    for e in ERRORS:
        chains[f"levels {e}"] = preset.levels(e)
        chains[f"lev {e}"] = (StageSpec(name="pack", args={"values": "lev", "error": e}),)
    for label, spec in chains.items():
        codec = codec_from_spec(spec, layout)
        state = codec.init(0)
        parts, _ = codec.encode(x, state)
        lost = np.square(codec.decode(parts).dense() - x, dtype=np.float64).sum() / np.square(x, dtype=np.float64).sum()
        candidates: dict[str, Callable[[], object]] = {
            "memcpy": partial(np.copyto, np.empty_like(x), x),
            "encode": partial(codec.encode, x, state),
            "decode": partial(codec.decode, parts),
        }
        ms = interleaved(candidates, repeats)
        size = sum(map(len, parts.values()))
        yield {
            "kind": "dense", "data": name, "n": len(x), "codec": label, "payload_bytes": size,
            "bits_per_coordinate": size * 8 / len(x), "energy_lost": float(lost),
            "times_smaller_than_dense": 4 * len(x) / size,
            **{f"{name}_ms": t for name, t in ms.items()},
        }  # fmt: skip


def print_sparse(row: Row) -> None:
    of_topk = row.get("select_encode_of_torch_topk", math.nan)
    print(
        "{data:>9} {n:>10,} {density:>6} {bits_per_entry:6.2f} {index_bits:6.2f} {index_excess_percent:+6.1f}% "
        "{value_error:6.1%} {times_smaller_than_dense:6.0f}x {select_ms:7.1f} {encode_ms:7.1f} {decode_ms:7.1f} "
        "{select_encode_of_memcpy:6.1f} ".format(**row)
        + f"{of_topk:7.3f}"
    )


def print_dense(row: Row) -> None:
    print(
        "{data:>9} {n:>10,} {codec:>10} {bits_per_coordinate:6.3f} {energy_lost:6.3f} "
        "{times_smaller_than_dense:6.1f}x {encode_ms:7.1f} {decode_ms:7.1f}".format(**row)
    )


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest size and three repeats; writes nothing")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="lengths of the vectors")
    parser.add_argument("--repeats", type=int, default=7, help="times that each candidate runs")
    args = parser.parse_args()
    sizes, repeats = (SIZES[:1], 3) if args.quick else (args.sizes, args.repeats)
    vectors = [(name, make(n, np.random.default_rng(n))) for n in sizes for name, make in DATA.items()]
    rows = []
    print("Sparse: top-k and SPK1 at 10 % error. Times in ms of one thread; the last two columns are (select + encode)")
    print("as a multiple of copying the vector and of torch.topk alone.\n")
    print("     data          n  share  bits/  index  over  value  smaller  select  encode  decode    of     of")
    print("                             entry   bits  bound error   than f32                        copy   topk")
    for name, x in vectors:
        for one_in in DENSITIES:
            rows.append(sparse_row(name, x, one_in, repeats))
            print_sparse(rows[-1])
    print("\nDense: every coordinate. `lost` is the share of the vector's energy that does not arrive.\n")
    print("     data          n      codec  bits/   lost smaller  encode  decode")
    for name, x in vectors:
        for row in dense_rows(name, x, repeats):
            rows.append(row)
            print_dense(row)
    if not args.quick:
        write_report(
            "codec", {"repeats": repeats, "timing": "median of CPU time, one thread, candidates in turn"}, rows
        )


if __name__ == "__main__":
    main()
