"""The phone's codec, Kotlin on a JVM, beside Python's in the same run: top-k, encode and decode.

    android_demo/check.sh                       # compiles it, once
    python benchmarks/android_codec.py [--quick] [--sizes 327680 2442240 11272192] [--repeats 7]

Both sides get the same vector and take turns on one thread each; times are medians of CPU times after a warm-up of the
JVM's compiler. A JVM is not a phone: what this says is what the Kotlin costs where NumPy's vector instructions are the
yardstick. Bytes must agree within the freedom of the encoder. Writes benchmarks/results/android_codec.json.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from report import write_report

from covey_shared.codec import codec_from_spec, topk
from covey_shared.layout import Layout, Tensor, Vector
from covey_shared.messages import Spec, StageSpec

SIZES = (327_680, 2_442_240, 11_272_192)
DENSITY = 1 / 16
CHAINS: dict[str, Spec] = {
    "topk 1/16, auto": (
        StageSpec(name="topk", args={"density": DENSITY}),
        StageSpec(name="pack", args={"values": "auto", "error": 0.1}),
    ),
    "sign": (StageSpec(name="pack", args={"values": "sign"}),),
    "levels 0.3": (StageSpec(name="levels", args={"error": 0.3}),),
}
CLASSPATH = Path(__file__).parent.parent / "android_demo" / "build" / "benchmark.classpath"
WARM_UP = 8  # calls on a small vector, and two of each on the real one: the JVM compiles what is called often


class Jvm:
    """The benchmark program in a JVM, one line in, one line out."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["java", "-Xmx2g", "-XX:+UseSerialGC", "-cp", CLASSPATH.read_text().strip(), "covey.benchmark.MainKt"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def ask(self, line: str) -> str:
        """The answer to one line."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def timed(self, line: str) -> tuple[float, int]:
        """Seconds of CPU time and the number that the operation gives."""
        seconds, result = self.ask(line).split()
        return float(seconds), int(result)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def words(spec: Spec) -> str:
    """A chain as the JVM program reads it."""
    return " ".join(" ".join([s.name, *(f"{k}={v}" for k, v in s.args.items())]) for s in spec)


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU time of this thread, and the result."""
    before = time.thread_time()
    result = work()
    return time.thread_time() - before, result


def turns(repeats: int, python: Callable[[], Any], jvm: Jvm, line: str) -> tuple[float, float, Any, int]:
    """Medians of both sides, taking turns; the results of the last call."""
    for _ in range(2):
        python()
        jvm.timed(line)
    ours, theirs, made, said = [], [], None, 0
    for _ in range(repeats):
        seconds, made = cpu(python)
        ours.append(seconds)
        seconds, said = jvm.timed(line)
        theirs.append(seconds)
    return median(ours), median(theirs), made, said


def row(
    n: int, operation: str, chain: str, python: float, jvm: float, python_bytes: int, jvm_bytes: int
) -> dict[str, Any]:
    """One result. `ratio`: the JVM's time over Python's."""
    return {
        "n": n, "operation": operation, "chain": chain, "python_ms": round(1000 * python, 2),
        "jvm_ms": round(1000 * jvm, 2), "ratio": round(jvm / python, 2), "python_bytes": python_bytes,
        "jvm_bytes": jvm_bytes,
    }  # fmt: skip


def measure(vector: Vector, jvm: Jvm, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """All operations on one vector."""
    n = len(vector)
    layout = Layout((Tensor(name="t", shape=(n,), kind="block", init="zeros"),))
    path = folder / "vector"
    vector.astype("<f4").tofile(path)
    jvm.ask(f"load {path}")
    k = int(n * DENSITY)
    a, b, _, kept = turns(repeats, partial(topk, vector, k), jvm, f"topk {DENSITY}")
    assert kept == k
    rows = [row(n, "top-k", "1/16", a, b, 0, 0)]
    for name, spec in CHAINS.items():
        codec = codec_from_spec(spec, layout)
        state = codec.init(0)
        a, b, (parts, _), jvm_bytes = turns(repeats, partial(codec.encode, vector, state), jvm, f"encode {words(spec)}")
        rows.append(row(n, "encode", name, a, b, sum(map(len, parts.values())), jvm_bytes))
        a, b, entries, count = turns(repeats, partial(codec.decode, parts), jvm, f"decode {words(spec)}")
        assert entries.count == count
        rows.append(row(n, "decode", name, a, b, rows[-1]["python_bytes"], jvm_bytes))
    return rows


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small size, few repeats")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if not CLASSPATH.is_file():
        print("android_codec.py: nothing is compiled; run android_demo/check.sh first", file=sys.stderr)
        return 0 if args.quick else 1
    sizes, repeats = ((SIZES[0],), 3) if args.quick else (tuple(args.sizes), args.repeats)
    rng, jvm = np.random.default_rng(0), Jvm()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(WARM_UP):
            measure(rng.standard_normal(200_000, np.float32), jvm, Path(folder), 1)
        for n in sizes:
            rows += measure(rng.standard_normal(n, np.float32), jvm, Path(folder), repeats)
    jvm.close()
    print(
        f"{'n':>11} {'operation':9} {'chain':16} {'Python ms':>10} {'JVM ms':>10} {'ratio':>6} "
        f"{'bytes':>10} {'JVM':>10}"
    )
    for r in rows:
        print(
            f"{r['n']:>11,} {r['operation']:9} {r['chain']:16} {r['python_ms']:>10} {r['jvm_ms']:>10} {r['ratio']:>6} "
            f"{r['python_bytes']:>10,} {r['jvm_bytes']:>10,}"
        )
    if not args.quick:
        java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr.splitlines()[0]
        write_report("android_codec", {"java": java, "repeats": repeats}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
